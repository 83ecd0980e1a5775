"""Whether a training that is resumed on a device goes on as the unbroken one does."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctmasknet.benchmarks.gpu.point import Point, held_to
from ctmasknet.benchmarks.training import KINDS
from ctmasknet.data.prepared import ROOT_VARIABLE
from ctmasknet.data.registry import register_prepared, unregister
from ctmasknet.engine.runs.command import train_from_command_line
from ctmasknet.files import parse_json
from ctmasknet.modeling.fast.inference import has_bfloat16
from ctmasknet.names import PatientRule
from ctmasknet.phantom.write import (
    LESION_TREE,
    SLICE_TREE,
    write_phantom_lesions,
    write_phantom_slices,
)
from ctmasknet.prepare.lesions import prepare_lesions
from ctmasknet.prepare.masks_to_coco import Conversion
from ctmasknet.prepare.slices import prepare_slices

_ITERATIONS, _BROKEN_AFTER = 4, 2
#: A training that is resumed on a GPU may be so many times as far from the unbroken one as that is
#: from its own repetition.
_TIMES = 10
#: Share of a loss below which a difference is rounding.
_ROUNDING = 1e-4
_AMP = ("SOLVER.AMP.ENABLED", "True")


def resume(point: Point) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train a detector, the same in half precision, and a head on phantoms, whole and in two parts;
    on a CPU the detector in half precision alone, where it has that.

    Returns:
        no results, and what has to hold: on the CPU every weight bit for bit; on a GPU, where some
        operators add in any order, the losses behind the break, about as well as a repetition has
        them.
    """
    kinds = {"heads": ("heads",)}
    halved = point.on_gpu or has_bfloat16(point.device)
    if halved:
        kinds["segmentation in half precision"] = ("segmentation", *_AMP)
    if point.on_gpu or not halved:
        kinds["segmentation"] = ("segmentation",)
    checks = []
    with tempfile.TemporaryDirectory() as folder, _phantom_sets(Path(folder), point):
        for name, (kind, *more) in kinds.items():
            whole, again, broken = (Path(folder, name, run) for run in ("whole", "again", "broken"))
            _train(point, kind, whole, _ITERATIONS, *more)
            _train(point, kind, broken, _BROKEN_AFTER, *more)
            _train(point, kind, broken, _ITERATIONS, *more, resumed=True)
            if not point.on_gpu:
                what = f"resumed {name}: weights unlike the unbroken training's"
                checks.append(held_to(what, _unlike(whole, broken), 0.0))
                continue
            _train(point, kind, again, _ITERATIONS, *more)
            what = f"resumed {name}: losses, share off the unbroken training's"
            limit = max(_ROUNDING, _TIMES * _off(whole, again))
            checks.append(held_to(what, _off(whole, broken), limit))
    return [], checks


@contextlib.contextmanager
def _phantom_sets(folder: Path, point: Point) -> Iterator[None]:
    """Prepared sets below ``folder``, known within the context."""
    how = {"seed": point.seed + 1, "side_px": point.side, "workers": 1}
    write_phantom_lesions(folder, patients=3, slices=2, **how)
    patients = {"train": 2, "val": 1, "test": 1}
    write_phantom_slices(folder, patients=patients, slices=2, **how)
    root = folder / "sets"
    raw = folder / LESION_TREE
    prepare_lesions(
        raw / "image",
        raw / "mask",
        root / "cncb_lesions",
        rule=PatientRule(),
        how=Conversion(mask_types=("both",), min_area_px=4),
        shares={"train": 0.7, "val": 0.3},
        progress=False,
    )
    prepare_slices(root, "covidx_ct", source=folder / SLICE_TREE)
    before = os.environ.get(ROOT_VARIABLE)
    os.environ[ROOT_VARIABLE] = str(root)
    names = register_prepared(root)
    try:
        yield
    finally:
        for name in names:
            unregister(name)
        if before is None:
            del os.environ[ROOT_VARIABLE]
        else:
            os.environ[ROOT_VARIABLE] = before


def _train(
    point: Point, kind: str, folder: Path, iterations: int, *more: str, resumed: bool = False
) -> None:
    words = point.words(
        *("MODEL.WEIGHTS", "", "OUTPUT_DIR", folder, "SEED", point.seed + 1, "DATASETS.VAL", "()"),
        *("SOLVER.MAX_EPOCHS", 0, "SOLVER.MAX_ITER", iterations, "SOLVER.LOG_PERIOD", 1),
        *("SOLVER.IMS_PER_BATCH", point.batch, "DATALOADER.NUM_WORKERS", 0),
        *("MODEL.RANKED_BOXES.CACHE", "never", "SOLVER.CHECKPOINT_EPOCHS", 0),
        *("TEST.EVAL_EPOCHS", 0, *more),
    )
    args = argparse.Namespace(
        config_file=KINDS[kind],
        opts=words,
        eval_only=False,
        resume=resumed,
        overwrite=False,
        num_gpus=1,
        words=words,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        train_from_command_line(args)


def _off(one: Path, other: Path) -> float:
    """Largest difference of two trainings' losses in the iterations behind the break, as a share;
    infinite where one of them lacks an iteration."""
    own, others = _losses(one), _losses(other)
    if len(own) != _ITERATIONS or len(others) != _ITERATIONS:
        return float("inf")
    behind = slice(_BROKEN_AFTER, None)
    return float(np.abs(np.divide(others, own)[behind] - 1).max())


def _losses(folder: Path) -> list[float]:
    lines = Path(folder, "metrics.json").read_text(encoding="utf-8").splitlines()
    return [found["total_loss"] for found in map(parse_json, lines) if "total_loss" in found]


def _unlike(one: Path, other: Path) -> float:
    """How many weights of two trainings' last checkpoints differ in any bit."""
    own, others = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (one, other)
    )
    return float(sum(not torch.equal(own[name], others[name]) for name in own))
