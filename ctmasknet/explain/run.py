"""Attributions of many slices: a line of ``attributions.jsonl`` and a picture each."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn
from tqdm import tqdm

from ctmasknet.data.datasets import dataset_dicts
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.engine.checkpoint import is_classifier
from ctmasknet.engine.setup import load_model
from ctmasknet.errors import CTMaskNetError
from ctmasknet.explain.attribution import CAVEAT, BoxAttribution, attribute, check_method
from ctmasknet.explain.drawing import MOST_BOXES, attribution_page
from ctmasknet.files import atomic_write
from ctmasknet.gallery import (
    image_entries,
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
            ``dataset`` (registered name) and ``input`` (files and folders), ``output`` (folder),
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
    entries = dataset_dicts(args.dataset) if args.dataset else image_entries(args.input)
    entries = [entries[index] for index in pick(len(entries), args.limit, args.seed)]
    cfg = model_cfg(args)
    if not is_classifier(cfg):
        raise CTMaskNetError(
            f"{args.config_file}: a lesion detector has no decision on the slice; give a "
            "classifier's configuration such as configs/cls.yaml"
        )
    if args.dataset:
        found = list(MetadataCatalog.get(args.dataset).get("image_classes", ()))
        same_classes(args.dataset, "slice", found, cfg.MODEL.IMAGE_HEAD.CLASSES)
    class_names = list(cfg.MODEL.IMAGE_HEAD.CLASSES)
    if args.target is not None and args.target not in class_names:
        raise CTMaskNetError(
            f"--target: {args.target!r} is no class; choose one of {', '.join(class_names)}"
        )
    output = writable_folder(args.output)
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
) -> int:
    """Write ``attributions.jsonl`` and ``pictures/<number>_<stem>.png``.

    Args:
        model: a loaded ``CTMaskNet``.
        cfg: its configuration.
        entries: dataset dicts.
        output: folder; ``attributions.jsonl`` takes its place there when all slices are done.
        method, hidden: see :func:`ctmasknet.explain.attribution.attribute`.
        target: the class whose logit is drawn; None for the predicted one. The file has all.
        most: boxes drawn at most.
        pictures: draw them.

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
            for item, result in _predicted(model, cfg, entries):
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
                    name = f"{PICTURES}/{written:03d}_{Path(item['file_name']).stem}.png"
                    page = attribution_page(
                        read_rgb(item["file_name"], item.get("crop_box")),
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


def attribution_record(
    item: Mapping[str, Any],
    result: Mapping[str, Any],
    found: BoxAttribution,
    class_names: Sequence[str],
    lesion_classes: Sequence[str],
    *,
    hidden: str = "zero",
) -> dict[str, Any]:
    """One slice as plain values: a line of ``attributions.jsonl``.

    Lists of numbers by class are in the order of ``classes``. ``boxes`` are best score first; of
    each ``class``, ``score``, ``box_px`` ([x0, y0, x1, y1] px of the file, whatever was cropped),
    ``rows`` (how many rows it fills) and ``weights``. For the rest see :class:`BoxAttribution`.

    Args:
        item: the model's input, as mapped.
        result: the model's result, with ``ranked_instances``.
        found: the attribution.
        class_names: C names.
        lesion_classes: names of the boxes' classes.
        hidden: how occlusion hid boxes.
    """
    ranked = result["ranked_instances"]
    left, top = (item.get("crop_box") or (0, 0))[:2]
    boxes = ranked.pred_boxes.tensor.cpu().numpy() + np.array([left, top, left, top])
    rows = np.bincount(found.places.cpu().numpy().clip(0), minlength=len(ranked))
    image_id, label = item.get("image_id"), item.get("label")
    return {
        "file": image_id if isinstance(image_id, str) else str(item["file_name"]),
        "patient": str(item.get("patient") or ""),
        "scan": str(item.get("scan") or ""),
        "label": None if label is None else class_names[label],
        "pred": class_names[result["pred_class"]],
        "classes": list(class_names),
        "method": found.method,
        "hidden": hidden,
        "note": CAVEAT,
        "logits": _numbers(found.logits),
        "without_boxes": _numbers(found.without_boxes),
        "rest": _numbers(found.rest),
        "complete": found.complete,
        "boxes": [
            {
                "class": lesion_classes[index],
                "score": _digits(score),
                "box_px": [round(float(side), 2) for side in box],
                "rows": int(count),
                "weights": _numbers(weights),
            }
            for index, score, box, count, weights in zip(
                ranked.pred_classes.tolist(),
                ranked.scores.tolist(),
                boxes,
                rows[: len(ranked)],
                found.weights,
                strict=True,
            )
        ],
    }


def _predicted(
    model: nn.Module, cfg: CfgNode, entries: Sequence[dict[str, Any]]
) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """Input and result of every slice, TEST.IMS_PER_BATCH at a time."""
    mapper: Callable = SliceMapper(cfg, is_train=False)
    before, model.return_ranked_instances = model.return_ranked_instances, True
    try:
        with tqdm(total=len(entries), desc="attributions", unit="slice", disable=None) as bar:
            for start in range(0, len(entries), cfg.TEST.IMS_PER_BATCH):
                items = [mapper(e) for e in entries[start : start + cfg.TEST.IMS_PER_BATCH]]
                with torch.no_grad():
                    results = model(items)
                for item, result in zip(items, results, strict=True):
                    yield item, result
                    bar.update()
    finally:
        model.return_ranked_instances = before


def _numbers(values: torch.Tensor) -> list[float]:
    return [_digits(value) for value in values.tolist()]


def _digits(value: float) -> float:
    """Seven digits, as many as a float32 has."""
    return float(format(value, ".7g"))
