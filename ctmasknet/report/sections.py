"""The sections about figures, as values that the template only sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctmasknet.report import figures, wording
from ctmasknet.report.source import ReportSource

_FIGURES = ("accuracy", "sensitivity-macro", "auroc-macro", "ece")
#: Of a threshold: these have the same names in the page's script.
THRESHOLD_METRICS = ("sensitivity", "specificity", "precision", "npv")


def measured(source: ReportSource, levels: Mapping[str, Any], first_level: str) -> dict[str, Any]:
    """What only an evaluation has."""
    evaluation = source.evaluation
    settings = evaluation["settings"]
    first = levels[first_level]
    tiles = [_count_tile({name: level["n"] for name, level in levels.items()})]
    for metric in _FIGURES:
        figure = wording.cell(metric, first["metrics"][metric])
        tiles.append(_tile(f"{_metric_name(metric)}, {first_level}", figure.value, figure.interval))
    points = [
        {
            "level": name,
            "name": label,
            "threshold": f"{point['threshold']:.4f}",
            "cells": [wording.cell(metric, point["test"][metric]) for metric in THRESHOLD_METRICS],
        }
        for name, level in levels.items()
        for label, point in (level["operating_points"] or {}).items()
    ]
    stated = settings["stated_sensitivity"]
    return {
        "tiles": tiles,
        "confidence": f"{100 * settings['confidence']:g} %",
        "headline": wording.metric_groups(levels, wording.HEADLINE),
        "all_metrics": wording.metric_groups(levels),
        "poolings": [
            {
                "pooling": name,
                "level": level,
                "cells": [wording.cell(metric, found[metric]) for metric in _FIGURES],
            }
            for name, by_level in evaluation["poolings"].items()
            for level, found in by_level.items()
        ],
        "pooling_metrics": [_metric_name(metric) for metric in _FIGURES],
        "details": {
            name: _detail(name, level, source.class_names) for name, level in levels.items()
        },
        "operating_points": points,
        "operating_metrics": [wording.METRIC_NAMES[name] for name in THRESHOLD_METRICS],
        "stated_sensitivity": "" if stated is None else f"{100 * stated:g} %",
    }


def unmeasured(source: ReportSource) -> dict[str, Any]:
    """What there is to show without labels."""
    units = {"slices": source.rows, **source.pooled}
    units = {level: found for level, found in units.items() if found}
    counts = {level: Counter(item.pred for item in found) for level, found in units.items()}
    scores = np.array([row.scores for row in source.rows], dtype=np.float64)
    rows = [
        {
            "name": name,
            "counts": [counts[level][index] for level in units],
            "median": f"{np.median(scores[:, index]):.3f}",
            "highest": f"{scores[:, index].max():.3f}",
        }
        for index, name in enumerate(source.class_names)
    ]
    return {
        "tiles": [
            _tile(wording.LEVEL_NAMES[level], str(len(units[level]))) for level in reversed(units)
        ],
        "calls": {"levels": list(units), "rows": rows},
        "operating_points": [],
    }


def threshold_rows(source: ReportSource) -> list[tuple[str, str]]:
    """(name in the page's script, text) of each line of the threshold table."""
    if source.evaluation is None:
        return [("called", "Called"), ("not-called", "Not called")]
    return [
        *((metric, wording.METRIC_NAMES[metric]) for metric in THRESHOLD_METRICS),
        ("tp", "Has the class, called (true positive)"),
        ("fn", "Has the class, not called (false negative)"),
        ("fp", "Has it not, called (false positive)"),
        ("tn", "Has it not, not called (true negative)"),
    ]


def _detail(name: str, level: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """One level's sentence, confusion matrix and curves."""
    counts = ", ".join(f"{count} {label}" for label, count in level["n_per_class"].items())
    ece = wording.cell("ece", level["metrics"]["ece"])
    areas = "; ".join(
        f"{label} {wording.figure_text('auroc', level['metrics'][f'auroc-{label}']['value'])}"
        for label in class_names
    )
    precisions = "; ".join(
        f"{label} "
        + wording.figure_text("auroc", level["metrics"][f"average_precision-{label}"]["value"])
        for label in class_names
    )
    calibrated = ""
    if level["calibrated"]:
        temperature = level["calibrated"]["temperature"]["value"]
        after = wording.cell("ece", level["calibrated"]["metrics"]["ece"])
        calibrated = (
            f" With the temperature {temperature:.3f} fitted on validation: {after.value}"
            + (f" ({after.interval})." if after.interval else ".")
        )
    error = f"ECE {ece.value}" + (f" ({ece.interval})." if ece.interval else ".")
    return {
        "sentence": f"{_counted(name, level)}: {counts}.",
        "confusion": [
            _confusion_line(label, line, index)
            for index, (label, line) in enumerate(
                zip(class_names, level["confusion_matrix"], strict=True)
            )
        ],
        "figures": [
            {
                "svg": figures.roc_figure(level, class_names, f"roc-{name}"),
                "alt": f"ROC curves of {name}. Areas: {areas}.",
                "caption": "ROC curves, each class against the rest, with their areas. The "
                "straight line is chance.",
            },
            {
                "svg": figures.precision_recall_figure(level, class_names, f"pr-{name}"),
                "alt": f"Precision-recall curves of {name}. Average precision: {precisions}.",
                "caption": "Precision-recall curves with average precision. Precision depends on "
                "how common a class is here.",
            },
            {
                "svg": figures.reliability_figure(level, class_names, f"reliability-{name}"),
                "alt": f"Reliability diagram of {name}. {error}{calibrated}",
                "caption": f"Reliability: a perfect model lies on the line, below it scores "
                f"promise too much. {error}{calibrated}",
            },
        ],
    }


def _counted(name: str, level: Mapping[str, Any]) -> str:
    """``120 slices of 40 patients``; a slice that names no patient is no patient either."""
    text = f"{level['n']} {name}"
    nameless = level["left_out"].get("no_patient", 0)
    if name == "patients" or nameless == level["n"]:
        return text
    text += f" of {level['n_patients'] - nameless} patients"
    return text + (f" and {nameless} that name none" if nameless else "")


def _confusion_line(label: str, counts: Sequence[int], index: int) -> dict[str, Any]:
    whole = sum(counts)
    return {
        "name": label,
        "cells": [
            {
                "count": count,
                "share": wording.figure_text("accuracy", 100 * count / whole if whole else None),
                "hit": place == index,
                # Four strengths of colour
                "tint": int(np.ceil(4 * count / whole)) if whole else 0,
            }
            for place, count in enumerate(counts)
        ],
    }


def _tile(name: str, value: str, note: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _count_tile(counts: Mapping[str, int]) -> dict[str, str]:
    """Patients in large type, scans and slices below; the other way round without patients."""
    first, *rest = reversed(counts)
    note = ", ".join(f"{counts[level]} {level}" for level in rest)
    return _tile(wording.LEVEL_NAMES[first], str(counts[first]), note)


def _metric_name(metric: str) -> str:
    base, _, of = metric.partition("-")
    return wording.METRIC_NAMES[base] + (", mean of classes" if of == "macro" else "")
