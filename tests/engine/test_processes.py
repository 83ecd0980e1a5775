"""Several processes on the CPU, started by the tool itself and by torchrun, against one."""

import json
import logging
import os
import platform
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from ctmasknet.engine import processes
from ctmasknet.engine.processes import keep_freed_memory, launch
from ctmasknet.errors import CTMaskNetError
from tests.helpers.running import run_tool
from tests.test_train_net import TINY

TOOL = "tools/train_net.py"


@pytest.fixture(scope="module")
def world(repository, prepared, tmp_path_factory):
    """Environment and folder; beside the phantoms, slice sets of 5 and of 2."""
    root = tmp_path_factory.mktemp("processes")
    sets = root / "sets"
    sets.mkdir()
    for name in ("cncb_lesions", "covidx_ct"):
        (sets / name).symlink_to(prepared / name)
    document = json.loads((prepared / "covidx_ct" / "slices" / "test.json").read_text())
    images = (prepared / "covidx_ct" / "slices" / document["info"]["image_root"]).resolve()
    document["info"]["image_root"] = str(images)
    for name, count in (("five", 5), ("two", 2)):
        (sets / name / "slices").mkdir(parents=True)
        part = {**document, "slices": document["slices"][:count]}
        (sets / name / "slices" / "test.json").write_text(json.dumps(part))
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(sets),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(repository),
    }
    return environment, root


def free_port():
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(repository, world, *words, starter=()):
    """Run a tool in new processes; returns its exit code and last line on stderr."""
    done = subprocess.run(
        [sys.executable, *map(str, starter), *map(str, words)],
        cwd=repository,
        env=world[0],
        capture_output=True,
        text=True,
        timeout=900,
    )
    print(done.stderr)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


