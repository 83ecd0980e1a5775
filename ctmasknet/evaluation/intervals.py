"""Confidence intervals by a bootstrap that resamples patients, not slices.

Slices of a patient resemble each other; a bootstrap over slices would call a hundred slices of one
patient a hundred findings. A resample is therefore written as how often each patient was drawn,
and a statistic takes many resamples at once.

Shapes: P patients, B resamples; weights are (B, P) counts, a row sums to P.

The interval is BCa (Efron 1987: bias-corrected and accelerated, the acceleration from leaving out
one patient at a time) at levels widened from the normal to the t distribution (Hesterberg 2015,
"What teachers should know about the bootstrap", section 5). On simulated patients plain percentile
intervals miss too often, above all on the side of the errors, when few patients hold most of them.

A calibration error is a sum of absolute gaps, one a bin, which noise can only raise: the figure is
too high, a resample's is so twice, and the more so the smaller the true gaps are. BCa hardly ever
holds a small true error. Its interval is found the other way round, by asking which true errors
would give the figure that was found (:func:`gap_interval`).

How often intervals hold the truth is measured by ``docs/interval_coverage.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import beta
from scipy.stats import t as student_t

from ctmasknet.errors import CTMaskNetError, check_seed

#: Weights (B, P) to named values (B,), NaN where a resample leaves one undefined.
Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]
# Beyond that many patients the acceleration comes from leaving out groups of them.
_MAX_LEFT_OUT = 400


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Attributes:
        value: the figure on all patients, None when undefined.
        low: lower end, None when the bootstrap can say nothing (see ``method``).
        high: upper end, as ``low``.
        method: ``"bca"``; ``"inverted"`` for a sum of gaps; ``"exact"`` for a share of 0 or 100 %
            (see :func:`bootstrap_intervals`); None without an interval.
        undefined: resamples that left the figure undefined, such as those without a patient of the
            class; they are left out.
    """

    value: float | None
    low: float | None
    high: float | None
    method: str | None
    undefined: int

    def to_json(self) -> dict[str, Any]:
        """``{"value", "low", "high", "method", "undefined"}``."""
        return asdict(self)


def bootstrap_intervals(
    statistic: Statistic,
    num_patients: int,
    *,
    n_boot: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    patients_behind: Mapping[str, int] | None = None,
    gaps: Statistic | None = None,
) -> dict[str, Interval]:
    """Value and interval of every figure of ``statistic``.

    Where no resample differs from the value there is no interval, with one exception: a share of 0
    or 100 % gets that of Clopper and Pearson with one trial a patient, the cautious reading (all
    slices of a patient say the same).

    Args:
        statistic: (B, P) weights to ``{name: (B,)}``; called with all ones, with one patient left
            out at a time, and with the resamples.
        num_patients: P.
        n_boot: B, at least 100.
        seed: of the resampling.
        confidence: such as 0.95.
        patients_behind: for shares in percent, how many patients enter each by name; the t levels
            and the exact interval use it. Other figures count as of P patients.
        gaps: (B, P) weights to ``{name: (B, M)}``: the signed gaps behind those figures that are a
            sum of M absolute gaps, and as a calibration error at most 1.

    Raises:
        CTMaskNetError: too few resamples, a confidence outside 0..1, or no seed.
    """
    check_seed(seed)
    if n_boot < 100:
        raise CTMaskNetError(f"{n_boot} bootstrap resamples are too few; take at least 100")
    if not 0 < confidence < 1:
        raise CTMaskNetError(f"confidence is {confidence}; give a share such as 0.95")
    rng = np.random.default_rng(seed)
    values = {k: float(v[0]) for k, v in statistic(np.ones((1, num_patients))).items()}
    if num_patients < 2:
        return {name: Interval(_known(v), None, None, None, 0) for name, v in values.items()}
    left_out = statistic(_leave_out(num_patients, rng))
    shares = np.full(num_patients, 1 / num_patients)
    weights = rng.multinomial(num_patients, shares, size=n_boot)
    resampled = statistic(weights)
    found = gaps(np.ones((1, num_patients))) if gaps else {}
    noise = {name: drawn - found[name] for name, drawn in (gaps(weights) if gaps else {}).items()}
    intervals = {}
    for name, value in values.items():
        replicates = resampled[name][~np.isnan(resampled[name])]
        undefined = n_boot - len(replicates)
        behind = (patients_behind or {}).get(name)
        low = high = method = None
        if math.isnan(value) or undefined > n_boot / 2:
            pass
        elif np.ptp(replicates) > 1e-9 * max(1.0, abs(value)):
            tail = _widened_tail(confidence, behind or num_patients)
            if name in noise:
                method, (low, high) = "inverted", gap_interval(found[name][0], noise[name], tail)
                high = min(high, 1.0)
            else:
                method, (low, high) = "bca", bca_interval(replicates, left_out[name], value, tail)
        elif behind and value in (0.0, 100.0):
            method = "exact"
            low, high = _exact_percent(value, behind, confidence)
        intervals[name] = Interval(_known(value), low, high, method, undefined)
    return intervals


