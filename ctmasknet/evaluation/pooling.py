"""From slices to scans and patients: mean, max and top-k mean of the class scores.

Shapes: n slices of one scan or patient, C classes. A score is the sigmoid of a logit.

A lesion does not reach every slice, so a patient with COVID has normal-looking slices as a rule.
``mean`` takes them as votes. ``max`` and ``top_k_mean`` look at the slices with the most evidence:
a class scores as in its best slice (its k best slices), but *normal* as in its worst, because a
patient is normal only as far as the least normal slice is. Without a class for normal every class
takes its best slices.

Two are rules of published systems. ``noisy_or`` (Xu et al. 2020): a class scores 1 - prod(1 - s) of
its slices' scores s, normal prod(s). ``over_18_slices`` (JCS, Wu et al. 2021): a patient has a
disease where more than 18 slices are called so, else he is normal; n such slices score n / (n +
18.5), normal what the best of them leaves of 1.

:class:`Units` holds slices, scans or patients as arrays, the form in which their statistics are
computed: n units with a label, of P patients.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import SlicePrediction

#: Fixed poolings that every report compares, beside ``learned``
#: (:mod:`ctmasknet.evaluation.learned_pooling`).
SCORE_POOLINGS = ("mean", "max", "top_k_mean")
#: Rules of published systems, there where they are asked for.
RULES = ("noisy_or", "over_18_slices")
#: A slice more than this many makes a patient of ``over_18_slices`` ill.
_MOST_IN_HEALTH = 18
#: Levels that slices are pooled to, and the fields of a row that name one of them.
POOLED_LEVELS = OrderedDict(scans=("patient", "scan"), patients=("patient",))
#: Slices that ``top_k_mean`` and the features of ``learned`` look at.
TOP_K = 5
#: A pooled score of exactly 0 or 1 has no finite logit. 1 less this is the float below 1, so that
#: no two other scores become one.
SMALLEST_SCORE = 2.0**-53


def check_pooling(name: str, names: Sequence[str], top_k: int) -> None:
    """Refuse a pooling that is none of ``names``, and a ``top_k`` of no slice.

    Raises:
        CTMaskNetError: either.
    """
    if name not in names:
        raise CTMaskNetError(f"pooling {name!r} is unknown; choose one of {', '.join(names)}")
    if type(top_k) is not int or top_k < 1:
        raise CTMaskNetError(f"`top_k` is {top_k}; take at least one slice")


@dataclass(frozen=True)
class ScorePooling:
    """A fixed pooling: (n, C) logits of one scan or patient to (C,) scores in 0..1.

    Args:
        name: one of :data:`SCORE_POOLINGS` or :data:`RULES`.
        normal: index of the class for normal, None when there is none.
        top_k: slices that ``top_k_mean`` takes; all where there are fewer.

    Raises:
        CTMaskNetError: another name; ``over_18_slices`` without a class for normal.
    """

    name: str
    normal: int | None = None
    top_k: int = TOP_K

    def __post_init__(self):
        check_pooling(self.name, (*SCORE_POOLINGS, *RULES), self.top_k)
        if self.name == "over_18_slices" and self.normal is None:
            raise CTMaskNetError(
                "pooling over_18_slices: no class is called normal, which a patient with few such "
                "slices would be; give `normal_class`"
            )

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        scores = expit(np.asarray(logits, dtype=np.float64))
        if self.name == "noisy_or":
            with np.errstate(divide="ignore"):  # a slice that is sure
                pooled = -np.expm1(np.log1p(-scores).sum(axis=0))
            if self.normal is not None:
                pooled[self.normal] = scores[:, self.normal].prod()
            return pooled
        if self.name == "over_18_slices":
            counts = np.bincount(np.argmax(logits, axis=1), minlength=scores.shape[1])
            pooled = counts / (counts + _MOST_IN_HEALTH + 0.5)
            pooled[self.normal] = 0
            pooled[self.normal] = 1 - pooled.max()
            return pooled
        if self.name == "mean":
            return scores.mean(axis=0)
        count = 1 if self.name == "max" else min(self.top_k, len(scores))
        ordered = np.sort(scores, axis=0)
        pooled = ordered[-count:].mean(axis=0)
        if self.normal is not None:
            pooled[self.normal] = ordered[:count, self.normal].mean()
        return pooled


@dataclass(frozen=True)
class PooledPrediction:
    """What is said of one scan or patient.

    ``scan`` is empty for a patient; ``label`` is None when unknown or ``mixed`` (slices of unlike
    label); ``scores`` holds C floats in 0..1 and ``pred`` is the highest of them; ``slices`` counts
    what was pooled.
    """

    patient: str
    scan: str
    label: int | None
    mixed: bool
    pred: int
    scores: tuple[float, ...]
    slices: int


def normal_index(class_names: Sequence[str], normal_class: str | None = None) -> int | None:
    """Index of the class for normal: ``normal_class``, else the class called normal, else None.

    Raises:
        CTMaskNetError: ``normal_class`` is no class.
    """
    if normal_class is None:
        return class_names.index(IMAGE_CLASSES[0]) if IMAGE_CLASSES[0] in class_names else None
    if normal_class not in class_names:
        raise CTMaskNetError(
            f"normal class {normal_class!r} is not a class of the predictions; choose one of "
            f"{', '.join(class_names)}"
        )
    return class_names.index(normal_class)


def group_slices(
    rows: Sequence[SlicePrediction], level: str
) -> OrderedDict[tuple[str, ...], list[SlicePrediction]]:
    """Slices by scan or patient, in the order of their first slice.

    A scan is known by patient and scan together. Slices that do not name theirs are left out, and
    of patients those of scans that do not count for them.

    Args:
        rows: predictions of slices.
        level: ``"scans"`` or ``"patients"``.
    """
    fields = POOLED_LEVELS[level]
    groups: OrderedDict[tuple[str, ...], list[SlicePrediction]] = OrderedDict()
    for row in rows:
        key = tuple(getattr(row, field) for field in fields)
        if all(key) and (row.counts or level == "scans"):
            groups.setdefault(key, []).append(row)
    return groups


def pool_slices(
    rows: Sequence[SlicePrediction], level: str, pooling: Callable[[np.ndarray], np.ndarray]
) -> list[PooledPrediction]:
    """Pool slices to scans or patients.

    Every slice of a scan or patient is pooled, with or without label; a patient's scans weigh by
    their slices. The label is the one that all labelled slices share. Where they disagree (a scan
    before the illness and one during it, say) there is no one truth: the label is None and
    ``mixed`` is True.

    Args:
        rows: predictions of slices; those without a patient (scan) are left out.
        level: ``"scans"`` or ``"patients"``.
        pooling: (n, C) logits to (C,) scores, such as :class:`ScorePooling`.
    """
    pooled = []
    for (patient, *scan), group in group_slices(rows, level).items():
        labels = {row.label for row in group} - {None}
        scores = pooling(np.array([row.logits for row in group], dtype=np.float64))
        pooled.append(
            PooledPrediction(
                patient=patient,
                scan="".join(scan),
                label=next(iter(labels)) if len(labels) == 1 else None,
                mixed=len(labels) > 1,
                pred=int(np.argmax(scores)),
                scores=tuple(float(score) for score in scores),
                slices=len(group),
            )
        )
    return pooled


def check_rows(rows: Sequence[SlicePrediction], source: str) -> None:
    """Refuse what no statistic can be made of.

    Args:
        rows: predictions of slices.
        source: the file they are from, for the message.

    Raises:
        CTMaskNetError: no row, a file twice, or a logit that is not a number.
    """
    if not rows:
        raise CTMaskNetError(f"{source}: no predictions in it; evaluate a data set that has slices")
    seen: set[str] = set()
    for row in rows:
        if row.file in seen:
            raise CTMaskNetError(f"{source}: {row.file} is in it twice; keep one line a slice")
        seen.add(row.file)
        if not np.isfinite(row.logits).all():
            raise CTMaskNetError(
                f"{source}: {row.file} has a logit that is no finite number; the model has "
                "diverged, train it anew"
            )


def check_apart(test: Sequence[SlicePrediction], validation: Sequence[SlicePrediction]) -> None:
    """Refuse a validation set that shares a patient or a slice with the test set.

    Raises:
        CTMaskNetError: names one of them.
    """
    for field in ("patient", "file"):
        shared = {getattr(row, field) for row in test} & {getattr(row, field) for row in validation}
        shared.discard("")
        if shared:
            examples = ", ".join(itertools.islice(sorted(shared), 3))
            raise CTMaskNetError(
                f"{len(shared)} {field}s are both in the validation and the test predictions "
                f"({examples}); what is fitted on validation has to be tried on other patients"
            )


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
