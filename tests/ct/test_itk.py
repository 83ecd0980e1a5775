"""MetaImage and NRRD, and SimpleITK as the second reader of what we read ourselves."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import GREY, Window
from ctmasknet.errors import CTMaskNetError
from tests.helpers import ct_samples, second_reader

HU = ct_samples.volume()
SEEN = Window().to_uint8(HU)
KINDS = ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"]


@pytest.fixture
def sitk():
    return pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")


def image_of(sitk, values, codes="LPS"):
    """(slices, H, W) upright values on the samples' grid, axes stored towards ``codes``."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((ct_samples.SPACING_MM[1], ct_samples.SPACING_MM[0], ct_samples.SPACING_MM[2]))
    image.SetOrigin(ct_samples.ORIGIN_LPS_MM)
    return sitk.DICOMOrient(image, codes)


def write(sitk, path, values=HU, codes="LPS", compressed=False):
    sitk.WriteImage(image_of(sitk, values, codes), str(path), compressed)
    return path


def only(path, **given):
    (scan,) = read_scans([path], **given)
    return scan


def hu(scan):
    return np.stack([one.hu() for one in scan.slices])


def header_changed(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_hu_and_geometry(sitk, tmp_path, name, compressed):
    scan = only(write(sitk, tmp_path / name, compressed=compressed))
    assert (scan.kind, scan.scan, scan.patient, scan.problems) == ("itk", "a", "", ())
    np.testing.assert_array_equal(hu(scan), HU)
    np.testing.assert_allclose(scan.affine, ct_samples.AFFINE, atol=1e-4)
    assert scan.slices[1].spacing_mm == pytest.approx(ct_samples.SPACING_MM[:2])
    assert [one.position_mm for one in scan.slices] == pytest.approx([100, 105, 110, 115])
    assert [one.frame for one in scan.slices] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
def test_the_file_of_the_voxels_is_nothing_left_out(sitk, tmp_path, name):
    write(sitk, tmp_path / name)
    assert only(tmp_path).problems == ()


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_every_orientation(sitk, tmp_path, name):
    for codes in ct_samples.ORIENTATIONS:
        scan = only(write(sitk, tmp_path / name, codes=codes))
        np.testing.assert_array_equal(hu(scan), HU, err_msg=codes)
        np.testing.assert_allclose(scan.affine, ct_samples.AFFINE, atol=1e-4, err_msg=codes)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_types_and_rescale(sitk, tmp_path, dtype):
    for name in KINDS[::2]:
        grey = only(write(sitk, tmp_path / name, SEEN.astype(dtype)), rescale=GREY)
        np.testing.assert_array_equal([one.pixels(Window()) for one in grey.slices], SEEN)
    if dtype != "u1":
        scan = only(write(sitk, tmp_path / name, (HU + 1024).astype(dtype)), rescale=(1, -1024))
        np.testing.assert_array_equal(hu(scan), HU)
    with pytest.raises(CTMaskNetError, match="are not HU of a chest"):
        only(tmp_path / name)


def test_an_uncompressed_metaimage_is_read_slice_by_slice(sitk, tmp_path, monkeypatch):
    asked = []
    extract = sitk.ImageFileReader.SetExtractSize
    monkeypatch.setattr(
        sitk.ImageFileReader,
        "SetExtractSize",
        lambda reader, size: (asked.append(size), extract(reader, size)),
    )
    scan = only(write(sitk, tmp_path / "a.mha"))
    assert asked == [(48, 40, 1)], "one slice tells that it is a chest"
    np.testing.assert_array_equal(hu(scan), HU)
    assert asked == [(48, 40, 1)] * 5


def test_big_endian(sitk, tmp_path):
    path = write(sitk, tmp_path / "a.mha")
    content = path.read_bytes()
    start = len(content) - HU.nbytes
    head = content[:start].replace(b"ByteOrderMSB = False", b"ByteOrderMSB = True")
    path.write_bytes(head + HU.astype(">i2").tobytes())
    np.testing.assert_array_equal(hu(only(path)), HU)


REFUSED = {
    "no matrix": ("a.mha", b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b"", "no orientation"),
    "no space": ("a.nrrd", b"space: left-posterior-superior", b"space dimension: 3", "orientation"),
    "a slope": ("a.mha", b"DimSize", b"ElementToIntensityFunctionSlope = 2\nDimSize", "a slope"),
    "huge": ("a.mha", b"DimSize = 48 40 4", b"DimSize = 48 40 4000000000", "truncated|claims"),
    "huge sides": (
        "a.mha",
        b"DimSize = 48 40 4",
        b"DimSize = 48000 40000 4",
        "longest side|voxels, more than",
    ),
    "huge nrrd": ("a.nrrd", b"sizes: 48 40 4", b"sizes: 4000 4000 4000", "voxels, more than"),
    "a bomb": ("a.nrrd", b"sizes: 48 40 4", b"sizes: 4000 4000 100", "as no CT does"),
    "4D": ("a.nrrd", b"sizes: 48 40 4", b"sizes: 48 40 2 2", "sizes is"),
    "list": ("a.mhd", b"ElementDataFile = a.raw", b"ElementDataFile = LIST", "several files"),
    "pattern": ("a.mhd", b"a.raw", b"s%03d.raw 1 4 1", "several files"),
    "elsewhere": ("a.mhd", b"a.raw", b"../a.raw", "another folder"),
    "absolute": ("a.mhd", b"a.raw", b"/etc/passwd", "another folder"),
    "nrrd elsewhere": ("a.nhdr", b"data file: a.raw", b"data file: ../a.raw", "another folder"),
    "missing": ("a.mhd", b"a.raw", b"b.raw", "b.raw, which is missing"),
    "no end": ("a.mha", b"ElementDataFile", b"Element", "header does not end"),
    "spacing": ("a.mha", b"ElementSpacing = 1.5", b"ElementSpacing = 0", "mm large|orientation"),
    "a crash": ("a.mha", b"NDims = 3", b"NDims = 40093051 3", "ndims is"),
    "text": ("a.mha", b"BinaryData = True", b"BinaryData = False", "binarydata is"),
    "text nrrd": ("a.nrrd", b"encoding: raw", b"encoding: ascii", "encoding is"),
    "twice": ("a.mha", b"NDims = 3", b"NDims = 3\nNDims = 40093051", "'ndims' twice"),
    "nan": ("a.mha", b"Offset = -30", b"Offset = nan", "offset is .nan"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(sitk, tmp_path, case):
    name, old, new, said = REFUSED[case]
    path = header_changed(write(sitk, tmp_path / name), old, new)
    with pytest.raises(CTMaskNetError, match=said) as error:
        only(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_truncated(sitk, tmp_path, name, compressed, capfd):
    path = write(sitk, tmp_path / name, compressed=compressed)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CTMaskNetError, match="truncated"):
        only(path)
    assert capfd.readouterr() == ("", "")


def test_changed_since(sitk, tmp_path):
    scan = only(write(sitk, tmp_path / "a.mha"))
    write(sitk, tmp_path / "a.mha", np.concatenate([HU, HU]))
    with pytest.raises(CTMaskNetError, match="changed while it was read"):
        scan.slices[0].hu()


def test_without_simple_itk(tmp_path, monkeypatch):
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image\nNDims = 3\n")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(CTMaskNetError, match=r"a\.mha: .*pip install SimpleITK"):
        only(tmp_path / "a.mha")


def theirs(sitk, path, upright="LPS"):
    """HU (slices, H, W) upright and the affine in RAS as SimpleITK has them."""
    if path.is_dir():
        (series,) = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series))
    else:
        image = sitk.ReadImage(str(path))
    image = sitk.DICOMOrient(image, upright)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), np.diag([-1, -1, 1, 1]) @ affine


