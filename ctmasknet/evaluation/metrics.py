"""Confusion matrix and what the paper makes of it (section 4); every metric of a level for many
resamples of patients at once; curves, and calibration.

A share or a mean is a ratio of sums, and a sum over units is a sum over patients: so each patient's
sums are made once, and a resample costs a product with its weights. For areas under curves they are
made at every score of a positive unit.

Do scores mean what they say? The image head is trained with one binary cross-entropy a class, so
each sigmoid score states the probability of its own class against the rest. Two errors follow: a
class' own (its score against how often the class is true) and the top-label error (Guo et al. 2017:
the score of the predicted class against how often it is right).

Shapes: n units (slices, scans or patients), C classes, P patients, B resamples; weights are (B, P).
A confusion matrix is (C, C), rows the truth, columns the prediction. M bins of equal width, bin
m being (m/M, (m+1)/M] (the first holds 0).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from tabulate import tabulate

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.pooling import Units

#: M.
BINS = 10
# Points of a curve in a report; more cannot be seen.
_MAX_POINTS = 200
# Weights looked at together, so that they stay in a processor's cache.
_CHUNK = 50_000


def confusion_matrix(labels: Sequence[int], preds: Sequence[int], num_classes: int) -> np.ndarray:
    """Count slices by true and predicted class.

    Args:
        labels: (n,) true class indices.
        preds: (n,) predicted class indices.
        num_classes: C.

    Returns:
        (C, C) int64, entry ``[t, p]`` the number of slices of class t that were called p.

    Raises:
        CTMaskNetError: an index outside 0..C-1, or lists of different length.
    """
    pairs = [np.asarray(values, dtype=np.int64).reshape(-1) for values in (labels, preds)]
    if len(pairs[0]) != len(pairs[1]):
        raise CTMaskNetError(
            f"confusion matrix: {len(pairs[0])} labels but {len(pairs[1])} predictions; "
            "give one of each for every slice"
        )
    for name, values in zip(("label", "prediction"), pairs, strict=True):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            raise CTMaskNetError(
                f"confusion matrix: {name}s {values.min()}..{values.max()} are not all within "
                f"0..{num_classes - 1}; the data and the model must have the same classes"
            )
    counts = np.bincount(pairs[0] * num_classes + pairs[1], minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def classification_metrics(
    confusion: np.ndarray, class_names: Sequence[str]
) -> OrderedDict[str, float]:
    """Accuracy, and sensitivity and precision of every class (paper section 4), in percent.

    A share of nothing (no slice of that class, none predicted as it, no slice at all) is NaN.

    Args:
        confusion: (C, C) counts, rows the truth.
        class_names: C names.

    Returns:
        ``accuracy``, then ``sensitivity-<class>`` and ``precision-<class>`` in class order.
    """
    confusion = np.asarray(confusion)
    hits = np.diag(confusion)
    metrics = OrderedDict(accuracy=_percent_of(hits.sum(), confusion.sum()))
    for index, name in enumerate(class_names):
        metrics[f"sensitivity-{name}"] = _percent_of(hits[index], confusion[index].sum())
        metrics[f"precision-{name}"] = _percent_of(hits[index], confusion[:, index].sum())
    return metrics


def bce_losses(logits: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Binary cross-entropy with logits against the one-hot label (reference), in nats.

    Args:
        logits: (n, C).
        labels: (n,) class indices.

    Returns:
        (n,) float64, of each slice the mean over classes.
    """
    logits = np.asarray(logits, dtype=np.float64)
    truth = np.asarray(labels)[:, None] == np.arange(logits.shape[-1])
    # log(1 + e^x) - x y
    return (np.logaddexp(0, logits) - logits * truth).mean(axis=1)


def bce_loss(logits: np.ndarray, labels: Sequence[int]) -> float:
    """The mean of :func:`bce_losses` over slices, NaN for n = 0."""
    return float(bce_losses(logits, labels).mean()) if len(logits) else math.nan


