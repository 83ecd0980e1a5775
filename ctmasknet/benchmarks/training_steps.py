"""A step of each kind of training against stock Detectron2's: time, and peak memory."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from ctmasknet.benchmarks.harness import Apart, comparison, interleaved, peak_memory_of
from ctmasknet.benchmarks.loading import phantom_dicts
from ctmasknet.benchmarks.peers import StockClassifier, stock_cfg
from ctmasknet.data.mapper import LesionMapper
from ctmasknet.engine.metrics import peak_memory_mb
from ctmasknet.engine.processes import keep_freed_memory
from ctmasknet.engine.setup import read_cfg
from ctmasknet.engine.solver import build_step_trainer
from ctmasknet.engine.trainer import Trainer
from ctmasknet.modeling.trainable import set_trainable

#: What a step trains -> the configuration it is of.
KINDS = {
    "segmentation": "configs/seg.yaml",
    "heads": "configs/cls.yaml",
    "heads_bn": "configs/cls_heads_bn.yaml",
    "full": "configs/cls_full.yaml",
}
_STOCK, _OURS = "stock Detectron2", "ctmasknet"


def training_step(*, kind: str, batch: int, side: int, repeats: int, seed: int) -> dict[str, Any]:
    """A training step on phantom slices, ours and stock Detectron2's in turn.

    Stock Detectron2 has a process of its own, so that it handles memory as it does. Peak memory is
    that of further processes, which take three steps.

    Args:
        kind: a key of :data:`KINDS`.
        batch: slices a step.
        side: of the slices, px.
        repeats: steps of each way that are timed.
        seed: of weights and slices.
    """
    point = (kind, batch, side, seed)
    with Apart(_stepper, _STOCK, *point) as stock:
        timings = interleaved({_STOCK: stock, _OURS: _stepper(_OURS, *point)}, repeats, warm=1)
    return comparison(
        f"training step of {kind}, {batch} slices of {side} px",
        timings,
        _STOCK,
        kind_cfg(kind).MODEL.DEVICE,
        peak_memory_mb={way: peak_memory_of(__name__, way, *point) for way in timings},
        config_file=KINDS[kind],
    )


def _stepper(way: str, kind: str, batch: int, side: int, seed: int) -> Callable[[], None]:
    make = step_trainer if way == _OURS else _stock_trainer
    return stepper(make(kind, batch, side, seed))


def step_trainer(kind: str, batch: int, side: int, seed: int) -> SimpleTrainer:
    """What takes a step of ours: model, optimiser and precision as :class:`Trainer` has them."""
    cfg = kind_cfg(kind)
    batches = itertools.repeat(_inputs(cfg, batch, side, seed))
    torch.manual_seed(seed)
    model = build_model(cfg)
    return build_step_trainer(cfg, model, batches, Trainer.build_optimizer(cfg, model))


def _stock_trainer(kind: str, batch: int, side: int, seed: int) -> SimpleTrainer:
    cfg = kind_cfg(kind)
    batches = itertools.repeat(_inputs(cfg, batch, side, seed))
    torch.manual_seed(seed)
    model = build_model(stock_cfg(cfg)) if kind == "segmentation" else StockClassifier(cfg)
    return SimpleTrainer(model.to(cfg.MODEL.DEVICE), batches, _plain_adam(cfg, model))


def stepper(trainer: SimpleTrainer) -> Callable[[], None]:
    """A function that takes a step."""

    def step() -> None:
        with EventStorage():
            trainer.run_step()

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


def kind_cfg(kind: str, *overrides: str) -> CfgNode:
    """The configuration of a kind, with random weights that stay as they are."""
    words = ["MODEL.WEIGHTS", "", "SOLVER.BASE_LR", "0.0"]
    return read_cfg(KINDS[kind], [*words, *overrides])


def _inputs(cfg: CfgNode, batch: int, side: int, seed: int) -> list[dict[str, Any]]:
    """Slices of a phantom patient, all with lesions, mapped as for training."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = side, 2 * side
    mapper = LesionMapper(cfg, True)
    with phantom_dicts(batch, side, seed) as dicts:
        return [{**mapper(one), "label": number % 3} for number, one in enumerate(dicts)]


def _main(way: str, kind: str, batch: str, side: str, seed: str) -> None:
    if way == _OURS:
        keep_freed_memory()
    step = _stepper(way, kind, int(batch), int(side), int(seed))
    for _ in range(3):
        step()
    print(json.dumps(peak_memory_mb(kind_cfg(kind).MODEL.DEVICE)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
