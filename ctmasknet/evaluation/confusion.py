"""Confusion matrix of slice classes, what the paper makes of it (section 4), and the loss.

Shapes: n slices, C classes; a confusion matrix is (C, C), rows the truth, columns the prediction.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from ctmasknet.errors import CTMaskNetError


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
    metrics = OrderedDict(accuracy=_percent(hits.sum(), confusion.sum()))
    for index, name in enumerate(class_names):
        metrics[f"sensitivity-{name}"] = _percent(hits[index], confusion[index].sum())
        metrics[f"precision-{name}"] = _percent(hits[index], confusion[:, index].sum())
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


def _percent(part: int, whole: int) -> float:
    return 100.0 * float(part) / float(whole) if whole else math.nan
