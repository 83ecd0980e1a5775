"""How far two measurements of lesion burden agree, such as predicted and drawn by hand.

Shapes: n pairs of one scan (or slice) each, P patients, B resamples of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctmasknet.evaluation.burden import ANY
from ctmasknet.evaluation.uncertainty import Interval, bootstrap_intervals

#: Levels of ``burden.json`` that are compared, and the keys that name one of their units.
_KEYS = {"scans": ("patient", "scan"), "slices": ("file",)}
#: Standard deviations that 95 % of normal differences lie within.
_LIMITS_SD = 1.96


@dataclass(frozen=True)
class BurdenPairs:
    """Units that are in both measurements, as they stand in ``burden.json``.

    Attributes:
        level: ``scans``, or ``slices`` where no slice names its scan.
        classes: those of both, and :data:`ANY`.
        pairs: (measured, truth), both of the same slices and weighed alike.
        unlike: units in both that are of another number of slices or weighed otherwise.
        alone: measured units that the truth does not have.
    """

    level: str
    classes: tuple[str, ...]
    pairs: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...]
    unlike: int
    alone: int


def burden_level(found: Mapping[str, Any]) -> str:
    """``scans``, or ``slices`` where no slice of a ``burden.json`` names its scan."""
    return "scans" if found["scans"] else "slices"


def pair_burdens(found: Mapping[str, Any], truth: Mapping[str, Any]) -> BurdenPairs:
    """Pair the scans of two ``burden.json`` by patient and scan, or their slices by file.

    Args:
        found: the content of the measured one, see
            :func:`ctmasknet.evaluation.burden_files.burden_from_command_line`.
        truth: of the one it is held against.
    """
    level = burden_level(found)
    by_key = {_key(level, item): item for item in truth[level]}
    both = [(item, by_key[key]) for item in found[level] if (key := _key(level, item)) in by_key]
    pairs = tuple(
        (one, other)
        for one, other in both
        if (one["slices"], one["weighted_by"]) == (other["slices"], other["weighted_by"])
    )
    return BurdenPairs(
        level=level,
        classes=(*(name for name in found["classes"] if name in truth["classes"]), ANY),
        pairs=pairs,
        unlike=len(both) - len(pairs),
        alone=len(found[level]) - len(both),
    )


def burden_agreement(
    found: BurdenPairs, name: str, *, n_boot: int = 1000, seed: int = 0, confidence: float = 0.95
) -> OrderedDict[str, Interval] | None:
    """Agreement on one class, with intervals from resamples of patients.

    Differences are measured less truth, in percentage points of the share.

    Args:
        found: pairs.
        name: class, or :data:`ANY`.
        n_boot, seed, confidence: see :func:`ctmasknet.evaluation.uncertainty.bootstrap_intervals`.

    Returns:
        ``truth`` and ``measured`` (mean shares, %), ``bias`` (mean difference), ``lower_limit`` and
        ``upper_limit`` (of agreement: bias -/+ 1.96 standard deviations, Bland and Altman 1986),
        ``absolute`` (mean absolute difference) and ``concordance`` (Lin 1989, -1..1). Limits and
        concordance are None of a single pair, concordance also where all shares are the same. None
        in all without a pair in which both shares are known.
    """
    truth, measured, patients = shares(found, name)
    if not len(truth):
        return None
    number = {patient: index for index, patient in enumerate(dict.fromkeys(patients))}
    place = np.array([number[patient] for patient in patients])
    difference = measured - truth
    ones = np.ones(len(truth))
    columns = (ones, truth, measured, np.abs(difference), difference**2)
    columns += (truth**2, measured**2, truth * measured)
    sums = np.zeros((len(number), len(columns)))
    np.add.at(sums, place, np.stack(columns, axis=1))

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        count, x, y, absolute, squared, xx, yy, xy = (np.asarray(weights, float) @ sums).T
        with np.errstate(invalid="ignore", divide="ignore"):
            x, y, absolute = x / count, y / count, absolute / count
            bias = y - x
            variance = np.where(count > 1, (squared - count * bias**2) / (count - 1), np.nan)
            # Rounding may leave less than nothing
            reach = _LIMITS_SD * np.sqrt(np.maximum(variance, 0))
            spread = (xx + yy) / count - x**2 - y**2 + bias**2
            covariance = xy / count - x * y
            concordance = np.where((count > 1) & (spread > 1e-9), 2 * covariance / spread, np.nan)
        return {
            "truth": x,
            "measured": y,
            "bias": bias,
            "lower_limit": bias - reach,
            "upper_limit": bias + reach,
            "absolute": absolute,
            "concordance": concordance,
        }

    return OrderedDict(
        bootstrap_intervals(statistic, len(number), n_boot=n_boot, seed=seed, confidence=confidence)
    )


def shares(found: BurdenPairs, name: str) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """(n,) true and (n,) measured shares of a class in percent where both are known, and the
    patient of each; a unit without a patient is one of its own."""
    known = [
        (other["percent"][name], one["percent"][name], one["patient"] or (index,))
        for index, (one, other) in enumerate(found.pairs)
        if None not in (one["percent"][name], other["percent"][name])
    ]
    truth, measured, patients = zip(*known, strict=True) if known else ((), (), ())
    return np.array(truth, float), np.array(measured, float), list(patients)


def _key(level: str, item: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(item[field] for field in _KEYS[level])
