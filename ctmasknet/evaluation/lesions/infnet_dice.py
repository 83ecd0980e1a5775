"""Inf-Net's figures of lesion maps: "mean Dice" is a mean over 256 cuts, not Dice at 0.5."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Cuts of a map, highest first. Values of an 8-bit map lie on them: how they are rounded matters.
CUTS = 1 - np.arange(256) / 255


def dice_by_cut(lesion_map: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """Dice at each of :data:`CUTS`.

    Args:
        lesion_map: (H, W) any range, finite; it is scaled so that its lowest value is 0 and its
            highest 1. A map of one value becomes zeros.
        lesion: (H, W) bool, the truth.

    Returns:
        (256,) 0..1; 0 where nothing is found of the lesion.
    """
    scaled = min_max_scaled(lesion_map)
    lesion = np.asarray(lesion, bool)
    # How many cuts a pixel is at or above: those from the first that it reaches
    first = np.searchsorted(-CUTS, -scaled.ravel(), side="left")
    first = first.reshape(lesion.shape)
    found = np.bincount(first.ravel(), minlength=len(CUTS)).cumsum()
    true = np.bincount(first[lesion], minlength=len(CUTS)).cumsum()
    return np.where(true > 0, 2 * true / np.maximum(found + lesion.sum(), 1), 0.0)


def min_max_scaled(lesion_map: np.ndarray) -> np.ndarray:
    """(H, W) float64: lowest value 0, highest 1."""
    values = np.asarray(lesion_map, np.float64)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def mean_absolute_error(lesion_map: np.ndarray, lesion: np.ndarray) -> float:
    """Mean over px of \\|scaled map - truth\\|."""
    return float(np.abs(min_max_scaled(lesion_map) - np.asarray(lesion, bool)).mean())


def infnet_dice(maps: Sequence[np.ndarray], lesions: Sequence[np.ndarray]) -> dict[str, float]:
    """``mean_dice`` and ``max_dice``: mean and highest, over the cuts, of the slices' mean Dice;
    ``mae``, the slices' mean :func:`mean_absolute_error`."""
    pairs = list(zip(maps, lesions, strict=True))
    dice = np.mean([dice_by_cut(*pair) for pair in pairs], axis=0)
    return {
        "mean_dice": float(dice.mean()),
        "max_dice": float(dice.max()),
        "mae": float(np.mean([mean_absolute_error(*pair) for pair in pairs])),
    }
