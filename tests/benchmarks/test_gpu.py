"""The check of a card, its parts tried on a CPU with a tiny model."""

import json
from types import SimpleNamespace

import pytest
import torch

from ctmasknet.benchmarks.gpu import check, parity
from ctmasknet.benchmarks.gpu.check import gpu_check
from ctmasknet.benchmarks.gpu.point import Point, held_to
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast.inference import has_bfloat16
from tests.helpers.running import run_tool

_TINY = [
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res3']", "MODEL.FPN.IN_FEATURES", "['res3']"),
    *("MODEL.RPN.IN_FEATURES", "['p3']", "MODEL.ROI_HEADS.IN_FEATURES", "['p3']"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "32", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "64"),
    *("MODEL.RANKED_BOXES.NUM", "16", "MODEL.IMAGE_HEAD.FC_DIM", "24"),
]


@pytest.fixture(autouse=True)
def here(repository, monkeypatch, clean_catalogs):
    monkeypatch.chdir(repository)


def test_every_part_runs_and_holds_on_a_cpu(repository, tmp_path, capsys):
    output = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--side", 64, "--batch", 1, "--repeats", 1, "--output", output]
    assert run_tool(repository, "tools/gpu_check.py", *words, *_TINY) == 0
    found = json.loads(output.read_text())
    assert found["problems"] == [] and all(one["holds"] for one in found["checks"])
    named = {one["check"].partition(":")[0] for one in found["checks"]}
    half = " in half precision" * has_bfloat16("cpu")
    assert {"as on the CPU", f"resumed segmentation{half}", "resumed heads"} <= named
    works = [one["what"].partition(",")[0] for one in found["results"]]
    kinds = ("segmentation", "heads", "heads_bn", "full")
    steps = [f"training step of {kind}" for kind in kinds]
    assert works == ["classifier inference", "detector with masks", *steps]
    assert all("stock Detectron2" in one["ratios"] for one in found["results"])
    printed = capsys.readouterr().out
    assert "as on the CPU: loss_mask" in printed and "s in all: forward" in printed


def test_a_device_that_computes_otherwise_does_not_hold(monkeypatch):
    build = parity.build_model

    def other_masks(cfg):
        model = build(cfg)
        # What a checkpoint does not reach, as a wrong kernel
        model.roi_heads.mask_head.register_forward_pre_hook(lambda _, x: (x[0] * 1.1, *x[1:]))
        return model

    monkeypatch.setattr(parity, "build_model", other_masks)
    _, checks = parity.parity(Point("cpu", 64, 1, 1, 0, tuple(_TINY)))
    wrong = {one["check"].partition(": ")[2] for one in checks if not one["holds"]}
    assert wrong == {"masks", "gradient of mask head", "gradient of backbone"}


def test_what_is_no_number_does_not_hold():
    assert not held_to("loss", float("nan"), 1.0)["holds"]


def test_a_part_that_fails_is_told_and_the_others_run(monkeypatch):
    def broken(point):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    held = held_to("parity", 0.0, 1.0)
    parts = {"forward": broken, "parity": lambda point: ([], [held])}
    monkeypatch.setattr(check, "_PARTS", parts)
    found = gpu_check(device="cpu", side=64, batch=1, repeats=1, seed=0)
    told = "forward: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert found["problems"] == [told]
    assert found["checks"] == [held]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_line(repository, tmp_path, capsys):
    assert run_tool(repository, "tools/gpu_check.py", "--output", tmp_path / "gpu.json") == 2
    assert "--device cuda: torch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_a_card_is_chosen_by_its_number(monkeypatch, device, number):
    chosen, card = [], SimpleNamespace(total_memory=8e9, major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda of: [None, card][of == number])
    facts = check._device_facts(device)
    # torch takes no device without a number there
    assert chosen == [number] and facts["gpu_memory_mb"] == 8000 and facts["capability"] == "8.6"


def test_another_device_is_refused():
    with pytest.raises(CTMaskNetError, match="`device` gpu: give cuda"):
        gpu_check(device="gpu", side=64, batch=1, repeats=1, seed=0)
