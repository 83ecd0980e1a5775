"""ROC and precision-recall curves of one class against the rest, their areas, operating points.

Shapes: n units, B resamples of them as (B, n) weights.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ctmasknet.errors import CTMaskNetError

# Points of a curve in a report; more cannot be seen.
_MAX_POINTS = 200
# Weights looked at together, for the sake of memory.
_CHUNK = 2_000_000


def weighted_areas(
    truth: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve, and average precision, of many resamples at once.

    The areas are those of scikit-learn (trapezoids over tied scores; steps for the precision) with
    ``sample_weight``, at a small part of the time.

    Args:
        truth: (n,) True for units of the class.
        scores: (n,) higher for more evidence.
        patients: (n,) patient indices.
        weights: (B, P) how often each patient counts.

    Returns:
        (B,) areas and (B,) average precisions in 0..1; NaN without a positive (for the area, also
        without a negative) unit.
    """
    order = np.argsort(-scores, kind="stable")
    truth, scores, patients = truth[order].astype(np.float64), scores[order], patients[order]
    # The last unit of each run of equal scores
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    roc = np.full(len(weights), math.nan)
    precision = np.full(len(weights), math.nan)
    if not len(scores):
        return roc, precision
    step = max(1, _CHUNK // len(scores))
    for start in range(0, len(weights), step):
        chunk = weights[start : start + step][:, patients].astype(np.float64)
        total = np.cumsum(chunk, axis=1)[:, ends]
        hits = np.cumsum(chunk * truth, axis=1)[:, ends]
        misses = total - hits
        new_hits = np.diff(hits, axis=1, prepend=0.0)
        new_misses = np.diff(misses, axis=1, prepend=0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            area = np.sum(new_misses * (hits - new_hits / 2), axis=1)
            roc[start : start + step] = area / (hits[:, -1] * misses[:, -1])
            share = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
            average = np.sum(new_hits * share, axis=1) / hits[:, -1]
            precision[start : start + step] = average
    return roc, precision


def curve_points(truth: np.ndarray, scores: np.ndarray) -> dict[str, Any] | None:
    """Points of both curves for a picture, by scikit-learn, thinned to about 200.

    Args:
        truth: (n,) True for units of the class.
        scores: (n,).

    Returns:
        ``{"roc": {"false_positive_rate", "true_positive_rate", "thresholds"},
        "precision_recall": {"recall", "precision", "thresholds"}}``, all in 0..1 and of one length
        each; a threshold is None where no score reaches it. None unless there are positive and
        negative units.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    if truth.all() or not truth.any():
        return None
    false_rate, true_rate, roc_thresholds = roc_curve(truth, scores)
    precision, recall, pr_thresholds = precision_recall_curve(truth, scores, drop_intermediate=True)
    # The last point (recall 0, precision 1) belongs to no score
    pr_thresholds = np.append(pr_thresholds, math.inf)
    roc = _thinned(false_rate + true_rate)
    pr = _thinned(recall)
    return {
        "roc": {
            "false_positive_rate": false_rate[roc].tolist(),
            "true_positive_rate": true_rate[roc].tolist(),
            "thresholds": _finite(roc_thresholds[roc]),
        },
        "precision_recall": {
            "recall": recall[pr].tolist(),
            "precision": precision[pr].tolist(),
            "thresholds": _finite(pr_thresholds[pr]),
        },
    }


def threshold_for_sensitivity(truth: np.ndarray, scores: np.ndarray, sensitivity: float) -> float:
    """The highest threshold at which ``score >= threshold`` still finds that share of the class.

    Args:
        truth: (n,) True for units of the class, at least one.
        scores: (n,).
        sensitivity: share in 0..1 (0 excluded).

    Raises:
        CTMaskNetError: a sensitivity outside that range, or no unit of the class.
    """
    if not 0 < sensitivity <= 1:
        raise CTMaskNetError(f"stated sensitivity is {sensitivity}; give a share such as 0.95")
    positive = np.sort(scores[truth])[::-1]
    if not len(positive):
        raise CTMaskNetError("no unit of the class: a threshold cannot be chosen for it")
    # 0.95 * 20 is 19.000000000000004 for a computer
    needed = max(1, math.ceil(sensitivity * len(positive) - 1e-9))
    return float(positive[needed - 1])


def _thinned(along: np.ndarray) -> np.ndarray:
    """Indices of points evenly spread along a monotone path, ends included."""
    if len(along) <= _MAX_POINTS:
        return np.arange(len(along))
    path = np.abs(along - along[0])
    marks = np.linspace(0, path[-1], _MAX_POINTS)
    return np.unique([0, *np.searchsorted(path, marks).clip(max=len(path) - 1), len(path) - 1])


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