class TestSecondReader:
    """HU, order, orientation and spacing as SimpleITK reads them."""

    @pytest.mark.parametrize("dtype", ["<i2", ">f4"])
    def test_nifti(self, sitk, tmp_path, dtype):
        for codes in ct_samples.ORIENTATIONS:
            path = tmp_path / f"{codes}.nii.gz"
            nib.save(ct_samples.nifti(HU, codes, dtype), path)
            self.compare(sitk, path)

    def test_nifti_with_a_slope(self, sitk, tmp_path):
        image = ct_samples.nifti((HU + 1024) // 2, "RAS")
        image.header.set_slope_inter(2, -1024)
        nib.save(image, tmp_path / "a.nii")
        self.compare(sitk, tmp_path / "a.nii")

    @pytest.mark.parametrize(
        "stored",
        [
            {},
            {"slope": 0.5, "intercept": -2000},
            {"signed": True, "intercept": 0},
            {"transposed": True},
            {"flip_rows": True, "flip_columns": True},
            {"transposed": True, "flip_columns": True},
        ],
    )
    def test_dicom(self, sitk, tmp_path, stored):
        self.compare(sitk, ct_samples.dicom_series(tmp_path / "a", HU, **stored))

    @staticmethod
    def compare(sitk, path):
        values, affine = theirs(sitk, path)
        scan = only(path)
        np.testing.assert_array_equal(hu(scan), values, err_msg=path.name)
        np.testing.assert_allclose(scan.affine, affine, atol=1e-3, err_msg=path.name)


def test_second_reader(sitk):
    """Every variant is as SimpleITK has it, or stands among those that are otherwise on purpose."""
    found = {row["name"]: row for row in second_reader.compared(real=None)}
    unlike = {name for name, row in found.items() if not second_reader.is_alike(row)}
    assert unlike == second_reader.OTHERWISE.keys()
    assert len(found) == 45
    for name in unlike:
        apart = found[name].get("hu")
        assert "refused" in found[name] or apart == 0 or "NIfTI" in name, found[name]
    assert 5.9 < found["DICOM, gantry tilted 6 degrees"]["degrees"] < 6.1


def test_the_table_in_docs_is_of_these_variants(sitk, repository, tmp_path):
    rows = json.loads((repository / "docs" / "results" / "simpleitk.json").read_text())
    names = [row["name"] for row in rows if not row["name"].startswith("public")]
    assert names == [name for name, _ in second_reader.made(tmp_path)]


def test_public_files(sitk):
    real = Path(__file__).resolve().parents[3] / "shared" / "data" / "real"
    if not real.is_dir():
        pytest.skip(f"no public files in {real}")
    rows = [row for name in ("volumes", "mixed_series") for row in _compared(real / name)]
    assert len(rows) >= 3
    assert all(map(second_reader.is_alike, rows)), rows


def _compared(path):
    return second_reader.compare(path.name, path)
