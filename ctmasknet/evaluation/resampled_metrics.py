"""Every metric of a level for many resamples of patients at once.

A share or a mean is a ratio of sums, and a sum over units is a sum over patients: so each patient's
sums are made once, and a resample costs a product with its weights. Only areas under curves have
to look at the units again.

Shapes: n units, C classes, P patients, B resamples; weights are (B, P).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ctmasknet.evaluation.calibration import BINS, bin_of, calibration_pairs
from ctmasknet.evaluation.confusion import bce_losses
from ctmasknet.evaluation.curves import weighted_areas
from ctmasknet.evaluation.units import Units


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
    size = _sizes(units, weights)
    losses = bce_losses(units.logits, units.labels)
    metrics["loss"] = _ratio(_sums(units, losses[:, None], weights)[:, 0], size)
    return metrics


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
