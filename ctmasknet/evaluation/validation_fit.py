"""What is fitted on validation predictions, and kept with the model: temperature, thresholds and
the learned pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctmasknet.errors import CTMaskNetError, check_seed
from ctmasknet.evaluation.attention_pooling import AttentionPooling, fit_attention_pooling
from ctmasknet.evaluation.learned_pooling import (
    LearnedPooling,
    fit_learned_pooling,
    pool_out_of_fold,
)
from ctmasknet.evaluation.metrics import threshold_for_sensitivity, threshold_metrics
from ctmasknet.evaluation.pooling import (
    POOLED_LEVELS,
    RULES,
    SCORE_POOLINGS,
    TOP_K,
    ScorePooling,
    check_pooling,
    check_rows,
    normal_index,
    pool_slices,
    pooled_units,
    slice_units,
)
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.evaluation.temperature import Temperature, fit_temperature

#: All poolings by name.
POOLINGS = (*SCORE_POOLINGS, *RULES, "learned", "attention")
_FORMAT = "ctmasknet calibration 1"


@dataclass(frozen=True)
class PoolingChoice:
    """Which pooling scans and patients are judged by.

    Attributes:
        name: one of :data:`POOLINGS`; ``learned`` and ``attention`` need validation predictions.
        top_k: slices of ``top_k_mean`` and of the learned pooling's features.
        normal_class: class for normal; default: the one called normal, if there is one.
    """

    name: str = "mean"
    top_k: int = TOP_K
    normal_class: str | None = None

    def __post_init__(self):
        check_pooling(self.name, POOLINGS, self.top_k)

    def poolings(
        self,
        class_names: Sequence[str],
        learned: LearnedPooling | None = None,
        attention: AttentionPooling | None = None,
    ) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Poolings by name: those that every report compares, and the chosen one; without
        ``learned`` and ``attention``, the fixed ones."""
        normal = normal_index(class_names, self.normal_class)
        found: dict[str, Callable] = {
            name: ScorePooling(name, normal, self.top_k)
            for name in (*SCORE_POOLINGS, *(rule for rule in RULES if rule == self.name))
        }
        fitted = {"learned": learned, "attention": attention}
        return found | {name: pooling for name, pooling in fitted.items() if pooling is not None}


@dataclass(frozen=True)
class ValidationFit:
    """Everything fitted on validation.

    Attributes:
        class_names: C names.
        choice: the pooling.
        sensitivity: the stated one, 0..1, that each threshold reaches on validation.
        temperatures: by level (``slices``, ``scans``, ``patients``), fair or not.
        thresholds: by level, by class index, of scores before the temperature; a class that
            validation lacks has none.
        reached: by level, ``sensitivity-<class>`` and others on validation, in percent.
        learned: the learned pooling, None where it cannot be fitted.
        why_not_learned: the reason for None.
        seed: of the folds.
        counts: labelled units by level.
        attention: the attention pooling, where it was chosen.
    """

    class_names: tuple[str, ...]
    choice: PoolingChoice
    sensitivity: float
    temperatures: dict[str, Temperature]
    thresholds: dict[str, dict[int, float]]
    reached: dict[str, dict[str, float]]
    learned: LearnedPooling | None
    why_not_learned: str
    seed: int
    counts: dict[str, int]
    attention: AttentionPooling | None = None

    def to_json(self) -> dict[str, Any]:
        """What prediction needs: the form stored with a checkpoint.

        A temperature that is no fair fit is not in it, ``why_no_temperature`` says why by level.
        """
        names = self.class_names
        normal = normal_index(names, self.choice.normal_class)
        return {
            "format": _FORMAT,
            "class_names": list(names),
            "pooling": {
                "name": self.choice.name,
                "top_k": self.choice.top_k,
                "normal_class": None if normal is None else names[normal],
                "learned": None if self.learned is None else self.learned.to_json(),
                **({} if self.attention is None else {"attention": self.attention.to_json()}),
            },
            "temperatures": {k: v.to_json() for k, v in self.temperatures.items() if not v.why_not},
            "why_no_temperature": {k: v.why_not for k, v in self.temperatures.items() if v.why_not},
            "stated_sensitivity": self.sensitivity,
            "thresholds": {
                level: {names[index]: value for index, value in by_class.items()}
                for level, by_class in self.thresholds.items()
            },
            "seed": self.seed,
        }


def fit_on_validation(
    rows: Sequence[SlicePrediction],
    class_names: Sequence[str],
    *,
    choice: PoolingChoice | None = None,
    sensitivity: float = 0.95,
    seed: int = 0,
    source: str = "validation predictions",
) -> ValidationFit:
    """Fit temperature, thresholds and learned pooling.

    Scans and patients get a temperature and thresholds of their own, on scores pooled by
    ``choice``; for a pooling that is fitted these are out of fold.

    Args:
        rows: validation predictions.
        class_names: C names in the order of the logits.
        choice: the pooling; default mean.
        sensitivity: what each class' threshold shall reach, 0..1.
        seed: of the folds of the learned pooling.
        source: names the rows in messages.

    Raises:
        CTMaskNetError: bad rows, no label, a seed outside 0..2^32 - 1, or a chosen learned
            pooling that cannot be fitted.
    """
    choice = choice or PoolingChoice()
    check_rows(rows, source)
    check_seed(seed)
    # A seed makes the same folds whatever the order of the rows
    rows = sorted(rows, key=lambda row: row.file)
    options = {"top_k": choice.top_k, "seed": seed}
    learned, why_not = None, ""
    try:
        learned = fit_learned_pooling(rows, class_names, **options)
    except CTMaskNetError as error:
        if choice.name == "learned":
            raise CTMaskNetError(f"{source}: {error}") from error
        why_not = str(error)
    attention = None

    def attend(seen: Sequence[SlicePrediction]) -> AttentionPooling:
        return fit_attention_pooling(seen, class_names, seed=seed)

    if choice.name == "attention":
        try:
            attention = attend(rows)
        except CTMaskNetError as error:
            raise CTMaskNetError(f"{source}: {error}") from error
        options["fit"] = attend
    levels = {"slices": slice_units(rows)}
    for level in POOLED_LEVELS:
        if choice.name in ("learned", "attention"):
            pooled = pool_out_of_fold(rows, class_names, level, **options)
        else:
            pooled = pool_slices(rows, level, choice.poolings(class_names)[choice.name])
        levels[level] = pooled_units(pooled)
    if not len(levels["slices"]):
        raise CTMaskNetError(f"{source}: no slice has a label; give labelled predictions")
    levels = {level: units for level, units in levels.items() if len(units)}
    thresholds, reached = {}, {}
    for level, units in levels.items():
        thresholds[level] = {
            int(index): threshold_for_sensitivity(
                units.labels == index, units.scores[:, index], sensitivity
            )
            for index in np.unique(units.labels)
        }
        weights = np.ones((1, units.num_patients))
        found = threshold_metrics(units, thresholds[level], class_names, weights)
        reached[level] = {name: float(values[0]) for name, values in found.items()}
    return ValidationFit(
        class_names=tuple(class_names),
        choice=choice,
        sensitivity=sensitivity,
        temperatures={level: fit_temperature(units) for level, units in levels.items()},
        thresholds=thresholds,
        reached=reached,
        learned=learned,
        why_not_learned=why_not,
        seed=seed,
        counts={level: len(units) for level, units in levels.items()},
        attention=attention,
    )
