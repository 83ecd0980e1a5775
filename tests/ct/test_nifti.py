import gzip
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from ctmasknet.ct import nifti as ct_nifti
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import OUTSIDE_HU
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.loading import ahead
from tests.helpers import ct_samples
from tests.helpers.ct_samples import AFFINE, ORIENTATIONS, nifti

HU = ct_samples.volume()
NIBABEL_DATA = os.path.join(os.path.dirname(nib.__file__), "tests", "data")


def read_back(image, path):
    nib.save(image, path)
    (scan,) = read_scans([path])
    return scan


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_comes_out_upright(tmp_path, codes):
    image = nifti(HU, codes)
    assert "".join(nib.aff2axcodes(image.affine)) == codes
    scan = read_back(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.stack([one.hu() for one in scan.slices]), HU)
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-4)
    assert [one.position_mm for one in scan.slices] == [100, 105, 110, 115]
    # The marker lies on the patient's left by the stored affine, and on the right of the image.
    stored = np.argwhere(np.asarray(image.dataobj) == 300)
    middle = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
    assert (nib.affines.apply_affine(image.affine, stored)[:, 0] < middle[0]).all()
    assert (np.argwhere(scan.slices[0].hu() == 300)[:, 1] > HU.shape[2] / 2).all()
    # A frame's number is its place along the stored slice axis.
    axis = next(place for place, code in enumerate(codes) if code in "IS")
    one = scan.slices[1]
    plane = np.take(np.asarray(image.dataobj), one.frame, axis)
    assert sorted(plane.ravel()) == sorted(HU[1].ravel())
    assert one.name == f"{tmp_path}/a.nii.gz#{one.frame:04d}"


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", "<f4", ">f8"])
def test_types_and_scaling(tmp_path, dtype):
    scan = read_back(nifti(HU, dtype=dtype), tmp_path / "a.nii")
    np.testing.assert_array_equal(scan.slices[2].hu(), HU[2])
    image = nifti((HU + 1024) // 2, dtype="<u2")
    image.header.set_slope_inter(2, -1024)
    scan = read_back(image, tmp_path / "b.nii")
    np.testing.assert_array_equal(scan.slices[2].hu(), (HU[2] + 1024) // 2 * 2 - 1024)


def test_scaling_is_computed_in_float64(tmp_path):
    stored = np.random.default_rng(0).uniform(-900, 900, HU.shape).astype(np.float32)
    image = nifti(stored, dtype="<f4")
    image.header.set_slope_inter(0.3, -300.7)
    (one, *_) = read_back(image, tmp_path / "a.nii").slices
    slope, intercept = float(np.float32(0.3)), float(np.float32(-300.7))
    expected = (stored[0].astype(np.float64) * slope + intercept).astype(np.float32)
    np.testing.assert_array_equal(one.hu(), expected)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_voxels_within_the_header_are_damage(tmp_path, suffix, version):
    path = tmp_path / f"a.{suffix}"
    nib.save(nifti(HU, version=version), tmp_path / "a.nii")
    whole = bytearray((tmp_path / "a.nii").read_bytes())
    place, size = ((108, 4), (168, 8))[version - 1]  # vox_offset: float32, int64
    whole[place : place + size] = bytes(size)
    path.write_bytes(gzip.compress(whole) if suffix == "nii.gz" else whole)
    with pytest.raises(CTMaskNetError, match="its voxels begin at byte 0, within its header"):
        read_scans([path])


def test_what_was_not_measured_is_outside(tmp_path):
    hu = HU.astype(np.float32)
    hu[:, :2, 4:20] = np.nan
    hu[:, 2, 4:20] = -3024
    found = read_back(nifti(hu, dtype="<f4"), tmp_path / "a.nii").slices[0].hu()
    assert (found[:2, 4:20] == OUTSIDE_HU).all()
    np.testing.assert_array_equal(found[2:], hu[0, 2:])


@pytest.mark.parametrize("unit, mm", [("meter", 1000), ("micron", 0.001), ("mm", 1)])
def test_units_and_qform(tmp_path, unit, mm):
    image = nifti(HU)
    affine = AFFINE.copy()
    affine[:3] /= mm
    image.set_sform(None, 0)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units(unit)
    scan = read_back(image, tmp_path / "a.nii")
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-3)
    assert scan.slices[0].spacing_mm == pytest.approx(ct_samples.SPACING_MM[:2], abs=1e-4)


def test_the_sform_goes_before_the_qform_and_unlike_voxel_sizes_are_reported(tmp_path):
    scaled = AFFINE @ np.diag([1.2, 1, 1, 1])
    scan = read_back(with_affine(AFFINE, scaled), tmp_path / "a.nii")
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-4)
    assert scan.problems == (
        "its sform states voxels of 1.5 x 2 x 5 mm, which are used, its qform of 1.8 x 2 x 5 mm",
    )
    moved = AFFINE.copy()
    moved[:3, 3] += 7
    scan = read_back(with_affine(moved, AFFINE @ np.diag([1.001, 1, 1, 1])), tmp_path / "b.nii")
    np.testing.assert_allclose(scan.affine, moved, atol=1e-4)
    assert scan.problems == ()


