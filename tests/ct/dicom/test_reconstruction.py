"""Which reconstruction of a study counts, by rule."""

import pytest

from ctmasknet.ct.dicom.reconstruction import Reconstruction, choose_reconstructions, series_facts
from ctmasknet.ct.read import read_scans
from tests.helpers import ct_samples

HU = ct_samples.volume()


@pytest.mark.parametrize(
    ("kernel", "description", "kind"),
    [
        ("LUNG", "", "lung"),
        ("LungA", "Lung", "lung"),
        ("BONEPLUS", "", "lung"),
        ("B70f", "", "lung"),
        ("Bl57f", "", "lung"),
        ("I50f", "Thorax", "lung"),
        ("FC51", "", "lung"),
        ("YB", "", "lung"),
        ("STANDARD", "", "soft-tissue"),
        ("B31f", "Lung", "soft-tissue"),
        ("Br40", "", "soft-tissue"),
        ("FC08", "", "soft-tissue"),
        ("SA", "Mediastinum", "soft-tissue"),
        ("", "Thorax Lunge 1.0", "lung"),
        ("", "", "unknown"),
        ("XYZ", "chest", "unknown"),
    ],
)
def test_what_a_kernel_is_for(kernel, description, kind):
    assert Reconstruction(kernel, description=description).kind == kind


@pytest.mark.parametrize(
    ("image_type", "description", "projection"),
    [
        (("DERIVED", "PRIMARY", "MIP"), "", True),
        (("DERIVED", "SECONDARY", "AXIAL", "MINIP"), "", True),
        (("DERIVED", "PRIMARY", "VOLUME", "MEAN"), "", True),
        ((), "Lung MIP 8mm", True),
        ((), "Thorax AIP", True),
        (("ORIGINAL", "PRIMARY", "AXIAL"), "Lung 1.0 B70f", False),
        ((), "swimip", False),
    ],
)
def test_projections_over_several_slices(image_type, description, projection):
    found = Reconstruction(image_type=image_type, description=description)
    assert found.is_projection is projection


def series(folder, number, patient="P1", **stated):
    for index, plane in enumerate(HU):
        data = ct_samples.dicom(plane, index)
        data.PatientID, data.StudyInstanceUID = patient, f"1.2.{patient[1:]}"
        data.SeriesInstanceUID = f"1.2.3.{number}"
        data.SOPInstanceUID = f"1.2.3.{number}.{index}"
        for key, value in stated.items():
            setattr(data, key, value)
        ct_samples.save(data, folder / f"{number}_{index}.dcm")


def chosen(folder):
    scans = read_scans([folder])
    choices = choose_reconstructions(map(series_facts, scans))
    return {scan.scan: (counts, why) for scan, (counts, why) in zip(scans, choices, strict=True)}


def test_lung_first_then_thin_and_no_projection(tmp_path):
    mip = ["DERIVED", "SECONDARY", "AXIAL", "MIP"]
    series(tmp_path, 1, ConvolutionKernel="B31f", SliceThickness=1)
    series(tmp_path, 2, ConvolutionKernel="B70f", SliceThickness=5)
    series(tmp_path, 3, ConvolutionKernel=["B70f", "3"], SliceThickness=2)
    series(tmp_path, 4, ConvolutionKernel="B70f", SliceThickness=0.5, ImageType=mip)
    series(tmp_path, 5, patient="P2", ConvolutionKernel="B31f")
    found = chosen(tmp_path)
    assert [counts for counts, _ in found.values()] == [False, False, True, False, True]
    assert found["1.2.3.3"][1] == (
        "of the 4 series of its study it counts for the patient: lung kernel (B70f), 2 mm"
    )
    assert (
        "a projection over several slices): of the 4 series of its study 1.2.3.3 does"
        in (found["1.2.3.4"][1])
    )
    assert found["1.2.3.5"] == (True, "")


def test_a_soft_tissue_series_goes_before_a_projection_with_a_lung_kernel(tmp_path):
    mip = ["DERIVED", "SECONDARY", "AXIAL", "MIP"]
    series(tmp_path, 1, ConvolutionKernel="B31f", SliceThickness=5)
    series(tmp_path, 2, ConvolutionKernel="B70f", SliceThickness=1, ImageType=mip)
    assert [counts for counts, _ in chosen(tmp_path).values()] == [True, False]


def test_without_a_stated_thickness_the_distance_of_the_slices_tells(tmp_path):
    series(tmp_path, 1, ConvolutionKernel="LUNG", SliceThickness=10)
    series(tmp_path, 2, ConvolutionKernel="LUNG", SliceThickness=None)
    assert "lung kernel (LUNG), 5 mm" in chosen(tmp_path)["1.2.3.2"][1]
    assert chosen(tmp_path)["1.2.3.2"][0]


def test_series_without_a_study_all_count(tmp_path):
    for number in (1, 2):
        series(tmp_path, number, StudyInstanceUID="")
    assert list(chosen(tmp_path).values()) == [(True, "")] * 2


def test_the_parts_of_a_series_count_together():
    assert choose_reconstructions([None, None]) == [(True, "")] * 2
