"""Slices of a viewer: found where the prediction says they lie, as pictures of known size, with the
outlines of their lesions.

A page has one picture a slice and lets its reader choose the HU window, so HU are kept as 256
levels that are finer where lung and soft tissue lie (:func:`levels_of_hu`). They are for the eye,
not for measuring.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ctmasknet.ct.arrays import Axes
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import CTSlice, Rescale
from ctmasknet.report.pictures import FRAME_NUMBER, lies_below

#: HU and the level of each; straight lines between. Air to fat in steps of 7 HU, soft tissue of 5.
HU_KNOTS, LEVEL_KNOTS = (-1024, -200, 300, 1500), (0, 112, 220, 255)
#: Lesions that score less are not in a page, unless the run's threshold is lower.
MIN_SCORE = 0.05
#: How far an outline may be from its mask, px.
_OUTLINE_PX = 0.5
#: Tried in turn until a page is small enough: quality of JPEG, and how many px become one.
_CODINGS = tuple((quality, 1) for quality in (88, 80, 70, 60, 50, 40)) + ((60, 2), (40, 2), (40, 4))
_SAMPLES = 8


def levels_of_hu(hu: np.ndarray) -> np.ndarray:
    """(H, W) HU as (H, W) uint8 levels by :data:`HU_KNOTS`, clipped at both ends."""
    return np.rint(np.interp(hu, HU_KNOTS, LEVEL_KNOTS)).astype(np.uint8)


@dataclass(frozen=True)
class ShownPixels:
    """``grey`` is (H, W) uint8, levels of HU where ``is_hu``; (H, W, 3) of a picture in colour."""

    grey: np.ndarray
    is_hu: bool


def pixels_of(source: CTSlice) -> ShownPixels:
    """A slice as a viewer shows it.

    Raises:
        CTMaskNetError: a damaged file.
    """
    picture = source.source.read_picture(source.frame)
    if picture is not None:
        return ShownPixels(picture, is_hu=False)
    return ShownPixels(levels_of_hu(source.hu()), is_hu=True)


class SliceFinder:
    """Finds slices by the names that predictions have for them.

    Args:
        below: files and folders; names that lead elsewhere are not looked at, wherever the
            predictions, which may be a stranger's, point. Relative names are relative to the
            folders, or to the working directory.
        rescale, axes: see :func:`ctmasknet.ct.read.read_scans`.
    """

    def __init__(
        self,
        below: Sequence[str | os.PathLike],
        rescale: Rescale | None = None,
        axes: Axes | None = None,
    ):
        self._below = [Path(one) for one in below]
        self._rescale, self._axes = rescale, axes

    def find(self, names: Iterable[str]) -> dict[str, CTSlice]:
        """Name -> slice, of those that are there and can be read."""
        files: dict[str, str] = {}
        for name in names:
            file = self._file_of(FRAME_NUMBER.sub("", name))
            if file is not None:
                files.setdefault(*file)
        found = {}
        if files:
            scans = read_scans(
                list(files), on_bad=lambda *_: None, on_left_out=lambda *_: None,
                rescale=self._rescale, axes=self._axes,
            )  # fmt: skip
            for one in (one for scan in scans for one in scan.slices):
                path = next(path for path in _upwards(one.name) if path in files)
                found[files[path] + one.name[len(path) :]] = one
        return found

    def _file_of(self, name: str) -> tuple[str, str] | None:
        """(path of the file, the part of the name that it is): that of an archive for what is in
        it."""
        for own in _upwards(name):
            for path in [*(one / own for one in self._below), Path(own)]:
                if os.path.isfile(path) and any(lies_below(path, one) for one in self._below):
                    return os.fspath(path), own
        return None


def _upwards(name: str) -> Iterable[str]:
    """A name without its frame, then the folders above it, as text."""
    name = FRAME_NUMBER.sub("", name)
    while name:
        yield name
        name = name.rpartition("/")[0]


@dataclass(frozen=True)
class Coding:
    """How pictures are written: ``quality`` of JPEG, and ``step`` px that become one."""

    quality: int
    step: int

    def data(self, pixels: np.ndarray) -> str:
        """(H, W[, 3]) uint8 as base64 of a JPEG."""
        image = Image.fromarray(pixels)
        if self.step > 1:
            size = tuple(max(1, side // self.step) for side in image.size)
            image = image.resize(size, Image.Resampling.BOX)
        stream = io.BytesIO()
        image.save(stream, format="JPEG", quality=self.quality, optimize=True)
        return base64.b64encode(stream.getvalue()).decode("ascii")


def choose_coding(samples: Sequence[np.ndarray], count: int, most_bytes: float) -> Coding:
    """The best of the codings with which ``count`` pictures like the samples take at most
    ``most_bytes``; the smallest where none does."""
    for coding in (Coding(*one) for one in _CODINGS):
        mean = np.mean([len(coding.data(one)) for one in samples]) if samples else 0
        if mean * count <= most_bytes:
            break
    return coding


def spread_indices(count: int) -> list[int]:
    """Indices of a few of ``count`` slices, to guess from."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, _SAMPLES))})


def lesion_data(lesion: Mapping[str, Any]) -> tuple[list[Any], list[list[int]]]:
    """What a page knows of a lesion: [class, score, area px, box x0, y0, x1, y1], and its outlines
    as x, y, x, y, ... px; no outline where there is no mask."""
    x, y, width, height = (float(value) for value in lesion["bbox"])
    box = [round(value, 1) for value in (x, y, x + width, y + height)]
    facts = [
        lesion["class"],
        # Rounded it might come to lie on the other side of a threshold
        float(lesion.get("score", 1.0)),
        round(lesion["area"]),
        *box,
    ]
    if not lesion.get("segmentation"):
        return facts, []
    mask = np.ascontiguousarray(coco_mask.decode(lesion["segmentation"]))
    # A hole has an outline of its own
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    simple = (cv2.approxPolyDP(one, _OUTLINE_PX, closed=True) for one in outlines)
    return facts, [one.reshape(-1).tolist() for one in simple]
