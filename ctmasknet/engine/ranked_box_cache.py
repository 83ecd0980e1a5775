"""Ranked rows cached on disk: with S alone trained, a slice's rows never change.

A file holds the rows of one data set. Its name is the SHA-256 of all that the rows depend on: the
detector's weights, the configuration, the images, the versions of the code. So a file is either
right or not found.

Shapes: n slices, N rows a slice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2
import torch
import torchvision
import yaml
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from torch import Tensor, nn
from tqdm import tqdm

import ctmasknet
from ctmasknet.config import is_classifier
from ctmasknet.ct.pictures import check_eight_bit
from ctmasknet.data.bad_slices import BadSlice, BadSlices, Guarded
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.data.prepared import content_sha256
from ctmasknet.engine.checkpoint import READ_ERRORS
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write
from ctmasknet.modeling.fast.inference import inference_model
from ctmasknet.modeling.roi_heads import ROW_FEATURES

_FORMAT = 1
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowMapper:
    """A slice's dataset dict -> input of the classifier with ``ranked_rows`` (N, 5) in place of the
    image. In ``rows_of`` they stand by ``file_name``; a slice without rows is a bad one."""

    rows_of: Mapping[str, Tensor]

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        file_name = dataset_dict["file_name"]
        if file_name not in self.rows_of:
            raise CTMaskNetError(f"{file_name}: has no ranked boxes, for it could not be read")
        return {**dataset_dict, "ranked_rows": self.rows_of[file_name]}


def why_not(cfg: CfgNode, dicts: Sequence[Mapping[str, Any]] = ()) -> str | None:
    """Why rows may not be cached for this training; None when they may.

    The sides of slices (``dicts``) are compared: unlike ones are padded to the largest of their
    batch, so that rows depend on the batch.
    """
    if not is_classifier(cfg):
        return f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which has no image head"
    if cfg.MODEL.TRAINABLE != "heads":
        return f"MODEL.TRAINABLE is {cfg.MODEL.TRAINABLE}, which changes the boxes"
    for key, none in (("RANDOM_FLIP", "none"), ("MIN_SIZE_TRAIN", ()), ("MAX_SIZE_TRAIN", 0)):
        if cfg.INPUT[key] != none:
            return f"INPUT.{key} is {cfg.INPUT[key]}, which changes the images"
    first = None
    for entry in dicts:
        try:
            size = _size(entry, cfg.INPUT.CROP_TO_BODY)
        except CTMaskNetError:
            if cfg.DATALOADER.BAD_SLICES == "skip":
                continue
            raise
        first = first or (size, entry["file_name"])
        if size != first[0]:
            return f"slices differ in size, such as {first[1]} and {entry['file_name']}"
    return None


def use_cache(cfg: CfgNode, dicts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether ``MODEL.RANKED_BOXES.CACHE`` lets this training use cached rows; says so in the log.

    Raises:
        CTMaskNetError: "always" where rows change while training.
    """
    mode = cfg.MODEL.RANKED_BOXES.CACHE
    if mode == "never":
        return False
    reason = why_not(cfg, dicts if mode == "auto" else ())
    if reason and mode == "always":
        raise CTMaskNetError(
            f"MODEL.RANKED_BOXES.CACHE is 'always' but {reason}; set it to 'auto', or change the "
            "other"
        )
    if reason and cfg.MODEL.TRAINABLE == "heads":
        _LOGGER.info("Ranked boxes are computed anew for every batch: %s", reason)
    return reason is None


def cached_rows(
    cfg: CfgNode,
    model: nn.Module,
    dicts: Sequence[dict[str, Any]],
    name: str,
    bad: BadSlices | None = None,
) -> dict[str, Tensor]:
    """The rows of a data set, from its file or else computed and cached.

    All processes have to call this; each computes its share. In the file a slice that cannot be
    read has rows of NaN.

    Args:
        cfg: the configuration; the file goes to ``MODEL.RANKED_BOXES.CACHE_DIR``, or to
            ``ranked_boxes`` in ``OUTPUT_DIR``.
        model: the classifier with its weights loaded; its mode is left as it was.
        dicts: the slices.
        name: of the data set, for log, progress bar and ``bad``.
        bad: what to do with slices that cannot be read; default: as ``DATALOADER.BAD_SLICES`` says.

    Returns:
        ``file_name`` -> (N, 5) float32 on the CPU, of the slices that can be read.

    Raises:
        CTMaskNetError: a slice cannot be read, and such are not to be skipped.
    """
    bad = bad or BadSlices.from_cfg(cfg, {name: len(dicts)})
    folder = Path(cfg.MODEL.RANKED_BOXES.CACHE_DIR or os.path.join(cfg.OUTPUT_DIR, "ranked_boxes"))
    path = folder / f"{cache_key(cfg, model, dicts)}.pt"
    shape = (len(dicts), cfg.MODEL.RANKED_BOXES.NUM, len(ROW_FEATURES))
    rows = _read(path, shape)
    usable = rows is not None and _note_unreadable(cfg, rows, dicts, name, bad)
    # One process may see the file before another; all have to go the same way.
    hit = all(comm.all_gather(usable))
    start = time.perf_counter()
    if not hit:
        rows = _compute(cfg, model, dicts, name, bad)
        if comm.is_main_process():
            with atomic_write(path, "wb") as stream:
                torch.save(rows, stream)
        comm.synchronize()
    _LOGGER.info(
        "Ranked boxes of %s: %d slices x %d rows, %.1f MB, %s %s in %.1f s",
        *(name, *shape[:2], rows.numel() * rows.element_size() / 1e6),
        *("read from" if hit else "computed and cached in", path, time.perf_counter() - start),
    )
    return {
        entry["file_name"]: row
        for entry, row in zip(dicts, rows, strict=True)
        if not row.isnan().all()
    }


