"""What a prediction has to say of its weights, lesions and slices, wherever they are read."""

import csv
import json
from collections import Counter

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from ctmasknet.engine.checkpoint import TRAINED_ON
from ctmasknet.engine.record import read_record
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import read_predictions_csv
from ctmasknet.predict import CTPredictor
from ctmasknet.predict.command import summary_text
from ctmasknet.predict.outputs import Summary
from tests.helpers.running import run_tool
from tests.helpers.small_world import hu_volume, words, write_series

LESIONS = {"dataset": "les", "task": "segmentation", "patient_ids": None, "patients": []}
SLICES = {"dataset": "sl", "task": "classification", "patient_ids": None, "patients": []}
BENT, PHANTOM = "trained with the class (MODEL.TRAINABLE full)", "trained on phantoms (sl)"


def trained_on(model, *entries):
    """Let a weights file state what it was trained on."""
    content = torch.load(model.weights, weights_only=True)
    content[TRAINED_ON] = [dict(entry) for entry in entries]
    torch.save(content, model.weights)
    return model


def objects(output, level):
    lines = (output / "predictions.jsonl").read_text().splitlines()
    return [value for value in map(json.loads, lines) if value["level"] == level]


@pytest.fixture
def series(tmp_path):
    return write_series(tmp_path / "scans" / "ct", hu_volume(1, 4))


@pytest.fixture
def bent(own_classifier):
    """Trained with the class, its detector finds other lesions than before."""
    content = torch.load(own_classifier.weights, weights_only=True)
    content["model"]["roi_heads.box_predictor.cls_score.weight"] *= -1
    torch.save(content, own_classifier.weights)
    slices = SLICES | {"trainable": "full", "patient_ids": "phantom-v3-seed1"}
    return trained_on(own_classifier, LESIONS, slices)


