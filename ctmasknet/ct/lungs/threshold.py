"""Lungs by threshold and connected components.

The rule, with HU of lung near -850, of air -1000, of tissue 0:

1. What is below -320 is air. Air at the picture's border is outside where its median is below -900
   or it runs from the left border to the right, as a table's foam does; else it is a lung cut off.
2. The body is the largest outline of all the rest, filled; air in it is lung or gas.
3. In each slice, a piece whose median is below -930 is gas: trachea, gullet, stomach, bowel. Gas is
   no lung. Bronchi inside of the lungs are part of them.
4. Pieces joined through all slices count where they have a tenth of the largest one's volume (in a
   single slice a twentieth).
5. On either side of the body's middle, in each slice, holes are filled and gaps of up to 16 mm
   closed, for vessels and dense disease; in a lung's outer half, of up to 60 mm. There, where lungs
   are convex, what lies to the side of a lung or behind it, up to 50 mm deep and within its convex
   hull, belongs to it, so that consolidation at the pleura is not cut out. Nothing grows out of the
   body.

Limits: a lobe that is consolidated or under effusion as a whole has no air to begin with and is not
found, nor are gaps wider than that; the top of liver or spleen with lung all around is filled as
disease would be; bullae whose median is below -930 are taken for gas; in the middle, main bronchi
that open into a lung and vessels beside it may be closed in.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from scipy import ndimage

#: HU of the rule above.
AIR_BELOW_HU, OUTSIDE_BELOW_HU, GAS_BELOW_HU = -320.0, -900.0, -930.0
#: Shares of the largest piece that a piece has to have, in scans and in single slices.
_PIECE_SHARE, _PIECE_SHARE_2D = 0.1, 0.05
#: Half of the gaps that are closed, everywhere and away from the middle, mm.
_CLOSE_MM, _CLOSE_OUTER_MM = 8.0, 30.0
#: How deep disease at ribs and back may reach into a lung that is convex there, mm.
_RIM_MM = 50.0
#: Half of the thickness below which such a gap is the lung's own shape, mm.
_THIN_MM = 2.0
#: What joins body and table is thinner, mm.
_OPEN_MM = 5.0
#: Width of a body, for slices that do not state how large a px is.
BODY_WIDTH_MM = 350.0
_INSIDE, _BODY, _GAS = 1, 2, 4


def threshold_lungs(planes: Iterable[np.ndarray], pixel_mm: float | None = None) -> np.ndarray:
    """Lungs of the slices of one scan, or of a single slice.

    Args:
        planes: (H, W) HU each, all of one shape, in order.
        pixel_mm: side of a px; None: the body is taken to be 350 mm wide.

    Returns:
        (n, H, W) bool, lesions and vessels in the lungs included.
    """
    codes = np.stack([_coded(np.asarray(plane), pixel_mm) for plane in planes])
    lungs = _large_pieces((codes & _INSIDE).astype(bool))
    return np.stack(
        [_closed(plane, code, pixel_mm) for plane, code in zip(lungs, codes, strict=True)]
    )


def _coded(hu: np.ndarray, pixel_mm: float | None) -> np.ndarray:
    """(H, W) uint8: bits of a slice that say inside air, body and gas."""
    air = (hu < AIR_BELOW_HU).astype(np.uint8)
    count, labels = cv2.connectedComponents(air, connectivity=4)
    border = {*labels[[0, -1]].ravel().tolist(), *labels[:, [0, -1]].ravel().tolist()}
    medians = ndimage.median(hu, labels, np.arange(count)) if count > 1 else np.zeros(1)
    numbers = np.arange(count)
    at_border = np.isin(numbers, list(border))
    across = np.isin(numbers, labels[:, 0]) & np.isin(numbers, labels[:, -1])
    outside = (numbers > 0) & ((at_border & (medians < OUTSIDE_BELOW_HU)) | across)
    filled = _outlines((~outside[labels]).astype(np.uint8), largest=False)
    size = _px(_OPEN_MM, pixel_mm, filled)
    opened = cv2.morphologyEx(filled, cv2.MORPH_OPEN, _disk(size))
    body = _outlines(opened, largest=True).astype(bool)
    inside = (numbers > 0) & ~outside
    gas = inside & (medians < GAS_BELOW_HU)
    return (
        np.uint8(_INSIDE) * ((inside & ~gas)[labels] & body)
        | np.uint8(_BODY) * body
        | np.uint8(_GAS) * (gas[labels] & body)
    )


def _large_pieces(inside: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(inside)
    if not count:
        return inside
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    share = _PIECE_SHARE if len(inside) > 1 else _PIECE_SHARE_2D
    return (sizes >= share * sizes.max())[labels] & inside


def _closed(lungs: np.ndarray, code: np.ndarray, pixel_mm: float | None) -> np.ndarray:
    """One slice's lungs with holes and gaps closed."""
    if not lungs.any():
        return lungs
    body = (code & _BODY).astype(np.uint8) // _BODY
    columns = np.nonzero(body.any(axis=0))[0]
    middle = (columns[0] + columns[-1] + 1) // 2
    found = np.zeros_like(lungs)
    for half in (slice(0, middle), slice(middle, None)):
        # Cut in the middle, so that two lungs that meet enclose no heart
        side = np.zeros(lungs.shape, np.uint8)
        side[:, half] = lungs[:, half]
        if not side.any():
            continue
        near = _gaps_closed(side, _px(_CLOSE_MM, pixel_mm, body))
        outer = _gaps_closed(side, _px(_CLOSE_OUTER_MM, pixel_mm, body))
        x = int(np.nonzero(side)[1].mean())
        beyond = slice(0, x) if half.start == 0 else slice(x, None)
        near[:, beyond] |= outer[:, beyond]
        near = ndimage.binary_fill_holes(near)
        deepest = _px(_RIM_MM, pixel_mm, body)
        out = slice(None) if half.start == 0 else slice(None, None, -1)
        lateral = _rim(near[:, out], deepest)[:, out]
        back = _rim(near[::-1].T, deepest).T[::-1]
        rim = np.zeros_like(near)
        rim[:, beyond] = (lateral | back)[:, beyond]
        thin = _disk(_px(_THIN_MM, pixel_mm, body))
        found |= near | cv2.morphologyEx(rim.astype(np.uint8), cv2.MORPH_OPEN, thin).astype(bool)
    return found & (code & _BODY).astype(bool) & ~(code & _GAS).astype(bool)


