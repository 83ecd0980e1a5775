"""Do scores mean what they say: expected calibration error, reliability curve, temperature.

The image head is trained with one binary cross-entropy a class, so each sigmoid score states the
probability of its own class against the rest. Two errors follow: a class' own (its score against
how often the class is true) and the top-label error (Guo et al. 2017: the score of the predicted
class against how often it is right).

Shapes: n units, C classes, M bins of equal width, bin m being (m/M, (m+1)/M] (the first holds 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.confusion import bce_loss
from ctmasknet.evaluation.units import Units

#: M.
BINS = 10

# A temperature outside these tells of separable or meaningless scores.
_TEMPERATURES = (0.05, 20.0)


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


@dataclass(frozen=True)
class Temperature:
    """A temperature T and how it was fitted: scores become the sigmoid of logit / T.

    ``loss_before`` and ``loss_after`` are on the ``n`` units it was fitted on, in nats. ``bounded``
    says that T is the end of the range searched (0.05 to 20) and the scores are no fair fit.
    """

    value: float
    n: int
    loss_before: float
    loss_after: float
    bounded: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "fitted_on": {
                "n": self.n,
                "loss_before": self.loss_before,
                "loss_after": self.loss_after,
            },
            "bounded": self.bounded,
        }


def fit_temperature(units: Units) -> Temperature:
    """The temperature with the least binary cross-entropy, the loss that the head is trained with.

    Raises:
        CTMaskNetError: no labelled unit.
    """
    if not len(units):
        raise CTMaskNetError(
            "temperature: no validation slice has a label; give labelled validation predictions"
        )

    def loss(log_temperature: float) -> float:
        return bce_loss(units.logits / math.exp(log_temperature), units.labels)

    lowest, highest = (math.log(bound) for bound in _TEMPERATURES)
    found = minimize_scalar(
        loss, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-8}
    )
    return Temperature(
        value=math.exp(found.x),
        n=len(units),
        loss_before=loss(0.0),
        loss_after=float(found.fun),
        bounded=bool(min(found.x - lowest, highest - found.x) < 1e-3),
    )
