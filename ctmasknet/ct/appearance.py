"""What the grey levels of a slice show: whether it is an axial chest, and where air, fat and muscle
lie. Whatever is seen here is a doubt to be told, never a reason to refuse.

The look is taken at about 128 px. Otsu's threshold parts air from tissue. Of the dark regions,
those with a long border against the picture's edge (or against the padding outside the scanner's
circle) are the air around the patient. The others are lung if they are no thin lines and brighter
than that air: gas in bowels is not. Cut to the body, a picture may show no air outside; then a
region has to be large.

Shapes: (h, w) px of the small picture, grey levels 0..255 as float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

#: Shorter side of the small picture, px.
_SIDE_PX = 128
#: Standard deviation of grey levels below which nothing can be seen.
_CONTRAST = 8.0
#: Mean step between neighbours, in standard deviations: 1.1 in noise, up to 0.3 in slices.
_NOISE = 0.6
#: A colour is a spread of the channels above this level, in this share of the px.
_COLOUR, _COLOUR_SHARE = 40, 0.05
#: Grey levels above the lowest that padding has.
_PADDING = 1.5
#: Border against the edge, in square roots of the area, from which a region lies outside, and from
#: which it may: a triangle in a corner has 2.8, a quarter of a disc 2.3, half a disc 1.6.
_OUTSIDE, _MAYBE = 2.4, 1.5
#: Least area of a region of lung, and of all, as shares of the picture; of all where no air around
#: the patient tells lung from gas.
_REGION, _LUNG, _LUNG_UNTOLD = 0.0006, 0.0015, 0.02
#: Half the least thickness of a region, px: letters and lines are thinner.
_THICKNESS_PX = 2.1
#: How much brighter than air lung is, as a share of the way to tissue; regions of this share of the
#: picture need not be, and what may lie outside has to be twice so.
_BRIGHTER, _LARGE = 0.05, 0.06
#: Share of the picture that air has to cover for its level to be told.
_AIR = 0.01
#: Peaks of tissue: least height as a share of the highest; share of the px at the top level from
#: which muscle is cut off there.
_PEAK, _CUT = 0.15, 0.25
#: Share of slices that have to show a level, for the set's to be told.
_SEEN = 1 / 3
#: Difference of levels from which two sets do not look alike.
UNLIKE_LEVELS = 20


class GreyLevels(NamedTuple):
    """Levels 0..255 of air around the patient, fat and muscle; None where not seen. 255 may be
    whatever lies above the window, 0 whatever lies below."""

    air: float | None
    fat: float | None
    muscle: float | None

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {'not seen' if level is None else format(level, '.0f')}"
            for name, level in zip(self._fields, self, strict=True)
        )


@dataclass(frozen=True)
class Appearance:
    """``fault``: why the slice looks like no axial chest CT, None where it does; and its levels."""

    fault: str | None
    levels: GreyLevels


_NOTHING = GreyLevels(None, None, None)
_NO_LUNG = "it shows no air-filled lung"


def appearance(pixels: np.ndarray) -> Appearance:
    """Look at a slice.

    Args:
        pixels: (H, W) or (H, W, 3) uint8.
    """
    if pixels.ndim == 3 and (np.ptp(pixels, axis=2) > _COLOUR).mean() > _COLOUR_SHARE:
        return Appearance("it is in colour", _NOTHING)
    grey = _reduced(pixels)
    if min(grey.shape) < 2 or grey.std() < _CONTRAST:
        return Appearance("it has next to no contrast", _NOTHING)
    if np.abs(np.diff(grey, axis=1)).mean() > _NOISE * grey.std():
        return Appearance("it is noise", _NOTHING)
    edge = np.ones(grey.shape, dtype=bool)
    edge[1:-1, 1:-1] = False
    padding = _padding(grey, edge)
    threshold = _otsu(grey[~padding])
    dark, tissue = (grey <= threshold) & ~padding, grey[(grey > threshold) & ~padding]
    if not tissue.size:
        return Appearance(_NO_LUNG, _NOTHING)
    # One px is taken off, so that a thin wall parts a lung from the air behind it
    core = ndimage.binary_erosion(dark, np.ones((3, 3)), border_value=1)
    regions, count = ndimage.label(core)
    numbers = np.arange(1, count + 1)
    area = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    near = edge | ndimage.binary_dilation(padding, np.ones((3, 3)), iterations=2)
    border = np.bincount(regions[near], minlength=count + 1)[1:]
    contact = border / np.sqrt(np.maximum(area, 1))
    outside = contact > _OUTSIDE
    around = np.isin(regions, numbers[outside])
    air = _air_level(grey, around, padding)
    inside = np.ones((grey.shape[0] + 2, grey.shape[1] + 2), dtype=bool)
    inside[1:-1, 1:-1] = dark
    thickness = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
    thick = np.array(ndimage.maximum(thickness, regions, numbers)).reshape(-1)
    lung = ~outside & (area >= _REGION * grey.size) & (thick > _THICKNESS_PX)
    # Where the window cuts air off at 0, lung and gas are as black
    told = air is not None and air > 0
    if told and count:
        level = np.array(ndimage.median(grey, regions, numbers)).reshape(-1)
        share = (level - air) / max(1.0, np.median(tissue) - air)
        sure = contact <= _MAYBE
        lung &= np.where(
            sure, (share >= _BRIGHTER) | (area >= _LARGE * grey.size), share >= 2 * _BRIGHTER
        )
    least = _LUNG if told else _LUNG_UNTOLD
    fault = None if area[lung].sum() >= least * grey.size else _NO_LUNG
    return Appearance(fault, GreyLevels(air, *_tissue_levels(tissue)))


def typical_levels(found: Iterable[GreyLevels]) -> GreyLevels:
    """The medians over slices; None where less than a third of them show a level."""
    found = list(found)
    medians = []
    for values in zip(*found, strict=True):
        seen = [value for value in values if value is not None]
        medians.append(float(np.median(seen)) if len(seen) > _SEEN * len(found) else None)
    return GreyLevels(*medians) if medians else _NOTHING


def looks_unlike(found: GreyLevels, expected: GreyLevels) -> bool:
    """Whether a level that both show is more than :data:`UNLIKE_LEVELS` apart."""
    pairs = zip(found, expected, strict=True)
    return any(None not in pair and abs(pair[0] - pair[1]) > UNLIKE_LEVELS for pair in pairs)


def _reduced(pixels: np.ndarray) -> np.ndarray:
    """(h, w) means of blocks."""
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    block = max(1, round(min(grey.shape) / _SIDE_PX))
    height, width = (side // block for side in grey.shape)
    blocks = grey[: height * block, : width * block].reshape(height, block, width, block)
    return blocks.mean(axis=(1, 3)).astype(np.float32)


def _padding(grey: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """(h, w) bool: even regions of the lowest level along the edge."""
    regions, count = ndimage.label(grey <= grey.min() + _PADDING)
    area = np.bincount(regions.ravel(), minlength=count + 1)
    border = np.bincount(regions[edge], minlength=count + 1)
    outside = border / np.sqrt(area) > _MAYBE
    outside[0] = False
    return outside[regions]


def _otsu(values: np.ndarray) -> float:
    """The level that parts them best; the middle of those that do so alike."""
    counts = np.bincount(np.rint(values).astype(int), minlength=256).astype(float)
    below, total = counts.cumsum(), counts.sum()
    sums = (counts * np.arange(256)).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (sums[-1] * below - sums * total) ** 2 / (below * (total - below))
    between = np.nan_to_num(between, posinf=0)
    return float(np.flatnonzero(between >= between.max() * (1 - 1e-9)).mean())


def _air_level(grey: np.ndarray, around: np.ndarray, padding: np.ndarray) -> float | None:
    """The most frequent level around the patient; the padding's where there is nothing else."""
    for where in (around, padding):
        if where.mean() > _AIR:
            return float(np.bincount(np.rint(grey[where]).astype(int)).argmax())
    return None


def _tissue_levels(tissue: np.ndarray) -> tuple[float | None, float | None]:
    """Fat and muscle: the two highest peaks' levels, muscle above."""
    counts = np.bincount(np.rint(tissue).astype(int), minlength=256)
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 1.5, mode="constant")
    middle = smooth[1:-1]
    is_peak = (middle >= smooth[:-2]) & (middle > smooth[2:]) & (middle >= _PEAK * smooth.max())
    peaks = [float(level) for level in np.flatnonzero(is_peak) + 1 if level < 252]
    if counts[253:].sum() > _CUT * max(1, counts.sum()):
        peaks.append(255.0)
    if not peaks:
        return None, None
    if len(peaks) == 1:
        return (255.0 if peaks[0] == 255 else None), peaks[0]
    return peaks[-2], peaks[-1]
