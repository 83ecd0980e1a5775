"""What training the classifier costs: kept rows against images, and batch norms without waste."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from ctmasknet.benchmarks.harness import comparison, interleaved, peak_memory_of
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.engine.metrics import peak_memory_mb
from ctmasknet.engine.processes import keep_freed_memory
from ctmasknet.engine.ranked_box_cache import RowMapper, cached_rows
from ctmasknet.engine.setup import read_cfg
from ctmasknet.engine.train_data import build_train_loader
from ctmasknet.engine.trainer import Trainer

#: The paper's training: epochs and slices.
_EPOCHS, _SLICES = 50, 3000
_ROWS = "kept rows"


def heads_cache(*, config_file: str, slices: int, repeats: int, seed: int) -> dict[str, Any]:
    """A ``heads`` training on kept rows against one on images.

    Steps of both are timed on a few noise slices of 512 px; 50 epochs of 3,000 slices are computed
    from them, not run.

    Args:
        config_file: of a classifier.
        slices: noise slices that the steps draw from.
        repeats: steps of each kind that are timed.
        seed: of weights and noise.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg = _cfg(config_file, "heads", "OUTPUT_DIR", folder)
        dicts = _noise_slices(Path(folder), slices, seed)
        model = _model(cfg, seed)
        begin = time.perf_counter()
        rows = cached_rows(cfg, model, dicts, "noise")
        build = (time.perf_counter() - begin) / len(dicts)
        on_rows = RowMapper(rows)
        plain = "kept rows, Adam operation by operation"
        mappers = {"images": SliceMapper(cfg, True), _ROWS: on_rows, plain: on_rows}
        ways = {
            name: _stepper(
                cfg,
                model,
                iter(build_train_loader(cfg, mapper, dicts, seed)),
                fused=name != plain,
            )
            for name, mapper in mappers.items()
        }
        steps = interleaved(ways, repeats)
    per_epoch = _SLICES / cfg.SOLVER.IMS_PER_BATCH
    seconds = {
        "images": _EPOCHS * per_epoch * steps["images"]["median_s"],
        _ROWS: _EPOCHS * per_epoch * steps[_ROWS]["median_s"] + build * _SLICES,
    }
    return comparison(
        f"training step of heads, {cfg.SOLVER.IMS_PER_BATCH} slices of 512 px",
        steps,
        "images",
        cfg.MODEL.DEVICE,
        figures={
            f"{_EPOCHS} epochs of {_SLICES:,} slices, computed from the steps: images over kept "
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
        repeats: steps of each kind that are timed.
        seed: of weights and noise.
    """
    ways = {
        name: _heads_bn_stepper(config_file, batch, seed, naive)
        for name, naive in (("naive", True), ("heads_bn", False))
    }
    steps = interleaved(ways, repeats)
    return comparison(
        f"training step of heads_bn, {batch} slices of 512 px",
        steps,
        "naive",
        _cfg(config_file, "heads_bn").MODEL.DEVICE,
        peak_memory_mb={
            name: peak_memory_of(__name__, config_file, batch, seed, name) for name in ways
        },
        config_file=config_file,
    )


def _heads_bn_stepper(config_file: str, batch: int, seed: int, naive: bool):
    cfg = _cfg(config_file, "heads_bn")
    model = _model(cfg, seed)
    optimizer = Trainer.build_optimizer(cfg, model)  # over what heads_bn updates, in both
    if naive:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model._detector_learns = True
    chance = np.random.default_rng(seed)
    inputs = [
        {
            "image": torch.from_numpy(chance.integers(0, 256, (3, 512, 512), dtype=np.uint8)),
            "label": number % 3,
        }
        for number in range(batch)
    ]

    def step() -> None:
        model.zero_grad()
        model(inputs)["loss_image"].backward()
        optimizer.step()

    return step


def _stepper(cfg: CfgNode, model: nn.Module, batches, *, fused: bool):
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


def _print_peak_memory(config_file: str, batch: str, seed: str, name: str) -> None:
    keep_freed_memory()
    step = _heads_bn_stepper(config_file, int(batch), int(seed), name == "naive")
    step()
    step()
    print(json.dumps(peak_memory_mb(_cfg(config_file, "heads_bn").MODEL.DEVICE)))


if __name__ == "__main__":
    _print_peak_memory(*sys.argv[1:])
