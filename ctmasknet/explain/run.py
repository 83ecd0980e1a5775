"""Attributions of many slices: a line of ``attributions.jsonl`` and a picture each.

Processes of a run take the batches in turn. Each writes its lines as soon as a batch is done, and
the main process puts them together, so the files are those of one process.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ctmasknet.config import is_classifier, reads_rows
from ctmasknet.console.progress import Progress
from ctmasknet.draw.canvas import as_rgb
from ctmasknet.draw.pages import write_picture
from ctmasknet.errors import CTMaskNetError
from ctmasknet.explain.attribution import CAVEAT, METHODS, BoxAttribution, attribute, check_method
from ctmasknet.explain.drawing import MOST_BOXES, attribution_page
from ctmasknet.explain.gradcam import GRADCAM, check_captum, grad_cam, map_page, map_record
from ctmasknet.files import atomic_write, check_writable, folder_of_one, remove_unfinished, writing
from ctmasknet.modeling.meta_arch import head_rows
from ctmasknet.modeling.peers import PatchNet, SliceClassifier
from ctmasknet.names import IMAGE_SUFFIXES
from ctmasknet.predict.gallery import model_cfg
from ctmasknet.predict.predictor import CTPredictor
from ctmasknet.predict.results import numbers
from ctmasknet.predict.shards import Shard, Shards
from ctmasknet.predict.shown import (
    ShownSlices,
    read_entry,
    same_classes,
    slice_call,
    slice_title,
    writable_folder,
)

#: As many as a float32 has.
_DIGITS = 7
ATTRIBUTIONS = "attributions.jsonl"
PICTURES = "pictures"


def explain_slices(
    predictor: CTPredictor,
    entries: Sequence[dict[str, Any]],
    output: str | os.PathLike,
    *,
    method: str | None = None,
    hidden: str = "zero",
    target: str | None = None,
    most: int = MOST_BOXES,
    pictures: bool = True,
    read: Callable[[Mapping[str, Any]], np.ndarray] = read_entry,
) -> int:
    """Write ``attributions.jsonl`` and ``pictures/<number>_<name>.png``; called in every process.

    Args:
        predictor: a classifier's, by ranked boxes or of whole slices (``SliceClassifier``).
        entries: dataset dicts, the same in every process.
        output: folder; ``attributions.jsonl`` appears there when all slices are done.
        method, hidden: see :func:`ctmasknet.explain.attribution.attribute`; ``gradcam`` of a
            network of whole slices. None: what there is for the model, occlusion first.
        target: the class whose logit is drawn; None for the predicted one. The file has all.
        most: boxes drawn at most.
        pictures: draw them.
        read: gives an entry's px, (H, W) or (H, W, 3) uint8; default: the picture ``file_name``.

    Returns:
        The number of slices, those of the other processes too.

    Raises:
        CTMaskNetError: an image is missing or unreadable, a file cannot be written, another process
            has failed or sees other slices.
    """
    class_names, lesion_classes = predictor.image_classes, predictor.lesion_classes
    output = Path(output)
    method = method_for(type(predictor.model).__name__, method, hidden)
    head = getattr(predictor.model, "image_head", None)
    other = getattr(head, "reads_mask_features", False) and "mask features"
    if isinstance(predictor.model, PatchNet):
        other = "the px of boxes"
    if other:
        raise CTMaskNetError(
            f"the image head is {type(head).__name__}, which reads {other}; only heads that read "
            "ranked rows are explained by boxes"
        )

    def by_boxes(item, result, pixels, drawn: int) -> tuple[dict[str, Any], Callable]:
        found = attribute(
            head, head_rows(result), len(result["ranked_instances"]), method=method, hidden=hidden
        )
        record = attribution_record(item, result, found, class_names, lesion_classes, hidden=hidden)
        page = functools.partial(
            attribution_page,
            *(pixels, result["ranked_instances"], found, drawn),
            lesion_classes=lesion_classes,
            hidden=hidden,
            most=most,
        )
        return record, page

    def by_maps(item, result, pixels, drawn: int) -> tuple[dict[str, Any], Callable]:
        found = grad_cam(predictor.model, item)
        record = _slice_entries(item, result, class_names)
        record |= map_record(found, class_names, _DIGITS)
        return record, functools.partial(
            map_page, pixels, found, drawn, tuple(item["image"].shape[-2:])
        )

    def explained(number: int, item, result, pixels) -> dict[str, Any]:
        """A slice's line; its picture is written."""
        drawn = result["pred_class"] if target is None else class_names.index(target)
        by = by_maps if method == GRADCAM else by_boxes
        record, page = by(item, result, as_rgb(pixels, item.get("crop_box")), drawn)
        record["target"] = class_names[drawn]
        if pictures:
            record["picture"] = f"{PICTURES}/{number:03d}_{_file_stem(item['file_name'])}.png"
            call = slice_call(item, result, class_names)
            picture = page(class_names=class_names, title=slice_title(item), call=call)
            write_picture(output / record["picture"], picture)
        return record

    size, rank, world = predictor.batch_size, comm.get_rank(), comm.get_world_size()
    starts = range(0, len(entries), size)
    # A batch a shard: what is in a batch does not depend on the number of processes
    all_shards = [Shard(n, 0, at, min(at + size, len(entries))) for n, at in enumerate(starts)]
    shards = Shards(output, f".{ATTRIBUTIONS}.parts", "call the tool again")
    mine = all_shards[rank::world]
    name = f"attributions{f', process 1 of {world}' if world > 1 else ''}"
    total = sum(shard.stop - shard.start for shard in mine)
    try:
        if rank == 0:
            with writing(output):
                shards.remove()
                remove_unfinished(output, below=True)
        _check_same(entries)
        with Progress(name, total, shown=rank == 0) as progress:
            for shard in mine:
                batch = entries[shard.start : shard.stop]
                pixels = [read(entry) for entry in batch]
                items = [predictor.mapped(*pair) for pair in zip(batch, pixels, strict=True)]
                results = predictor.predict(items)
                numbers = range(shard.start + 1, shard.stop + 1)
                records = list(map(explained, numbers, items, results, pixels))
                with writing(output):
                    shards.write(shard, records)
                progress.update(len(batch))
        if rank == 0:
            _put_together(shards, all_shards, output)
    except BaseException:
        if world > 1:
            shards.mark_failed(rank)
        else:
            with contextlib.suppress(OSError):
                shards.remove()
        raise
    return len(entries)


