"""Which slices a gallery or an explanation shows, those of a data set or of files and folders; how
they are read, named and called."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctmasknet.ct.arrays import parse_axes
from ctmasknet.ct.pictures import read_rgb
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import CTSlice, Window, parse_rescale
from ctmasknet.data.registry import dataset_dicts
from ctmasknet.draw.lesions import SliceCall
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import check_room, check_writable, writing
from ctmasknet.prepare.staging import least_bytes
from ctmasknet.registration import import_registrations


@dataclass(frozen=True)
class ShownSlices:
    """Slices in order.

    Attributes:
        entries: their dataset dicts; of files ``file_name`` (the slice's name), ``patient`` and
            ``scan`` alone.
        sources: the slices of files by ``file_name``; empty for a data set.
    """

    entries: list[dict[str, Any]]
    sources: Mapping[str, CTSlice]

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> ShownSlices:
        """The slices that a tool was asked for.

        Args:
            args: one of ``dataset`` (registered name) and ``input`` (files and folders of any
                depth, whatever :func:`ctmasknet.ct.read.read_scans` reads); ``rescale`` and
                ``axes`` (text, for ``input`` alone); ``limit`` and ``seed``, see :func:`pick`;
                ``opts``, which may name a module that registers the set.

        Raises:
            CTMaskNetError: none or both of ``dataset`` and ``input``, no such set, an input that
                holds no slice or cannot be read, a bad ``limit``.
        """
        if bool(args.dataset) == bool(args.input):
            raise CTMaskNetError("give either `dataset` NAME or `input` FILE_OR_FOLDER")
        sources: dict[str, CTSlice] = {}
        rescale = parse_rescale(args.rescale) if args.rescale is not None else None
        if args.dataset and rescale is not None:
            raise CTMaskNetError(
                f"`rescale`: {args.dataset} holds 8-bit pictures, prepared already; leave it out"
            )
        axes = parse_axes(args.axes) if args.axes is not None else None
        if args.dataset and axes is not None:
            raise CTMaskNetError(f"`axes`: {args.dataset} holds pictures; leave it out")
        if args.dataset:
            import_registrations(args.opts)
            entries = dataset_dicts(args.dataset)
        else:
            scans = read_scans(args.input, rescale=rescale, axes=axes)
            sources = {one.name: one for scan in scans for one in scan.slices}
            entries = [
                {"file_name": name, "patient": one.patient, "scan": one.scan}
                for name, one in sources.items()
            ]
        chosen = pick(len(entries), args.limit, args.seed)
        return cls([entries[index] for index in chosen], sources)

    def pixels(self, entry: Mapping[str, Any], window: Window) -> np.ndarray:
        """(H, W) or (H, W, 3) uint8 of a slice; HU are seen through the window.

        Raises:
            CTMaskNetError: the file cannot be read.
        """
        source = self.sources.get(entry["file_name"])
        return read_entry(entry) if source is None else source.pixels(window)


def read_entry(entry: Mapping[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a dataset dict's picture ``file_name``.

    Raises:
        CTMaskNetError: it is missing, unreadable or has more than 8 bits a pixel.
    """
    return read_rgb(entry["file_name"])


def pick(count: int, limit: int | None, seed: int | None) -> list[int]:
    """Indices, rising, of at most ``limit`` of ``count`` slices.

    With a seed they are a random choice, without one they are spread evenly, so that a data set
    sorted by patient shows many patients.
    """
    if limit is not None and limit < 1:
        raise CTMaskNetError(f"`limit`: {limit} is not a number of pictures; give 1 or more")
    if limit is None or limit >= count:
        return list(range(count))
    if seed is None:
        return [index * count // limit for index in range(limit)]
    return sorted(np.random.default_rng(seed).choice(count, limit, replace=False).tolist())


def same_classes(dataset: str, kind: str, found: Sequence[str], known: Sequence[str]) -> list[str]:
    """The model's classes; those of the data set, if it has any, have to be the same."""
    if found and list(found) != list(known):
        raise CTMaskNetError(
            f"{dataset}: has {kind} classes {list(found)} but the model has {list(known)}; "
            "choose a data set with the classes that the model was trained on"
        )
    return list(known)


def slice_call(
    entry: Mapping[str, Any], found: Mapping[str, Any], image_classes: Sequence[str]
) -> SliceCall | None:
    """The class of a slice as its dataset dict and a model's result have it; None for neither."""
    if entry.get("label") is None and "pred_class" not in found:
        return None
    scores = found.get("scores")
    return SliceCall(
        image_classes,
        predicted=found.get("pred_class"),
        truth=entry.get("label"),
        scores=None if scores is None else scores.tolist(),
    )


def slice_title(entry: Mapping[str, Any]) -> str:
    """Short name of a slice: its id in the data set, or file and folder."""
    name = entry.get("image_id")
    return name if isinstance(name, str) else "/".join(Path(entry["file_name"]).parts[-2:])


def writable_folder(
    path: str | os.PathLike,
    entries: Sequence[Mapping[str, Any]] = (),
    sources: Mapping[str, CTSlice] | None = None,
) -> Path:
    """Make the folder where needed; found out before a model is loaded and run.

    Args:
        entries, sources: the slices that it gets a picture of, as :class:`ShownSlices` has them.

    Raises:
        CTMaskNetError: it is a file, or cannot be made or written to; the pictures do not fit.
    """
    path, shapes, pictures = Path(path), [], []
    for entry in entries:
        source = (sources or {}).get(entry["file_name"])
        if source is not None:
            shapes.append(source.shape)
        elif "height" in entry and "width" in entry:
            shapes.append((entry["height"], entry["width"]))
        else:
            pictures.append(entry["file_name"])
    # A slice's picture shows it whole, so it takes no less than a copy
    needed = least_bytes(shapes, pictures)
    check_room(path, needed, f"the pictures of {len(entries)} slices", "draw fewer with `limit`")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return check_writable(path, folder=True)  # which is there: other processes try it too
