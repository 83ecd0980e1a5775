"""Several classifiers on the same patients, two at a time: differences with paired bootstrap
intervals, DeLong's test for areas and McNemar's for who is right.

All are judged on the same resamples of patients, so that what is hard for every one of them cancels
out of a difference. A p-value belongs to one pair; Holm's adjustment over all pairs of a level
stands beside it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ctmasknet.console.progress import tracked
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.intervals import bootstrap_intervals
from ctmasknet.evaluation.metrics import level_metrics, patients_behind
from ctmasknet.evaluation.paired_tests import delong, holm, mcnemar
from ctmasknet.evaluation.pooling import (
    POOLED_LEVELS,
    ScorePooling,
    Units,
    check_rows,
    normal_index,
    pool_slices,
    pooled_units,
    slice_units,
)
from ctmasknet.evaluation.predictions import SlicePrediction, read_predictions_csv
from ctmasknet.evaluation.report import PERCENT_METRICS
from ctmasknet.evaluation.subgroups import SMALL_GROUP

COMPARISON_FORMAT = "ctmasknet comparison 1"


def read_systems(
    files: Mapping[str, str | os.PathLike], *, common: bool = False
) -> tuple[dict[str, list[SlicePrediction]], list[str], int]:
    """Predictions of several systems on the same slices, in one order of slices and of classes.

    Args:
        files: name of each system to its ``predictions.csv``.
        common: compare on the slices that all have; otherwise all have to have the same.

    Returns:
        Rows of each system; class names in the order of the first file; how many slices were left
        out because not all systems have them.

    Raises:
        CTMaskNetError: fewer than two files, one that cannot be read, other classes or slices, or a
            slice of which two files state another label, patient or scan.
    """
    if len(files) < 2:
        raise CTMaskNetError("a comparison takes two or more predictions.csv")
    read = {name: read_predictions_csv(path) for name, path in files.items()}
    (first, (_, class_names)), *_ = read.items()
    systems: dict[str, dict[str, SlicePrediction]] = {}
    for name, (rows, names) in read.items():
        check_rows(rows, str(files[name]))
        if sorted(names) != sorted(class_names):
            raise CTMaskNetError(
                f"{files[name]}: classes {', '.join(names)}, but {files[first]} has "
                f"{', '.join(class_names)}; compare systems that name the same classes"
            )
        order = [names.index(class_name) for class_name in class_names]
        systems[name] = {row.file: _reordered(row, order) for row in rows}
    shared = set.intersection(*(set(rows) for rows in systems.values()))
    everything = set.union(*(set(rows) for rows in systems.values()))
    left_out = len(everything - shared)
    if left_out and not (common and shared):
        _refuse_other_slices(files, systems, shared)
    # A seed draws the same patients whatever the order of the rows
    ordered = sorted(shared)
    for name, rows in systems.items():
        for file in ordered:
            _check_same(files, first, systems[first][file], name, rows[file], class_names)
    return (
        {name: [rows[file] for file in ordered] for name, rows in systems.items()},
        class_names,
        left_out,
    )


def compare_systems(
    files: Mapping[str, str | os.PathLike],
    *,
    common: bool = False,
    pooling: str = "mean",
    top_k: int = 5,
    normal_class: str | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Compare every two of several systems, as plain JSON values.

    Args:
        files, common: see :func:`read_systems`.
        pooling, top_k, normal_class: how slices become scans and patients, see
            :class:`ScorePooling`.
        n_boot: resamples of patients, the same for all systems.
        seed: of the resampling.
        confidence: of the intervals.

    Returns:
        ``{"format", "class_names", "settings", "n_left_out", "levels": {level: {"n",
        "n_patients"}}, "systems": [{"name", "predictions", "sha256", "levels": {level: {metric:
        interval}}}], "pairs": [{"first", "second", "levels": {level: {"differences": {metric:
        interval}, "mcnemar", "delong": {class: ...}}}}]}``: a difference is that of the first
        less the second. A level is missing where no slice tells its scan (patient).

    Raises:
        CTMaskNetError: see :func:`read_systems`; no slice has a label.
    """
    systems, class_names, left_out = read_systems(files, common=common)
    normal = normal_index(class_names, normal_class)
    pool = ScorePooling(pooling, normal, top_k)
    units: dict[str, dict[str, Units]] = {}
    for name, rows in systems.items():
        units[name] = {"slices": slice_units(rows)}
        for level in POOLED_LEVELS:
            pooled = pooled_units(pool_slices(rows, level, pool))
            if len(pooled):
                units[name][level] = pooled
    (reference, by_level), *_ = units.items()
    if not len(by_level["slices"]):
        raise CTMaskNetError(f"{files[reference]}: no slice has a label; nothing can be compared")
    options = {"n_boot": n_boot, "seed": seed, "confidence": confidence}
    recorded = {
        name: {level: _Recorded(own, class_names, options) for level, own in levels.items()}
        for name, levels in tracked(units.items(), "systems", unit="system")
    }
    pairs = []
    both = list(itertools.combinations(units, 2))
    for first, second in tracked(both, "differences", unit="pair"):
        levels = {
            level: _pair(recorded[first][level], recorded[second][level], class_names, options)
            for level in by_level
        }
        pairs.append({"first": first, "second": second, "levels": levels})
    _adjust(pairs, by_level, class_names)
    return {
        "format": COMPARISON_FORMAT,
        "class_names": class_names,
        "settings": {
            "pooling": pooling,
            "top_k": top_k,
            "normal_class": None if normal is None else class_names[normal],
            **options,
            "interval": "paired bootstrap over patients: BCa, levels widened to t",
        },
        "n_left_out": left_out,
        "levels": {
            level: {"n": len(own), "n_patients": own.num_patients}
            for level, own in by_level.items()
        },
        "systems": [
            {
                "name": name,
                "predictions": str(files[name]),
                "sha256": hashlib.sha256(Path(files[name]).read_bytes()).hexdigest(),
                "levels": {level: found.metrics for level, found in recorded[name].items()},
            }
            for name in units
        ],
        "pairs": pairs,
    }