def test_every_caution_is_told_once(repository, bent, series, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    for flags in [], ["--resume"]:
        asked = words(bent, [series], tmp_path / "out", "--burden", "threshold", *flags)
        assert run_tool(repository, "tools/predict.py", *asked) == 0
        told = "".join(capsys.readouterr())
        assert (told.count(PHANTOM), told.count(BENT)) == (1, 1)


def test_every_file_of_lesions_carries_the_caution(
    repository, bent, series, tmp_path, tool, capsys
):
    output, flags = tmp_path / "out", ["--masks", "nifti", "dicom-seg", "--score-threshold", 0.3]
    assert tool(*words(bent, [series], output, *flags))[0] == 0
    (scan,) = objects(output, "scan")
    (patient,) = objects(output, "patient")
    coco = json.loads((output / "lesions.json").read_text())["info"]
    for found in (scan, patient, coco, read_record(output)[-1]):
        assert any(BENT in caution for caution in found["cautions"])
        assert any(PHANTOM in caution for caution in found["cautions"])
    volume = nibabel.load(output / scan["masks"]["nifti"])
    assert b"CAUTION" in bytes(volume.header["descrip"])
    segmentation = pydicom.dcmread(output / scan["masks"]["dicom-seg"])
    assert "CAUTION" in segmentation.SeriesDescription
    assert len(segmentation.SeriesDescription) <= 64 >= len(segmentation.ContentDescription)
    for segment in segmentation.SegmentSequence:
        assert BENT in segment.SegmentDescription and PHANTOM in segment.SegmentDescription

    words_of = ["--lesions", output / "lesions.json", "--output", output / "burden"]
    assert run_tool(repository, "tools/lesion_burden.py", *words_of) == 0
    assert BENT in capsys.readouterr().out
    burden = json.loads((output / "burden" / "burden.json").read_text())
    assert any(BENT in caution for caution in burden["cautions"])
    with open(output / "burden" / "burden.csv", newline="") as stream:
        assert all(BENT in row["caution"] for row in csv.DictReader(stream))

    assert run_tool(repository, "tools/report.py", output, "--output", tmp_path / "r.html") == 0
    page = (tmp_path / "r.html").read_text()
    assert page.count(BENT) >= 2 and PHANTOM in page  # above all, and above the burden


def test_a_class_alone_is_told_with_what_concerns_it(
    repository, bent, series, tmp_path, capsys, monkeypatch
):
    output = tmp_path / "out"
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    asked = words(bent, [series], output)
    assert run_tool(repository, "tools/predict.py", *asked) == 0
    assert "".join(capsys.readouterr()).count(PHANTOM) == 1
    (scan,) = objects(output, "scan")
    assert [PHANTOM in caution for caution in scan["cautions"]] == [True]
    assert summary_text(Summary(cautions=scan["cautions"]), output).count("caution: ") == 1


def test_a_detector_as_it_was_trained_on_lesions_needs_none(
    repository, own_classifier, series, tmp_path, tool, capsys
):
    model = trained_on(own_classifier, LESIONS, SLICES | {"trainable": "heads"})
    output = tmp_path / "out"
    assert tool(*words(model, [series], output, "--masks", "nifti", "dicom-seg"))[0] == 0
    written = [path for path in output.rglob("*") if path.is_file()]
    assert not [path for path in written if b"caution:" in path.read_bytes().lower()]
    assert "cautions" not in objects(output, "scan")[0]
    words_of = ["--lesions", output / "lesions.json", "--output", output / "burden"]
    assert run_tool(repository, "tools/lesion_burden.py", *words_of) == 0
    assert "caution" not in capsys.readouterr().out.lower()
    assert "caution" not in (output / "burden" / "burden.csv").read_text()


def test_lesions_of_another_model(bent, detector, scans, tmp_path, tool):
    """The class is the one model's, the lesions are the other's, each as if alone."""
    alone, of_detector, both = (tmp_path / name for name in ("class", "lesions", "both"))
    assert tool(*words(bent, [scans], alone, "--lesions"))[0] == 0
    assert tool(*words(detector, [scans], of_detector, "--masks", "nifti"))[0] == 0
    flags = ["--lesion-weights", detector.weights, "--masks", "nifti"]
    assert tool(*words(bent, [scans], both, *flags))[0] == 0
    name = "predictions.csv"
    assert (both / name).read_bytes() == (alone / name).read_bytes()
    found, expected, bent_ones = (
        json.loads((folder / "lesions.json").read_text()) for folder in (both, of_detector, alone)
    )
    assert found["annotations"] == expected["annotations"] != bent_ones["annotations"]
    assert not any(BENT in caution for caution in found["info"]["cautions"])
    boxes = [[one["boxes"] for one in objects(folder, "slice")] for folder in (both, alone)]
    assert boxes[0] == boxes[1]
    for path in (of_detector / "masks").iterdir():
        theirs, ours = (nibabel.load(of / "masks" / path.name) for of in (of_detector, both))
        np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.asarray(ours.dataobj))
    record = read_record(both)[-1]
    assert record["lesion_weights"] == str(detector.weights) and BENT not in str(record["cautions"])
    code, line = tool(*words(bent, [scans], both, "--masks", "nifti", "--resume"))
    assert code == 2 and "other options" in line


def test_another_window_of_the_lesions_model_is_its_own(bent, own_detector, series, tmp_path, tool):
    content = torch.load(own_detector.weights, weights_only=True)
    content["ctmasknet"] |= {"window_center_hu": 40.0, "window_width_hu": 400.0}
    torch.save(content, own_detector.weights)
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert tool(*words(own_detector, [series], alone))[0] == 0
    assert tool(*words(bent, [series], both, "--lesion-weights", own_detector.weights))[0] == 0
    found, expected = (json.loads((of / "lesions.json").read_text()) for of in (both, alone))
    assert found["annotations"] == expected["annotations"]


def test_what_is_no_pair_of_models(bent, detector, classifier, series, tmp_path, tool):
    for model, flags, reason in (
        (bent, ["--lesion-weights", classifier.weights], "--lesion-weights: "),
        (bent, ["--lesion-weights", tmp_path / "none.pth"], "none.pth: no such weights file"),
        (detector, ["--lesion-weights", detector.weights], "is a lesion detector already"),
        (bent, ["--lesion-config-file", detector.config], "has no effect without --lesion-weights"),
    ):
        code, line = tool(*words(model, [series], tmp_path / "out", *flags))
        assert code == 2 and reason in line and not (tmp_path / "out").exists()
    one = CTPredictor.from_config_file(classifier.config, weights=str(classifier.weights))
    with pytest.raises(CTMaskNetError, match="lesion detector"):
        CTPredictor.from_config_file(
            classifier.config, weights=str(classifier.weights), lesion_predictor=one
        )