@pytest.mark.parametrize("name", ["CT.NII.GZ", "CT.nii", "CT.Nii.gz"])
def test_a_volume_is_called_by_its_file_without_extension(tmp_path, name):
    path = tmp_path / "a.nii"
    nib.save(nifti(HU), path)
    if name.lower().endswith("gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    (scan,) = read_scans([path.rename(tmp_path / name)])
    assert scan.scan == scan.slices[0].scan == "CT"


def rotated(degrees):
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


def with_affine(sform, qform=None):
    image = nifti(HU)
    image.set_sform(sform, int(sform is not None))
    image.set_qform(qform, int(qform is not None))
    return image


def padded(hu, value, px=12):
    """With ``value`` where a scanner measures nothing: the corners of a slice."""
    hu = hu.astype(np.int16)
    for rows in (slice(None, px), slice(-px, None)):
        hu[:, rows, :px] = hu[:, rows, -px:] = value
    return hu


@pytest.mark.parametrize(
    "image, reason",
    [
        (lambda: with_affine(None), "states no orientation"),
        (lambda: with_affine(rotated(12)), "oblique, its axes lean 12 degrees"),
        (lambda: with_affine(AFFINE, AFFINE @ np.diag([-1, 1, 1, 1])), "sform and qform state"),
        (lambda: with_affine(np.diag([1, 1, 0, 1])), "voxels are"),
        (lambda: nifti((HU + 1024).astype(np.int16)), "0 to 1724, are not HU"),
        (lambda: nifti(np.clip(HU // 8 + 128, 0, 255)), "not HU"),
        (lambda: nifti(padded(HU + 1024, -2000)), "-2000 to 1724, are not HU"),
        (lambda: nifti(padded(HU + 1024, -3024)), "-3024 to 1724, are not HU"),
        (lambda: nifti((HU * 2).astype(np.int16)), "-2048 to 1400, are not HU"),
        (lambda: nifti(HU / 4000 + 0.3, dtype="<f4"), "not HU"),
        (lambda: nifti(HU * 0 + np.nan, dtype="<f4"), "no number at all"),
        (lambda: nifti(HU * 1e3, dtype="<f4"), "not HU"),
        (lambda: nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), AFFINE), "4 dimensions"),
        (lambda: nib.Nifti1Image(np.zeros((4, 4, 4), np.complex64), AFFINE), "complex64"),
        (
            lambda: nib.Nifti1Image(np.zeros((4, 4, 4), [(c, "u1") for c in "RGB"]), AFFINE),
            "no single number",
        ),
        (lambda: nib.Nifti1Image(np.zeros((1, 4097, 2), np.int16), AFFINE), "4096 px"),
        (
            lambda: nib.Nifti1Image(np.zeros((1, 1, 10_001), np.int16), AFFINE),
            "claims 10001 slices, more than the 10000",
        ),
    ],
)
def test_what_is_no_ct_volume_is_refused_with_the_reason(tmp_path, image, reason):
    nib.save(image(), tmp_path / "a.nii.gz")
    with pytest.raises(CTMaskNetError, match=rf"a\.nii\.gz: .*{reason}"):
        read_scans([tmp_path / "a.nii.gz"])


@pytest.mark.parametrize("air_px, read", [(19, False), (20, True)])
def test_one_percent_of_air_in_one_slice_tells_hu(tmp_path, air_px, read):
    hu = np.full((4, 40, 48), 40)  # 1,920 px a slice
    hu[3, 0, :air_px] = -201
    nib.save(nifti(hu), tmp_path / "a.nii")
    if read:
        assert len(read_scans([tmp_path])) == 1
        return
    with pytest.raises(CTMaskNetError, match="its values, -201 to 40, are not HU of a chest"):
        read_scans([tmp_path])


@pytest.mark.parametrize(
    "hu, told",
    [
        (HU, False),
        (padded(HU, -2000), False),
        (padded(HU, -1024), False),
        (HU.clip(-1000, 3000), False),
        (padded(HU + 1024, -1000, px=6), True),  # the padding alone is air
        (HU.clip(-250, 250), True),
        (HU - 1024, True),  # an offset applied twice: tissue is at lung's values
    ],
)
def test_values_that_may_not_be_hu_are_a_problem(tmp_path, hu, told):
    scan = read_back(nifti(hu.astype(np.int16)), tmp_path / "a.nii")
    assert [f"{hu.min()} to {hu.max()}, may not be HU" in line for line in scan.problems] == [
        True
    ] * told


def test_a_trailing_axis_of_one_is_no_fourth_dimension(tmp_path):
    image = nib.Nifti1Image(HU.transpose(2, 1, 0)[..., None], AFFINE)
    np.testing.assert_array_equal(read_back(image, tmp_path / "a.nii").slices[1].hu(), HU[1])


def test_small_lean_is_read(tmp_path):
    scan = read_back(with_affine(rotated(6)), tmp_path / "a.nii")
    np.testing.assert_array_equal(scan.slices[3].hu(), HU[3])
    np.testing.assert_allclose(scan.affine, rotated(6), atol=1e-4)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_changed_file_is_not_read_on(tmp_path, monkeypatch, name):
    scan = read_back(nifti(HU), tmp_path / name)
    monkeypatch.setattr(ct_nifti, "_stored", {})
    nib.save(nifti(HU[:3]), tmp_path / name)
    with pytest.raises(CTMaskNetError, match="changed while it was read"):
        scan.slices[0].hu()


@pytest.mark.parametrize(
    "codes, name, volumes",
    [("LPS", "a.nii", 0), ("LPS", "a.nii.gz", 1), ("SPL", "a.nii", 1), ("PSR", "a.nii.gz", 1)],
)
def test_a_thousand_slices_sit_in_memory_once_as_stored_or_not_at_all(
    tmp_path, monkeypatch, codes, name, volumes
):
    monkeypatch.setattr(ct_nifti, "_stored", {})
    monkeypatch.setattr(ct_nifti, "CHUNK_BYTES", 2**18)
    hu = np.random.default_rng(0).integers(-1000, 400, (1000, 96, 96), np.int16)
    nib.save(nifti(hu, codes), tmp_path / name)
    raw_bytes = hu.nbytes
    tracemalloc.start()
    (scan,) = read_scans([tmp_path / name])
    lowest = min(one.hu().min() for one in scan.slices)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lowest == -1000 and len(scan.slices) == 1000
    np.testing.assert_array_equal(scan.slices[777].hu(), hu[777])
    assert peak < (volumes + 0.2) * raw_bytes, f"{peak >> 20} MiB of {raw_bytes >> 20} MiB"


def test_a_volume_is_unpacked_once_by_threads_that_read_ahead(tmp_path, monkeypatch):
    made = []
    read = ct_nifti._read_stored
    monkeypatch.setattr(ct_nifti, "_stored", {})
    monkeypatch.setattr(ct_nifti, "_read_stored", lambda *of: made.append(1) or read(*of))
    hu = np.random.default_rng(0).integers(-1000, 400, (40, 64, 64), np.int16)
    for name in "abc":
        nib.save(nifti(hu), tmp_path / f"{name}.nii.gz")
    slices = [one for scan in read_scans([tmp_path]) for one in scan.slices]
    assert len(made) == 3  # to see whether they are HU
    planes = list(ahead(lambda one: one.hu(), slices, threads=4, limit=8))
    np.testing.assert_array_equal(planes, np.concatenate([hu] * 3))
    assert len(made) == 6
    for one in (slices[40], slices[80], slices[41], slices[81]):  # b and c in turns
        one.hu()
    assert len(made) == 6


def test_a_volume_for_which_there_is_no_memory_is_no_damage(tmp_path, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    nib.save(nifti(HU), tmp_path / "a.nii.gz")
    monkeypatch.setattr(ct_nifti, "_stored", {})
    monkeypatch.setattr(ct_nifti.np, "empty", no_memory)
    with pytest.raises(CTMaskNetError, match=r"a\.nii\.gz: needs 1 MiB of memory at once"):
        read_scans([tmp_path])


# --- nibabel's own files ---


@pytest.mark.parametrize(
    "name, reason",
    [
        ("anatomical.nii", "not HU of a chest"),  # big-endian MR that dips below zero
        ("standard.nii.gz", "0 to 255, are not HU"),
        ("reoriented_anat_moved.nii", "not HU"),
        ("functional.nii", r"4 dimensions \(17, 21, 3, 20\)"),
        ("example4d.nii.gz", "4 dimensions"),
        ("example_nifti2.nii.gz", "4 dimensions"),
        ("nifti1.hdr", "voxels lie in another file"),
        ("analyze.hdr", "no PNG, JPEG, TIFF, BMP, DICOM or NIfTI file"),
    ],
)
def test_nibabels_files_are_refused(name, reason):
    path = os.path.join(NIBABEL_DATA, name)
    if not os.path.exists(path):
        pytest.skip("nibabel was installed without its test data")
    with pytest.raises(CTMaskNetError, match=f"{name}: .*{reason}"):
        read_scans([path])


def test_nibabels_volume_told_to_be_ct(tmp_path):
    path = os.path.join(NIBABEL_DATA, "anatomical.nii")
    if not os.path.exists(path):
        pytest.skip("nibabel was installed without its test data")
    image = nib.load(path)
    stored = np.asarray(image.dataobj)
    header = image.header.copy()
    header.set_slope_inter(0.1, -1000)
    ct = nib.Nifti1Image(stored, image.affine, header)
    ct.header.set_slope_inter(0.1, -1000)
    scan = read_back(ct, tmp_path / "a.nii")
    upright = nib.as_closest_canonical(image)
    values = np.asarray(upright.dataobj)[::-1, ::-1, 7].T * 0.1 - 1000
    np.testing.assert_allclose(scan.slices[7].hu(), values, atol=1e-3)
