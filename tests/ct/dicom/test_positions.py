"""Where the slices of a DICOM series lie, and what is said of a series that states it badly."""

import numpy as np
import pytest

from ctmasknet.ct.read import read_scans
from tests.helpers import ct_samples
from tests.helpers.ct_samples import dicom, save

HU = ct_samples.volume()


def test_slices_are_ordered_by_position(tmp_path):
    (scan,) = read_scans([ct_samples.dicom_series(tmp_path, HU)])  # names run against positions
    assert [one.name[-5] for one in scan.slices] == ["4", "3", "2", "1"]
    np.testing.assert_array_equal(np.stack([one.hu() for one in scan.slices]), HU)
    assert (scan.patient, scan.scan, scan.kind) == ("P1", ct_samples.SERIES, "dicom")
    np.testing.assert_allclose(scan.affine, ct_samples.AFFINE)  # 5 mm, though 1 mm thick


def test_missing_and_duplicate_positions_are_reported(tmp_path):
    for index, z_mm in enumerate((0, 2, 4, 4, 10, 12)):
        save(dicom(HU[0] + index, index, z_mm=z_mm), tmp_path / f"s{index}.dcm")
    (scan,) = read_scans([tmp_path])
    assert [one.position_mm for one in scan.slices] == [0, 2, 4, 10, 12]
    assert scan.problems == (
        f"duplicate position z = 4 mm: {tmp_path}/s3.dcm left out, {tmp_path}/s2.dcm kept",
        "missing: 2 between z = 4 and 10 mm (step 2 mm)",
    )
    assert scan.affine is None


def test_of_doubled_positions_the_lower_instance_numbers_are_kept(tmp_path):
    """Two phases in one series, whose stated positions differ by rounding."""
    for phase in (0, 1):
        for index, noise in enumerate((0.0, 0.02, -0.02, 0.0)):
            data = dicom(HU[0] + phase, 4 * phase + index, z_mm=5 * index + phase * noise)
            save(data, tmp_path / f"{'ba'[phase]}{index}.dcm")
    (scan,) = read_scans([tmp_path])
    assert [one.name[-6:] for one in scan.slices] == ["b0.dcm", "b1.dcm", "b2.dcm", "b3.dcm"]
    assert len(scan.problems) == 4 and all("duplicate" in line for line in scan.problems)
    assert scan.affine[2, 2] == 5


@pytest.mark.parametrize(
    "z_mm, said",
    [([0] * 12, "one position"), ([0] * 2, "one position"), ([0, *[5] * 11], "2 positions in all")],
)
def test_images_of_one_position_all_stay_in_the_order_of_their_numbers(tmp_path, z_mm, said):
    """Anonymisers write 0 into every position; a bolus is watched at one."""
    for index, z in enumerate(z_mm):
        data = dicom(HU[0] + index, index, z_mm=z)
        save(data, tmp_path / f"{len(z_mm) - index:02d}.dcm")
    save(data, tmp_path / "copy.dcm")  # of the last image, the only one that is left out
    (scan,) = read_scans([tmp_path])
    np.testing.assert_array_equal(
        np.stack([one.hu() for one in scan.slices]),
        np.stack([HU[0] + index for index in range(len(z_mm))]),
    )
    assert (scan.affine, {one.position_mm for one in scan.slices}) == (None, {None})
    assert scan.problems == (
        f"its {len(z_mm)} images state {said}, so their order is that of their instance numbers, "
        "and distances and volumes are unknown; copies left out: 1",
    )


def test_frames_of_one_position_all_stay(tmp_path):
    data = ct_samples.enhanced(HU)
    for frame in data.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]
    (scan,) = read_scans([save(data, tmp_path / "a.dcm")])
    np.testing.assert_array_equal(np.stack([one.hu() for one in scan.slices]), HU)
    assert len(scan.problems) == 1 and "4 images state one position" in scan.problems[0]


def test_many_slices_left_out_are_counted_in_one_line(tmp_path):
    for copy in ("a", "b"):
        for index in range(10):
            save(dicom(HU[0] + index, index), tmp_path / copy / f"{index}.dcm")
    (scan,) = read_scans([tmp_path])
    assert len(scan.slices) == 10 and scan.affine[2, 2] == 5
    assert scan.problems == (
        "10 slices left out, the first: duplicate position z = 100 mm: "
        f"{tmp_path}/b/0.dcm left out, {tmp_path}/a/0.dcm kept",
    )


def test_slices_shifted_sideways_are_reported(tmp_path):
    for index, plane in enumerate(HU):
        data = dicom(plane, index)
        data.ImagePositionPatient[1] += 3 * index + 20 * (index == 2)  # an even shift is a lean
        save(data, tmp_path / f"{index}.dcm")
    (scan,) = read_scans([tmp_path])
    assert scan.problems == ("slices are shifted sideways against each other, by 20.0 mm",)
    assert scan.affine is None
    (tmp_path / "2.dcm").unlink()
    (scan,) = read_scans([tmp_path])
    assert [line[:7] for line in scan.problems] == ["missing"]


@pytest.mark.parametrize(
    "z_mm, problems",
    [
        ((0, 2, 4.5, 6.5), ["uneven steps, 2 to 2.5 mm"]),
        ((0, 1, 3, 5, 7), ["uneven steps, 1 to 2 mm"]),
        ((0, 2, 4, 12), ["missing: 3 between z = 4 and 12 mm (step 2 mm)"]),
        ((0, 2, 8), ["missing: 2 between z = 2 and 8 mm (step 2 mm)"]),
        ((0, 2.01, 4, 6.01), []),  # rounded when they were written
    ],
)
def test_uneven_steps_are_reported(tmp_path, z_mm, problems):
    for index, place in enumerate(z_mm):
        save(dicom(HU[0], index, z_mm=place), tmp_path / f"{index}.dcm")
    (scan,) = read_scans([tmp_path])
    assert list(scan.problems) == problems
    assert (scan.affine is None) == bool(problems)
