"""Two classifiers on the same slices or patients: DeLong's test of areas under ROC curves and
McNemar's of who is right, both with patients as clusters where they have several units.

Slices of a patient resemble each other, and a test that takes them as independent finds differences
that are none. Obuchowski's extensions sum over the units of a patient first; with one unit a
patient they are the plain tests.

- DeLong, DeLong, Clarke-Pearson 1988, Biometrics 44:837; clusters: Obuchowski 1997, Biometrics
  53:567.
- McNemar 1947, exact (binomial) with one unit a patient; clusters: Obuchowski 1998, Statistics in
  Medicine 17:1495.

Shapes: n units of P patients.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm, rankdata


@dataclass(frozen=True)
class AreaDifference:
    """Areas under two ROC curves of one class against the rest, 0..1, and their difference.

    ``standard_error``, ``low``, ``high`` (of the difference) and ``p_value`` are None where they
    cannot be told: fewer than two patients with, or without, a unit of the class.
    """

    first: float
    second: float
    difference: float
    standard_error: float | None
    low: float | None
    high: float | None
    p_value: float | None
    clustered: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Discordance:
    """Units that only one of two classifiers calls rightly.

    ``p_value`` is None where it cannot be told (units of one patient alone).
    """

    only_first: int
    only_second: int
    p_value: float | None
    clustered: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def delong(
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    patients: np.ndarray,
    confidence: float = 0.95,
) -> AreaDifference | None:
    """DeLong's test of the areas of two scores.

    Args:
        truth: (n,) True for units of the class.
        first, second: (n,) scores, higher for more evidence.
        patients: (n,) patient indices 0..P-1.
        confidence: of the interval.

    Returns:
        None without a unit of the class, or without one of the rest.
    """
    truth = np.asarray(truth, dtype=bool)
    if truth.all() or not truth.any():
        return None
    parts = [_components(truth, np.asarray(scores, np.float64)) for scores in (first, second)]
    areas = [float(inside.mean()) for inside, _ in parts]
    clustered = len(np.unique(patients)) < len(patients)
    variance = _variance_of_difference(truth, parts, areas, np.asarray(patients))
    difference = areas[0] - areas[1]
    error = low = high = p_value = None
    if variance is not None:
        error = math.sqrt(max(variance, 0.0))
        reach = float(norm.isf((1 - confidence) / 2)) * error
        low, high = difference - reach, difference + reach
        p_value = _two_sided(difference, error)
    return AreaDifference(*areas, difference, error, low, high, p_value, clustered)


def mcnemar(first_right: np.ndarray, second_right: np.ndarray, patients: np.ndarray) -> Discordance:
    """McNemar's test of two classifiers on the same units.

    Args:
        first_right, second_right: (n,) True where the classifier is right.
        patients: (n,) patient indices 0..P-1.
    """
    first_right, second_right = (np.asarray(right, bool) for right in (first_right, second_right))
    counts = [int(np.sum(one & ~other)) for one, other in _both_ways(first_right, second_right)]
    groups, group = np.unique(patients, return_inverse=True)
    if len(groups) == len(patients):
        together = sum(counts)
        p_value = float(binomtest(counts[0], together).pvalue) if together else 1.0
        return Discordance(*counts, p_value, clustered=False)
    if len(groups) < 2:
        return Discordance(*counts, None, clustered=True)
    gain = np.bincount(group, first_right.astype(float) - second_right)
    difference = gain.sum() / len(group)
    residual = gain - difference * np.bincount(group)
    variance = len(groups) / (len(groups) - 1) * np.sum(residual**2) / len(group) ** 2
    return Discordance(*counts, _two_sided(difference, math.sqrt(variance)), clustered=True)


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's (1979) adjustment for several tests at once; None stays None and is no test."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, (p_value, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - place) * p_value))
        adjusted[index] = highest
    return adjusted


def _both_ways(first: np.ndarray, second: np.ndarray) -> tuple:
    return (first, second), (second, first)


def _two_sided(difference: float, error: float) -> float | None:
    """p of a normal deviate; without spread 1 for no difference, and unknown for one."""
    if error <= 1e-12:
        return 1.0 if abs(difference) <= 1e-12 else None
    return float(2 * norm.sf(abs(difference) / error))


def _components(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each unit of the class the share of the rest below it, and of each unit of the rest the
    share of the class above it; ties count one half. By ranks, so that n may be large."""
    positives, negatives = scores[truth], scores[~truth]
    ranks = rankdata(np.concatenate([positives, negatives]))
    inside = (ranks[: len(positives)] - rankdata(positives)) / len(negatives)
    outside = 1 - (ranks[len(positives) :] - rankdata(negatives)) / len(positives)
    return inside, outside


def _variance_of_difference(
    truth: np.ndarray,
    parts: list[tuple[np.ndarray, np.ndarray]],
    areas: list[float],
    patients: np.ndarray,
) -> float | None:
    """Obuchowski's variance of the difference of two areas; None with too few patients."""
    count = int(patients.max()) + 1
    difference = areas[0] - areas[1]
    sums = []
    for side, inside in enumerate((truth, ~truth)):
        gain = parts[0][side] - parts[1][side]
        units = np.bincount(patients[inside], minlength=count)
        sums.append((np.bincount(patients[inside], gain, count) - units * difference, units))
    (of_class, class_units), (of_rest, rest_units) = sums
    variance = 0.0
    for residual, units in sums:
        clusters = int(np.count_nonzero(units))
        if clusters < 2:
            return None
        variance += clusters / (clusters - 1) * np.sum(residual**2) / units.sum() ** 2
    clusters = int(np.count_nonzero(class_units + rest_units))
    shared = clusters / (clusters - 1) * np.sum(of_class * of_rest)
    return float(variance + 2 * shared / (class_units.sum() * rest_units.sum()))