def test_slices_that_are_no_chest_are_problems(repository, classifier, tmp_path, tool):
    """Of the slice, of its scan with a count, on the page and in Python."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, plane in enumerate([*hu_volume(1, 2), np.zeros((64, 64))]):
        grey = ((plane + 1200) / 5).clip(0, 255) if number < 2 else plane
        Image.fromarray(grey.astype(np.uint8)).save(folder / f"NCP_7_1_{number:04d}.png")
    output = tmp_path / "out"
    assert tool(*words(classifier, [folder], output))[0] == 0
    told = [one.get("problems") for one in objects(output, "slice")]
    assert told[:2] == [None, None] and "no axial chest CT" in told[2][0]
    (problem,) = objects(output, "scan")[0]["problems"]
    assert problem.startswith("1 of 3 slices") and "NCP_7_1_0002.png" in problem
    summary = json.loads((output / "prediction.json").read_text())["summary"]
    lines = summary_text(Summary(**summary), output).splitlines()
    assert "1 problems of scans, see predictions.jsonl" in lines
    assert f"problem: 7 1: {problem}" in lines
    assert run_tool(repository, "tools/report.py", output, "--output", tmp_path / "r.html") == 0
    page = (tmp_path / "r.html").read_text()
    assert "Problems of the input" in page and page.count("no axial chest CT") == 3
    predictor = CTPredictor.from_config_file(classifier.config, weights=str(classifier.weights))
    (scan,) = predictor(folder)
    assert scan.problems == (problem,) and list(scan.slices[2].problems) == told[2]


@pytest.mark.parametrize(("fat", "count"), [(255, 0), (200, 1)])
def test_grey_levels_unlike_trainings_are_a_problem(
    own_classifier, series, tmp_path, tool, fat, count
):
    """Through -700 / 1000 the body of these scans lies at 255."""
    levels = {"grey_levels": [51.0, None, float(fat)], "trainable": "heads"}
    model = trained_on(own_classifier, LESIONS, SLICES | levels)
    output = tmp_path / "out"
    assert tool(*words(model, [series], output))[0] == 0
    problems = objects(output, "scan")[0]["problems"]
    assert len(problems) == count
    assert not count or ("another HU window" in problems[0] and "muscle 200" in problems[0])


def test_names_that_a_spreadsheet_would_run(repository, classifier, tmp_path, tool):
    """They are no formulas in any table, and other tools read them as they are."""
    series = write_series(tmp_path / "scans" / "ct", hu_volume(1, 4), patient="=1+1")
    output = tmp_path / "out"
    assert tool(*words(classifier, [series], output, "--lesions"))[0] == 0
    burden = ["--lesions", output / "lesions.json", "--output", output / "burden"]
    assert run_tool(repository, "tools/lesion_burden.py", *burden) == 0
    for name in ("predictions.csv", "burden/burden.csv"):
        with open(output / name, newline="") as stream:
            cells = {row["patient"] for row in csv.DictReader(stream)}
        assert cells == {"'=1+1"}
    rows, _ = read_predictions_csv(output / "predictions.csv")
    assert {row.patient for row in rows} == {"=1+1"}
    assert {one["patient"] for one in objects(output, "patient")} == {"=1+1"}


def test_the_page_of_a_detector(repository, detector, own_scans, tmp_path, tool, capsys):
    """Scans, problems and pictures; what only a classifier's has is refused."""
    output, page = tmp_path / "out", tmp_path / "r.html"
    assert tool(*words(detector, [own_scans], output, "--overlays"))[0] == 0
    report = ["tools/report.py", output, "--output", page, "--gallery", 4]
    assert run_tool(repository, *report, "--images", own_scans) == 0
    text = page.read_text()
    assert "A lesion is a candidate that scores above 0.75" in text and 'id="zoom"' in text
    assert text.count("<img") >= 4 and "no axial chest CT" in text and "With ggo" in text
    assert "P1" in text and "tools/predict.py" in text
    capsys.readouterr()
    assert run_tool(repository, *report, "--config-file", detector.config) == 2
    assert "--config-file: the page of a lesion detector" in capsys.readouterr().err
    (output / "predictions.jsonl").write_text('{"level": "scan"}\n')
    assert run_tool(repository, *report) == 2
    assert "predictions.jsonl: no prediction of a lesion detector" in capsys.readouterr().err