def method_for(architecture: str, method: str | None, hidden: str = "zero") -> str:
    """The method asked for, or the one that there is for a model.

    Args:
        architecture: name of the model's class.
        method, hidden: see :func:`explain_slices`.

    Raises:
        CTMaskNetError: the model has no such method; nothing that it hides; captum is not there.
    """
    of_slices = architecture == SliceClassifier.__name__
    method = method or (GRADCAM if of_slices else METHODS[0])
    if method != GRADCAM:
        check_method(method, hidden)
    elif hidden != "zero":
        raise CTMaskNetError(f"`hidden`: {hidden} is of occlusion; {GRADCAM} hides nothing")
    if of_slices != (method == GRADCAM):
        fits = GRADCAM if of_slices else f"one of {', '.join(METHODS)}"
        raise CTMaskNetError(
            f"`method`: {method} is not for a {architecture}; leave it out, or give {fits}"
        )
    if of_slices:
        check_captum()
    return method


def _check_same(entries: Sequence[Mapping[str, Any]]) -> None:
    """Every process has to see the same slices, or some are explained twice and others never."""
    names = json.dumps([[entry["file_name"], entry.get("image_id")] for entry in entries])
    digests = comm.all_gather(hashlib.sha256(names.encode()).hexdigest())
    if len(set(digests)) > 1:
        raise CTMaskNetError(
            "the processes of this run see different slices; every machine needs the same files "
            "under the same paths"
        )


def _put_together(shards: Shards, all_shards: Sequence[Shard], output: Path) -> None:
    """Write ``attributions.jsonl`` from the shards of all processes, then remove them."""
    incomplete = written = 0
    with writing(output):
        with atomic_write(output / ATTRIBUTIONS) as stream:
            for line in shards.lines(all_shards):
                written += 1
                incomplete += line.get("complete") is False
                stream.write(json.dumps(line) + "\n")
        shards.remove()
    if incomplete:
        logging.getLogger(__name__).warning(
            "%d of %d slices: integrated gradients do not add up within 1 %% (complete is false in "
            "their lines); occlusion is exact.",
            *(incomplete, written),
        )


def _file_stem(name: str) -> str:
    """A slice's name without folder and picture suffix, fit for a file: ``ct.nii.gz_0012``."""
    path = Path(name)
    known = path.suffix.lower() in IMAGE_SUFFIXES
    return re.sub(r"[^\w.-]", "_", path.stem if known else path.name)


