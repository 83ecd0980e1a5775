"""Lesion burden: the share of the lung that lesions take up, by class, of slices, scans, patients.

Where there are lung masks it is a share of the lung, lesions included. Where there are none it is a
share of the whole slice, which depends on how much besides the patient is in the picture, and is
called so. How far two measurements agree, such as predicted and drawn by hand, is told by
:func:`pair_burdens` and :func:`burden_agreement`.

Shapes: masks are (H, W) bool in px of the slice. An amount is px, or px times a weight. n pairs are
of one scan (or slice) each, of P patients; B resamples.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.intervals import Interval, bootstrap_intervals

#: Levels that burden is told for.
LEVELS = ("slices", "scans", "patients")
#: Key of all classes together; px of two classes count once.
ANY = "any"
_MM3, _PX_MM, _PX = "mm3", "px x mm", "px"


@dataclass(frozen=True)
class SliceBurden:
    """Lesions of one slice.

    Attributes:
        file, patient, scan: names; the last two may be empty.
        lesion_px: px of each class, and of :data:`ANY`.
        whole_px: px of what the share is of.
        outside_px: lesion px left out because they lie outside the lung.
        pixel_mm2: area of a px, mm2; None where unknown.
        position_mm: position along the patient's axis, mm; None where unknown.
    """

    file: str
    patient: str
    scan: str
    lesion_px: Mapping[str, int]
    whole_px: int
    outside_px: int = 0
    pixel_mm2: float | None = None
    position_mm: float | None = None


@dataclass(frozen=True)
class Burden:
    """Lesions of a slice, scan or patient.

    Attributes:
        patient, scan, file: names; ``scan`` and ``file`` are empty above their level.
        slices: how many slices it is of.
        weighted_by: ``mm3``, where px and distances of slices are known; ``px x mm``, the distances
            alone; ``px``, every px of every slice alike.
        amounts: of each class and of :data:`ANY`, in that unit.
        whole: of what the share is of.
    """

    patient: str
    scan: str
    file: str
    slices: int
    weighted_by: str
    amounts: Mapping[str, float]
    whole: float

    def percent(self) -> dict[str, float | None]:
        """Shares by class and of :data:`ANY`; None without any lung."""
        return {
            name: 100 * amount / self.whole if self.whole else None
            for name, amount in self.amounts.items()
        }

    def to_json(self) -> dict[str, Any]:
        """``patient, scan, file, slices, weighted_by, percent`` and, in mm3, ``ml`` of each class,
        of ``any`` and of ``whole``; None otherwise."""
        volumes = None
        if self.weighted_by == _MM3:
            volumes = {name: amount / 1000 for name, amount in self.amounts.items()}
            volumes["whole"] = self.whole / 1000
        return {
            "patient": self.patient,
            "scan": self.scan,
            "file": self.file,
            "slices": self.slices,
            "weighted_by": self.weighted_by,
            "percent": self.percent(),
            "ml": volumes,
        }


def measure_slice(
    lesions: Mapping[str, Sequence[np.ndarray]],
    shape: tuple[int, int],
    lung: np.ndarray | None = None,
    **names: Any,
) -> SliceBurden:
    """Count the px of one slice.

    Args:
        lesions: masks of each class; overlapping ones count a px once.
        shape: (H, W) px.
        lung: mask of the lung, lesions included; lesions outside do not count. None: the share is
            of the slice.
        names: ``file``, ``patient``, ``scan``, ``pixel_mm2``, ``position_mm``.

    Raises:
        CTMaskNetError: a mask of another size.
    """
    everything = np.zeros(shape, dtype=bool)
    inside = np.ones(shape, dtype=bool) if lung is None else lung
    counts = {}
    for mask in (inside, *(mask for masks in lesions.values() for mask in masks)):
        if mask.shape != tuple(shape):
            raise CTMaskNetError(
                f"{names.get('file', 'a slice')}: is {shape[1]} x {shape[0]} px but a mask "
                f"{mask.shape[1]} x {mask.shape[0]}; give masks of the same slices"
            )
    for name, masks in lesions.items():
        union = np.logical_or.reduce([np.zeros(shape, dtype=bool), *masks])
        everything |= union
        counts[name] = int((union & inside).sum())
    counts[ANY] = int((everything & inside).sum())
    return SliceBurden(
        lesion_px=counts,
        whole_px=int(inside.sum()),
        outside_px=int((everything & ~inside).sum()),
        **{"file": "", "patient": "", "scan": "", **names},
    )


def burdens(slices: Sequence[SliceBurden]) -> OrderedDict[str, list[Burden]]:
    """Burden by level: ``slices``, ``scans``, ``patients``.

    A scan's burden is one of volumes: a px counts with its area and the distance its slice stands
    for (half-way to either neighbour). Slices without a patient (scan) are in no patient (scan). A
    patient's scans add up, in px where their units differ.
    """
    by_scan: dict[tuple[str, str], list[SliceBurden]] = {}
    by_patient: dict[str, list[tuple[list[SliceBurden], np.ndarray, str]]] = {}
    for item in slices:
        if item.patient or item.scan:
            by_scan.setdefault((item.patient, item.scan), []).append(item)
    found = OrderedDict((level, []) for level in LEVELS)
    for item in slices:
        weight, unit = _weights([item])
        found["slices"].append(
            _total([item], weight, unit, patient=item.patient, scan=item.scan, file=item.file)
        )
    for (patient, scan), items in by_scan.items():
        weights, unit = _weights(items)
        if patient:
            by_patient.setdefault(patient, []).append((items, weights, unit))
        if scan:
            found["scans"].append(_total(items, weights, unit, patient=patient, scan=scan))
    for patient, scans in by_patient.items():
        items = [item for part, _, _ in scans for item in part]
        units = {unit for _, _, unit in scans}
        weights, unit = np.ones(len(items)), _PX
        if len(units) == 1:
            weights, unit = np.concatenate([weights for _, weights, _ in scans]), units.pop()
        found["patients"].append(_total(items, weights, unit, patient=patient))
    return found


def slice_thickness_mm(positions_mm: Sequence[float]) -> np.ndarray:
    """The distance each slice of a scan stands for: half-way to either neighbour, at the ends as
    far out as in. Slices of one position share its distance.

    Args:
        positions_mm: (n,) along the patient's axis, in any order, two unlike ones or more.
    """
    unlike, index, slices = np.unique(positions_mm, return_inverse=True, return_counts=True)
    gaps = np.diff(unlike)
    distances = (np.append(gaps[:1], gaps) + np.append(gaps, gaps[-1:])) / 2
    return (distances / slices)[index]


def _weights(items: Sequence[SliceBurden]) -> tuple[np.ndarray, str]:
    """What a px of each slice of one scan counts, and in which unit."""
    positions = [item.position_mm for item in items]
    # A single position does not tell how thick its slice is
    if None in positions or len(set(positions)) < 2:
        return np.ones(len(items)), _PX
    thickness = slice_thickness_mm(positions)
    areas = [item.pixel_mm2 for item in items]
    if None in areas:
        return thickness, _PX_MM
    return thickness * np.array(areas), _MM3


def _total(
    items: Sequence[SliceBurden],
    weights: np.ndarray,
    unit: str,
    *,
    patient: str,
    scan: str = "",
    file: str = "",
) -> Burden:
    pairs = list(zip(weights.tolist(), items, strict=True))
    return Burden(
        patient=patient,
        scan=scan,
        file=file,
        slices=len(items),
        weighted_by=unit,
        amounts={
            name: sum(weight * item.lesion_px[name] for weight, item in pairs)
            for name in items[0].lesion_px
        },
        whole=sum(weight * item.whole_px for weight, item in pairs),
    )


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
            :func:`ctmasknet.evaluation.lesions.burden_files.measure_burden`.
        truth: of the one it is held against.
    """
    level = burden_level(found)
    by_key = {_key(level, item): item for item in truth[level]}
    # A seed draws the same patients whatever the order of the units
    units = sorted(found[level], key=lambda item: _key(level, item))
    both = [(item, by_key[key]) for item in units if (key := _key(level, item)) in by_key]
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
        n_boot, seed, confidence: see :func:`ctmasknet.evaluation.intervals.bootstrap_intervals`.

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
    index = np.array([number[patient] for patient in patients])
    difference = measured - truth
    ones = np.ones(len(truth))
    columns = (ones, truth, measured, np.abs(difference), difference**2)
    columns += (truth**2, measured**2, truth * measured)
    sums = np.zeros((len(number), len(columns)))
    np.add.at(sums, index, np.stack(columns, axis=1))

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
