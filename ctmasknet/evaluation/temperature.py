"""A temperature for scores that are too sure or not sure enough, and when there is no fair one.

It is a single number fitted on validation. Where every score is on the right side of 0.5 (separable
units) the loss falls for ever as scores are made surer, and where scores tell nothing it falls as
they are made less sure: what is found then is the end of the range searched, or a shrinking of
noise. Such a temperature is neither stored nor applied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import entr

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.metrics import bce_loss
from ctmasknet.evaluation.pooling import Units

# A temperature outside these tells of separable or meaningless scores.
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Temperature:
    """A temperature T and how it was fitted: scores become the sigmoid of logit / T.

    Attributes:
        value: T.
        n: units it was fitted on.
        loss_before: binary cross-entropy on these, in nats.
        loss_after: the same at T.
        loss_of_shares: what it would be if every unit scored each class' share of the n units.
        bounded: no T inside the range searched (0.05 to 20) is better than its ends.
    """

    value: float
    n: int
    loss_before: float
    loss_after: float
    loss_of_shares: float
    bounded: bool

    @property
    def why_not(self) -> str:
        """Why T is no fair fit and not to be used, in words; empty for one that is fair."""
        found = f"no temperature is a fair fit to the {self.n} validation units: "
        if self.bounded:
            why = "separable, or nearly so" if self.value < 1 else "no better than chance"
            return (
                found + f"the best is the end of the range tried ({self.value:g}), scores are {why}"
            )
        if self.loss_after >= self.loss_of_shares:
            return found + (
                f"at the best ({self.value:.3g}) scores say no more than the share of each class "
                f"does (loss {self.loss_after:.4f}, of the shares {self.loss_of_shares:.4f})"
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "fitted_on": {
                "n": self.n,
                "loss_before": self.loss_before,
                "loss_after": self.loss_after,
                "loss_of_shares": self.loss_of_shares,
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
    best, least, bounded = float(found.x), float(found.fun), False
    # Where the loss is flat, such as 0 for large separable logits, the search stops anywhere
    for end in (lowest, highest):
        if abs(best - end) < 1e-3 or loss(end) <= least + 1e-12:
            best, least, bounded = end, loss(end), True
    shares = np.bincount(units.labels, minlength=units.logits.shape[1]) / len(units)
    return Temperature(
        value=math.exp(best),
        n=len(units),
        loss_before=loss(0.0),
        loss_after=least,
        loss_of_shares=float((entr(shares) + entr(1 - shares)).mean()),
        bounded=bounded,
    )
