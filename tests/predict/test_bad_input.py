"""Whatever is wrong is told in one line with exit code 2, and leaves nothing half-written."""

import json
import os
import resource
import shutil
import signal

import nibabel
import numpy as np
import pytest
import torch

from ctmasknet.engine.record import read_record
from tests.helpers.small_world import files_of, words


def refused(tool, message, *command):
    code, line = tool(*command)
    assert code == 2 and line.startswith("error: ") and message in line, line
    return line


def test_bad_weights(own_classifier, detector, scans, tmp_path, tool):
    output, inputs = tmp_path / "out", [scans / "a_dicom"]
    model = own_classifier
    model.weights.write_bytes(model.weights.read_bytes()[:5000])
    refused(tool, "own.pth: not a readable checkpoint", *words(model, inputs, output))
    torch.save({"model": {}}, model.weights)
    refused(tool, "own.pth: holds no model weights", *words(model, inputs, output))
    model.weights.unlink()
    refused(tool, "own.pth: no such weights file", *words(model, inputs, output))
    model.weights = detector.weights
    refused(tool, "a checkpoint for segmentation", *words(model, inputs, output))
    other = words(detector, inputs, output, "--", "MODEL.FPN.OUT_CHANNELS", 8)
    refused(tool, "seg.pth: another architecture", *other)
    assert not output.exists()


def test_bad_scans(classifier, own_scans, tmp_path, tool):
    output, empty = tmp_path / "out", tmp_path / "empty"
    refused(tool, "none.dcm: no such file", *words(classifier, [own_scans / "none.dcm"], output))
    refused(tool, "given twice", *words(classifier, [own_scans, f"{own_scans}/."], output))
    inner = [own_scans, own_scans / "a_dicom"]
    refused(tool, "is an input too", *words(classifier, inner, output))
    empty.mkdir()
    refused(tool, "holds no files", *words(classifier, [empty], output, "--overwrite"))
    notes = tmp_path / "notes.txt"
    notes.write_text("a report")
    refused(tool, "notes.txt: no PNG", *words(classifier, [notes], output, "--overwrite"))
    # What cannot be decoded, and what cannot be opened
    for name in ("c_pictures/NCP_8_1_0001.png", "a_dicom/001.dcm"):
        bad = own_scans / name
        bad.write_bytes(bad.read_bytes()[:-500])
        line = refused(tool, bad.name, *words(classifier, [own_scans], output, "--overwrite"))
        assert line.endswith("(to leave bad slices out: --bad skip)")
    assert not list(output.glob("predictions*"))


def test_bad_scans_are_skipped_listed_and_too_many_an_error(classifier, own_scans, tmp_path, tool):
    """One file that cannot be opened and one slice that cannot be decoded, of 15."""
    cut = own_scans / "a_dicom" / "001.dcm", own_scans / "c_pictures" / "NCP_8_1_0001.png"
    for path in cut:
        path.write_bytes(path.read_bytes()[:-500])
    output = tmp_path / "out"
    skip = ["--bad", "skip", "--max-bad-share"]
    line = refused(
        tool,
        "2 of 15 slices and files could not be read",
        *words(classifier, [own_scans], output, *skip, 0.1),
    )
    assert "bad_slices.json" in line
    refused(tool, "2 of 15", *words(classifier, [own_scans], output, *skip, 0.1, "--resume"))
    report = json.loads((output / "bad_slices.json").read_text())["sets"]["inputs"]
    assert [item["file"] for item in report["files"]] == [str(path) for path in cut]
    assert all(item["reason"] for item in report["files"])
    names = {line.split(",")[0] for line in (output / "predictions.csv").open()}
    assert len(names) == 1 + 13 and not names & {str(path) for path in cut}
    scans = [json.loads(line) for line in (output / "predictions.jsonl").open()]
    skipped = {one["patient"]: one["skipped"] for one in scans if one["level"] == "scan"}
    assert skipped == {"P1": 0, "": 0, "7": 0, "8": 1}
    again = words(classifier, [own_scans], tmp_path / "again", *skip, 0.2)
    assert tool(*again)[0] == 0


def test_what_is_no_ct_in_a_cut_folder_is_counted(
    classifier, own_scans, tmp_path, tool, monkeypatch
):
    """A label mask beside its volume and a report, as in a folder that needs no cutting."""
    source = nibabel.load(own_scans / "b_nifti" / "ct.nii.gz")
    labels = (source.get_fdata() > 0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, source.affine), own_scans / "b_nifti" / "mask.nii.gz")
    (own_scans / "c_pictures" / "report.txt").write_text("a report")
    tables = []
    for name, files in (("whole", 4096), ("cut", 5)):
        monkeypatch.setattr("ctmasknet.predict.inputs.UNIT_FILES", files)
        assert tool(*words(classifier, [own_scans], tmp_path / name))[0] == 0
        tables.append((tmp_path / name / "predictions.csv").read_bytes())
    assert tables[0] == tables[1]
    (entry,) = read_record(tmp_path / "cut")
    assert (entry["results"]["left_out"], entry["results"]["skipped"]) == (2, 0)


