"""Several processes write the files that one writes."""

import logging
import re
import socket

import pytest
from torch.multiprocessing import ProcessExitedException

from ctmasknet.data.bad_slices import BadSlices
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict import run as work
from ctmasknet.predict import shards
from ctmasknet.predict.inputs import UNIT_FILES, Unit, list_units
from ctmasknet.predict.run import PredictionRun, is_shared
from ctmasknet.predict.shards import Shards
from tests.helpers.dying import start_prediction
from tests.helpers.holding import held
from tests.helpers.small_world import files_of, words


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_all(repository, command, world):
    """Processes as torchrun starts them."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    return [
        start_prediction(
            repository,
            command,
            environment=common
            | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            | {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)},
        )
        for rank in range(world)
    ]


@pytest.mark.parametrize(
    ("names", "world"),
    [(("a_dicom", "b_nifti", "c_pictures"), 2), (("a_dicom", "b_nifti"), 3)],
    ids=["two processes", "a process that gets none"],
)
def test_several_processes_write_what_one_does(
    names, world, repository, classifier, scans, tmp_path, tool
):
    inputs = [scans / name for name in names]
    flags = ["--masks", "nifti", "--score-threshold", 0.6]
    assert tool(*words(classifier, inputs, tmp_path / "one", *flags))[0] == 0
    processes = start_all(
        repository, words(classifier, inputs, tmp_path / "several", *flags), world
    )
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * world
    assert files_of(tmp_path / "several") == files_of(tmp_path / "one")


def test_one_process_s_failure_ends_the_one_that_waits(repository, classifier, own_scans, tmp_path):
    """Units go to processes in turn, so the second one meets the damaged picture."""
    bad = own_scans / "c_pictures" / "NCP_8_1_0002.png"
    bad.write_bytes(bad.read_bytes()[:-500])
    command = words(classifier, [own_scans / "c_pictures"], tmp_path / "out")
    processes = start_all(repository, command, 2)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [2, 2]


def test_a_process_that_is_killed_is_one_line(classifier, scans, tmp_path, tool, monkeypatch):
    class Started:
        def pids(self):
            return []

        def join(self, *args, **kwargs):
            raise ProcessExitedException("", 1, 4711, -9, "SIGKILL")

    monkeypatch.setattr("torch.multiprocessing.start_processes", lambda *_, **__: Started())
    command = words(classifier, [scans], tmp_path / "out", "--num-gpus", 2)
    code, line = tool(*command)
    assert code == 2 and line.startswith("error: process 2 of 2 was ended by SIGKILL")
    assert "--resume" in line


def test_who_waits_says_so_and_ends_when_another_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_POLL_SECONDS", 0)
    monkeypatch.setattr(shards, "_TELL_SECONDS", 0)
    ours, told = Shards(tmp_path), []

    class Failing(logging.Handler):
        def emit(self, record):
            told.append(record.getMessage())
            ours.mark_failed(1)

    handler = Failing()
    logging.getLogger(shards.__name__).addHandler(handler)
    try:
        with pytest.raises(CTMaskNetError, match="another process of this run has failed"):
            ours.unit(3)
    finally:
        logging.getLogger(shards.__name__).removeHandler(handler)
    assert "Waiting for another process of this run to finish 0000003.json" in told[0]


@pytest.mark.parametrize("units_a_process", [0, 100], ids=["whole units", "shared units"])
def test_every_shard_is_one_process_s(units_a_process, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "_UNITS_A_PROCESS", units_a_process)
    units, _ = list_units([scans / name for name in ("a_dicom", "b_nifti", "c_pictures")])
    shares = []
    for rank in range(2):
        bad = BadSlices({})
        with PredictionRun(tmp_path, {}, units, bad, rank=rank, world=2) as run:
            shares.append({(shard.unit, shard.scan) for (shard, _), _ in run.unfinished()})
    assert shares[0] & shares[1] == set() and all(shares)
    assert shares[0] | shares[1] == {(0, 0), (1, 0), (2, 0), (2, 1)}
    # A whole unit is one process's
    assert ({(2, 0), (2, 1)} <= shares[0]) == (units_a_process == 0)


def test_large_inputs_are_dealt_out_whole():
    small, large = Unit(("a",), 300), Unit(("b",), UNIT_FILES + 1)
    assert not is_shared(small, 1000, 4) and is_shared(large, 1000, 4)
    assert is_shared(small, 10, 4) and not is_shared(small, 10, 1)


def test_the_second_is_refused_naming_the_first_until_that_is_dead(
    classifier, scans, tmp_path, tool
):
    output = tmp_path / "out"
    command = words(classifier, [scans / "a_dicom"], output)
    with held(output, "prediction") as other:
        for flags in ([], ["--resume"], ["--overwrite"]):
            code, line = tool(*flags, *command)
            assert code == 2 and re.fullmatch(
                rf"error: {output}: process {other} on .* is at work \(prediction\) here; wait for "
                "its end, or choose another --output",
                line,
            )
        assert [path.name for path in output.iterdir()] == [".lock"]
    assert tool(*command)[0] == 0
    with held(output, "prediction"):
        assert tool("--resume", *command)[0] == 2
    assert tool("--resume", *command)[0] == 0
    assert not (output / ".lock").exists()


def test_one_that_comes_while_the_model_is_loaded_keeps_the_folder(scans, tmp_path):
    units, _ = list_units([scans / "a_dicom"])
    run = PredictionRun(tmp_path / "out", {}, units, BadSlices({}))
    assert run.open(resume=False, overwrite=False) is None
    with held(tmp_path / "out", "prediction"):
        with pytest.raises(CTMaskNetError, match="is at work"), run:
            pass
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    with run:
        assert (tmp_path / "out" / ".lock").is_file()
    assert not (tmp_path / "out" / ".lock").exists()
