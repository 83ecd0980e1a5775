"""Peak memory is measured in processes that run the module with a benchmark's name and point."""

import json

import pytest

from ctmasknet.benchmarks import training
from ctmasknet.benchmarks.harness import peak_memory_of
from tests.helpers.running import needs_bfloat16


def test_a_process_of_its_own_prints_its_peak_memory():
    words = ("targets", "ctmasknet", 2, 1, 0)
    assert peak_memory_of(training.__name__, *words, processes=1) > 100


@pytest.mark.parametrize(
    "words",
    [
        ("targets", "Detectron2", "2", "1", "0"),
        ("heads-bn", "naive", "any.yaml", "1", "0"),
        ("heads-bn", "heads_bn", "any.yaml", "1", "0"),
        ("step", "stock Detectron2", "full", "1", "96", "0"),
        ("step", "ctmasknet", "full", "1", "96", "0"),
        pytest.param(
            ("step", "ctmasknet in half precision", "full", "1", "96", "0"), marks=needs_bfloat16
        ),
    ],
)
def test_each_benchmark_does_its_work_there(tiny_cfg, monkeypatch, capsys, words):
    tiny_cfg.MODEL.TRAINABLE = "heads_bn" if words[0] == "heads-bn" else "full"
    tiny_cfg.INPUT.MIN_SIZE_TRAIN, tiny_cfg.INPUT.MAX_SIZE_TRAIN = (96,), 192

    def cfg_of(kind, *overrides):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(list(overrides))
        return cfg

    monkeypatch.setattr(training, "kind_cfg", cfg_of)
    monkeypatch.setattr(training, "_cfg", lambda config_file, mode: tiny_cfg)
    training._main(*words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) > 100