def explain_from_command_line(args: argparse.Namespace) -> int:
    """Explain the slices of a data set or of files; called in every process of the run.

    Args:
        args: ``config_file``, ``opts`` and ``weights`` (see
            :func:`ctmasknet.engine.setup.inference_cfg`), one of ``dataset`` (registered name) and
            ``input`` (files and folders of any depth), ``rescale`` (text, for ``input``; None for
            none), ``output`` (folder), ``limit`` (slices; None for all), ``seed`` (None: evenly
            spread), ``method``, ``hidden``, ``target`` (class; None for the predicted one),
            ``boxes`` (drawn at most), ``pictures`` (bool).

    Returns:
        The number of slices.

    Raises:
        CTMaskNetError: contradicting arguments, no classifier, no image, an unreadable one, an
            output folder that cannot be written or where another is at work, or what
            :func:`inference_cfg`, :class:`CTPredictor` and :func:`explain_slices` raise.
    """
    if args.boxes < 1:
        raise CTMaskNetError(f"`boxes`: {args.boxes} is not a number of boxes; give 1 or more")
    if args.method not in (None, GRADCAM):
        check_method(args.method, args.hidden)
    if comm.is_main_process():
        check_writable(args.output, folder=True)
    shown = ShownSlices.from_arguments(args)
    entries = shown.entries
    if args.input:
        entries = [entry | {"image_id": entry["file_name"]} for entry in entries]
    cfg = model_cfg(args)
    if not reads_rows(cfg) and cfg.MODEL.META_ARCHITECTURE != "SliceClassifier":
        why = "a lesion detector has no decision on the slice"
        if is_classifier(cfg):
            why = f"a {cfg.MODEL.META_ARCHITECTURE} decides by more than ranked boxes or a slice"
        raise CTMaskNetError(
            f"{cfg.MODEL.WEIGHTS}: {why}; give a "
            "classifier's weights and a configuration such as configs/cls.yaml"
        )
    method_for(cfg.MODEL.META_ARCHITECTURE, args.method, args.hidden)
    if args.dataset:
        classes = list(MetadataCatalog.get(args.dataset).get("image_classes", ()))
        same_classes(args.dataset, "slice", classes, cfg.MODEL.IMAGE_HEAD.CLASSES)
    class_names = list(cfg.MODEL.IMAGE_HEAD.CLASSES)
    if args.target is not None and args.target not in class_names:
        raise CTMaskNetError(
            f"`target`: {args.target!r} is no class; choose one of {', '.join(class_names)}"
        )
    drawn = entries if args.pictures else ()
    output = writable_folder(args.output, drawn, shown.sources)
    with contextlib.ExitStack() as held:
        if comm.is_main_process():
            elsewhere = {"elsewhere": "choose another `output`"}
            held.enter_context(folder_of_one(output, "explanation", **elsewhere))
        predictor = CTPredictor(cfg)
        count = explain_slices(
            predictor,
            entries,
            output,
            method=args.method,
            hidden=args.hidden,
            target=args.target,
            most=args.boxes,
            pictures=args.pictures,
            read=lambda entry: shown.pixels(entry, predictor.window),
        )
    if comm.is_main_process():
        made = f"{ATTRIBUTIONS}{' and pictures' if args.pictures else ''}"
        print(f"{made} of {count} slices in {args.output}")
    return count


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
    rows = np.bincount(found.box_of_row.cpu().numpy().clip(0), minlength=len(ranked))
    return {
        **_slice_entries(item, result, class_names),
        "method": found.method,
        "hidden": hidden,
        "note": CAVEAT,
        # Those of the rows, of which weights and rest are parts
        "logits": numbers(found.logits, _DIGITS),
        "without_boxes": numbers(found.without_boxes, _DIGITS),
        "rest": numbers(found.rest, _DIGITS),
        "complete": found.complete,
        "boxes": [
            {
                "class": lesion_classes[index],
                "score": score,
                "box_px": [round(float(side), 2) for side in box],
                "rows": int(count),
                "weights": numbers(weights, _DIGITS),
            }
            for index, score, box, count, weights in zip(
                ranked.pred_classes.tolist(),
                numbers(ranked.scores, _DIGITS),
                boxes,
                rows[: len(ranked)],
                found.weights,
                strict=True,
            )
        ],
    }


def _slice_entries(
    item: Mapping[str, Any], result: Mapping[str, Any], class_names: Sequence[str]
) -> dict[str, Any]:
    """What every line says first: the slice, its class as known and as predicted, its logits."""
    image_id, label = item.get("image_id"), item.get("label")
    return {
        "file": image_id if isinstance(image_id, str) else str(item["file_name"]),
        "patient": str(item.get("patient") or ""),
        "scan": str(item.get("scan") or ""),
        "label": None if label is None else class_names[label],
        "pred": class_names[result["pred_class"]],
        "classes": list(class_names),
        "logits": numbers(result["logits"], _DIGITS),
    }
