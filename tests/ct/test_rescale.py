"""A rescale that the user gives makes HU, or grey levels, of values that state none."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import GREY, Window, as_rescale, parse_rescale
from ctmasknet.errors import CTMaskNetError
from tests.helpers import ct_samples

HU = ct_samples.volume()
SEEN = Window().to_uint8(HU)
NOT_USED = "the rescale given was not used: "


def save_nifti(path, values, dtype="<i2"):
    nib.save(ct_samples.nifti(values, "RAS", dtype=dtype), path)
    return path


def without_rescale(folder, hu, keys=("RescaleSlope", "RescaleIntercept")):
    for index, plane in enumerate(hu):
        data = ct_samples.dicom(plane, index)
        for key in keys:
            delattr(data, key)
        ct_samples.save(data, folder / f"{index}.dcm")
    return folder


def only(path, rescale):
    (scan,) = read_scans([path], rescale=rescale)
    return scan


def pixels(scan):
    return np.stack([one.pixels(Window()) for one in scan.slices])


@pytest.mark.parametrize(
    ("text", "value"), [("1,-1024", (1, -1024)), ("0.5, -1e3", (0.5, -1000)), ("grey", GREY)]
)
def test_read_from_text_and_from_json(text, value):
    assert parse_rescale(text) == value
    assert as_rescale(value if value == GREY else list(value)) == value


@pytest.mark.parametrize("text", ["", "1", "1;-1024", "1,2,3", "a,b", "0,-1024", "nan,1", "1,inf"])
def test_wrong_text_is_one_line(text):
    with pytest.raises(CTMaskNetError, match=r"^`rescale` .*expected.*$"):
        parse_rescale(text)


@pytest.mark.parametrize("stated", [None, [1], "x", {"a": 1}])
def test_what_is_no_rescale_in_json_is_none(stated):
    assert as_rescale(stated) is None


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.5, -1024), (-1, 3071)])
def test_hu_of_every_kind_of_file(tmp_path, slope, intercept):
    stored = np.rint((HU.astype(float) - intercept) / slope)
    (tmp_path / "deep").mkdir()
    for index, plane in enumerate(stored):
        Image.fromarray(plane.astype(np.uint16)).save(tmp_path / "deep" / f"{index}.tif")
    series = tmp_path / "series"
    for index, plane in enumerate(HU):
        data = ct_samples.dicom(plane, index, slope=slope, intercept=intercept)
        del data.RescaleSlope, data.RescaleIntercept
        ct_samples.save(data, series / f"{index}.dcm")
    volume = save_nifti(tmp_path / "a.nii.gz", stored)
    for path in (tmp_path / "deep", series, volume):
        with pytest.raises(CTMaskNetError, match="`rescale` SLOPE,INTERCEPT"):
            read_scans([path])
        scan = only(path, (slope, intercept))
        assert scan.problems == ()
        np.testing.assert_array_equal(np.stack([one.hu() for one in scan.slices]), HU)
        np.testing.assert_array_equal(pixels(scan), SEEN)


def test_after_the_header_s_own_slope(tmp_path):
    image = ct_samples.nifti((HU + 1024) // 2, "LPS")
    image.header.set_slope_inter(2, 0)
    nib.save(image, tmp_path / "a.nii")
    scan = only(tmp_path / "a.nii", (1, -1024))
    np.testing.assert_array_equal(np.stack([one.hu() for one in scan.slices]), HU // 2 * 2)


def test_what_needs_none_stays_and_says_so(tmp_path):
    hu = save_nifti(tmp_path / "a.nii.gz", HU)
    series = ct_samples.dicom_series(tmp_path / "series", HU)
    Image.fromarray(SEEN[1]).save(tmp_path / "a.png")
    for path, why in ((hu, "HU as they stand"), (series, "its own, (1.0, -1024.0)")):
        for rescale in ((2, -1000), (1, -30), GREY):
            scan = only(path, rescale)
            np.testing.assert_array_equal(np.stack([one.hu() for one in scan.slices]), HU)
            (problem,) = scan.problems
            assert problem.startswith(NOT_USED) and why in problem
    (problem,) = only(tmp_path / "a.png", (1, -1024)).problems
    assert problem == NOT_USED + "8-bit pictures stay as they are"
    assert only(series, (1, -1024)).problems == ()


def test_a_file_that_states_half_of_it(tmp_path):
    folder = without_rescale(tmp_path / "a", HU, ["RescaleIntercept"])
    np.testing.assert_array_equal(only(folder, (1, -1024)).slices[0].hu(), HU[0])
    with pytest.raises(CTMaskNetError, match=r"RescaleIntercept, .*Slope is 1, not"):
        only(folder, (2, -1024))


class TestGrey:
    @pytest.mark.parametrize("dtype", ["<u1", "<i2", "<f4"])
    def test_volumes_pass_unchanged(self, tmp_path, dtype):
        scan = only(save_nifti(tmp_path / "a.nii.gz", SEEN, dtype), GREY)
        assert scan.problems == () and scan.kind == "nifti"
        np.testing.assert_array_equal(pixels(scan), SEEN)
        with pytest.raises(CTMaskNetError, match="grey levels state no HU"):
            scan.slices[0].hu()

    def test_pictures_pass_unchanged(self, tmp_path):
        Image.fromarray(SEEN[1].astype(np.uint16)).save(tmp_path / "a.png")
        scan = only(tmp_path / "a.png", GREY)
        assert scan.problems == ()
        np.testing.assert_array_equal(pixels(scan)[0], SEEN[1])

    def test_a_folder_of_both_as_ma_s_twenty(self, tmp_path):
        save_nifti(tmp_path / "coronacases.nii.gz", HU)
        save_nifti(tmp_path / "radiopaedia.nii.gz", SEEN)
        found = {scan.scan: pixels(scan) for scan in read_scans([tmp_path], rescale=GREY)}
        for each in found.values():
            np.testing.assert_array_equal(each, SEEN)
        assert len(found) == 2

    @pytest.mark.parametrize("values", [HU + 1024, SEEN > 100, SEEN / 255, SEEN - 50.0])
    def test_other_values_are_refused(self, tmp_path, values):
        file = save_nifti(tmp_path / "a.nii.gz", np.asarray(values, float), "<f4")
        with pytest.raises(CTMaskNetError, match=r"\.gz: .* not HU of a chest .* grey levels"):
            only(file, GREY)

    def test_a_single_slice_beyond_is_told_at_once(self, tmp_path):
        values = SEEN.astype(np.int16)
        values[0, 3, 3] = 256
        with pytest.raises(CTMaskNetError, match="holds values of 45 to 256"):
            only(save_nifti(tmp_path / "a.nii.gz", values), GREY)

    def test_dicom_states_no_grey_levels(self, tmp_path):
        with pytest.raises(CTMaskNetError, match="states no RescaleSlope"):
            only(without_rescale(tmp_path / "a", HU), GREY)


def test_a_rescale_that_makes_no_chest_is_refused(tmp_path):
    file = save_nifti(tmp_path / "a.nii.gz", HU + 1024)
    for wrong in ((1, 0), (1, 1024), (0.001, -500)):
        with pytest.raises(CTMaskNetError, match=r"nor do they become so .* correct `rescale`"):
            only(file, wrong)


def test_a_mask_beside_its_volume_does_not_become_one(tmp_path):
    save_nifti(tmp_path / "a.nii.gz", HU + 1024)
    save_nifti(tmp_path / "a_mask.nii.gz", (HU > 100) * 2)
    (scan,) = read_scans([tmp_path], rescale=(1, -1024))
    assert scan.scan == "a" and "a_mask.nii.gz" in scan.problems[0]
