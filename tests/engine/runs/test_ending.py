"""Ctrl-C and SIGTERM: a checkpoint, one line that tells how to go on, 130 and 143."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.engine.test_resume import SCHEDULE, TASKS, same, without_timings
from tests.helpers.killing import train
from tests.test_train_net import TINY


def test_asked_to_end_a_training_goes_on_as_the_unbroken_one(repository, prepared, tmp_path):
    config, *overrides = TASKS["segmentation"]

    def command(folder, *flags):
        words = ["--config-file", config, *flags, *TINY, *SCHEDULE, *overrides]
        return [*words, "MODEL.WEIGHTS", "", "OUTPUT_DIR", folder]

    broken = tmp_path / "broken"
    # In the fifth iteration, then in an evaluation: that of the sixth
    asked = ("step", 5, signal.SIGTERM), ("evaluation", 1, signal.SIGINT)
    assert train(repository, prepared, command(broken), asked[0]) == 143
    assert (broken / "last_checkpoint").read_text() == "model_0000004.pth"
    assert train(repository, prepared, command(broken, "--resume"), asked[1]) == 130
    assert (broken / "last_checkpoint").read_text() == "model_0000005.pth"
    assert train(repository, prepared, command(broken, "--resume")) == 0
    assert train(repository, prepared, command(tmp_path / "whole")) == 0
    for name in ("model_final.pth", "model_best.pth"):
        ours, theirs = (
            without_timings(torch.load(run / name, weights_only=True))
            for run in (broken, tmp_path / "whole")
        )
        assert ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in theirs)
    ours, theirs = (run / "metrics.json" for run in (broken, tmp_path / "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


def start(repository, prepared, folder, *flags, overrides=(), **given):
    environment = {**os.environ, "DETECTRON2_DATASETS": str(prepared), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(repository)
    words = ["--config-file", "configs/cls_light.yaml", *flags, *TINY, "MODEL.WEIGHTS", ""]
    words += ["SOLVER.MAX_ITER", 100000, "SOLVER.LOG_PERIOD", 1, "OUTPUT_DIR", folder, *overrides]
    return subprocess.Popen(
        [sys.executable, "tools/train_net.py", *map(str, words)],
        cwd=repository,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **given,
    )


def wait_for_iterations(process, folder):
    for _ in range(2400):
        metrics = folder / "metrics.json"
        if metrics.is_file() and len(metrics.read_text().splitlines()) > 2:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    pytest.fail("does not train")


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("number", "flags", "overrides"),
    [(signal.SIGTERM, [], ["DATALOADER.NUM_WORKERS", 2]), (signal.SIGINT, ["--num-gpus", 2], [])],
)
def test_all_processes_are_signalled_and_one_line_is_said(
    repository, prepared, tmp_path, number, flags, overrides
):
    with start(repository, prepared, tmp_path, *flags, overrides=overrides) as process:
        try:
            wait_for_iterations(process, tmp_path)
            os.killpg(process.pid, number)
            _, said = process.communicate(timeout=100)
        finally:
            if group_lives(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    last = (tmp_path / "last_checkpoint").read_text()
    how = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM"}[number]
    assert re.fullmatch(
        rf"{how}: {tmp_path}: {last} is written, after \d+ of 100000 iterations; the same command "
        "with --resume goes on from there",
        said.strip().splitlines()[-1],
    )
    checkpoint = torch.load(tmp_path / last, weights_only=True)
    assert checkpoint["iteration"] == int(re.sub(r"\D", "", last)[:7])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems watch the parent's id")
def test_processes_that_ignore_signals_end_with_the_one_that_started_them(
    repository, prepared, tmp_path
):
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    with start(repository, prepared, tmp_path, "--num-gpus", "2", **ignore) as process:
        try:
            wait_for_iterations(process, tmp_path)
            process.kill()
            process.wait()
            for _ in range(100):
                if not group_lives(process.pid):
                    break
                time.sleep(0.1)
            else:
                pytest.fail("10 s later they train on")
        finally:
            if group_lives(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


def started_by(process):
    """The processes that it started to train, by their number."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [n for n in found if b"spawn_main" in Path(f"/proc/{n}/cmdline").read_bytes()]


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="what is loaded is told by /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_that_still_load_their_libraries_end_too(repository, prepared, tmp_path, number):
    with start(repository, prepared, tmp_path, "--num-gpus", "2") as process:
        try:
            while not (
                (pids := started_by(process))
                and all("libtorch_cpu" in Path(f"/proc/{n}/maps").read_text() for n in pids)
            ):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.002)
            os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
            said = process.communicate(timeout=60)[1]
            for _ in range(30):
                if not group_lives(process.pid):
                    break
                time.sleep(0.1)
            else:
                pytest.fail("3 s later they are still there")
        finally:
            if group_lives(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert said == "interrupted: the same command with --resume goes on\n"
