"""Connected components as the runs that COCO's RLE is made of, without a picture for each.

H, W are the sides of the mask in px. A run is an unbroken piece of a column; runs are counted down
the columns, left to right, as COCO does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle


def components(inside: np.ndarray, min_area_px: int) -> Iterator[tuple[list[int], int, Any]]:
    """The 8-connected components of a mask.

    Args:
        inside: (H, W) uint8, 0 outside.
        min_area_px: components of this area or less, in px, are dropped.

    Yields:
        box [x, y, w, h] px, from the first row and column to one past the last; area, px; RLE
        (``size`` and ``counts``, bytes). By place: top, left, height, width.
    """
    inside = np.ascontiguousarray(inside)
    height, width = inside.shape
    left, top, w, h = cv2.boundingRect(inside)
    if not w:
        return
    cut = inside[top : top + h, left : left + w]
    _, label = cv2.connectedComponentsWithAlgorithm(cut, 8, cv2.CV_32S, cv2.CCL_SPAGHETTI)
    # A row of background above and a column of it behind keep the runs of two columns apart
    columns = np.zeros((w + 1, h + 1), np.int32)
    columns[:w, 1:] = label.T
    flat = columns.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    begin, end = edges[0::2], edges[1::2]
    owner = flat[begin]
    order = np.argsort(owner, kind="stable")
    begin, end, owner = begin[order], end[order], owner[order]
    first = np.flatnonzero(np.diff(owner, prepend=0))
    area = np.add.reduceat(end - begin, first)
    column, row = np.divmod(begin, h + 1)
    row -= 1
    x, past_x = np.minimum.reduceat(column, first), np.maximum.reduceat(column, first) + 1
    y = np.minimum.reduceat(row, first)
    past_y = np.maximum.reduceat(row + end - begin, first)
    # Places in the whole mask, down its columns
    begin_px = (left + column) * height + top + row
    end_px = begin_px + end - begin
    last = np.append(first[1:], len(owner))
    table = np.stack([y + top, x + left, past_y - y, past_x - x, area, first, last], axis=1)
    for y, x, h, w, size, one, past in sorted(table[area > min_area_px].tolist()):
        counts = _counts(begin_px[one:past], end_px[one:past], height * width)
        code = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        yield [x, y, w, h], size, code


def _counts(begin: np.ndarray, end: np.ndarray, total: int) -> list[int]:
    """Lengths of background and lesion in turn, the first of background."""
    joined = begin[1:] == end[:-1]
    if joined.any():  # at the foot of one column and the head of the next
        begin, end = begin[np.append(True, ~joined)], end[np.append(~joined, True)]
    bounds = np.empty(2 * len(begin) + 2, begin.dtype)
    bounds[0], bounds[-1] = 0, total
    bounds[1:-1:2], bounds[2:-1:2] = begin, end
    counts = np.diff(bounds).tolist()
    return counts if counts[-1] else counts[:-1]
