"""A prediction that is killed again and again leaves what one leaves that never was."""

import json
import os
import random
import shutil

import pydicom
import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.inputs import list_units, read_unit
from ctmasknet.predict.manifest import MANIFEST, WRITTEN, begin, check_output, finish, read_manifest
from ctmasknet.predict.shards import Shard, Shards
from tests.helpers.dying import KILLED, POINTS, start_prediction
from tests.helpers.small_world import files_of, words, write_pictures

FLAGS = ["--masks", "nifti", "dicom-seg", "--score-threshold", 0.6, "--batch-size", 2]


def finished_slices(output):
    """Names of the slices of all finished shards."""
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


def test_killed_at_six_points_and_continued(repository, classifier, scans, tmp_path):
    inputs = [scans / name for name in ("c_pictures", "a_dicom", "b_nifti")]
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"

    def run(output, *flags, **given):
        command = words(classifier, inputs, output, *FLAGS, *flags)
        process = start_prediction(repository, command, **given)
        process.join(120)
        return process.exitcode

    chance = random.Random(11)
    # Before anything has its name, then anywhere
    kills = [("rename", 1)] + [(chance.choice(POINTS), chance.randint(2, 5)) for _ in range(5)]
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


SETTINGS = {"inputs": "a", "weights": "b", "configuration": "c", "options": {}}


def test_a_kill_while_an_earlier_run_is_removed_leaves_nothing_of_it(tmp_path, monkeypatch):
    """Its finished shards would be taken for those of the new run, made by other weights."""
    output = tmp_path / "out"
    begin(output, SETTINGS, None)
    old = [output / ".parts" / "0000" / "0000000-00000-0000000.jsonl"]
    old += [output / name / "old" if "." not in name else output / name for name in WRITTEN]
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    new = {**SETTINGS, "weights": "other"}
    for number in range(3):  # the shards, the folders, then a file
        remove, left = shutil.rmtree, [number]

        def dying(path, left=left, remove=remove):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            remove(path)

        monkeypatch.setattr(shutil, "rmtree", dying)
        found = check_output(output, new, resume=number > 0, overwrite=number == 0)
        with pytest.raises(KeyboardInterrupt):
            begin(output, new, found)
        monkeypatch.setattr(shutil, "rmtree", remove)
    assert begin(output, new, check_output(output, new, resume=True, overwrite=False))
    assert not any(path.exists() for path in old)
    assert os.listdir(output) == ["prediction.json"]
    manifest = check_output(output, new, resume=True, overwrite=False)
    finish(output, manifest, {})
    assert check_output(output, new, resume=True, overwrite=False)["status"] == "finished"


def test_half_written_files_go_when_a_run_is_continued(tmp_path):
    begin(tmp_path, SETTINGS, None)
    kept = tmp_path / "overlays" / "000001-001_P1" / "0001.png"
    for path in (kept, tmp_path / "masks" / "1.nii.gz", tmp_path / "lesions.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.x7.tmp").touch()
    kept.touch()
    begin(tmp_path, SETTINGS, check_output(tmp_path, SETTINGS, resume=True, overwrite=False))
    assert [path for path in tmp_path.rglob("*.*") if path.is_file()] == [
        tmp_path / "prediction.json",
        kept,
    ]


def test_scans_that_are_not_those_of_the_start_are_refused(tmp_path):
    """A file that could not be read then can be read now: places of scans have moved."""
    folder = write_pictures(tmp_path / "in", 1, ["NCP_1_1_0001.png", "NCP_2_1_0001.png"])
    whole = (folder / "NCP_1_1_0001.png").read_bytes()
    (folder / "NCP_1_1_0001.png").write_bytes(whole[:20])
    ((unit,), _), shards = list_units([folder]), Shards(tmp_path / "out")
    shards.write_unit(0, read_unit(unit, skip_bad=True))
    shards.write_unit(0, read_unit(unit, skip_bad=True))
    (folder / "NCP_1_1_0001.png").write_bytes(whole)
    with pytest.raises(CTMaskNetError, match="out: scans among the inputs are not those"):
        shards.write_unit(0, read_unit(unit, skip_bad=True))


@pytest.mark.parametrize(
    "content", ["{", "[" * 100_000, '[{"a": 1}]', '{"scans": 1}', b"\xff", '{"pieces": [[1e300]]}']
)
def test_damaged_parts_of_a_run_are_one_line(content, tmp_path):
    shards = Shards(tmp_path)
    unit, lines = shards._unit_path(0), shards._shard_path(Shard(0, 0, 0, 1))
    unit.parent.mkdir(parents=True)
    for path in (unit, lines):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CTMaskNetError, match=rf"{unit}: damaged \(.*\); remove it") as caught:
        shards.unit(0)
    assert "\n" not in str(caught.value)
    if not str(content).startswith('{"'):
        with pytest.raises(CTMaskNetError, match=rf"{lines}: damaged"):
            list(shards.lines([Shard(0, 0, 0, 1)]))


@pytest.mark.parametrize(
    "change", [{"status": 1}, {"settings": []}, {"status": "finished"}, {"format": "x"}]
)
def test_a_state_of_another_form_is_one_line(change, tmp_path):
    begin(tmp_path, {}, None)
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CTMaskNetError, match=rf"{path}: not the state of a prediction"):
        read_manifest(tmp_path)