def _rim(side: np.ndarray, deepest: int) -> np.ndarray:
    """What lies between a lung and its convex hull towards the first column.

    Args:
        side: (H, W) bool, the chest wall on the left.
        deepest: gaps of more px are none of the lung.
    """
    hull = np.zeros(side.shape, np.uint8)
    if side[:, 0].any():  # cut off, so its outline is not the lung's
        return hull.astype(bool)
    corners = cv2.convexHull(cv2.findNonZero(np.ascontiguousarray(side, dtype=np.uint8)))
    gaps = cv2.fillConvexPoly(hull, corners, 1).astype(bool)
    gaps &= np.cumsum(side, axis=1) == 0
    depth = gaps.sum(axis=1)
    return gaps & (side.any(axis=1) & (depth <= deepest))[:, None]


def _gaps_closed(side: np.ndarray, radius: int) -> np.ndarray:
    padded = np.pad(side, radius)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _disk(radius))
    inner = closed[radius : radius + side.shape[0], radius : radius + side.shape[1]]
    return inner.astype(bool)


def _disk(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _outlines(mask: np.ndarray, *, largest: bool) -> np.ndarray:
    """(H, W) uint8: the outlines of a mask, or the largest, with all that is inside."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if largest and outlines:
        outlines = [max(outlines, key=cv2.contourArea)]
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED)


def _px(mm: float, pixel_mm: float | None, body: np.ndarray) -> int:
    if pixel_mm is None:
        columns = np.nonzero(body.any(axis=0))[0]
        width = columns[-1] - columns[0] + 1 if len(columns) else body.shape[1]
        pixel_mm = BODY_WIDTH_MM / width
    return max(1, round(mm / pixel_mm))
