"""OUTPUT_DIR is one training's."""

import argparse
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch

from ctmasknet.engine.record import read_record
from ctmasknet.engine.runs.folder import run_folder
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write, folder_of_one
from tests.helpers.running import run_tool
from tests.test_train_net import TINY


@pytest.fixture
def begin(tiny_cfg, tmp_path):
    """Begin a run in ``tmp_path / "out"``."""

    def call(weights="", **given):
        tiny_cfg.OUTPUT_DIR, tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "out"), str(weights)
        flags = {"eval_only": False, "resume": False, "overwrite": False}
        with run_folder(tiny_cfg, argparse.Namespace(**(flags | given))):
            return {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}

    return call


@pytest.fixture
def leave(tmp_path):
    """Leave files in ``tmp_path / "out"``."""

    def call(*names, status=None):
        for name in names:
            path = tmp_path / "out" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        if status:
            entry = {"kind": "training", "status": status}
            record = tmp_path / "out" / "run.json"
            record.write_text(json.dumps({"format": 1, "entries": [entry]}))

    return call


@pytest.mark.parametrize(
    "name",
    ["model_best.pth", "model_0000009.pth", "model_final.pth", "last_checkpoint"]
    + ["inference/some_test/results.json"],
)
def test_a_used_folder_is_refused_and_left_as_it_was(begin, leave, tmp_path, name):
    leave(name, "log.txt")
    with pytest.raises(CTMaskNetError, match=rf"{name}: .* `resume` goes on .* `overwrite` rem"):
        begin()
    assert (tmp_path / "out" / name).read_text() == name
    assert begin(eval_only=True) >= {name.split("/")[-1], "log.txt"}


def test_what_made_no_model_leaves_its_folder_to_others(begin, leave):
    leave("metrics.json", "log.txt", "config.yaml", "events.out.tfevents.1", status="running")
    assert "metrics.json" in begin()


def test_overwriting_removes_what_a_training_leaves_and_nothing_else(begin, leave):
    leave("model_best.pth", "model_final.pth", "last_checkpoint", "metrics.json", status="finished")
    leave("inference/a_test/predictions.csv", "learning_curves.png", "events.out.tfevents.1.2")
    leave("notes.txt", "ranked_boxes/0f.pt", "resnet18.pth")
    assert begin(overwrite=True) == {".lock", "notes.txt", "0f.pt", "resnet18.pth"}


def test_overwriting_spares_the_weights_to_start_from(begin, leave, tmp_path):
    leave("model_best.pth")
    with pytest.raises(CTMaskNetError, match=r"MODEL\.WEIGHTS lies in OUTPUT_DIR"):
        begin(tmp_path / "out" / ".." / "out" / "model_best.pth", overwrite=True)
    assert (tmp_path / "out" / "model_best.pth").exists()


@pytest.mark.parametrize("other", ["resume", "eval_only"])
def test_overwriting_goes_with_a_new_training_only(begin, other):
    with pytest.raises(CTMaskNetError, match=f"`overwrite` .* leave it or `{other}` out"):
        begin(overwrite=True, **{other: True})


def test_resuming_without_a_checkpoint_takes_no_model_for_its_own(begin, leave):
    leave("model_best.pth", "model_0000004.pth", status="running")
    assert begin(resume=True) == {".lock"}, "killed before its first checkpoint was named"
    leave("model_best.pth", status="finished")
    with pytest.raises(CTMaskNetError, match=r"has model_best\.pth but no last_checkpoint"):
        begin(resume=True)
    leave("model_final.pth", status="running")
    with pytest.raises(CTMaskNetError, match="but no last_checkpoint"):
        begin(resume=True)
    leave("last_checkpoint")
    assert {"model_best.pth", "model_final.pth"} <= begin(resume=True)


def test_half_written_files_of_killed_runs_go(begin, leave, tmp_path):
    leave(
        ".run.json.x.tmp", "inference/a/.results.json.y.tmp", "ranked_boxes/.z.pt.tmp", "keep.tmp"
    )
    with atomic_write(tmp_path / "out" / "ranked_boxes" / "now.pt") as stream:
        stream.write("of another process, at this moment")
        code = "import sys; from ctmasknet.files import remove_unfinished as r; "
        code += "r(sys.argv[1], below=True)"
        subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=True)
    assert begin() == {".lock", "now.pt", "keep.tmp"}


