"""Predict, then write: how a slice gets to the model, and what an error on the way is called."""

import json
import shutil
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ctmasknet
from ctmasknet.engine.record import read_record
from ctmasknet.modeling.meta_arch import CTMaskNet
from ctmasknet.predict import CTPredictor
from tests.helpers.running import needs_bfloat16, run_tool
from tests.helpers.small_world import files_of, words, write_pictures


def test_a_slice_passes_at_most_five_frames_on_its_way_to_the_model(
    repository, classifier, scans, tmp_path, tool
):
    """All of ours are counted, the tool's main and the wrapper around it too."""
    folders = (Path(ctmasknet.__file__).parent, repository / "tools")
    stacks = []

    def note(module, _):
        if isinstance(module, CTMaskNet):
            stack = traceback.extract_stack()
            stacks.append([one for one in stack if Path(one.filename).is_relative_to(folders[0])])
            stacks[-1] += [one for one in stack if Path(one.filename).is_relative_to(folders[1])]

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        assert tool(*words(classifier, [scans], tmp_path / "out", "--masks", "nifti"))[0] == 0
    finally:
        hook.remove()
    assert len(stacks) == 15, "a batch of each slice"
    print(*(f"{one.filename}:{one.lineno} {one.name}" for one in stacks[0]), sep="\n")
    assert min(map(len, stacks)) > 0 and max(map(len, stacks)) <= 5


@pytest.mark.parametrize("what", ["the model", "the pixels"])
def test_an_error_while_computing_is_not_told_as_one_of_writing(
    what, classifier, scans, tmp_path, tool, monkeypatch
):
    def fails(*_):
        raise OSError(28, "No space left on device")

    name = "predict" if what == "the model" else "mapped"
    monkeypatch.setattr(CTPredictor, name, fails)
    code, line = tool(*words(classifier, [scans / "a_dicom"], tmp_path / "out"))
    assert code == 2 and "No space left" in line and str(tmp_path / "out") not in line
    assert not list((tmp_path / "out" / ".parts").rglob("*.jsonl"))


def test_nothing_of_a_shard_is_written_before_its_slices_are_predicted(
    classifier, scans, tmp_path, tool, monkeypatch
):
    """But for overlays, which would need the pixels of all slices."""
    predict, seen = CTPredictor.predict, []

    def noted(self, items):
        names = {path.relative_to(tmp_path / "out").parts[0] for path in files()}
        seen.append(names - {".parts", ".lock", "prediction.json"})
        assert not [path for path in files() if path.suffix == ".tmp"]
        return predict(self, items)

    def files():
        return [path for path in (tmp_path / "out").rglob("*") if path.is_file()]

    monkeypatch.setattr(CTPredictor, "predict", noted)
    flags = ["--masks", "nifti", "--overlays", "--score-threshold", 0.3]
    assert tool(*words(classifier, [scans / "a_dicom"], tmp_path / "out", *flags))[0] == 0
    assert seen == [set(), {"overlays"}, {"overlays"}, {"overlays"}]


def test_a_run_that_fails_on_its_input_leaves_the_folder_to_another(
    classifier, scans, tmp_path, tool
):
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "a.txt").write_text("no picture")
    output = tmp_path / "out"
    code, line = tool(*words(classifier, [tmp_path / "wrong"], output))
    assert code == 2 and "none of its 1 files is axial CT" in line
    assert tool(*words(classifier, [scans / "a_dicom"], output))[0] == 0
    assert tool(*words(classifier, [scans / "a_dicom"], tmp_path / "whole"))[0] == 0
    assert files_of(output) == files_of(tmp_path / "whole")


def test_a_failed_run_with_finished_slices_keeps_its_folder(classifier, tmp_path, tool):
    for name in ("a", "b"):
        write_pictures(tmp_path / "in" / name, 1, ["NCP_1_1_0001.png", "NCP_2_1_0001.png"])
    bad = tmp_path / "in" / "b" / "NCP_2_1_0001.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-500])
    inputs = [tmp_path / "in" / name for name in ("a", "b")]
    code, line = tool(*words(classifier, inputs, tmp_path / "out"))
    assert code == 2 and "NCP_2_1_0001.png" in line
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["status"] == "failed"
    code, line = tool(*words(classifier, inputs[:1], tmp_path / "out"))
    assert code == 2 and "holds another run's prediction, of other inputs" in line
    code, line = tool(*words(classifier, inputs, tmp_path / "out"))
    assert code == 2 and "unfinished; --resume continues it, --overwrite replaces it" in line


def test_room_that_may_not_suffice_is_told(
    repository, classifier, scans, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    for flags, is_told in ((["--masks", "nifti"], False), (["--overlays", "--overwrite"], True)):
        command = words(classifier, [scans / "a_dicom"], tmp_path / "out", *flags)
        assert run_tool(repository, "tools/predict.py", *command) == 0
        told = capfd.readouterr()
        lack = "overlays of all slices need about 2.4 MB, and the disk has 100.0 kB"
        lack = f"{tmp_path / 'out'}: {lack}"
        assert (lack in told.err + told.out) == is_told


def test_a_viewer_of_all_slices_is_written_and_goes_with_its_prediction(
    classifier, scans, tmp_path, tool
):
    output = tmp_path / "out"
    options = ("--lesions", "--viewer")
    assert tool(*words(classifier, [scans / "a_dicom"], output, *options))[0] == 0
    assert [one.name for one in (output / "viewer").glob("*.html") if "index" in one.name]
    assert len(list((output / "viewer").glob("*.html"))) == 2
    (output / "burden").mkdir()
    (output / "burden" / "burden.json").write_text("{}")
    assert tool(*words(classifier, [scans / "a_dicom"], output, "--overwrite"))[0] == 0
    assert not (output / "viewer").exists() and not (output / "burden").exists()


@needs_bfloat16
def test_second_looks_are_told_and_recorded(repository, classifier, tmp_path, capsys):
    write_pictures(tmp_path / "in", 3, ["NCP_7_1_0001.png", "NCP_7_1_0002.png"])
    exact = ["MODEL.INFERENCE.DTYPE", "bfloat16", "MODEL.INFERENCE.RECHECK_MARGIN", 1000.0]
    command = words(classifier, [tmp_path / "in"], tmp_path / "out", "--", *exact)
    assert run_tool(repository, "tools/predict.py", *command) == 0
    said = "2 of 2 looks at slices (100.0 %) decided in float32"
    assert said in capsys.readouterr().out
    (entry,) = read_record(tmp_path / "out")
    assert entry["second_looks"] == {"looks": 2, "again": 2}
