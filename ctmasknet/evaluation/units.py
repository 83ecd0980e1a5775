"""Slices, scans or patients as arrays, the form in which their statistics are computed.

Shapes: n units (slices, scans or patients) with a label, C classes, P patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit

from ctmasknet.evaluation.pooling import PooledPrediction
from ctmasknet.evaluation.predictions import SlicePrediction

#: A pooled score of exactly 0 or 1 has no finite logit. 1 less this is the float below 1, so that
#: no two other scores become one.
SMALLEST_SCORE = 2.0**-53


@dataclass(frozen=True)
class Units:
    """Labelled units of one level.

    Attributes:
        labels: (n,) class indices.
        preds: (n,) class indices.
        logits: (n, C) log-odds of the class scores.
        patients: (n,) patient indices 0..P-1; a unit without a known patient is one of its own.
        num_patients: P.
        left_out: how many units are not here, or not as they should be, by reason.
    """

    labels: np.ndarray
    preds: np.ndarray
    logits: np.ndarray
    patients: np.ndarray
    num_patients: int
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def scores(self) -> np.ndarray:
        """(n, C) in 0..1: sigmoids, one for each class; they need not sum to 1."""
        return expit(self.logits)

    def tempered(self, temperature: float) -> Units:
        """The same units with log-odds divided by ``temperature``; no prediction changes."""
        return replace(self, logits=self.logits / temperature)


def slice_units(rows: Sequence[SlicePrediction]) -> Units:
    """Slices with a label. ``left_out``: ``no_label``, and ``no_patient`` for those that are here
    but stand for a patient of their own."""
    labelled = [row for row in rows if row.label is not None]
    patients, count = _indices(
        [("patient", row.patient) if row.patient else ("file", row.file) for row in labelled]
    )
    return Units(
        labels=np.array([row.label for row in labelled], dtype=np.int64),
        preds=np.array([row.pred for row in labelled], dtype=np.int64),
        logits=np.array([row.logits for row in labelled], dtype=np.float64),
        patients=patients,
        num_patients=count,
        left_out={
            "no_label": len(rows) - len(labelled),
            "no_patient": sum(not row.patient for row in labelled),
        },
    )


def pooled_units(pooled: Sequence[PooledPrediction]) -> Units:
    """Scans or patients with one label. ``left_out``: ``no_label`` and ``mixed_label``."""
    labelled = [item for item in pooled if item.label is not None]
    patients, count = _indices([item.patient for item in labelled])
    scores = np.array([item.scores for item in labelled], dtype=np.float64)
    mixed = sum(item.mixed for item in pooled)
    return Units(
        labels=np.array([item.label for item in labelled], dtype=np.int64),
        preds=np.array([item.pred for item in labelled], dtype=np.int64),
        logits=logit(np.clip(scores, SMALLEST_SCORE, 1 - SMALLEST_SCORE)),
        patients=patients,
        num_patients=count,
        left_out={"no_label": len(pooled) - len(labelled) - mixed, "mixed_label": mixed},
    )


def _indices(keys: Sequence) -> tuple[np.ndarray, int]:
    """Number unlike keys in the order they come."""
    numbers: dict = {}
    indices = [numbers.setdefault(key, len(numbers)) for key in keys]
    return np.array(indices, dtype=np.int64), len(numbers)
