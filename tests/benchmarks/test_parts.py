import sys

import pytest
import torchvision

from ctmasknet.benchmarks import parts, training


@pytest.fixture
def tiny(tiny_cfg, monkeypatch):
    """The benchmark's configurations replaced by a tiny one."""

    def cfg_of(kind, *overrides):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(list(overrides))
        if kind == "segmentation":
            cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        else:
            cfg.MODEL.TRAINABLE = kind
        return cfg

    for module in (parts, training):
        monkeypatch.setattr(module, "kind_cfg", cfg_of)


def counted(monkeypatch, call):
    """What ``call`` gives, and how often torchvision's RoIAlign was taken meanwhile."""
    calls = []
    operator = torchvision.ops.roi_align
    with monkeypatch.context() as patch:
        patch.setattr(
            sys.modules["detectron2.layers.roi_align"],
            "roi_align",
            lambda *args, **kwargs: calls.append(1) or operator(*args, **kwargs),
        )
        return call(), len(calls)


def test_inference_without_a_part_gives_the_same_logits(tiny, monkeypatch):
    calls = parts._inference_calls("inference", 2, 96, 0)
    assert list(calls) == ["ctmasknet", "without: RoIAlign as one sum"]
    found = {name: counted(monkeypatch, call) for name, call in calls.items()}
    assert [bool(aligned) for _, aligned in found.values()] == [False, True]
    whole = found["ctmasknet"][0]
    for results, _ in found.values():
        for one, other in zip(results, whole, strict=True):
            assert (one["logits"] - other["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["segmentation", "full"])
def test_each_training_step_runs_without_its_part(tiny, monkeypatch, kind):
    calls = parts._training_calls(kind, 1, 96, 0)
    own = "shared mask targets" if kind == "segmentation" else "gradients of ranked boxes alone"
    assert list(calls) == [
        "ctmasknet",
        "without: RoIAlign as one sum",
        "without: Adam in one pass",
        f"without: {own}",
    ]
    taken = {name: counted(monkeypatch, call)[1] for name, call in calls.items()}
    # The mask head has torchvision's in training anyway
    assert taken["without: RoIAlign as one sum"] > taken["ctmasknet"]
