"""Several processes explain what one explains."""

import json
import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from PIL import Image

from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.errors import CTMaskNetError
from ctmasknet.explain.run import explain_slices
from ctmasknet.predict import CTPredictor
from tests.helpers.holding import held
from tests.helpers.running import run_tool

TOOL = "tools/explain.py"


@pytest.fixture
def words(tiny_cfg, tmp_path):
    """A command line of five slices in batches of two, without --output. The weights state other
    classes than the configuration, and no data set does."""
    tiny_cfg.INPUT.MIN_SIZE_TEST = tiny_cfg.INPUT.MAX_SIZE_TEST = 64
    tiny_cfg.TEST.IMS_PER_BATCH = 2
    (tmp_path / "tiny.yaml").write_text(tiny_cfg.dump())
    tiny_cfg.MODEL.IMAGE_HEAD.CLASSES = ["normal", "covid"]
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    CTMaskNetCheckpointer(model, str(tmp_path), spec=spec_of(tiny_cfg)).save("weights")
    (tmp_path / "slices").mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = rng.integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "slices" / f"{number}.png")
    return [
        *("--config-file", tmp_path / "tiny.yaml", "--input", tmp_path / "slices", "--boxes", 3),
        *("MODEL.WEIGHTS", tmp_path / "weights.pth", "MODEL.INFERENCE.ENGINE", "torch"),
    ]


def in_two_processes(repository, words, output):
    """Exit codes of two processes as torchrun starts them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ctmasknet.explain.run"])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        told = common | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        told["LOCAL_WORLD_SIZE"] = "2"
        words_of_it = [str(word) for word in ("--output", output, *words)]
        process = context.Process(target=_explain, args=(repository, words_of_it, told))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def _explain(repository, words, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    raise SystemExit(run_tool(repository, TOOL, *words))


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_two_processes_write_what_one_writes(repository, words, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert run_tool(repository, TOOL, "--output", tmp_path / "one", *words) == 0
    torch.set_num_threads(threads)
    # Of a run that was killed, and of other slices
    stale = tmp_path / "two" / ".attributions.jsonl.parts" / "0000" / "0000000-00000-0000000.jsonl"
    stale.parent.mkdir(parents=True)
    stale.write_text('{"file": "other"}\n')
    assert in_two_processes(repository, words, tmp_path / "two") == [0, 0]
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert len(one) == 6 and two == one
    lines = [json.loads(line) for line in one["attributions.jsonl"].splitlines()]
    assert [line["file"][-5:] for line in lines] == [f"{number}.png" for number in range(5)]
    assert lines[0]["classes"] == ["normal", "covid"]
    assert not stale.parents[1].exists()


def test_a_bad_slice_of_one_process_ends_both(repository, words, tmp_path):
    # The third slice is in the second batch, which is the second process's
    (tmp_path / "slices" / "2.png").write_bytes(b"torn")
    assert in_two_processes(repository, words, tmp_path / "out") == [2, 2]
    assert not (tmp_path / "out" / "attributions.jsonl").exists()


def test_processes_that_see_different_slices_are_refused(
    tiny_model, tiny_cfg, tmp_path, monkeypatch
):
    monkeypatch.setattr(comm, "all_gather", lambda mine: [mine, "another"])
    with pytest.raises(CTMaskNetError, match="see different slices"):
        explain_slices(CTPredictor(tiny_cfg, model=tiny_model), [{"file_name": "a.png"}], tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_use_is_refused(repository, words, tmp_path, capsys):
    output = tmp_path / "why"
    with held(output, "explanation") as other:
        assert run_tool(repository, TOOL, "--output", output, *words) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"process {other} on" in said and said.endswith("or choose another --output")
    assert run_tool(repository, TOOL, "--output", output, *words) == 0
    assert not (output / ".lock").exists()
