"""What a training step costs, against stock Detectron2's, and what it saves on the way.

Peak memory is that of processes of their own, each run as ``python -m`` this module with the name
of a benchmark and its point.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import Tensor, nn

from ctmasknet.benchmarks.harness import Apart, comparison, interleaved, peak_memory_of
from ctmasknet.benchmarks.loading import phantom_dicts
from ctmasknet.benchmarks.peers import StockClassifier, stock_cfg
from ctmasknet.config_file import read_cfg
from ctmasknet.data.mapper import LesionMapper, SliceMapper
from ctmasknet.data.training.row_mapper import RowMapper
from ctmasknet.engine.metrics import peak_memory_mb
from ctmasknet.engine.processes import keep_freed_memory
from ctmasknet.engine.ranked_box_cache import cached_rows
from ctmasknet.engine.solver import build_step_trainer
from ctmasknet.engine.train_data import build_train_loader
from ctmasknet.engine.trainer import Trainer
from ctmasknet.modeling.fast.inference import has_bfloat16
from ctmasknet.modeling.masks import SharedBitMasks
from ctmasknet.modeling.trainable import set_trainable

#: What a step trains -> the configuration it is of.
KINDS = {
    "segmentation": "configs/seg.yaml",
    "heads": "configs/cls.yaml",
    "heads_bn": "configs/cls_heads_bn.yaml",
    "full": "configs/cls_full.yaml",
}
_STOCK, _OURS, _HALF = "stock Detectron2", "ctmasknet", "ctmasknet in half precision"


def training_step(*, kind: str, batch: int, side: int, repeats: int, seed: int) -> dict[str, Any]:
    """A training step on phantom slices, ours and stock Detectron2's in turn, and ours with
    ``SOLVER.AMP`` where the device has it.

    Stock Detectron2 has a process of its own, so that it handles memory as it does. Peak memory is
    that of further processes, which take three steps.

    Args:
        kind: a key of :data:`KINDS`.
        batch: slices a step.
        side: of the slices, px.
    """
    point = (kind, batch, side, seed)
    device = kind_cfg(kind).MODEL.DEVICE
    halved = device.startswith("cuda") or has_bfloat16(device)
    ours = (_OURS, _HALF) if halved else (_OURS,)
    with Apart(_step_of, _STOCK, *point) as stock:
        calls = {_STOCK: stock, **{way: _step_of(way, *point) for way in ours}}
        timings = interleaved(calls, repeats, warm=1)
    return comparison(
        f"training step of {kind}, {batch} slices of {side} px",
        timings,
        _STOCK,
        device,
        peak_memory_mb={way: peak_memory_of(__name__, "step", way, *point) for way in timings},
        config_file=KINDS[kind],
        notes=() if halved else (f"No row in half precision: {device} does not compute in it",),
    )


def _step_of(way: str, *point: Any) -> Callable[[], None]:
    overrides = ("SOLVER.AMP.ENABLED", "True") if way == _HALF else ()
    return stepper(step_trainer(*point, stock=way == _STOCK, overrides=overrides))


def step_trainer(
    kind: str,
    batch: int,
    side: int,
    seed: int,
    *,
    stock: bool = False,
    overrides: Sequence[str] = (),
) -> SimpleTrainer:
    """What takes a step of ours: model, optimiser and precision as :class:`Trainer` has them; or
    one of stock Detectron2."""
    cfg = kind_cfg(kind, *overrides)
    batches = itertools.repeat(phantom_inputs(cfg, batch, side, seed))
    torch.manual_seed(seed)
    if not stock:
        model = build_model(cfg)
        return build_step_trainer(cfg, model, batches, Trainer.build_optimizer(cfg, model))
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
    """The configuration of a kind, with random weights that stay as they are: what such a rate adds
    is lost in float32's rounding."""
    words = ["MODEL.WEIGHTS", "", "SOLVER.BASE_LR", "1e-30"]
    return read_cfg(KINDS[kind], [*words, *overrides])


def phantom_inputs(cfg: CfgNode, batch: int, side: int, seed: int) -> list[dict[str, Any]]:
    """Slices of a phantom patient, all with lesions, mapped as for training."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = side, 2 * side
    mapper = LesionMapper(cfg, True)
    with phantom_dicts(batch, side, seed) as dicts:
        return [{**mapper(one), "label": number % 3} for number, one in enumerate(dicts)]


#: The paper's training: epochs and slices.
_EPOCHS, _SLICES = 50, 3000
_ROWS = "cached rows"


def heads_cache(*, config_file: str, slices: int, repeats: int, seed: int) -> dict[str, Any]:
    """A ``heads`` training on cached rows against one on images.

    Steps of both are timed on a few noise slices of 512 px; 50 epochs of 3,000 slices are computed
    from them, not run.

    Args:
        config_file: of a classifier.
        slices: noise slices that the steps draw from.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg = _cfg(config_file, "heads", "OUTPUT_DIR", folder)
        dicts = _noise_slices(Path(folder), slices, seed)
        model = _model(cfg, seed)
        begin = time.perf_counter()
        rows = cached_rows(cfg, model, dicts, "noise")
        build = (time.perf_counter() - begin) / len(dicts)
        on_rows = RowMapper(rows)
        plain = "cached rows, Adam operation by operation"
        mappers = {"images": SliceMapper(cfg, True), _ROWS: on_rows, plain: on_rows}
        ways = {}
        for name, mapper in mappers.items():
            batches = iter(build_train_loader(cfg, mapper, dicts, seed))
            ways[name] = _loader_step(cfg, model, batches, fused=name != plain)
        steps = interleaved(ways, repeats)
    count = _EPOCHS * _SLICES / cfg.SOLVER.IMS_PER_BATCH
    seconds = {name: count * steps[name]["median_s"] for name in ("images", _ROWS)}
    seconds[_ROWS] += build * _SLICES
    return comparison(
        f"training step of heads, {cfg.SOLVER.IMS_PER_BATCH} slices of 512 px",
        steps,
        "images",
        cfg.MODEL.DEVICE,
        figures={
            f"{_EPOCHS} epochs of {_SLICES:,} slices, computed from the steps: images over cached "
            "rows": seconds["images"] / seconds[_ROWS]
        },
        config_file=config_file,
        build_s_per_slice=build,
        extrapolated_s=seconds,
    )