def test_folders_of_something_else(classifier, detector, scans, tmp_path, tool):
    output, inputs = tmp_path / "out", [scans / "a_dicom"]
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    refused(tool, "something else, such as notes.txt", *words(classifier, inputs, output))
    refused(
        tool, "something else, such as notes.txt", *words(classifier, inputs, output, "--overwrite")
    )
    refused(tool, "is a file", *words(classifier, inputs, output / "notes.txt"))
    within = scans / "a_dicom" / "new" / "out"
    refused(tool, f"out: lies in the input {inputs[0]}", *words(classifier, inputs, within))
    assert not within.parent.exists()
    assert os.listdir(output) == ["notes.txt"]


def test_another_run_s_folder(classifier, detector, own_scans, tmp_path, tool):
    output, inputs = tmp_path / "out", [own_scans / "a_dicom"]
    assert tool(*words(classifier, inputs, output))[0] == 0
    before = files_of(output)
    refused(tool, "already, finished", *words(classifier, inputs, output))
    refused(tool, "give one of them", *words(classifier, inputs, output, "--resume", "--overwrite"))
    refused(tool, "other options", *words(classifier, inputs, output, "--resume", "--lesions"))
    others = words(detector, inputs, output, "--resume")
    refused(tool, "other weights and another configuration and other options", *others)
    fewer = words(classifier, inputs, output, "--resume", "--", "TEST.DETECTIONS_PER_IMAGE", 3)
    refused(tool, "another configuration", *fewer)
    shutil.copy(own_scans / "a_dicom" / "000.dcm", own_scans / "a_dicom" / "copy.dcm")
    refused(tool, "other inputs", *words(classifier, inputs, output, "--resume"))
    assert files_of(output) == before
    assert tool(*words(detector, inputs, output, "--overwrite"))[0] == 0
    assert sorted(files_of(output)) == ["lesions.json", "predictions.jsonl"]


def test_no_permission(classifier, scans, tmp_path, tool, monkeypatch):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK and access(path, mode))
    command = words(classifier, [scans / "a_dicom"], tmp_path / "out")
    refused(tool, "no permission to write here", *command)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit_bytes", [200, 4_000])
def test_a_full_disk_keeps_what_is_finished(limit_bytes, classifier, scans, tmp_path, tool):
    """Files end at so many bytes: a unit's, or a piece's."""
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert tool(*words(classifier, [scans], whole))[0] == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        refused(tool, "cannot be written (File too large)", *words(classifier, [scans], output))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(output.rglob(".*.tmp")) and not list(output.glob("predictions*"))
    assert tool(*words(classifier, [scans], output, "--resume"))[0] == 0
    assert files_of(output) == files_of(whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pooling", "learned"], "holds no learned pooling"),
        (["--batch-size", 0], "give 1 or more"),
        (
            ["--", "INPUT.CROP_TO_BODY", True, "MODEL.UNLIKE_CHECKPOINT", "warn"],
            "INPUT.CROP_TO_BODY: scans come without body boxes",
        ),
        (["--masks", "nifti", "--", "MODEL.MASK_ON", False], "--masks: these weights"),
        (["--max-bad-share", 2], "--max-bad-share is 2.0"),
        (["--score-threshold", 75], "--score-threshold: 75.0 is no score"),
        (["--score-threshold", "nan"], "--score-threshold: nan is no score"),
        (["--top-k", 3], "--top-k: is of no use to the pooling mean"),
        (["--pooling", "top_k_mean", "--top-k", 0], "top-k is 0"),
    ],
)
def test_arguments_that_make_no_sense(flags, message, classifier, scans, tmp_path, tool):
    refused(tool, message, *words(classifier, [scans / "a_dicom"], tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()


def test_a_detector_pools_nothing(detector, scans, tmp_path, tool):
    command = words(detector, [scans / "a_dicom"], tmp_path / "out", "--pooling", "max")
    refused(tool, "--pooling, --top-k: a lesion detector names no class", *command)


def test_weights_that_have_diverged(own_classifier, scans, tmp_path, tool, monkeypatch):
    content = torch.load(own_classifier.weights, weights_only=True)
    content["model"]["image_head.fc1.weight"].fill_(float("nan"))
    torch.save(content, own_classifier.weights)
    command = words(own_classifier, [scans / "a_dicom"], tmp_path / "out")
    refused(tool, "own.pth: tensor image_head.fc1.weight holds numbers that are not", *command)
    # Finite weights too may give such logits
    monkeypatch.setattr("ctmasknet.engine.checkpoint.check_weights", lambda *given: None)
    refused(tool, "000.dcm: the model gives logits that are no finite numbers", *command)


def test_a_missing_highdicom_is_told_first(classifier, scans, tmp_path, tool, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    command = words(classifier, [scans / "a_dicom"], tmp_path / "out", "--masks", "dicom-seg")
    refused(tool, "pip install highdicom", *command)
    assert not (tmp_path / "out").exists()
