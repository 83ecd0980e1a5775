"""Studies of several series in lesion sets: which one is taken."""

import shutil

import pytest

from tests.helpers import ct_samples
from tests.prepare.pairs import test_mask_volumes as label_samples
from tests.prepare.small_sets import read

STUDY = ("--split", "val:1", "--min-area-px", "10")


def series(folder, name, number, kernel, thickness, patient="P1"):
    for index, plane in enumerate(label_samples.HU):
        data = ct_samples.dicom(plane, index)
        data.PatientID, data.StudyInstanceUID = patient, f"1.2.{patient[1:]}"
        data.SeriesInstanceUID = f"1.2.3.{number}"
        data.SOPInstanceUID = f"1.2.3.{number}.{index}"
        data.ConvolutionKernel, data.SliceThickness = kernel, thickness
        ct_samples.save(data, folder / "image" / patient / name / f"{index}.dcm")


@pytest.fixture
def study(tmp_path):
    """A lung series of 5 mm, one of 1 mm and one for soft tissue."""
    folder = tmp_path / "s"
    series(folder, "thick", 1, "B70f", 5)
    series(folder, "thin", 2, "B70f", 1)
    series(folder, "soft", 3, "B31f", 1)
    return folder


def mask(folder, *names):
    for name in names:
        label_samples.volume(folder / "mask" / "P1" / f"{name}.nii.gz", label_samples.MASK)


def taken(tmp_path):
    document = read(tmp_path, "both_val.json")
    assert len(document["annotations"]) == 4 * len(document["images"]) // 5
    return sorted({one["file_name"].rpartition("/")[0] for one in document["images"]})


def test_of_series_with_masks_the_one_that_counts(prepare, tmp_path, study, caplog):
    mask(study, "thick", "thin", "soft")
    assert prepare("--source", study, *STUDY) == 0
    assert taken(tmp_path) == ["P1/thin"]
    assert "series 1.2.3.3 is not taken (soft-tissue kernel (B31f), 1 mm)" in caplog.text
    assert prepare("--source", study, *STUDY, "--all-series") == 0
    assert taken(tmp_path) == ["P1/soft", "P1/thick", "P1/thin"]
    (tmp_path / "val.txt").write_text("P1/thick\nP1/soft\n")
    listed = ("--list", f"val={tmp_path / 'val.txt'}", "--min-area-px", "10")
    assert prepare("--source", study, *listed) == 0
    assert taken(tmp_path) == ["P1/soft", "P1/thick"]


def test_a_series_without_mask_never_goes_before_one_with(prepare, tmp_path, study, caplog):
    mask(study, "soft")
    assert prepare("--source", study, *STUDY) == 0
    assert taken(tmp_path) == ["P1/soft"]
    assert "series 1.2.3.2 is not taken (lung kernel (B70f), 1 mm): it has no mask" in caplog.text
    assert prepare("--source", study, *STUDY, "--all-series") == 2
    series(study, "only", 4, "B31f", 5, "P2")  # a study without any mask
    assert prepare("--source", study, *STUDY) == 2
    assert prepare("--source", study, *STUDY, "--unlabelled", "normal") == 0
    files = {one["file_name"][:7] for one in read(tmp_path, "both_val.json")["images"]}
    assert files == {"P1/soft", "P2/only"}


def test_stated_pairs_say_themselves_which_are_taken(prepare, tmp_path, study):
    mask(study, "thick", "soft")
    shutil.rmtree(study / "image" / "P1" / "thin")
    pairs = ("--pairs", "{p}/{s}={p}/{s}.nii.gz")
    assert prepare("--source", study, *STUDY, *pairs) == 0
    assert taken(tmp_path) == ["P1/soft", "P1/thick"]


def test_series_made_alike_are_all_taken(prepare, tmp_path):
    for number, name in enumerate(("in", "out")):
        series(tmp_path / "s", name, number, "B70f", 1)
    mask(tmp_path / "s", "in", "out")
    assert prepare("--source", tmp_path / "s", *STUDY) == 0
    assert taken(tmp_path) == ["P1/in", "P1/out"]