@pytest.fixture
def in_this_process(repository, world, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", world[0]["DETECTRON2_DATASETS"])
    monkeypatch.chdir(repository)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda *words: run_tool(repository, TOOL, *words)
    torch.set_num_threads(threads)


def test_two_processes_learn_what_one_does(repository, world, in_this_process):
    words = [
        *("--config-file", "configs/cls_light.yaml", *TINY, "INPUT.RANDOM_FLIP", "horizontal"),
        *("SOLVER.BASE_LR", 1e-5, "SOLVER.MAX_ITER", 5, "SOLVER.IMS_PER_BATCH", 4),
        *("MODEL.WEIGHTS", "", "OUTPUT_DIR"),
    ]
    assert in_this_process(*words, world[1] / "one") == 0
    two = [TOOL, "--num-gpus", 2, "--dist-url", "auto", *words, world[1] / "two"]
    assert run(repository, world, *two)[0] == 0
    one, two = (
        torch.load(world[1] / name / "model_final.pth", weights_only=True)
        for name in ("one", "two")
    )
    for name, value in one["model"].items():
        assert (value - two["model"][name]).abs().max() < 1e-5, name
    states = two["trainer"]["hooks"]["RandomStates"]["processes"]
    assert len(states) == 2
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    record = json.loads((world[1] / "two" / "run.json").read_text())["entries"][-1]
    assert record["hardware"]["processes"] == 2 and "--num-gpus 2" in record["command"]


def test_two_processes_keep_the_rows_that_one_does(repository, world, in_this_process):
    words = [
        *("--config-file", "configs/cls_light.yaml", *TINY, "MODEL.TRAINABLE", "heads"),
        *("SOLVER.MAX_ITER", 1, "MODEL.RANKED_BOXES.CACHE", "always", "MODEL.WEIGHTS", ""),
    ]
    assert in_this_process(*words, "OUTPUT_DIR", world[1] / "rows_1") == 0
    two = [TOOL, "--num-gpus", 2, "--dist-url", "auto", *words, "OUTPUT_DIR", world[1] / "rows_2"]
    assert run(repository, world, *two)[0] == 0
    one, two = (
        sorted((world[1] / name / "ranked_boxes").iterdir()) for name in ("rows_1", "rows_2")
    )
    assert [path.name for path in one] == [path.name for path in two]
    assert len(one) == 2
    for ours, theirs in zip(one, two, strict=True):
        rows = torch.load(ours, weights_only=True)
        torch.testing.assert_close(rows, torch.load(theirs, weights_only=True), atol=1e-5, rtol=0)


def test_three_processes_evaluate_what_one_does(repository, world, in_this_process):
    """Five slices do not divide by three; of two slices a process gets none."""
    words = [
        *("--config-file", "configs/cls_light.yaml", "--eval-only", *TINY),
        *("DATASETS.TEST", "('five_test', 'two_test')"),
        *("MODEL.WEIGHTS", world[1] / "one" / "model_final.pth", "OUTPUT_DIR"),
    ]
    assert in_this_process(*words, world[1] / "alone") == 0
    three = [TOOL, "--num-gpus", 3, "--dist-url", "auto", *words, world[1] / "three"]
    assert run(repository, world, *three)[0] == 0
    for name, count in (("five_test", 5), ("two_test", 2)):
        for file in ("predictions.csv", "results.json", "slices_metrics.json"):
            alone, three = (
                (world[1] / run / "inference" / name / file).read_text()
                for run in ("alone", "three")
            )
            assert alone == three
        table = (world[1] / "three" / "inference" / name / "predictions.csv").read_text()
        assert len(table.splitlines()) == 1 + count


def test_torchrun_evaluates_lesions_alike(repository, world, in_this_process):
    words = ["--config-file", "configs/seg_light.yaml", *TINY, "SOLVER.MAX_ITER", 1]
    words += ["MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "OUTPUT_DIR"]
    assert in_this_process(*words, world[1] / "seg") == 0
    words[2:2] = ["--eval-only"]
    words[words.index("MODEL.WEIGHTS") + 1] = world[1] / "seg" / "model_final.pth"
    assert in_this_process(*words, world[1] / "seg_alone") == 0
    # By address, for --standalone asks the name service for this machine's own name.
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "3"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    assert run(repository, world, TOOL, *words, world[1] / "seg_3", starter=torchrun)[0] == 0
    alone, three = (
        json.loads((world[1] / run / path).read_text())
        for run in ("seg_alone", "seg_3")
        for path in ["inference/cncb_lesions_merge_val/results.json"]
    )
    assert alone == three
    assert alone["lesion_free"]["slices"] is not None


def test_an_error_in_a_process_is_one_line(repository, world):
    words = [TOOL, "--num-gpus", 2, "--dist-url", "auto", "--config-file", "configs/cls_light.yaml"]
    words += [*TINY, "MODEL.WEIGHTS", "none.pth", "OUTPUT_DIR", world[1] / "none"]
    code, line = run(repository, world, *words)
    assert code == 2
    assert line.startswith("error: none.pth: no such weights file")


class Arguments:
    config_file, opts = "configs/cls_light.yaml", ["MODEL.DEVICE", "cpu"]
    num_gpus, num_machines, machine_rank, dist_url = 2, 2, 0, "auto"


@pytest.mark.parametrize(
    ("torchrun", "message"),
    [(True, "torchrun has started the processes already"), (False, "machines have to agree on it")],
)
def test_contradicting_options(repository, monkeypatch, torchrun, message):
    monkeypatch.chdir(repository)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if torchrun else ():
        monkeypatch.setenv(name, "1")
    with pytest.raises(CTMaskNetError, match=message):
        launch(print, Arguments)


@pytest.mark.parametrize("by_torchrun", [True, False])
def test_what_torchrun_starts_ends_with_it(repository, monkeypatch, by_torchrun):
    monkeypatch.chdir(repository)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if by_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    called = []
    monkeypatch.setattr(processes, "end_with_parent", called.append)
    for name in ("_join", "_leave"):
        monkeypatch.setattr(processes, name, lambda *_, name=name: called.append(name))
    arguments = type("One", (Arguments,), {"num_gpus": 1, "num_machines": 1})
    launch(lambda args: called.append("run"), arguments)
    assert called[: called.index("_leave")] == [*[os.getppid()] * by_torchrun, "_join"]


@pytest.fixture
def joined(monkeypatch):
    """The store that each process was joined by, which are alone in truth."""
    kept, stores = dist.HashStore(), []
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(kept, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda *_, store, **__: stores.append(store))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(processes.comm, "create_local_process_group", lambda _: None)
    monkeypatch.setattr(processes.comm, "synchronize", lambda: None)
    monkeypatch.setattr(processes, "keep_freed_memory", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return stores


def test_what_every_process_would_warn_of_the_first_alone_says(joined, monkeypatch):
    names = ["ctmasknet.predict.predictor", "ctmasknet.weights.spec", "ctmasknet.predict.shards"]
    told = {}
    for rank in (0, 1):
        monkeypatch.setattr(logging, "lastResort", logging.Handler())
        processes._join(lambda _: None, None, "env://", rank, 2, rank, 2, False)
        records = map(logging.makeLogRecord, ({"name": name} for name in names))
        told[rank] = [record.name for record in records if logging.lastResort.filter(record)]
    # A part of its own that was damaged is said by whoever meets it
    assert told == {0: names, 1: names[2:]}


def test_a_restart_by_torchrun_meets_no_address_of_a_process_that_is_lost(joined, monkeypatch):
    """torchrun may keep its store."""
    for attempt in "01":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        processes._join(lambda _: None, None, "env://", 0, 2, 0, 2, False)
    first, second = joined
    first.set("rank 1", "127.0.0.1:6573")
    assert first.check(["rank 1"]) and not second.check(["rank 1"])


_PROGRAM = """
import resource, statistics, torch
from ctmasknet.engine import processes
from ctmasknet.engine.processes import keep_freed_memory

def faults():
    found = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(25_000_000)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(found)

{}
print(faults())
"""


@pytest.fixture
def median_faults(monkeypatch):
    """Runs a program's first lines, then frees 100 MB again and again."""
    for name in ("MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)

    def run(first):
        command = [sys.executable, "-c", _PROGRAM.format(first)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout)

    return run


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_freed_memory_is_kept_if_asked_for(median_faults):
    # 100 MB in pages of 4 kB, or of 2 MB where the system has made them huge
    assert median_faults("") >= 40
    assert median_faults("assert keep_freed_memory()") < 10


def test_who_tunes_glibc_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
