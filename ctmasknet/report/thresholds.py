"""What the page's threshold slider works on: how many units score at or above each threshold.

The page gets histograms over a fixed list of thresholds in place of the scores, so that its size
does not grow with the data and every count is exact, not rounded. The list holds 0, 0.001 .. 1 and
the operating points chosen on validation.

Shapes: n units, C classes, T thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctmasknet.evaluation.pooling import POOLED_LEVELS, PooledPrediction
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.evaluation.units import pooled_units, slice_units

#: Steps of the slider over 0..1.
STEPS = 1000


def threshold_data(
    rows: Sequence[SlicePrediction],
    pooled: Mapping[str, Sequence[PooledPrediction]],
    class_names: Sequence[str],
    evaluation: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The slider's data as plain JSON values.

    Args:
        rows: slices.
        pooled: scans and patients by level.
        class_names: C names.
        evaluation: see :func:`classification_report`; None without labels.

    Returns:
        ``{"class_names", "labelled", "thresholds": T rising values, "levels": {level: {class:
        {"class": histogram or None, "others": histogram}}}, "operating_points": {level: {class:
        index into thresholds}}}``. A histogram is ``[index, count, index, count, ...]``: so many
        units score at least that threshold but less than the next. ``class`` counts units of the
        class and ``others`` the rest; without labels ``class`` is None and ``others`` counts all.
        Levels without a unit are left out.
    """
    points: dict[str, dict[str, float]] = {}
    for level, found in (evaluation["levels"] if evaluation else {}).items():
        if found and found["operating_points"]:
            points[level] = {c: p["threshold"] for c, p in found["operating_points"].items()}
    chosen = [value for by_class in points.values() for value in by_class.values()]
    thresholds = np.unique([*(np.arange(STEPS + 1) / STEPS), *chosen])
    levels: dict[str, Any] = {}
    for level in ("slices", *POOLED_LEVELS):
        scores, labels = _scores_and_labels(level, rows, pooled, labelled=evaluation is not None)
        if not len(scores):
            continue
        levels[level] = {
            name: {
                "class": (
                    None
                    if labels is None
                    else _histogram(scores[labels == index, index], thresholds)
                ),
                "others": _histogram(
                    scores[:, index] if labels is None else scores[labels != index, index],
                    thresholds,
                ),
            }
            for index, name in enumerate(class_names)
        }
    return {
        "class_names": list(class_names),
        "labelled": evaluation is not None,
        "thresholds": thresholds.tolist(),
        "levels": levels,
        "operating_points": {
            level: {
                name: int(np.searchsorted(thresholds, value)) for name, value in by_class.items()
            }
            for level, by_class in points.items()
        },
    }


def _scores_and_labels(
    level: str,
    rows: Sequence[SlicePrediction],
    pooled: Mapping[str, Sequence[PooledPrediction]],
    labelled: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """(n, C) scores and (n,) class indices of the level's units with a label; without labels, the
    scores of all and None."""
    if labelled:
        units = slice_units(rows) if level == "slices" else pooled_units(pooled[level])
        return (units.scores, units.labels) if len(units) else (np.zeros((0, 0)), None)
    items = rows if level == "slices" else pooled[level]
    return np.array([item.scores for item in items], dtype=np.float64), None


def _histogram(scores: np.ndarray, thresholds: np.ndarray) -> list[int]:
    # A score at a threshold reaches it, as in threshold_metrics
    index = np.searchsorted(thresholds, scores, side="right") - 1
    numbers, counts = np.unique(index.clip(min=0), return_counts=True)
    return np.stack([numbers, counts], axis=1).ravel().tolist()
