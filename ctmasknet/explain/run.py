"""What ``tools/explain.py`` does with its arguments.

An attribution as plain values, a line of ``attributions.jsonl``.

Attributions of many slices: a line of ``attributions.jsonl`` and a picture each.

Processes of a run take the batches in turn. Each keeps its lines as soon as a batch is done, and
the main process puts them together, so the files are those of one process.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
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
from detectron2.utils import comm
from torch import nn
from tqdm import tqdm

from ctmasknet.ct.pictures import IMAGE_SUFFIXES, read_rgb
from ctmasknet.ct.read import CTSlice, read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.data.registry import dataset_dicts
from ctmasknet.engine.checkpoint import is_classifier
from ctmasknet.engine.setup import load_model, prediction_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.explain.attribution import CAVEAT, BoxAttribution, attribute, check_method
from ctmasknet.explain.drawing import MOST_BOXES, attribution_page
from ctmasknet.files import atomic_write
from ctmasknet.modeling.fast.inference import inference_model
from ctmasknet.predict.gallery import (
    model_cfg,
    pick,
    same_classes,
    slice_call,
    slice_title,
    writable_folder,
    write_png,
)
from ctmasknet.predict.shards import Parts, Piece


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


def _numbers(values: torch.Tensor) -> list[float]:
    return [_digits(value) for value in values.tolist()]


def _digits(value: float) -> float:
    """Seven digits, as many as a float32 has."""
    return float(format(value, ".7g"))


ATTRIBUTIONS = "attributions.jsonl"
PICTURES = "pictures"


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
    """Write ``attributions.jsonl`` and ``pictures/<number>_<name>.png``; called in every process.

    Args:
        model: a loaded ``CTMaskNet``, or its inference copy.
        cfg: its configuration.
        entries: dataset dicts, the same in every process.
        output: folder; ``attributions.jsonl`` takes its place there when all slices are done.
        method, hidden: see :func:`ctmasknet.explain.attribution.attribute`.
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
    class_names = list(cfg.MODEL.IMAGE_HEAD.CLASSES)
    lesion_classes = list(cfg.MODEL.LESION_CLASSES)
    output = Path(output)

    def explained(number: int, item, result, pixels) -> dict[str, Any]:
        found = attribute(
            model.image_head,
            result["ranked_boxes"],
            len(result["ranked_instances"]),
            method=method,
            hidden=hidden,
        )
        drawn = result["pred_class"] if target is None else class_names.index(target)
        record = attribution_record(item, result, found, class_names, lesion_classes, hidden=hidden)
        record["target"] = class_names[drawn]
        if pictures:
            record["picture"] = f"{PICTURES}/{number:03d}_{_file_stem(item['file_name'])}.png"
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
            write_png(output / record["picture"], page)
        return record

    size, rank, world = cfg.TEST.IMS_PER_BATCH, comm.get_rank(), comm.get_world_size()
    starts = range(0, len(entries), size)
    # A batch a piece: what is in a batch does not depend on the number of processes
    pieces = [Piece(n, 0, at, min(at + size, len(entries))) for n, at in enumerate(starts)]
    parts = Parts(output, f".{ATTRIBUTIONS}.parts", "call the tool again")
    mapper, read = SliceMapper(cfg, is_train=False), read or _read_picture
    mine = pieces[rank::world]
    name = f"attributions{f', process 1 of {world}' if world > 1 else ''}"
    bar = tqdm(
        desc=name,
        total=sum(piece.stop - piece.start for piece in mine),
        unit="slice",
        # None: on a terminal alone
        disable=True if rank else None,
    )
    try:
        if rank == 0:
            parts.remove()
        _check_same(entries)
        with bar, _returning_ranked_instances(model):
            for piece in mine:
                batch = entries[piece.start : piece.stop]
                pixels = [read(entry) for entry in batch]
                items = [mapper.map_pixels(*pair) for pair in zip(batch, pixels, strict=True)]
                with torch.no_grad():
                    results = model(items)
                numbers = range(piece.start + 1, piece.stop + 1)
                parts.write_piece(piece, map(explained, numbers, items, results, pixels))
                bar.update(len(batch))
        if rank == 0:
            _put_together(parts, pieces, output)
    except BaseException as error:
        if world > 1:
            parts.mark_failed(rank)
        else:
            with contextlib.suppress(OSError):
                parts.remove()
        if isinstance(error, OSError):
            raise CTMaskNetError(
                f"{output}: cannot write ({error}); choose another folder"
            ) from error
        raise
    return len(entries)