def bca_interval(
    replicates: np.ndarray, left_out: np.ndarray, value: float, tail: float
) -> tuple[float, float]:
    """The BCa interval of one figure.

    Args:
        replicates: (B,) the figure in each resample, none NaN.
        left_out: (P,) the figure with each patient left out; NaN entries are ignored.
        value: the figure on all patients.
        tail: share beyond either end, 0.025 for 95 %.

    Returns:
        Lower and upper end.
    """
    count = len(replicates)
    below = np.sum(replicates < value) + 0.5 * np.sum(replicates == value)
    # With no replicate on one side the bias is as large as B resamples can show
    bias = ndtri(np.clip(below, 0.5, count - 0.5) / count)
    left_out = left_out[~np.isnan(left_out)]
    influence = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = np.sum(influence**2)
    acceleration = np.sum(influence**3) / (6 * spread**1.5) if spread > 0 else 0.0
    # For two patients the tail is 1e-72, and 1 less that is 1
    z = bias + ndtri(tail) * np.array([1.0, -1.0])
    shrink = 1 - acceleration * z
    levels = ndtr(bias + z / shrink) if (shrink > 0).all() else np.array([tail, 1 - tail])
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def gap_interval(gaps: np.ndarray, noise: np.ndarray, tail: float) -> tuple[float, float]:
    """The interval of a sum of absolute gaps, by inverting the tests of what it might truly be.

    A true sum is too low when, with the noise of the resamples added to true gaps of that sum, a
    sum as high as the one found comes up in less than a share ``tail``; too high likewise. How the
    true sum is spread over the bins is not known. For the lower end it is spread as the gaps that
    were found; for the upper end as the noise, where noise adds least to it, which is cautious.

    Args:
        gaps: (M,) signed gaps found.
        noise: (B, M) gaps of resamples less those found.
        tail: share beyond either end, 0.025 for 95 %.

    Returns:
        Lower and upper end, with the sum found between them, the lower one not below 0.
    """
    value = float(np.abs(gaps).sum())
    low = _true_sum(gaps, noise, value, 1 - tail)
    high = _true_sum(noise.std(axis=0), noise, value, tail)
    return min(value, low), max(value, high)


def _true_sum(pattern: np.ndarray, noise: np.ndarray, value: float, level: float) -> float:
    """The true sum, spread as ``pattern``, with ``value`` as that quantile of what is found."""
    size = np.abs(pattern).sum()

    # np.quantile takes several times as long for one level of few numbers
    place = level * (len(noise) - 1)
    below = min(int(place), len(noise) - 2)

    def quantile(total: float) -> float:
        gaps = total * pattern / size if size else pattern
        sums = np.partition(np.abs(gaps + noise).sum(axis=1), (below, below + 1))
        return float(sums[below] + (place - below) * (sums[below + 1] - sums[below]))

    if not size or quantile(0.0) >= value:
        return 0.0
    low, high = 0.0, 2 * value
    while quantile(high) < value:
        high *= 2
    while high - low > 1e-4 * value:
        middle = (low + high) / 2
        low, high = (middle, high) if quantile(middle) < value else (low, middle)
    return (low + high) / 2


@functools.lru_cache
def _widened_tail(confidence: float, patients: int) -> float:
    """Share beyond either end, so that normal quantiles become those of t for few patients."""
    tail = (1 - confidence) / 2
    if patients < 2:
        return tail
    quantile = student_t.ppf(1 - tail, patients - 1)
    return float(ndtr(-quantile * math.sqrt(patients / (patients - 1))))


def _exact_percent(value: float, trials: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson (1934) for none or all of ``trials``, in percent."""
    tail = (1 - confidence) / 2
    if value == 0.0:
        return 0.0, 100 * float(beta.ppf(1 - tail, 1, trials))
    return 100 * float(beta.ppf(tail, trials, 1)), 100.0


def _leave_out(num_patients: int, rng: np.random.Generator) -> np.ndarray:
    """(G, P) weights, each row without one patient, or one of :data:`_MAX_LEFT_OUT` groups."""
    groups = min(num_patients, _MAX_LEFT_OUT)
    group = rng.permutation(num_patients) % groups
    return (group != np.arange(groups)[:, None]).astype(np.float64)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
