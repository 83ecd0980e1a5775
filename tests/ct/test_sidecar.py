"""A rescale stated in a file beside those that it is for."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import GREY, Window
from ctmasknet.ct.sidecar import any_stated_rescale, stated_rescale
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.slices import prepare_slices
from tests.helpers import ct_samples

HU = ct_samples.volume()
SEEN = Window().to_uint8(HU)
STATED = {"slope": 1, "intercept": -1024}


def state(path, value=STATED):
    path.write_text(json.dumps(value))


def without_hu(folder):
    """Stored values of 1024 more than HU: NIfTI, DICOM without rescale, TIFF."""
    folder.mkdir(exist_ok=True)
    nib.save(ct_samples.nifti(HU + 1024, "RAS"), folder / "a.nii.gz")
    for index, plane in enumerate(HU):
        data = ct_samples.dicom(plane, index)
        del data.RescaleSlope, data.RescaleIntercept
        ct_samples.save(data, folder / f"{index}.dcm")
        Image.fromarray((plane + 1024).astype(np.uint16)).save(folder / f"{index}.tif")
    return folder


def hu(scan):
    return np.stack([one.hu() for one in scan.slices])


def test_of_a_folder_for_every_kind_of_file(tmp_path):
    with pytest.raises(CTMaskNetError):
        read_scans([without_hu(tmp_path / "in") / "a.nii.gz"])
    state(tmp_path / "in" / "rescale.json")
    scans = read_scans([tmp_path / "in"])
    assert sorted(scan.kind for scan in scans) == ["dicom", "image", "nifti"]
    for scan in scans:
        np.testing.assert_array_equal(hu(scan), HU)
        assert scan.problems == ()


def test_of_one_file_goes_before_that_of_its_folder(tmp_path):
    without_hu(tmp_path)
    state(tmp_path / "rescale.json", {"slope": 2, "intercept": 0})
    state(tmp_path / "a.nii.gz.json")
    (scan,) = read_scans([tmp_path / "a.nii.gz"])
    np.testing.assert_array_equal(hu(scan), HU)
    assert stated_rescale(tmp_path / "0.dcm") == (2, 0)
    assert stated_rescale(tmp_path / "inner" / "0.dcm") is None
    assert any_stated_rescale([tmp_path / "inner/x.png", tmp_path / "0.tif"])
    assert not any_stated_rescale([tmp_path / "inner/x.png"])


def test_grey(tmp_path):
    nib.save(ct_samples.nifti(SEEN, "RAS"), tmp_path / "a.nii.gz")
    state(tmp_path / "a.nii.gz.json", {"values": GREY})
    (scan,) = read_scans([tmp_path])
    np.testing.assert_array_equal([one.pixels(Window()) for one in scan.slices], SEEN)


def test_one_given_goes_first_and_says_so(tmp_path):
    without_hu(tmp_path)
    state(tmp_path / "rescale.json", {"slope": 3, "intercept": 0})
    (scan,) = read_scans([tmp_path / "a.nii.gz"], rescale=(1, -1024))
    np.testing.assert_array_equal(hu(scan), HU)
    assert "(3.0, 0.0) beside it was not used" in scan.problems[0]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, -1024]", '{"slope": 1}', '{"slope": 0, "intercept": 1}', '{"values": "hu"}']
    + ['{"slope": NaN, "intercept": 1}', '{"slope": true, "intercept": 1}']
    + ['{"slope": 1, "intercept": 1, "unit": "HU"}', '{"slope": "1", "intercept": -1024}'],
)
def test_anything_else_is_one_line(tmp_path, text):
    without_hu(tmp_path)
    (tmp_path / "rescale.json").write_text(text)
    with pytest.raises(CTMaskNetError, match=r"rescale\.json: .*expected \{") as error:
        read_scans([tmp_path])
    assert "\n" not in str(error.value)


def test_preparation_of_pictures(tmp_path):
    for name, level in (("normal", 0), ("covid", 30)):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for index in range(4):
            values = (HU[index] + 1024 + level).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / "raw" / name / f"{name}{index}.png")
        state(tmp_path / "raw" / name / "rescale.json")
    given = {"class_folders": {"normal": ["normal"], "covid": ["covid"]}}
    shares = {"train": 0.5, "test": 0.5}
    prepare_slices(tmp_path, "set", images=tmp_path / "raw", shares=shares, **given)
    written = sorted((tmp_path / "set").rglob("normal*.png"))
    for path in written:
        np.testing.assert_array_equal(np.asarray(Image.open(path)), SEEN[int(path.stem[-1])])
    assert len(written) == 4