def heads_bn(*, config_file: str, batch: int, repeats: int, seed: int) -> dict[str, Any]:
    """A ``heads_bn`` step against the same with a gradient for every weight.

    Time is measured in this process, steps in turn; peak memory in a process for each.

    Args:
        config_file: of a classifier.
        batch: slices a step.
    """
    point = (config_file, batch, seed)
    ways = {name: _heads_bn_step(name, *point) for name in ("naive", "heads_bn")}
    steps = interleaved(ways, repeats)
    return comparison(
        f"training step of heads_bn, {batch} slices of 512 px",
        steps,
        "naive",
        _cfg(config_file, "heads_bn").MODEL.DEVICE,
        peak_memory_mb={name: peak_memory_of(__name__, "heads-bn", name, *point) for name in ways},
        config_file=config_file,
    )


def _heads_bn_step(way: str, config_file: str, batch: int, seed: int) -> Callable[[], None]:
    cfg = _cfg(config_file, "heads_bn")
    model = _model(cfg, seed)
    optimizer = Trainer.build_optimizer(cfg, model)  # over what heads_bn updates, in both
    if way == "naive":
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model._detector_learns = True
    noise = np.random.default_rng(seed).integers(0, 256, (batch, 3, 512, 512), dtype=np.uint8)
    inputs = [{"image": torch.from_numpy(one), "label": n % 3} for n, one in enumerate(noise)]

    def step() -> None:
        model.zero_grad()
        model(inputs)["loss_image"].backward()
        optimizer.step()

    return step


def _loader_step(cfg: CfgNode, model: nn.Module, batches, *, fused: bool):
    optimizer = Trainer.build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["fused"] = fused and group["fused"]

    def step() -> None:
        loss = model.train()(next(batches))["loss_image"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _cfg(config_file: str, mode: str, *overrides: str) -> CfgNode:
    words = ["MODEL.WEIGHTS", "", "MODEL.TRAINABLE", mode, "DATALOADER.NUM_WORKERS", "0"]
    return read_cfg(config_file, [*words, *overrides])


def _model(cfg: CfgNode, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(cfg).train()


def _noise_slices(folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    chance = np.random.default_rng(seed)
    dicts = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(chance.integers(0, 256, (512, 512), dtype=np.uint8)).save(path)
        dicts.append({"file_name": str(path), "label": number % 3})
    return dicts


def mask_targets(*, proposals: int, lesions: int, repeats: int, seed: int) -> dict[str, Any]:
    """Masks of lesions chosen for proposals and cut to 28 x 28, in a slice of 512 px.

    Peak memory is that of processes of their own, the imports among it.

    Args:
        proposals: that match a lesion; 192 at most in the published training.
        lesions: in the slice.
    """
    ways = _target_ways(proposals, lesions, seed)
    timings = interleaved(ways, repeats)
    if not torch.equal(*(way() for way in ways.values())):
        raise AssertionError("the two ways gave different targets")
    return comparison(
        f"mask targets of {proposals} proposals of {lesions} lesions, a slice of 512 px",
        timings,
        "Detectron2",
        "cpu",
        peak_memory_mb={
            way: peak_memory_of(__name__, "targets", way, proposals, lesions, seed) for way in ways
        },
    )


def _target_ways(proposals: int, lesions: int, seed: int) -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(lesions, 2, generator=generator) * 400
    boxes = torch.cat([corner, corner + 20 + torch.rand(lesions, 2, generator=generator) * 80], 1)
    masks = torch.zeros(lesions, 512, 512, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    owner = torch.arange(proposals) % lesions
    proposed = boxes[owner] + torch.rand(proposals, 4, generator=generator) * 4 - 2

    def cut(kind: type[BitMasks]) -> Callable[[], Tensor]:
        return lambda: kind(masks)[owner].crop_and_resize(proposed, 28)

    return {"Detectron2": cut(BitMasks), "ctmasknet": cut(SharedBitMasks)}


def _main(benchmark: str, way: str, *point: str) -> None:
    """Print the peak memory of a process that does a benchmark's work, MB."""
    device = "cpu"
    if benchmark == "targets":
        _target_ways(*map(int, point))[way]()
    elif benchmark == "heads-bn":
        keep_freed_memory()
        config_file, *numbers = point
        step = _heads_bn_step(way, config_file, *map(int, numbers))
        step()
        step()
        device = _cfg(config_file, "heads_bn").MODEL.DEVICE
    else:
        if way != _STOCK:
            keep_freed_memory()
        kind, *numbers = point
        step = _step_of(way, kind, *map(int, numbers))
        for _ in range(3):
            step()
        device = kind_cfg(kind).MODEL.DEVICE
    print(json.dumps(peak_memory_mb(device)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
