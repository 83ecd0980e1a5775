"""DICOM and deep pictures whose values cannot be HU of a chest say so."""

import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.read import read_scans
from tests.helpers.ct_samples import dicom, volume

HU = volume()


def write_series(folder, hu, change=None):
    folder.mkdir()
    for index, plane in enumerate(hu):
        data = dicom(plane, index, signed=True)
        if change:
            change(data)
        data.save_as(folder / f"{index}.dcm", enforce_file_format=True)
    return folder


def problems(folder, **options):
    (scan,) = read_scans(folder, **options)
    return list(scan.problems)


@pytest.mark.parametrize(
    ("slope", "intercept"), [(1, 0), (1, 1024), (1, -3000), (0.1, -102), (-1, 1024), (1, -200)]
)
def test_a_wrong_rescale_is_a_problem(tmp_path, slope, intercept):
    """Stored as HU + 1024, so that the right one is 1 and -1024."""

    def change(data):
        data.RescaleSlope, data.RescaleIntercept = str(slope), str(intercept)

    (problem,) = problems(write_series(tmp_path / "a", HU, change))
    assert "may not be HU" in problem and "check the slope and intercept" in problem


def test_a_sound_series_has_none(tmp_path):
    assert problems(write_series(tmp_path / "a", HU)) == []


def test_lung_in_any_slice_is_enough(tmp_path):
    tissue = np.where(HU == -850, 40, HU)
    tissue[:, 6:36, 4:44] = 40
    tissue[0] = HU[0]
    assert problems(write_series(tmp_path / "a", tissue)) == []


def test_padding_is_no_lung(tmp_path):
    """Tissue with a patch far below it, which is all that lies in the range of lung."""
    tissue = np.full_like(HU, 40)
    tissue[:, :12, :12] = -1000
    (problem,) = problems(write_series(tmp_path / "a", tissue))
    assert "-1000 to 40" in problem


def test_a_slice_that_cannot_be_decoded_is_told_in_its_turn(tmp_path):
    folder = write_series(tmp_path / "a", HU[:1])
    data = (folder / "0.dcm").read_bytes()
    (folder / "0.dcm").write_bytes(data[:-200])
    read = []
    assert all(not scan.problems for scan in read_scans(folder, on_bad=lambda *_: read.append(1)))


@pytest.mark.parametrize(("intercept", "count"), [(-1024, 0), (0, 1)])
def test_a_deep_picture_with_a_given_rescale(tmp_path, intercept, count):
    Image.fromarray((HU[1] + 1024).astype(np.uint16)).save(tmp_path / "a.png")
    assert len(problems(tmp_path / "a.png", rescale=(1, intercept))) == count
