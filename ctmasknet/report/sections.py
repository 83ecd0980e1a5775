"""Figures, limits and origin of an evaluation in the words of the page, as values that the template
only sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np

from ctmasknet.evaluation.pooling import POOLED_LEVELS
from ctmasknet.evaluation.report import PERCENT_METRICS
from ctmasknet.report import figures
from ctmasknet.report.source import ReportSource, described_sets

_METRIC_NAMES = {
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision (PPV)",
    "npv": "Negative predictive value",
    "f1": "F1",
    "auroc": "Area under ROC",
    "average_precision": "Average precision",
    "ece": "Calibration error (ECE)",
    "loss": "Loss (cross-entropy, nats)",
}
#: Metrics of the headline table, in its order; all others stand in the full table.
_HEADLINE = ("accuracy", "sensitivity", "specificity", "precision", "auroc", "ece")
_POOLING_TEXTS = {
    "mean": "the mean of their slices' scores",
    "max": "their best slice for each disease, and the least normal slice for normal",
    "top_k_mean": "the mean of their {top_k} best slices for each disease, and of the {top_k} "
    "least normal for normal",
    "noisy_or": "noisy-or of their slices' scores for each disease, and the product for normal",
    "over_18_slices": "a disease of more than 18 of their slices, else normal",
    "learned": "a logistic regression on their slices' logits, fitted on validation",
    "attention": "attention over their slices' logits, fitted on validation",
}
#: Metrics of the tiles, and of poolings compared.
_FIGURES = ("accuracy", "sensitivity-macro", "auroc-macro", "ece")
#: Of a threshold: these have the same names in the page's script.
_THRESHOLD_METRICS = ("sensitivity", "specificity", "precision", "npv")
_LEVEL_NAMES = {"slices": "Slices", "scans": "Scans", "patients": "Patients"}


class Cell(NamedTuple):
    """A figure as text and its interval as text, "" without one."""

    value: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.interval})" if self.interval else self.value


def rendered(template: str, **values: Any) -> str:
    """A page of the folder ``assets`` with its values, all of them escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ctmasknet.report", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(values).lstrip()
    # Names of files need not be text; what is none becomes a question mark
    return page.encode("utf-8", "replace").decode("utf-8")


def page_values(
    source: ReportSource, levels: Mapping[str, Any], first_level: str
) -> dict[str, Any]:
    """What the page says of figures, their limits and their origin, by the template's names.

    Args:
        source: what is reported.
        levels: those that the evaluation has; none without labels.
        first_level: the one in large type.
    """
    shown = _measured(source, levels, first_level) if source.evaluation else _unmeasured(source)
    return shown | {
        "phantoms": _shows_phantoms(source),
        "cautions": _cautions(source),
        "level_names": _LEVEL_NAMES,
        "pooling": _pooling_text(source),
        "threshold_rows": _threshold_rows(source),
        "limits": limits(source),
        "facts": _report_facts(source),
        "runs": [_run_facts(entry) for entry in source.entries],
    }


def figure_text(metric: str, value: float | None) -> str:
    """``91.7 %`` or ``0.917``, by the metric; a dash when undefined."""
    if value is None:
        return "–"
    return f"{value:.1f} %" if metric.split("-")[0] in PERCENT_METRICS else f"{value:.3f}"


def _cell(metric: str, interval: Mapping[str, Any]) -> Cell:
    """An interval (see :class:`ctmasknet.evaluation.intervals.Interval`) as text."""
    value = figure_text(metric, interval["value"])
    if interval["low"] is None:
        return Cell(value)
    low, high = (figure_text(metric, interval[end]).removesuffix(" %") for end in ("low", "high"))
    return Cell(value, f"{low}–{high}")


