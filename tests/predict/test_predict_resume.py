"""A prediction that is killed again and again leaves what one leaves that never was."""

import json
import random

import pydicom
from dying import KILLED, POINTS, start_prediction
from small_world import files_of, words

FLAGS = ["--masks", "nifti", "dicom-seg", "--score-threshold", 0.6, "--batch-size", 2]


def finished_slices(output):
    """Names of the slices of all finished pieces."""
    lines = [
        json.loads(line)
        for path in (output / ".parts").rglob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return {line["file"] for line in lines if "file" in line}


def untimed(folder):
    """The files of a run; DICOM segmentations without the times at which it began."""
    files = files_of(folder)
    for name in [name for name in files if name.endswith(".dcm")]:
        segmentation = pydicom.dcmread(folder / name)
        segmentation.walk(
            lambda dataset, element: element.VR in ("DA", "TM", "DT") and element.clear()
        )
        files[name] = segmentation.to_json()
    return files


def test_killed_at_five_points_and_continued(repository, classifier, scans, tmp_path):
    inputs = [scans / name for name in ("c_pictures", "a_dicom", "b_nifti")]
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"

    def run(output, *flags, **given):
        command = words(classifier, inputs, output, *FLAGS, *flags)
        process = start_prediction(repository, command, **given)
        process.join(120)
        return process.exitcode

    chance = random.Random(11)
    kills = [(chance.choice(POINTS), chance.randint(2, 5)) for _ in range(5)]
    for kill in [*kills, None]:
        finished = finished_slices(broken)
        log.write_text("")
        assert run(broken, "--resume", kill=kill, log=str(log)) == (KILLED if kill else 0), kill
        assert not finished & set(log.read_text().splitlines()), "predicted again"
    assert run(whole) == 0
    ours, theirs = untimed(broken), untimed(whole)
    assert ours.keys() == theirs.keys() and len(theirs) == 6
    for name in theirs:
        assert ours[name] == theirs[name], name
    assert json.loads((broken / "prediction.json").read_text())["status"] == "finished"


def test_a_finished_prediction_is_not_repeated(classifier, scans, tmp_path, tool, monkeypatch):
    output = tmp_path / "out"
    assert tool(*words(classifier, [scans / "a_dicom"], output))[0] == 0
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    monkeypatch.setattr("ctmasknet.predict.command.CTPredictor", None)
    assert tool(*words(classifier, [scans / "a_dicom"], output, "--resume"))[0] == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
