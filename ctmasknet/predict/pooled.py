"""How slices become a scan or a patient: the choice, and the temperatures that belong to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from scipy.special import expit, logit

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.attention_pooling import attention_pooling_from_json
from ctmasknet.evaluation.learned_pooling import learned_pooling_from_json
from ctmasknet.evaluation.pooling import SMALLEST_SCORE
from ctmasknet.evaluation.validation_fit import PoolingChoice


@dataclass(frozen=True)
class Pooler:
    """A pooling with its name and, where the checkpoint stores them, temperatures.

    Attributes:
        name: one of :data:`ctmasknet.evaluation.validation_fit.POOLINGS`.
        top_k: slices of ``top_k_mean`` and of the learned pooling.
        pool: (n, C) logits to (C,) scores in 0..1.
        temperatures: by level (``slices``, ``scans``, ``patients``); those of scans and patients
            only when they were fitted on scores pooled this way.
    """

    name: str
    top_k: int
    pool: Callable[[np.ndarray], np.ndarray]
    temperatures: Mapping[str, float]

    @property
    def label(self) -> str:
        """The choice in words, such as ``top_k_mean (k = 5)``."""
        sees_k = self.name in ("top_k_mean", "learned")
        return f"{self.name} (k = {self.top_k})" if sees_k else self.name

    def __call__(self, logits: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """(n, C) logits of one scan or patient, n >= 1, to (C,) scores."""
        return self.pool(np.asarray(logits, dtype=np.float64))

    def calibrated(self, level: str, values: np.ndarray) -> np.ndarray | None:
        """Scores at the level's temperature T: sigmoid(log-odds / T); None without T.

        Args:
            level: ``slices``, ``scans`` or ``patients``.
            values: (C,) logits of a slice; pooled scores of a scan or patient.
        """
        temperature = self.temperatures.get(level)
        if temperature is None:
            return None
        log_odds = np.asarray(values, dtype=np.float64)
        if level != "slices":
            log_odds = logit(np.clip(log_odds, SMALLEST_SCORE, 1 - SMALLEST_SCORE))
        return expit(log_odds / temperature)


def calibration_in_use(
    cfg: CfgNode, calibration: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """What a checkpoint's calibration is good for where ``cfg`` averages: nothing in an ensemble,
    for it was fitted on one model's scores. A warning says so."""
    if not calibration or not (cfg.TEST.ENSEMBLE or cfg.TEST.AUG.ENABLED):
        return calibration
    if cfg.TEST.ENSEMBLE:
        text = "is of this model alone and not used: an ensemble's scores are not calibrated"
    else:
        text = "is used; it fits scores of flipped slices (TEST.AUG) only if it was fitted on such"
    logging.getLogger(__name__).warning("%s: its calibration %s", cfg.MODEL.WEIGHTS, text)
    return None if cfg.TEST.ENSEMBLE else calibration


def build_pooler(
    class_names: Sequence[str],
    calibration: Mapping[str, Any] | None,
    *,
    name: str | None = None,
    top_k: int | None = None,
    source: str = "the checkpoint",
) -> Pooler:
    """The pooling asked for, or the one the calibration was made for, or the mean.

    Args:
        class_names: C names in the order of the logits.
        calibration: what :func:`ctmasknet.engine.checkpoint.store_calibration` put into the
            checkpoint; None without.
        name: of the pooling.
        top_k: slices that ``top_k_mean`` looks at.
        source: where the calibration is from, for messages.

    Raises:
        CTMaskNetError: an unknown pooling, a learned one that the checkpoint does not hold, or
            ``top_k`` for a pooling that does not ask for it.
    """
    stored = dict((calibration or {}).get("pooling") or {})
    if name is None:
        name = stored.get("name", "mean")
    if top_k is not None and name != "top_k_mean":
        raise CTMaskNetError(
            f"`top_k`: is of no use to the pooling {name}; leave it out, or give `pooling` "
            "top_k_mean"
        )
    if top_k is None:
        top_k = stored.get("top_k", PoolingChoice.top_k)
    learned = attention = None
    if name == "attention":
        if stored.get("attention") is None:
            raise CTMaskNetError(
                f"{source}: holds no attention pooling; fit one with "
                "tools/evaluate_predictions.py (`pooling`, `validation`, `checkpoint`), or choose "
                "another `pooling`"
            )
        attention = attention_pooling_from_json(stored["attention"], class_names, source=source)
    if name == "learned":
        if stored.get("learned") is None:
            raise CTMaskNetError(
                f"{source}: holds no learned pooling; fit one with tools/evaluate_predictions.py "
                "(`validation`, `checkpoint`), or choose another `pooling`"
            )
        learned = learned_pooling_from_json(stored["learned"], class_names, source=source)
        top_k = learned.top_k
    choice = PoolingChoice(name, top_k, stored.get("normal_class"))
    fitted = (calibration or {}).get("temperatures") or {}
    # Earlier versions stored these too
    unfair = [level for level, temperature in fitted.items() if temperature.get("bounded")]
    if unfair:
        logging.getLogger(__name__).warning(
            "%s: its temperatures of %s are the end of the range tried and no fair fit; they are "
            "not applied, and scores of these are not calibrated.",
            source,
            ", ".join(unfair),
        )
    temperatures = {
        level: float(temperature["value"])
        for level, temperature in fitted.items()
        if level not in unfair
        and (level == "slices" or (name, top_k) == (stored.get("name"), stored.get("top_k")))
    }
    return Pooler(name, top_k, choice.poolings(class_names, learned, attention)[name], temperatures)
