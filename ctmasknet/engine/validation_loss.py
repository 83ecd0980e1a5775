"""The detector's losses on slices it does not train on."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from ctmasknet.data.bad_slices import BadSlices, Guarded
from ctmasknet.data.mapper import LesionMapper


@torch.no_grad()
def detector_losses(
    cfg: CfgNode, model: nn.Module, bad: BadSlices | None = None
) -> dict[str, float]:
    """Mean losses of a detector on ``DATASETS.VAL``, slice by slice.

    Batch normalisation behaves as in evaluation. Anchors and proposals are sampled as in training,
    for each slice by its own name, so that the same weights give the same numbers, whatever was
    drawn before and however many processes share the work. Slices without lesions count if
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` lets training see them.

    Args:
        cfg: the configuration.
        model: not wrapped for several processes; modes and random states are left as they were.
        bad: what to do with slices that cannot be read; they do not count.

    Returns:
        each of the model's losses, and ``total_loss``; empty without any such slice.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.RANDOM_FLIP = "none"
    sets = {name: _slices_with_losses(cfg, name) for name in cfg.DATASETS.VAL}
    bad = bad or BadSlices.from_cfg(cfg, {name: len(dicts) for name, dicts in sets.items()})
    count, sums = 0, {}
    devices = [torch.cuda.current_device()] if model.device.type == "cuda" else []
    with _losses_without_learning(model), EventStorage(), torch.random.fork_rng(devices):
        for name, dicts in sets.items():
            for (item,) in bad.readable(_loader(cfg, dicts), name):
                torch.manual_seed(zlib.crc32(str(item["image_id"]).encode()))
                count += 1
                for loss_name, loss in model([item]).items():
                    sums[loss_name] = sums.get(loss_name, 0.0) + float(loss)
    total: dict[str, float] = {}
    shares = comm.all_gather((count, sums))
    for _, share in shares:
        for name, value in share.items():
            total[name] = total.get(name, 0.0) + value
    if not total:
        return {}
    means = {name: value / sum(n for n, _ in shares) for name, value in total.items()}
    return {**means, "total_loss": sum(means.values())}


def _slices_with_losses(cfg: CfgNode, name: str) -> list[dict[str, Any]]:
    dicts = get_detection_dataset_dicts(name, filter_empty=False)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return [entry for entry in dicts if entry["annotations"]]
    return dicts


def _loader(cfg: CfgNode, dicts: list[dict[str, Any]]) -> DataLoader:
    return build_detection_test_loader(
        dicts, mapper=Guarded(LesionMapper(cfg, True)), num_workers=cfg.DATALOADER.NUM_WORKERS
    )


@contextlib.contextmanager
def _losses_without_learning(model: nn.Module) -> Iterator[None]:
    """The model returns losses, but batch normalisation keeps its statistics."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module in modes:
        if isinstance(module, _BatchNorm):
            module.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
