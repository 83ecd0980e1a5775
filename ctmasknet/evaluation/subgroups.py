"""Every metric by subgroup: source, country, sex, age band, slice selection, or any other column
that is known of the patients.

A model that is right in one hospital and wrong in the next has a good average. A group is judged as
the whole set is, with intervals over its patients; one of few patients is said to be small, and a
figure that a group cannot have is None with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from ctmasknet.console.progress import tracked
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.intervals import bootstrap_intervals
from ctmasknet.evaluation.metrics import calibration_gaps, level_metrics, patients_behind
from ctmasknet.evaluation.pooling import (
    POOLED_LEVELS,
    Units,
    pool_slices,
    pooled_units,
    slice_units,
)
from ctmasknet.evaluation.predictions import SlicePrediction

#: Groups of fewer patients are called small.
SMALL_GROUP = 20
NOT_STATED = "not stated"
#: Columns whose groups are years of age, and their bands: first year of each.
_AGE, _BANDS = "age", (0, 18, 40, 60, 80)
_YEARS = re.compile(r"0*(\d{1,3})(?:\.\d+)?\s*[yY]?$")


def age_band(age: str) -> str:
    """``"65"`` or ``"065Y"`` -> ``"60-79"``; :data:`NOT_STATED` where nothing is stated.

    Raises:
        CTMaskNetError: no number of years from 0 to 120.
    """
    if not age:
        return NOT_STATED
    found = _YEARS.match(age)
    if not found or int(found[1]) > 120:
        raise CTMaskNetError(f"age {age!r}: expected whole years from 0 to 120, such as 65")
    index = int(np.searchsorted(_BANDS, int(found[1]), side="right")) - 1
    first = _BANDS[index]
    return f"{first}-{_BANDS[index + 1] - 1}" if index + 1 < len(_BANDS) else f"{first}+"


def group_columns(rows: Sequence[SlicePrediction]) -> list[str]:
    """The columns of the rows' metadata that tell slices apart: those of two values or more."""
    columns = dict.fromkeys(name for row in rows for name in row.metadata)
    return [name for name in columns if len({row.metadata.get(name, "") for row in rows}) > 1]


def grouped(
    rows: Sequence[SlicePrediction], column: str, source: str = "predictions"
) -> dict[str, list[SlicePrediction]]:
    """The rows by their value of ``column`` (of ``age`` by band), sorted by it; rows that state
    none come last.

    Raises:
        CTMaskNetError: no row has the column (those that there are, are named), or an age is no
            number.
    """
    if not any(column in row.metadata for row in rows):
        known = ", ".join(dict.fromkeys(name for row in rows for name in row.metadata))
        raise CTMaskNetError(
            f"{source}: has no column {column!r} to group by; there are: {known or 'none'}"
        )
    groups: dict[str, list[SlicePrediction]] = {}
    for row in rows:
        value = row.metadata.get(column, "")
        try:
            value = age_band(value) if column == _AGE else value or NOT_STATED
        except CTMaskNetError as error:
            raise CTMaskNetError(f"{source}: patient {row.patient}: {error}") from None
        groups.setdefault(value, []).append(row)

    def place(value: str) -> tuple:
        first = re.match(r"\d+", value) if column == _AGE else None
        return value == NOT_STATED, int(first[0]) if first else 0, value

    return {value: groups[value] for value in sorted(groups, key=place)}