def _metric_groups(
    levels: Mapping[str, Mapping[str, Any]], bases: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The lines of each metric, of all and of each class, with a cell for each level.

    Args:
        levels: those that there are, of :func:`classification_report`.
        bases: metrics without class, such as :data:`_HEADLINE`; all by default. The ECE of a single
            class stands in the full table alone.
    """
    names = list(levels["slices"]["metrics"])
    groups = []
    for base in bases or dict.fromkeys(name.partition("-")[0] for name in names):
        rows = []
        for name in names:
            metric, _, of = name.partition("-")
            if metric != base or (bases and base == "ece" and of):
                continue
            cells = [_cell(name, level["metrics"][name]) for level in levels.values()]
            rows.append({"of": "mean of classes" if of == "macro" else of or "all", "cells": cells})
        groups.append({"name": _METRIC_NAMES.get(base, base), "rows": rows})
    return groups


def _pooling_text(source: ReportSource) -> str:
    """How slices become scans and patients, as a clause."""
    top_k = source.evaluation["settings"]["top_k"] if source.evaluation else "k"
    # A prediction folder writes "top_k_mean (k = 5)"
    return _POOLING_TEXTS[source.pooling_name.split(" ")[0]].format(top_k=top_k)


def _shows_phantoms(source: ReportSource) -> bool:
    """Whether the record says that the reported slices were synthesised."""
    return any(
        item.get("name") == source.dataset and item.get("phantoms")
        for entry in source.entries
        for described in described_sets(entry).values()
        for item in described
    )


def _cautions(source: ReportSource) -> list[str]:
    """What a prediction says of its weights; of an evaluation, whether they learnt on phantoms."""
    learnt = any(
        item.get("phantoms")
        for entry in source.entries
        for item in described_sets(entry).get("train", ())
    )
    if learnt and not source.cautions and not _shows_phantoms(source):
        return [
            "the weights were trained on phantoms, synthetic patients: what they say of "
            "people means nothing"
        ]
    return source.cautions


def limits(source: ReportSource) -> list[str]:
    """What the report cannot say, one sentence or two each."""
    found = []
    if source.bad_slices:
        bad, total = source.bad_slices
        found.append(
            f"{bad} of {total} slices or files could not be read and were left out; "
            "bad_slices.json of the run names them."
        )
    evaluation = source.evaluation
    if evaluation is None:
        found.append(
            "No slice has a label. Nothing here says how often the model is right: there is no "
            "accuracy, sensitivity, curve, calibration or error. Scores say how the model ranks "
            "what it saw, no more."
        )
    else:
        slices = evaluation["levels"]["slices"]
        left_out = slices["left_out"]
        if left_out["no_label"]:
            found.append(f"{left_out['no_label']} slices without a label are not judged.")
        if left_out["no_patient"]:
            found.append(
                f"{left_out['no_patient']} slices name no patient. Each stands for a patient of "
                "its own: where some are of one patient, intervals are too narrow."
            )
        for level in POOLED_LEVELS:
            measured = evaluation["levels"][level]
            mixed = sum(item.mixed for item in source.pooled[level])
            if mixed:
                found.append(f"{mixed} {level} have slices of unlike labels and are not judged.")
            elif measured is None:
                found.append(f"No {level}: no labelled slice names one.")
        absent = [name for name, count in slices["n_per_class"].items() if not count]
        if absent:
            found.append(f"No slice is labelled {', '.join(absent)}: nothing is known of it.")
        if evaluation["settings"]["validation"] is None:
            found.append(
                "No validation predictions: no temperature, no operating point and no learned "
                "pooling, because the test set is no place to choose them."
            )
        else:
            found += [
                f"Scores of {name} are not calibrated: {level['why_not_calibrated']}."
                for name, level in evaluation["levels"].items()
                if level and level["why_not_calibrated"]
            ]
        found.append(
            "All figures are of this set of patients. Another hospital, scanner or share of the "
            "ill gives others; precision most of all."
        )
    found.append(
        "Boxes, masks and weights drawn on slices are input to the decision, not its cause."
    )
    return found


def _measured(source: ReportSource, levels: Mapping[str, Any], first_level: str) -> dict[str, Any]:
    """What only an evaluation has."""
    evaluation = source.evaluation
    settings = evaluation["settings"]
    first = levels[first_level]
    tiles = [_count_tile({name: level["n"] for name, level in levels.items()})]
    for metric in _FIGURES:
        figure = _cell(metric, first["metrics"][metric])
        tiles.append(_tile(f"{_metric_name(metric)}, {first_level}", figure.value, figure.interval))
    points = [
        {
            "level": name,
            "name": label,
            "threshold": f"{point['threshold']:.4f}",
            "cells": [_cell(metric, point["test"][metric]) for metric in _THRESHOLD_METRICS],
        }
        for name, level in levels.items()
        for label, point in (level["operating_points"] or {}).items()
    ]
    stated = settings["stated_sensitivity"]
    return {
        "tiles": tiles,
        "confidence": f"{100 * settings['confidence']:g} %",
        "headline": _metric_groups(levels, _HEADLINE),
        "all_metrics": _metric_groups(levels),
        "poolings": [
            {
                "pooling": name,
                "level": level,
                "cells": [_cell(metric, found[metric]) for metric in _FIGURES],
            }
            for name, by_level in evaluation["poolings"].items()
            for level, found in by_level.items()
        ],
        "pooling_metrics": [_metric_name(metric) for metric in _FIGURES],
        "details": {
            name: _detail(name, level, source.class_names) for name, level in levels.items()
        },
        "operating_points": points,
        "operating_metrics": [_METRIC_NAMES[name] for name in _THRESHOLD_METRICS],
        "stated_sensitivity": "" if stated is None else f"{100 * stated:g} %",
    }


def _unmeasured(source: ReportSource) -> dict[str, Any]:
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
        "tiles": [_tile(_LEVEL_NAMES[level], str(len(units[level]))) for level in reversed(units)],
        "calls": {"levels": list(units), "rows": rows},
        "operating_points": [],
    }


def _threshold_rows(source: ReportSource) -> list[tuple[str, str]]:
    """(name in the page's script, text) of each line of the threshold table."""
    if source.evaluation is None:
        return [("called", "Called"), ("not-called", "Not called")]
    return [
        *((metric, _METRIC_NAMES[metric]) for metric in _THRESHOLD_METRICS),
        ("tp", "Has the class, called (true positive)"),
        ("fn", "Has the class, not called (false negative)"),
        ("fp", "Has it not, called (false positive)"),
        ("tn", "Has it not, not called (true negative)"),
    ]


def _detail(name: str, level: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """One level's sentence, confusion matrix and curves."""
    counts = ", ".join(f"{count} {label}" for label, count in level["n_per_class"].items())
    ece = _cell("ece", level["metrics"]["ece"])
    areas, precisions = (
        "; ".join(
            f"{label} {figure_text(metric, level['metrics'][f'{metric}-{label}']['value'])}"
            for label in class_names
        )
        for metric in ("auroc", "average_precision")
    )
    calibrated = ""
    if level["calibrated"]:
        temperature = level["calibrated"]["temperature"]["value"]
        after = _cell("ece", level["calibrated"]["metrics"]["ece"])
        calibrated = f" With the temperature {temperature:.3f} fitted on validation: {after}."
    elif level["operating_points"]:
        calibrated = f" Not calibrated: {level['why_not_calibrated']}."
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
                "alt": f"Reliability diagram of {name}. ECE {ece}.{calibrated}",
                "caption": f"Reliability: a perfect model lies on the line, below it scores "
                f"promise too much. ECE {ece}.{calibrated}",
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
                "share": figure_text("accuracy", 100 * count / whole if whole else None),
                "hit": column == index,
                # Four strengths of colour
                "tint": int(np.ceil(4 * count / whole)) if whole else 0,
            }
            for column, count in enumerate(counts)
        ],
    }


