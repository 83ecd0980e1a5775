"""Lesion burden as values that the template only sets: a line a scan, and agreement with truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctmasknet.ct.find import natural_key
from ctmasknet.evaluation.intervals import Interval
from ctmasknet.evaluation.lesions.burden import (
    ANY,
    BurdenPairs,
    burden_agreement,
    burden_level,
    pair_burdens,
    shares,
)
from ctmasknet.report import figures
from ctmasknet.report.sections import Cell
from ctmasknet.report.source import ReportSource
from ctmasknet.report.tables import MAX_ROWS

#: What a share is one of, by the weight of a px.
_WEIGHED = {"mm3": "volume (mm³)", "px x mm": "px × mm", "px": "px"}
_UNKNOWN = "–"
#: Scans drawn at most; more dots hide each other and make a large page.
_DOTS = 500


def burden_section(source: ReportSource) -> dict[str, Any] | None:
    """Everything the section shows; None where the run has no burden."""
    if source.burden is None:
        return None
    found, truth = source.burden, source.burden_truth
    level = burden_level(found)
    items = sorted(found[level], key=_heaviest_first)
    pairs = None if truth is None else pair_burdens(found, truth)
    names = [*found["classes"], ANY]
    # A single class is all there is, unless the truth calls it otherwise
    if len(names) == 2 and (pairs is None or names[0] in pairs.classes):
        names = names[:1]
    true_shares = {id(one): other["percent"] for one, other in pairs.pairs} if pairs else {}
    compared = [name for name in names if pairs and name in pairs.classes]
    columns, rows = _table(source, level, items[:MAX_ROWS], names, compared, true_shares)
    measured = {item["file"] for item in found["slices"]}
    return {
        "of": found["of"],
        "level": level,
        "lesions": found["lesions"],
        "cautions": found["cautions"],
        "outside_px": found["outside_lung_px"],
        "slices": len(measured),
        "scanless": level == "scans" and sum(not item["scan"] for item in found["slices"]),
        "shared": len(measured & {row.file for row in source.rows}),
        "summary": [_summary(items, name) for name in names],
        "columns": columns,
        "rows": rows,
        "left_out": max(0, len(items) - MAX_ROWS),
        "truth": None if pairs is None else _agreement(pairs, compared, truth["lesions"]),
    }


def _title(name: str) -> str:
    return "all lesions" if name == ANY else name


def _heaviest_first(item: Mapping[str, Any]) -> tuple:
    share = item["percent"][ANY]
    names = "\n".join(item[key] for key in ("patient", "scan", "file"))
    return share is None, -(share or 0.0), natural_key(names)


def _summary(items: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    known = [item["percent"][name] for item in items if item["percent"][name] is not None]
    return {
        "name": _title(name),
        "with": f"{sum(share > 0 for share in known)} of {len(known)}",
        "median": _digits(np.median(known) if known else None, 2),
        "range": f"{min(known):.2f}–{max(known):.2f}" if known else _UNKNOWN,
    }


def _table(
    source: ReportSource,
    level: str,
    items: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    compared: Sequence[str],
    true_shares: Mapping[int, Mapping[str, float | None]],
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Columns and lines; a scan's called class is there where the predictions have that scan."""
    calls = {(item.patient, item.scan): item.pred for item in source.pooled["scans"]}
    called = [calls.get((item["patient"], item["scan"])) for item in items]
    with_calls = level == "scans" and any(call is not None for call in called)
    with_ml = any(item["ml"] for item in items)
    columns = [("Patient", False), ("Scan", False), ("Slices", True)]
    if level == "slices":
        columns = [("Slice", False)]
    columns += [("Called", False)] if with_calls else []
    for name in names:
        columns.append((f"{_title(name)}, %", True))
        columns += [(f"{_title(name)}, ground truth, %", True)] if name in compared else []
    columns += [(f"{_title(name)}, ml", True) for name in names] if with_ml else []
    columns.append(("Share of", False))
    rows = []
    for item, call in zip(items, called, strict=True):
        row = [item["patient"] or _UNKNOWN, item["scan"], str(item["slices"])]
        row = [item["file"]] if level == "slices" else row
        if with_calls:
            row.append(_UNKNOWN if call is None else source.class_names[call])
        truth = true_shares.get(id(item), {})
        for name in names:
            row.append(_digits(item["percent"][name], 2))
            row += [_digits(truth.get(name), 2)] if name in compared else []
        row += [_digits((item["ml"] or {}).get(name), 1) for name in names] if with_ml else []
        unit = _WEIGHED.get(item["weighted_by"], item["weighted_by"])
        row.append(f"{unit} of the {source.burden['of']}")
        rows.append(row)
    return [{"name": name, "number": number} for name, number in columns], rows


def _agreement(pairs: BurdenPairs, names: Sequence[str], lesions: str) -> dict[str, Any]:
    lines, dots = [], []
    for name in names:
        agreement = burden_agreement(pairs, name)
        if agreement is None:
            continue
        true, measured, patients = shares(pairs, name)
        lines.append(
            {
                "name": _title(name),
                "n": f"{len(true)} {pairs.level} of {len(set(patients))} patients",
                "cells": [_cell(agreement[key], 2) for key in ("truth", "measured", "bias")],
                "limits": " to ".join(
                    _digits(agreement[f"{end}_limit"].value, 2) for end in ("lower", "upper")
                ),
                "rest": [_cell(agreement["absolute"], 2), _cell(agreement["concordance"], 3)],
            }
        )
        if name != ANY or len(names) == 1:
            chosen = np.linspace(0, len(true) - 1, min(len(true), _DOTS)).round().astype(int)
            dots.append((_title(name), true[chosen], measured[chosen], agreement))
    drawn = max((len(true) for _, true, _, _ in dots), default=0)
    what = f"{drawn} of {len(pairs.pairs)} {pairs.level}"
    told = "; ".join(
        f"{line['name']}: mean difference {line['cells'][2].value}, limits {line['limits']}"
        for line in lines
    )
    pictures = []
    if dots:
        pictures = [
            {
                "svg": figures.burden_scatter(dots, "burden-scatter"),
                "alt": f"Measured share against ground truth, {what}, in percent. {told}.",
                "caption": f"Share of each class, {what}; on the line both agree.",
            },
            {
                "svg": figures.burden_differences(dots, "burden-differences"),
                "alt": f"Difference against the mean of both, {what}, percentage points. {told}.",
                "caption": "Measured less ground truth against the mean of both (Bland-Altman); "
                "long lines: mean difference, short ones: limits of agreement.",
            },
        ]
    return {
        "lesions": lesions,
        "compared": len(pairs.pairs),
        "alone": pairs.alone,
        "unlike": pairs.unlike,
        "lines": lines,
        "figures": pictures,
    }


def _digits(value: float | None, digits: int) -> str:
    return _UNKNOWN if value is None else f"{value:.{digits}f}"


def _cell(found: Interval, digits: int) -> Cell:
    if found.low is None:
        return Cell(_digits(found.value, digits))
    ends = " to ".join(_digits(end, digits) for end in (found.low, found.high))
    return Cell(_digits(found.value, digits), ends)