def subgroup_report(
    rows: Sequence[SlicePrediction],
    class_names: Sequence[str],
    *,
    pooling: Callable[[np.ndarray], np.ndarray],
    columns: Sequence[str] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    source: str = "predictions",
) -> dict[str, Any]:
    """Every metric of every group, as plain JSON values.

    Args:
        rows: predictions of the test set.
        class_names: C names in the order of the logits.
        pooling: (n, C) logits to (C,) scores, of scans and patients.
        columns: of the rows' metadata; default: :func:`group_columns`.
        n_boot, seed, confidence: of the intervals.
        source: names the rows in messages.

    Returns:
        ``{"small_below": patients, "columns": {column: {value: group}}}``; a group is
        ``{"slices", "patients", "small", "levels": {"slices", "scans", "patients"}}``, a level
        ``{"n", "n_patients", "n_per_class", "metrics": {name: interval}}`` or None without a unit.
        An interval whose value or ends are None says ``why`` besides.

    Raises:
        CTMaskNetError: as :func:`grouped`.
    """
    rows = sorted(rows, key=lambda row: row.file)
    found: dict[str, dict[str, Any]] = {}
    groups = []
    for column in group_columns(rows) if columns is None else columns:
        found[column] = {}
        groups += [(column, *group) for group in grouped(rows, column, source).items()]
    for column, value, members in tracked(groups, "intervals of subgroups", unit="group"):
        slices = slice_units(members)
        levels = {"slices": slices}
        for level in POOLED_LEVELS:
            levels[level] = pooled_units(pool_slices(members, level, pooling))
        how = {"n_boot": n_boot, "seed": seed, "confidence": confidence}
        found[column][value] = {
            "slices": len(slices),
            "patients": slices.num_patients,
            "small": slices.num_patients < SMALL_GROUP,
            "levels": {
                level: _level(units, class_names, how) if len(units) else None
                for level, units in levels.items()
            },
        }
    return {"small_below": SMALL_GROUP, "columns": found}


def _level(units: Units, class_names: Sequence[str], how: dict[str, Any]) -> dict[str, Any]:
    intervals = bootstrap_intervals(
        lambda weights: level_metrics(units, class_names, weights),
        units.num_patients,
        patients_behind=patients_behind(units, class_names),
        gaps=lambda weights: calibration_gaps(units, class_names, weights),
        **how,
    )
    metrics = {}
    for name, interval in intervals.items():
        metrics[name] = interval.to_json()
        if interval.value is None:
            metrics[name]["why"] = _why_undefined(name, units, class_names)
        elif interval.low is None:
            metrics[name]["why"] = (
                "one patient" if units.num_patients < 2 else "too few patients for an interval"
            )
    counts = np.bincount(units.labels, minlength=len(class_names)).tolist()
    return {
        "n": len(units),
        "n_patients": units.num_patients,
        "n_per_class": dict(zip(class_names, counts, strict=True)),
        "metrics": metrics,
    }


def _why_undefined(metric: str, units: Units, class_names: Sequence[str]) -> str:
    kind, _, of = metric.partition("-")
    present = [class_names[index] for index in np.unique(units.labels)]
    if len(present) == 1 and (kind in ("auroc", "specificity") and of in (*present, "macro")):
        return f"one class only, {present[0]}"
    if kind == "precision" and (of in present or of == "macro"):
        return "a class is never predicted" if of == "macro" else f"{of} is never predicted"
    if of in class_names and of not in present:
        never = kind == "precision" and class_names.index(of) not in units.preds
        return f"{of} is never predicted" if never else f"no {of} in this group"
    return "undefined in this group"


def subgroup_text(report: dict[str, Any], metrics: Sequence[str], cell: Callable) -> str:
    """The report as one table a column of metadata.

    Args:
        report: of :func:`subgroup_report`.
        metrics: those to show.
        cell: (name, interval) -> text.
    """
    parts = []
    for column, groups in report["columns"].items():
        rows = []
        for value, group in groups.items():
            for level, found in group["levels"].items():
                if found is None:
                    continue
                cells = [cell(metric, found["metrics"][metric]) for metric in metrics]
                named = f"{value} (small)" if group["small"] else value
                rows.append([named, level, found["n"], found["n_patients"], *cells])
        headers = [column, "level", "n", "patients", *metrics]
        parts.append(tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True))
    if parts:
        parts.append(f"small: fewer than {report['small_below']} patients")
    return "\n\n".join(parts)
