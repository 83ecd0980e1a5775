"""Attributions of many slices: a line of ``attributions.jsonl`` and a picture each.

Processes of a run take the batches in turn. Each keeps its lines as soon as a batch is done, and
the main process puts them together, so the files are those of one process.
"""

from __future__ import annotations

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
from detectron2.utils import comm
from torch import nn
from tqdm import tqdm

from ctmasknet.data.images import IMAGE_SUFFIXES
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.errors import CTMaskNetError
from ctmasknet.explain.attribution import attribute
from ctmasknet.explain.drawing import MOST_BOXES, attribution_page
from ctmasknet.explain.record import attribution_record
from ctmasknet.files import atomic_write
from ctmasknet.gallery import read_rgb, slice_call, slice_title, write_png
from ctmasknet.predict.parts import Parts, Piece

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