def _tile(name: str, value: str, note: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _count_tile(counts: Mapping[str, int]) -> dict[str, str]:
    """Patients in large type, scans and slices below; the other way round without patients."""
    first, *rest = reversed(counts)
    note = ", ".join(f"{counts[level]} {level}" for level in rest)
    return _tile(_LEVEL_NAMES[first], str(counts[first]), note)


def _metric_name(metric: str) -> str:
    base, _, of = metric.partition("-")
    return _METRIC_NAMES.get(base, base) + (", mean of classes" if of == "macro" else "")


def _report_facts(source: ReportSource) -> list[tuple[str, str]]:
    """(name, text) lines about the predictions and what was made of them."""
    facts = [
        ("Predictions", str(source.predictions)),
        ("SHA-256 of them", source.predictions_sha256),
        ("Data set", source.dataset or "not named"),
        ("Pooling", source.pooling_name),
    ]
    if source.evaluation:
        settings = source.evaluation["settings"]
        facts += [
            ("Intervals", settings["interval"]),
            ("Resamples, seed", f"{settings['n_boot']}, {settings['seed']}"),
        ]
        if settings["validation"]:
            counts = ", ".join(
                f"{count} {level}" for level, count in settings["validation"].items()
            )
            facts.append(("Fitted on validation", counts))
    return facts


def _run_facts(entry: Mapping[str, Any]) -> dict[str, Any]:
    """``name`` and ``facts`` ((name, text) lines) of one run in ``run.json``.

    A record of any shape is taken: what is not there is left out.
    """
    facts = []
    for key, name in (
        ("command", "Command"),
        ("status", "Status"),
        ("error", "Error"),
        ("start", "Start"),
        ("end", "End"),
        ("seconds", "Seconds"),
        ("iterations", "Iterations"),
        ("seed", "Seed"),
        ("config_file", "Configuration"),
        ("weights", "Weights"),
        ("averaged", "Averaged"),
        ("git_commit", "Commit"),
    ):
        if entry.get(key) is not None:
            facts.append((name, str(entry[key])))
    for key, name in (("hardware", "Hardware"), ("versions", "Versions")):
        if isinstance(entry.get(key), dict):
            known = [f"{k} {v}" for k, v in entry[key].items() if v is not None]
            facts.append((name, ", ".join(known)))
    sets = described_sets(entry)
    for split, described in sets.items():
        facts += [(f"Data, {split}", _dataset(item)) for item in described]
    name = str(entry.get("kind", "run")).capitalize()
    used = [str(item.get("name")) for split in ("train", "test") for item in sets.get(split, ())]
    return {"name": f"{name}: {', '.join(used)}" if used else name, "facts": facts}


def _dataset(item: Mapping[str, Any]) -> str:
    text = f"{item.get('name')}: {item.get('images')} images, {item.get('patients')} patients"
    if item.get("phantoms"):
        text += ", phantoms"
    for key, name in (("content_sha256", "content"), ("fingerprint", "names")):
        if item.get(key):
            text += f"; {name} SHA-256 {item[key]}"
    return text
