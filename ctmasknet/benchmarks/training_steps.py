"""A step of each kind of training against stock Detectron2's: time, and peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ctmasknet.benchmarks.stock_peer import StockClassifier, stock_cfg
from ctmasknet.benchmarks.timing import comparison, interleaved
from ctmasknet.data.label_masks import mask_type_classes
from ctmasknet.data.mapper import LesionMapper
from ctmasknet.data.masks_to_coco import mask_instances
from ctmasknet.data.phantom_patient import phantom_patient
from ctmasknet.engine.memory import peak_memory_mb
from ctmasknet.engine.setup import read_cfg
from ctmasknet.engine.trainer import Trainer
from ctmasknet.modeling.trainable import set_trainable

#: What a step trains -> the configuration it is of.
KINDS = {
    "segmentation": "configs/seg.yaml",
    "heads": "configs/cls.yaml",
    "heads_bn": "configs/cls_heads_bn.yaml",
    "full": "configs/cls_full.yaml",
}
_WAYS = ("stock Detectron2", "ctmasknet")


def training_step(*, kind: str, batch: int, side: int, repeats: int, seed: int) -> dict[str, Any]:
    """A training step on phantom slices, ours and stock Detectron2's in turn.

    Peak memory is that of a process of its own that takes three steps.

    Args:
        kind: a key of :data:`KINDS`.
        batch: slices a step.
        side: of the slices, px.
        repeats: steps of each way that are timed.
        seed: of weights and slices.
    """
    steps = {way: _stepper(kind, way, batch, side, seed) for way in _WAYS}
    timings = interleaved(steps, repeats)
    memory = {}
    for way in _WAYS:
        words = [kind, way, str(batch), str(side), str(seed)]
        done = subprocess.run(
            [sys.executable, "-m", __name__, *words], capture_output=True, text=True, check=True
        )
        memory[way] = json.loads(done.stdout.splitlines()[-1])
    return comparison(
        f"training step of {kind}, {batch} slices of {side} px",
        timings,
        _WAYS[0],
        _cfg(kind).MODEL.DEVICE,
        peak_memory_mb=memory,
        config_file=KINDS[kind],
    )


def _stepper(kind: str, way: str, batch: int, side: int, seed: int) -> Callable[[], float]:
    """A function that takes a step and returns the loss."""
    cfg = _cfg(kind)
    stock = way == _WAYS[0]
    inputs = _inputs(cfg, batch, side, seed)
    torch.manual_seed(seed)
    if kind == "segmentation":
        model = build_model(stock_cfg(cfg) if stock else cfg).train()
    else:
        model = StockClassifier(cfg).to(cfg.MODEL.DEVICE) if stock else build_model(cfg).train()
    optimizer = _plain_adam(cfg, model) if stock else Trainer.build_optimizer(cfg, model)

    def loss_of() -> torch.Tensor:
        if stock and kind != "segmentation":
            logits = model(inputs)
            labels = torch.tensor([item["label"] for item in inputs], device=logits.device)
            target = F.one_hot(labels, logits.shape[1]).float()
            return F.binary_cross_entropy_with_logits(logits, target)
        return sum(model(inputs).values())

    def step() -> float:
        with EventStorage():
            loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _plain_adam(cfg: CfgNode, model: nn.Module) -> torch.optim.Adam:
    """Over what ``cfg`` trains; every weight has a gradient all the same."""
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        names = [name for name, _ in model.named_parameters()]
    else:
        names = set_trainable(model, cfg.MODEL.TRAINABLE)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return torch.optim.Adam(
        [parameters[name] for name in names],
        lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )


def _cfg(kind: str) -> CfgNode:
    words = ["MODEL.WEIGHTS", "", "SOLVER.BASE_LR", "0.0"]
    return read_cfg(KINDS[kind], words)


def _inputs(cfg: CfgNode, batch: int, side: int, seed: int) -> list[dict[str, Any]]:
    """Slices of a phantom patient, all with lesions, mapped as for training."""
    classes = mask_type_classes("both")
    slices = phantom_patient("covid", seed, side, batch)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = side, 2 * side
    mapper = LesionMapper(cfg, True)
    inputs = []
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(slices):
            path = Path(folder) / f"{number}.png"
            Image.fromarray(one.image).save(path)
            found = mask_instances(one.mask, classes)
            for instance in found:
                instance["bbox_mode"] = BoxMode.XYWH_ABS
                instance["category_id"] -= 1
            inputs.append(
                {
                    **mapper({"file_name": str(path), "image_id": number, "annotations": found}),
                    "label": number % 3,
                }
            )
    return inputs


if __name__ == "__main__":
    kind, way, *numbers = sys.argv[1:]
    step = _stepper(kind, way, *map(int, numbers))
    for _ in range(3):
        step()
    print(json.dumps(peak_memory_mb(_cfg(kind).MODEL.DEVICE)))
