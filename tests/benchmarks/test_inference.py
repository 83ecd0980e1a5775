import contextlib

import pytest
import torch

from ctmasknet.benchmarks import inference as classifier_inference
from ctmasknet.benchmarks.peers import TorchvisionDetector
from ctmasknet.benchmarks.table import text_of
from ctmasknet.modeling.fast.openvino import computes_bfloat16, installed
from tests.helpers.running import needs_bfloat16


@pytest.fixture
def run(tiny_cfg, tmp_path, monkeypatch):
    """Runs the benchmark on a tiny classifier in this process, with nothing compiled."""
    (tmp_path / "tiny.yaml").write_text(tiny_cfg.dump())
    monkeypatch.setattr(
        classifier_inference, "Apart", lambda make, *point: contextlib.nullcontext(make(*point))
    )
    monkeypatch.setattr(classifier_inference.shutil, "which", lambda name: None)
    monkeypatch.setattr(classifier_inference, "_GEMM_SIDE", 64)
    monkeypatch.setattr(TorchvisionDetector, "__init__", lambda *args: None)
    monkeypatch.setattr(TorchvisionDetector, "__call__", lambda *args: None)
    return lambda: classifier_inference.inference(
        config_file=str(tmp_path / "tiny.yaml"), side=64, batch=1, repeats=1, seed=0
    )


def in_bfloat16(result):
    return [name for name in (*result["timings"], *result["figures"]) if "bfloat16" in name]


@needs_bfloat16
def test_rows_in_bfloat16(run):
    result = run()
    by_openvino = 2 * (installed() and computes_bfloat16())
    assert len(in_bfloat16(result)) == 3 + torch.backends.mkldnn.is_available() + by_openvino
    assert result["notes"] == []


def test_without_bfloat16_its_rows_are_left_out_and_a_note_says_so(run, monkeypatch):
    monkeypatch.setattr(classifier_inference, "has_bfloat16", lambda device: False)
    result = run()
    assert in_bfloat16(result) == []
    assert "ctmasknet, model as trained" in result["timings"]
    assert text_of(result).endswith("\nNo rows in bfloat16: cpu does not compute in it")