class _Recorded:
    """The metrics of one system at one level, with what every resample gave."""

    def __init__(self, units: Units, class_names: Sequence[str], options: Mapping[str, Any]):
        self.units = units
        self.calls: list[dict[str, np.ndarray]] = []

        def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
            self.calls.append(
                {
                    name: values
                    for name, values in level_metrics(units, class_names, weights).items()
                    # An interval of a sum of absolute gaps is found otherwise
                    if name.split("-")[0] != "ece"
                }
            )
            return self.calls[-1]

        found = bootstrap_intervals(
            statistic,
            units.num_patients,
            patients_behind=patients_behind(units, class_names),
            **options,
        )
        self.metrics = {name: interval.to_json() for name, interval in found.items()}


def _pair(
    first: _Recorded, second: _Recorded, class_names: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """``differences``, ``mcnemar`` and ``delong`` of one pair at one level."""
    replayed = zip(first.calls, second.calls, strict=True)

    def difference(_: np.ndarray) -> dict[str, np.ndarray]:
        one, other = next(replayed)
        return {name: one[name] - other[name] for name in one}

    found = bootstrap_intervals(difference, first.units.num_patients, **options)
    units = first.units
    return {
        "differences": {name: interval.to_json() for name, interval in found.items()},
        "mcnemar": mcnemar(
            units.preds == units.labels, second.units.preds == units.labels, units.patients
        ).to_json(),
        "delong": {
            name: None if area is None else area.to_json()
            for index, name in enumerate(class_names)
            for area in [
                delong(
                    units.labels == index,
                    units.logits[:, index],
                    second.units.logits[:, index],
                    units.patients,
                    options["confidence"],
                )
            ]
        },
    }


def _adjust(
    pairs: Sequence[dict[str, Any]], levels: Mapping[str, Any], class_names: Sequence[str]
) -> None:
    """Put Holm's p over all pairs beside each test's own, as ``p_holm``."""
    for level in levels:
        tests = [[pair["levels"][level]["mcnemar"] for pair in pairs]]
        for name in class_names:
            tests.append([pair["levels"][level]["delong"][name] for pair in pairs])
        for family in tests:
            known = [test for test in family if test is not None]
            adjusted = holm([test["p_value"] for test in known])
            for test, p_value in zip(known, adjusted, strict=True):
                test["p_holm"] = p_value


def comparison_text(comparison: Mapping[str, Any], against: str | None = None) -> str:
    """The comparison as tables: all systems in one, with what their models cost where that was
    measured; then each level, a line a system and a line a pair.

    Args:
        comparison: of :func:`compare_systems`; systems may have ``costs``.
        against: show the pairs with this system alone.

    Raises:
        CTMaskNetError: ``against`` names none of the systems.
    """
    names = [system["name"] for system in comparison["systems"]]
    if against is not None and against not in names:
        raise CTMaskNetError(f"`against` is {against!r}; choose one of {', '.join(names)}")
    parts = [_overview(comparison)]
    for level, counts in comparison["levels"].items():
        title = f"{level}: {counts['n']} of {counts['n_patients']} patients"
        if counts["n_patients"] < SMALL_GROUP:
            title += f" (fewer than {SMALL_GROUP}: these figures say little)"
        rows = [[s["name"], *_figures(s, level)] for s in comparison["systems"]]
        pairs = [
            [f"{pair['first']} - {pair['second']}", *_differences(pair["levels"][level])]
            for pair in comparison["pairs"]
            if against in (None, pair["first"], pair["second"])
        ]
        tests = ["p McNemar", *(f"p DeLong {name}" for name in comparison["class_names"])]
        parts += [
            title,
            _table(rows, ["system", *SHOWN_METRICS]),
            _table(pairs, ["difference", *SHOWN_METRICS, *tests]),
        ]
    settings = comparison["settings"]
    parts.append(
        f"{100 * settings['confidence']:g} % intervals in brackets, {settings['n_boot']} resamples "
        f"of patients, seed {settings['seed']}; scans and patients pooled by "
        f"{settings['pooling']}; p of the pair alone, in brackets adjusted for all pairs (Holm)"
    )
    if comparison["n_left_out"]:
        parts.append(
            f"{comparison['n_left_out']} slices are left out: not every system has predictions "
            "for them"
        )
    return "\n\n".join(parts)


def _overview(comparison: Mapping[str, Any]) -> str:
    """The table of all systems, and how and why not their costs were measured."""
    measured, levels = comparison["settings"].get("costs"), comparison["levels"]
    rows = [
        [
            s["name"],
            *(cost_cells(s) if measured else ()),
            *(figure_of("accuracy", s["levels"][level]["accuracy"]) for level in levels),
            *(figure_of(name, s["levels"]["slices"][name]) for name in SHOWN_METRICS[1:]),
        ]
        for s in comparison["systems"]
    ]
    shown = [f"accuracy of {level}, %" for level in levels]
    shown += [f"{name} of slices" for name in SHOWN_METRICS[1:]]
    lines = [_table(rows, ["system", *(COST_COLUMNS if measured else ()), *shown])]
    if measured:
        lines.append(
            f"\nGMAC and seconds: of a slice of {measured['side_px']} px through the model alone, "
            f"{measured['threads']} thread of {measured['cpu']}, median of {measured['repeats']}"
        )
        lines += [
            f"{s['name']}: costs not known: {s['costs_unknown']}"
            for s in comparison["systems"]
            if s.get("costs_unknown")
        ]
    return "\n".join(lines)


COST_COLUMNS = ("parameters", "GMAC", "seconds a slice")


def cost_cells(system: Mapping[str, Any]) -> list[str]:
    """Cells of :data:`COST_COLUMNS`."""
    costs = system.get("costs")
    if not costs:
        return ["not known"] * len(COST_COLUMNS)
    billions = costs["multiply_adds"] / 1e9
    return [f"{costs['parameters']:,}", f"{billions:.3g}", f"{costs['seconds']:.3g}"]


#: Metrics of tables.
SHOWN_METRICS = ("accuracy", "sensitivity-macro", "auroc-macro")


def figure_of(metric: str, interval: Mapping[str, Any], *, signed: bool = False) -> str:
    """``91.66 (88.10..94.93)``; ``-`` for what is not known."""
    digits = ".2f" if metric.split("-")[0] in PERCENT_METRICS else ".3f"
    value, low, high = (
        "-" if interval[end] is None else format(interval[end], f"{'+' if signed else ''}{digits}")
        for end in ("value", "low", "high")
    )
    return value if interval["low"] is None else f"{value} ({low}..{high})"


def p_text(test: Mapping[str, Any] | None) -> str:
    """``0.031 (0.093)``: p and Holm's p; ``-`` where there is none."""
    if test is None or test["p_value"] is None:
        return "-"
    return f"{test['p_value']:.3g} ({test['p_holm']:.3g})"


def _figures(system: Mapping[str, Any], level: str) -> list[str]:
    return [figure_of(name, system["levels"][level][name]) for name in SHOWN_METRICS]


def _differences(pair: Mapping[str, Any]) -> list[str]:
    shown = [figure_of(name, pair["differences"][name], signed=True) for name in SHOWN_METRICS]
    return [*shown, p_text(pair["mcnemar"]), *map(p_text, pair["delong"].values())]


def _table(rows: list[list[str]], headers: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, stralign="right")


def _reordered(row: SlicePrediction, order: list[int]) -> SlicePrediction:
    """A row with its classes in another order: new class i is the old ``order[i]``."""
    new = {old: index for index, old in enumerate(order)}
    return replace(
        row,
        label=None if row.label is None else new[row.label],
        pred=new[row.pred],
        logits=tuple(row.logits[old] for old in order),
        scores=tuple(row.scores[old] for old in order),
    )


def _refuse_other_slices(
    files: Mapping[str, str | os.PathLike],
    systems: Mapping[str, Mapping[str, SlicePrediction]],
    shared: set[str],
) -> None:
    most = max(systems, key=lambda name: len(systems[name]))
    name = next(n for n, rows in systems.items() if set(rows) != set(systems[most]))
    odd, other = next(
        (file, a if file in systems[a] else b)
        for a, b in [(name, most)]
        for file in sorted(set(systems[a]) ^ set(systems[b]))
    )
    lacking = name if other == most else most
    advice = (
        f"compare the {len(shared)} slices that all have by `common`"
        if shared
        else "evaluate all systems on one data set, named alike"
    )
    raise CTMaskNetError(
        f"{files[lacking]}: has no line for {odd}, which {files[other]} has; {advice}"
    )


def _check_same(
    files: Mapping[str, str | os.PathLike],
    first: str,
    expected: SlicePrediction,
    name: str,
    row: SlicePrediction,
    class_names: Sequence[str],
) -> None:
    for field in ("label", "patient", "scan"):
        values = [getattr(one, field) for one in (row, expected)]
        if values[0] != values[1]:
            shown = [
                "none" if v in (None, "") else class_names[v] if field == "label" else repr(v)
                for v in values
            ]
            raise CTMaskNetError(
                f"{files[name]}: {row.file} has {field} {shown[0]}, but {files[first]} says "
                f"{shown[1]}; compare predictions on the same data set"
            )