def cache_key(cfg: CfgNode, model: nn.Module, dicts: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over all that the rows of these slices depend on."""
    settings = yaml.safe_load(cfg.dump())
    for key in ("IMAGE_HEAD", "WEIGHTS", "TRAINABLE"):
        settings["MODEL"].pop(key)
    for key in ("CACHE", "CACHE_DIR"):
        settings["MODEL"]["RANKED_BOXES"].pop(key)
    depends = {
        "format": _FORMAT,
        "versions": [str(part.__version__) for part in (ctmasknet, detectron2, torch, torchvision)],
        "model": settings["MODEL"],
        "input": settings["INPUT"],
        "batch": settings["TEST"]["IMS_PER_BATCH"],
        "data": content_sha256(
            dicts,
            ["body_box"] if cfg.INPUT.CROP_TO_BODY else [],
            allow_unreadable=cfg.DATALOADER.BAD_SLICES == "skip",
        ),
    }
    total = hashlib.sha256(json.dumps(depends, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith("image_head."):
            total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _compute(
    cfg: CfgNode, model: nn.Module, dicts: Sequence[dict[str, Any]], name: str, bad: BadSlices
) -> Tensor:
    loader = build_detection_test_loader(
        list(dicts),
        mapper=Guarded(SliceMapper(cfg, False)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        batch_size=cfg.TEST.IMS_PER_BATCH,
    )
    training = model.training
    form = inference_model(cfg, model.eval())
    mine: dict[str, Tensor] = {}
    hidden = None if comm.is_main_process() else True  # None: but on a terminal
    desc = f"ranked boxes of {name}"
    with tqdm(total=len(loader.dataset), desc=desc, unit="slice", disable=hidden) as bar:
        for batch in bad.readable(loader, name):
            for item, output in zip(batch, form(batch), strict=True):
                mine[item["file_name"]] = output["ranked_boxes"].cpu()
            bar.update(len(batch))
    model.train(training)
    every: dict[str, Tensor] = {}
    for share in comm.all_gather(mine):
        every.update(share)
    bad.gather(comm.all_gather)
    none = torch.full((cfg.MODEL.RANKED_BOXES.NUM, len(ROW_FEATURES)), math.nan)
    return torch.stack([every.get(entry["file_name"], none) for entry in dicts])


def _note_unreadable(
    cfg: CfgNode, rows: Tensor, dicts: Sequence[dict[str, Any]], name: str, bad: BadSlices
) -> bool:
    """Tell ``bad`` of the slices without rows in a file; False if one of them can be read now."""
    mapper = Guarded(SliceMapper(cfg, False))
    for entry, row in zip(dicts, rows, strict=True):
        if row.isnan().all():
            found = mapper(entry)
            if not isinstance(found, BadSlice):
                return False
            bad.add(found.file, found.reason, name)
    return True


def _read(path: Path, shape: tuple[int, int, int]) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        rows = torch.load(path, weights_only=True)
        if rows.shape == shape and rows.dtype == torch.float32:
            return rows
        problem = f"holds {tuple(rows.shape)} instead of {shape}"
    except READ_ERRORS as error:
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    _LOGGER.warning("%s: damaged (%s); its rows are computed anew", path, problem)
    return None


def _size(entry: Mapping[str, Any], crop: bool) -> tuple[int, int]:
    if crop and entry.get("body_box"):
        x0, y0, x1, y1 = entry["body_box"]
        return x1 - x0, y1 - y0
    height, width = check_eight_bit(entry["file_name"])
    return width, height