_HOLDER = """
import sys, time
from ctmasknet.files import folder_of_one
with folder_of_one(sys.argv[1], sys.argv[2], shared=sys.argv[2] == "evaluation"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("work", ["training", "evaluation"])
def test_of_two_at_once_the_second_is_refused_until_the_first_is_dead(begin, tmp_path, work):
    command = [sys.executable, "-c", _HOLDER, tmp_path / "out", work]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        who = rf"process {other.pid} on .* is at work \(training\) here"
        named = who if work == "training" else "another process is at work here"
        with pytest.raises(CTMaskNetError, match=rf"out: {named}; wait for its end, or set OUTPUT"):
            begin(resume=True)
        if work == "training":
            with pytest.raises(CTMaskNetError, match=who):
                begin(eval_only=True)
        else:
            begin(eval_only=True)
        other.send_signal(signal.SIGKILL)
    assert begin() == begin(eval_only=True) == {".lock"}
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_lock_that_the_file_system_does_not_keep_is_told_by_its_process(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    with (
        folder_of_one(tmp_path, "training"),
        pytest.raises(CTMaskNetError, match="is at work"),
        folder_of_one(tmp_path, "training"),
    ):
        pass
    with subprocess.Popen(["true"]) as dead:
        pass
    lock = json.dumps({"host": socket.gethostname(), "pid": dead.pid, "work": "w"})
    (tmp_path / ".lock").write_text(lock)
    with folder_of_one(tmp_path, "training"):
        pass


def content(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and path.name != "log.txt"
    }


def test_a_second_training_is_refused_or_takes_over_and_weights_are_told_apart(
    repository, prepared, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)

    def train_net(*words, folder=tmp_path / "run"):
        flags = [word for word in words if str(word).startswith("--")]
        rest = [word for word in words if not str(word).startswith("--")]
        words = ["--config-file", "configs/cls_light.yaml", *flags, *TINY, *rest]
        code = run_tool(repository, "tools/train_net.py", *words, "OUTPUT_DIR", folder)
        return code, (capsys.readouterr().err.strip().splitlines() or [""])[-1]

    short = ["MODEL.WEIGHTS", "", "MODEL.TRAINABLE", "heads", "SOLVER.MAX_ITER", 1]
    assert train_net(*short)[0] == 0
    assert train_net("--eval-only")[0] == 0
    (training, evaluation) = read_record(tmp_path / "run")
    assert evaluation["weights_run"] == training["run"]
    before = content(tmp_path / "run")
    code, line = train_net(*short, "SEED", 5, "SOLVER.BEST_METRIC", "")
    assert code == 2 and "--resume goes on with that, --overwrite removes it" in line
    assert content(tmp_path / "run") == before

    shutil.copy(tmp_path / "run" / "model_best.pth", tmp_path / "old.pth")
    assert train_net("--overwrite", *short, "SEED", 5, "SOLVER.BEST_METRIC", "")[0] == 0
    assert not (tmp_path / "run" / "model_best.pth").exists()
    assert not (tmp_path / "run" / "inference" / "covidx_ct_test").exists()
    (entry,) = read_record(tmp_path / "run")
    final = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert final["ctmasknet"]["run"] == entry["run"] != training["run"]

    shutil.copy(tmp_path / "old.pth", tmp_path / "run" / "model_best.pth")
    code, line = train_net("--eval-only")
    assert code == 2
    assert f"model_best.pth: of another training ({training['run']}) than" in line
    best = ["MODEL.WEIGHTS", tmp_path / "run" / "model_best.pth"]
    assert train_net("--eval-only", *best, folder=tmp_path / "elsewhere")[0] == 0
    # Neither are weights gone on from, nor a checkpoint of the first
    (tmp_path / "run" / "last_checkpoint").write_text("model_best.pth")
    longer = ["--resume", *short, "SEED", 5, "SOLVER.BEST_METRIC", "", "SOLVER.MAX_ITER", 2]
    code, line = train_net(*longer)
    assert code == 2 and "the last checkpoint holds weights without training state" in line
    final["trainer"]["run"]["run"] = training["run"]
    torch.save(final, tmp_path / "run" / "model_best.pth")
    assert train_net(*longer)[0] == 2
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "a checkpoint of another training than run.json records" in log
