"""Attributions of many slices: a line of ``attributions.jsonl`` and a picture each."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn
from tqdm import tqdm

from ctmasknet.data.ct_io import CTSlice, read_scans
from ctmasknet.data.datasets import dataset_dicts
from ctmasknet.data.images import IMAGE_SUFFIXES
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.data.window import Window
from ctmasknet.engine.checkpoint import is_classifier
from ctmasknet.engine.setup import load_model
from ctmasknet.errors import CTMaskNetError
from ctmasknet.explain.attribution import attribute, check_method
from ctmasknet.explain.drawing import MOST_BOXES, attribution_page
from ctmasknet.explain.record import attribution_record
from ctmasknet.files import atomic_write
from ctmasknet.gallery import (
    model_cfg,
    pick,
    read_rgb,
    same_classes,
    slice_call,
    slice_title,
    writable_folder,
    write_png,
)

ATTRIBUTIONS = "attributions.jsonl"
PICTURES = "pictures"


def explain_from_command_line(args: argparse.Namespace) -> int:
    """What ``tools/explain.py`` does with its arguments.

    Args:
        args: ``config_file`` and ``opts`` (see :func:`ctmasknet.engine.setup.setup_cfg`), one of
            ``dataset`` (registered name) and ``input`` (whatever
            :func:`ctmasknet.data.ct_io.read_scans` reads), ``output`` (folder),
            ``limit`` (slices; None for all), ``seed`` (None: evenly spread), ``method``,
            ``hidden``, ``target`` (class; None for the predicted one), ``boxes`` (drawn at most),
            ``pictures`` (bool).

    Returns:
        The number of slices.

    Raises:
        CTMaskNetError: contradicting arguments, no classifier, no image, an unreadable one, an
            output folder that cannot be written, or what :func:`setup_cfg`, :func:`load_model` and
            :func:`attribute` raise.
    """
    if bool(args.dataset) == bool(args.input):
        raise CTMaskNetError("give either --dataset NAME or --input FILE_OR_FOLDER")
    if args.boxes < 1:
        raise CTMaskNetError(f"--boxes: {args.boxes} is not a number of boxes; give 1 or more")
    check_method(args.method, args.hidden)
    entries, found = _entries(args)
    entries = [entries[index] for index in pick(len(entries), args.limit, args.seed)]
    cfg = model_cfg(args)
    if not is_classifier(cfg):
        raise CTMaskNetError(
            f"{args.config_file}: a lesion detector has no decision on the slice; give a "
            "classifier's configuration such as configs/cls.yaml"
        )
    if args.dataset:
        classes = list(MetadataCatalog.get(args.dataset).get("image_classes", ()))
        same_classes(args.dataset, "slice", classes, cfg.MODEL.IMAGE_HEAD.CLASSES)
    class_names = list(cfg.MODEL.IMAGE_HEAD.CLASSES)
    if args.target is not None and args.target not in class_names:
        raise CTMaskNetError(
            f"--target: {args.target!r} is no class; choose one of {', '.join(class_names)}"
        )
    output = writable_folder(args.output)
    window = Window(cfg.INPUT.WINDOW_CENTER_HU, cfg.INPUT.WINDOW_WIDTH_HU)
    return explain_slices(
        load_model(cfg),
        cfg,
        entries,
        output,
        method=args.method,
        hidden=args.hidden,
        target=args.target,
        most=args.boxes,
        pictures=args.pictures,
        read=(lambda entry: found[entry["file_name"]].pixels(window)) if found else None,
    )


def explain_slices(
    model: nn.Module,
    cfg: CfgNode,
    entries: Sequence[dict[str, Any]],
    output: str | os.PathLike,
    *,
    method: str = "occlusion",
    hidden: str = "zero",
    target: str | None = None,
    most: int = MOST_BOXES,
    pictures: bool = True,
    read: Callable[[Mapping[str, Any]], np.ndarray] | None = None,
) -> int:
    """Write ``attributions.jsonl`` and ``pictures/<number>_<name>.png``.

    Args:
        model: a loaded ``CTMaskNet``.
        cfg: its configuration.
        entries: dataset dicts.
        output: folder; ``attributions.jsonl`` takes its place there when all slices are done.
        method, hidden: see :func:`ctmasknet.explain.attribution.attribute`.
        target: the class whose logit is drawn; None for the predicted one. The file has all.
        most: boxes drawn at most.
        pictures: draw them.
        read: gives an entry's px, (H, W) or (H, W, 3) uint8; default: the picture ``file_name``.

    Returns:
        The number of slices.

    Raises:
        CTMaskNetError: an image is missing or unreadable, or a file cannot be written.
    """
    class_names = list(cfg.MODEL.IMAGE_HEAD.CLASSES)
    lesion_classes = list(cfg.MODEL.LESION_CLASSES)
    output, written, incomplete = Path(output), 0, 0
    try:
        with atomic_write(output / ATTRIBUTIONS) as stream:
            for item, result, pixels in _predicted(model, cfg, entries, read or _read_picture):
                found = attribute(
                    model.image_head,
                    result["ranked_boxes"],
                    len(result["ranked_instances"]),
                    method=method,
                    hidden=hidden,
                )
                incomplete += found.complete is False
                written += 1
                drawn = result["pred_class"] if target is None else class_names.index(target)
                record = attribution_record(
                    item, result, found, class_names, lesion_classes, hidden=hidden
                )
                record["target"] = class_names[drawn]
                if pictures:
                    name = f"{PICTURES}/{written:03d}_{_file_stem(item['file_name'])}.png"
                    page = attribution_page(
                        _seen(pixels, item.get("crop_box")),
                        result["ranked_instances"],
                        found,
                        drawn,
                        class_names=class_names,
                        lesion_classes=lesion_classes,
                        hidden=hidden,
                        title=slice_title(item),
                        call=slice_call(item, result, class_names),
                        most=most,
                    )
                    write_png(output / name, page)
                    record["picture"] = name
                stream.write(json.dumps(record) + "\n")
    except OSError as error:
        raise CTMaskNetError(f"{output}: cannot write ({error}); choose another folder") from error
    if incomplete:
        logging.getLogger(__name__).warning(
            "%d of %d slices: integrated gradients do not add up within 1 %% (complete is false in "
            "their lines); occlusion is exact.",
            *(incomplete, written),
        )
    return written


def _entries(
    args: argparse.Namespace,
) -> tuple[list[dict[str, Any]], dict[str, CTSlice]]:
    """Dataset dicts, and the slices of ``--input`` by name."""
    if args.dataset:
        return dataset_dicts(args.dataset), {}
    found = {item.name: item for scan in read_scans(args.input) for item in scan.slices}
    entries = [
        {"file_name": name, "image_id": name, "patient": item.patient, "scan": item.scan}
        for name, item in found.items()
    ]
    return entries, found


def _predicted(
    model: nn.Module,
    cfg: CfgNode,
    entries: Sequence[dict[str, Any]],
    read: Callable[[Mapping[str, Any]], np.ndarray],
) -> Iterator[tuple[dict[str, Any], dict[str, Any], np.ndarray]]:
    """Input, result and px of every slice, TEST.IMS_PER_BATCH at a time."""
    mapper = SliceMapper(cfg, is_train=False)
    before, model.return_ranked_instances = model.return_ranked_instances, True
    try:
        with tqdm(total=len(entries), desc="attributions", unit="slice", disable=None) as bar:
            for start in range(0, len(entries), cfg.TEST.IMS_PER_BATCH):
                batch = entries[start : start + cfg.TEST.IMS_PER_BATCH]
                pixels = [read(entry) for entry in batch]
                items = [mapper.map_pixels(*pair) for pair in zip(batch, pixels, strict=True)]
                with torch.no_grad():
                    results = model(items)
                for found in zip(items, results, pixels, strict=True):
                    yield found
                    bar.update()
    finally:
        model.return_ranked_instances = before


def _read_picture(entry: Mapping[str, Any]) -> np.ndarray:
    return read_rgb(entry["file_name"], None)


def _seen(pixels: np.ndarray, crop_box: Sequence[int] | None) -> np.ndarray:
    """(H, W, 3) what the model saw before the resize."""
    x0, y0, x1, y1 = crop_box or (0, 0, pixels.shape[1], pixels.shape[0])
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(rgb[y0:y1, x0:x1])


def _file_stem(name: str) -> str:
    """A slice's name without folder and picture suffix, fit for a file: ``ct.nii.gz_0012``."""
    path = Path(name)
    known = path.suffix.lower() in IMAGE_SUFFIXES
    return re.sub(r"[^\w.-]", "_", path.stem if known else path.name)