def _check_same(entries: Sequence[Mapping[str, Any]]) -> None:
    """Every process has to see the same slices, or some are explained twice and others never."""
    names = json.dumps([[entry["file_name"], entry.get("image_id")] for entry in entries])
    digests = comm.all_gather(hashlib.sha256(names.encode()).hexdigest())
    if len(set(digests)) > 1:
        raise CTMaskNetError(
            "the processes of this run see different slices; every machine needs the same files "
            "under the same paths"
        )


def _put_together(parts: Parts, pieces: Sequence[Piece], output: Path) -> None:
    """Write ``attributions.jsonl`` from the parts of all processes, then remove them."""
    incomplete = written = 0
    with atomic_write(output / ATTRIBUTIONS) as stream:
        for line in parts.lines(pieces):
            written += 1
            incomplete += line["complete"] is False
            stream.write(json.dumps(line) + "\n")
    parts.remove()
    if incomplete:
        logging.getLogger(__name__).warning(
            "%d of %d slices: integrated gradients do not add up within 1 %% (complete is false in "
            "their lines); occlusion is exact.",
            *(incomplete, written),
        )


@contextlib.contextmanager
def _returning_ranked_instances(model: nn.Module) -> Iterator[None]:
    before, model.return_ranked_instances = model.return_ranked_instances, True
    try:
        yield
    finally:
        model.return_ranked_instances = before


def _read_picture(entry: Mapping[str, Any]) -> np.ndarray:
    return read_rgb(entry["file_name"])


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


def explain_from_command_line(args: argparse.Namespace) -> int:
    """Explain the slices of a data set or of files; called in every process of the run.

    Args:
        args: ``config_file`` and ``opts`` (see :func:`ctmasknet.engine.setup.setup_cfg`; for
            ``input`` see :func:`ctmasknet.engine.setup.prediction_cfg`), one of ``dataset``
            (registered name) and ``input`` (whatever :func:`ctmasknet.ct.read.read_scans`
            reads), ``output`` (folder), ``limit`` (slices; None for all), ``seed`` (None: evenly
            spread), ``method``, ``hidden``, ``target`` (class; None for the predicted one),
            ``boxes`` (drawn at most), ``pictures`` (bool).

    Returns:
        The number of slices.

    Raises:
        CTMaskNetError: contradicting arguments, no classifier, no image, an unreadable one, an
            output folder that cannot be written, or what :func:`setup_cfg`, :func:`prediction_cfg`,
            :func:`load_model` and :func:`explain_slices` raise.
    """
    if bool(args.dataset) == bool(args.input):
        raise CTMaskNetError("give either --dataset NAME or --input FILE_OR_FOLDER")
    if args.boxes < 1:
        raise CTMaskNetError(f"--boxes: {args.boxes} is not a number of boxes; give 1 or more")
    check_method(args.method, args.hidden)
    entries, found = _entries(args)
    entries = [entries[index] for index in pick(len(entries), args.limit, args.seed)]
    cfg = _cfg(args)
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
    count = explain_slices(
        inference_model(cfg, load_model(cfg)),
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
    if comm.is_main_process():
        made = f"{ATTRIBUTIONS}{' and pictures' if args.pictures else ''}"
        print(f"{made} of {count} slices in {args.output}")
    return count


def _cfg(args: argparse.Namespace) -> CfgNode:
    """Classes are the data set's, and those of the weights for files, which need no data set."""
    if args.dataset:
        return model_cfg(args)
    return prediction_cfg(args.config_file, args.opts)[0]


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