def confusion_table(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """The matrix as text, with sensitivity (precision) a class as in the paper's Table 2."""
    metrics = classification_metrics(confusion, class_names)
    rows = [
        [
            name,
            *(int(count) for count in confusion[index]),
            f"{metrics[f'sensitivity-{name}']:.2f} ({metrics[f'precision-{name}']:.2f})",
        ]
        for index, name in enumerate(class_names)
    ]
    headers = ["truth \\ predicted", *class_names, "sensitivity (precision) %"]
    return tabulate(rows, headers=headers, tablefmt="pipe", numalign="right", stralign="right")


def _percent_of(part: int, whole: int) -> float:
    return 100.0 * float(part) / float(whole) if whole else math.nan


def level_metrics(
    units: Units, class_names: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """All metrics of a level.

    In percent: ``accuracy`` and, for each class, ``sensitivity-``, ``precision-``, ``specificity-``
    and ``f1-<class>``. In 0..1: ``auroc-`` and ``average_precision-<class>``, and those of
    :func:`calibration_metrics`. ``<metric>-macro`` is the mean over the classes that occur in the
    level. NaN where a resample leaves a metric undefined: a sensitivity, an F1 or an area without a
    unit of the class, a precision without a prediction.

    Args:
        units: the level.
        class_names: C names.
        weights: (B, P) how often each patient counts.

    Returns:
        ``{name: (B,)}``.
    """
    classes = len(class_names)
    cells = units.labels * classes + units.preds
    counts = _sums(units, np.eye(classes**2)[cells], weights).reshape(-1, classes, classes)
    hits = np.diagonal(counts, axis1=1, axis2=2)
    truth, called, whole = counts.sum(axis=2), counts.sum(axis=1), counts.sum(axis=(1, 2))
    rest = whole[:, None] - truth
    table = {
        "sensitivity": _percent(hits, truth),
        "precision": _percent(hits, called),
        "specificity": _percent(rest - (called - hits), rest),
        "f1": np.where(truth > 0, _percent(2 * hits, truth + called), np.nan),
    }
    areas = [
        weighted_areas(units.labels == index, units.logits[:, index], units.patients, weights)
        for index in range(classes)
    ]
    table["auroc"], table["average_precision"] = (
        np.stack(column, axis=1) for column in zip(*areas, strict=True)
    )
    present = np.unique(units.labels)
    metrics = {"accuracy": _percent(hits.sum(axis=1), whole)}
    for metric, values in table.items():
        metrics[f"{metric}-macro"] = values[:, present].mean(axis=1)
        for index, name in enumerate(class_names):
            metrics[f"{metric}-{name}"] = values[:, index]
    return metrics | calibration_metrics(units, class_names, weights)


def calibration_metrics(
    units: Units, class_names: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """``ece`` (top-label) and ``ece-<class>`` in 0..1, ``loss`` (binary cross-entropy) in nats.

    Args and Returns as :func:`level_metrics`.
    """
    metrics = {
        name: np.abs(gaps).sum(axis=1)
        for name, gaps in calibration_gaps(units, class_names, weights).items()
    }
    losses = bce_losses(units.logits, units.labels)
    loss = _ratio(_sums(units, losses[:, None], weights)[:, 0], _sizes(units, weights))
    return metrics | {"loss": loss}


def calibration_gaps(
    units: Units, class_names: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """What ``ece`` and ``ece-<class>`` are the absolute sums of: for each bin the sum of confidence
    less outcome over its units, divided by all units.

    Args as :func:`level_metrics`.

    Returns:
        ``{name: (B, M)}``.
    """
    size = _sizes(units, weights)
    found = {}
    for name, (confidences, outcomes) in calibration_pairs(units, class_names).items():
        gaps = np.eye(BINS)[bin_of(confidences)] * (confidences - outcomes)[:, None]
        by_bin = _ratio(
            _sums(units, gaps, weights), np.broadcast_to(size[:, None], (len(size), BINS))
        )
        found["ece" if name == "top_label" else f"ece-{name}"] = by_bin
    return found


def threshold_metrics(
    units: Units, thresholds: Mapping[int, float], class_names: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """``sensitivity-``, ``specificity-``, ``precision-`` and ``npv-<class>`` in percent, a class
    being called where its score reaches its threshold.

    ``npv`` is the negative predictive value: the share of units not called that are not of the
    class. Args and Returns otherwise as :func:`level_metrics`.
    """
    metrics = {}
    for index, threshold in thresholds.items():
        called, truth = units.scores[:, index] >= threshold, units.labels == index
        cells = np.stack([truth & called, truth & ~called, ~truth & called, ~truth & ~called], 1)
        tp, fn, fp, tn = _sums(units, cells, weights).T
        name = class_names[index]
        metrics[f"sensitivity-{name}"] = _percent(tp, tp + fn)
        metrics[f"specificity-{name}"] = _percent(tn, tn + fp)
        metrics[f"precision-{name}"] = _percent(tp, tp + fp)
        metrics[f"npv-{name}"] = _percent(tn, tn + fn)
    return metrics


def patients_behind(
    units: Units, class_names: Sequence[str], thresholds: Mapping[int, float] | None = None
) -> dict[str, int]:
    """How many patients enter each share, by the names of :func:`level_metrics`, or with
    ``thresholds`` by those of :func:`threshold_metrics`."""

    def count(inside: np.ndarray) -> int:
        return len(np.unique(units.patients[inside]))

    behind = {} if thresholds else {"accuracy": units.num_patients}
    for index in thresholds or range(len(class_names)):
        name, truth = class_names[index], units.labels == index
        behind[f"sensitivity-{name}"] = count(truth)
        behind[f"specificity-{name}"] = count(~truth)
        called = units.preds == index
        if thresholds:
            called = units.scores[:, index] >= thresholds[index]
            behind[f"npv-{name}"] = count(~called)
        behind[f"precision-{name}"] = count(called)
    return behind


def bin_of(confidences: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(n,) bin indices of confidences in 0..1."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidences)


def calibration_pairs(units: Units, class_names: Sequence[str]) -> dict[str, tuple]:
    """What is compared: ``{"top_label" or class: ((n,) confidences, (n,) came true)}``."""
    scores = units.scores
    chosen = scores[np.arange(len(units)), units.preds]
    pairs = {"top_label": (chosen, units.preds == units.labels)}
    for index, name in enumerate(class_names):
        pairs[name] = (scores[:, index], units.labels == index)
    return pairs


def reliability_curve(
    confidences: np.ndarray, outcomes: np.ndarray, bins: int = BINS
) -> list[dict[str, float | int]]:
    """``{"low", "high", "n", "confidence", "share"}`` of every bin that holds a unit.

    ``confidence`` is the bin's mean, ``share`` how often the outcome was true, both 0..1.
    """
    index = bin_of(confidences, bins)
    curve = []
    for number in np.unique(index):
        inside = index == number
        curve.append(
            {
                "low": float(number / bins),
                "high": float((number + 1) / bins),
                "n": int(inside.sum()),
                "confidence": float(confidences[inside].mean()),
                "share": float(outcomes[inside].mean()),
            }
        )
    return curve


def weighted_areas(
    truth: np.ndarray, scores: np.ndarray, patients: np.ndarray, weights: np.ndarray
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
    roc = np.full(len(weights), math.nan)
    precision = np.full(len(weights), math.nan)
    if not truth.any():
        return roc, precision
    # A level for every score that a positive unit has, best first, with the units at it and the
    # negative ones between it and the level before; behind the last stand those below all. How
    # many of each patient's units stand where is few numbers, so a resample is a sparse product.
    levels = np.unique(-scores[truth])
    level = np.searchsorted(levels, -scores)
    tied = ~truth & (np.append(levels, math.nan)[level] == -scores)
    positives, negatives, ties = (
        csr_matrix(
            (np.ones(np.count_nonzero(inside)), (level[inside], patients[inside])),
            (len(levels) + 1, weights.shape[1]),
        )
        for inside in (truth, ~truth, tied)
    )
    step = max(1, _CHUNK // (len(levels) + 1))
    for start in range(0, len(weights), step):
        chunk = np.ascontiguousarray(weights[start : start + step].T, dtype=np.float64)
        here, misses = positives @ chunk, negatives @ chunk
        np.cumsum(misses, axis=0, out=misses)
        hits = np.cumsum(here, axis=0)
        every, pairs = hits[-1].copy(), hits[-1] * misses[-1]
        # Pairs of a positive and a negative unit in the right order; those of one score count half
        right = pairs - np.einsum("lb,lb->b", here, misses)
        right += np.einsum("lb,lb->b", here, ties @ chunk) / 2
        roc[start : start + step] = _ratio(right, pairs)
        share = np.divide(hits, np.maximum(misses + hits, np.finfo(float).tiny), out=hits)
        precision[start : start + step] = _ratio(np.einsum("lb,lb->b", here, share), every)
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


def _sizes(units: Units, weights: np.ndarray) -> np.ndarray:
    """(B,) units of each resample."""
    return _sums(units, np.ones((len(units), 1)), weights)[:, 0]


def _sums(units: Units, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, K) weighted sums of (n, K) values of the units, by way of each patient's sums."""
    by_patient = np.zeros((units.num_patients, values.shape[1]))
    np.add.at(by_patient, units.patients, values)
    return weights @ by_patient


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100.0 * _ratio(part, whole)
