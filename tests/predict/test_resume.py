"""A prediction that is killed again and again leaves what one leaves that never was."""

import json
import os
import random
import shutil
from dataclasses import asdict

import pydicom
import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.inputs import list_units, read_unit
from ctmasknet.predict.manifest import MANIFEST, WRITTEN, begin, check_output, finish, read_manifest
from ctmasknet.predict.outputs import Summary
from ctmasknet.predict.results import line_form
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
    assert ours.keys() == theirs.keys() and len(theirs) == 8
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


def test_damaged_parts_are_made_anew(tmp_path, caplog):
    """One flipped bit of a shard would be a wrong score that nobody notices."""
    shards, lines = Shards(tmp_path), [{"file": "a", "score": 0.5}, {"file": "b", "score": 0.25}]
    kept, hit = Shard(0, 0, 0, 2), Shard(0, 0, 2, 4)
    for shard in (kept, hit):
        shards.write(shard, lines)
    assert list(shards.lines([hit])) == lines
    data = bytearray(shards._shard_path(hit).read_bytes())
    data[data.index(b"5")] ^= 2  # 0.5 becomes 0.7
    shards._shard_path(hit).write_bytes(data)
    with pytest.raises(CTMaskNetError, match="does not fit its check sum"):
        list(shards.lines([hit]))
    with caplog.at_level("WARNING"):
        shards.remove_unfinished()
    assert shards.has(kept) and not shards.has(hit)
    assert caplog.messages == [
        f"{shards._shard_path(hit)}: damaged (it does not fit its check sum); it is made anew"
    ]


BOX = {"class": 0, "score": 0.5, "box_px": [1.0, 2.0, 5.0, 6.0], "rle": "32[2"}
LINE = {
    **{"file": "a", "patient": "p", "scan": "s", "height": 8, "width": 10, "spacing_mm": None},
    **{"position_mm": 1.5, "pred": 1, "logits": [0.1, 2.0], "scores": [0.5, 0.9]},
    **{"boxes": [BOX], "lesions": [BOX]},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logits": [0.1]}, "logits is a list of 1"),
        ({"logits": [0.1, float("nan")]}, r"logits\[1\] is nan"),
        ({"pred": 2}, "pred is 2, where a whole number from 0 to 1"),
        ({"scores": [0.5, 1.5]}, r"scores\[1\] is 1.5"),
        ({"patient": None}, "patient is null"),
        ({"boxes": [{**BOX, "class": 1}]}, r"boxes\[0\].class is 1"),
        ({"lesions": [{**BOX, "rle": "`0"}]}, "rle is '`0'"),
        ({"lesions": 5}, "lesions is 5"),
    ],
)
def test_a_line_of_another_form_is_told(change, words, tmp_path):
    shards = Shards(tmp_path)
    form = line_form(["a", "b"], ["ggo"], ["ggo"])
    shards.write(Shard(0, 0, 0, 1), [LINE, {"file": "c", "bad": "cut"}])
    assert list(shards.lines([Shard(0, 0, 0, 1)], form)) == [LINE, {"file": "c", "bad": "cut"}]
    shards.write(Shard(0, 0, 0, 1), [{**LINE, **change}])
    with pytest.raises(CTMaskNetError, match=rf"0000000.jsonl: damaged \({words}"):
        list(shards.lines([Shard(0, 0, 0, 1)], form))


@pytest.mark.parametrize(
    "change",
    [{"slices": "x"}, {"classes": {"slices": 3}}, {"cautions": [1]}, {"bad": 1, "lesions": -1}],
)
def test_the_summary_of_a_finished_run_has_a_form(change, tmp_path):
    stated = asdict(Summary(slices=3, classes={"slices": {"covid": 1}}))
    assert asdict(Summary.from_json({**stated, "later": 1}, tmp_path)) == stated
    with pytest.raises(CTMaskNetError, match="not the state of a prediction"):
        Summary.from_json({**stated, **change}, tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"status": 1}, {"settings": []}, {"status": "finished"}, {"format": "x"}, {"started": "x"}],
)
def test_a_state_of_another_form_is_one_line(change, tmp_path):
    begin(tmp_path, {}, None)
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CTMaskNetError, match=rf"{path}: not the state of a prediction"):
        read_manifest(tmp_path)
