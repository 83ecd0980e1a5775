"""Figures and limits of an evaluation in the words of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctmasknet.evaluation.pooling import POOLED_LEVELS
from ctmasknet.evaluation.report_text import PERCENT_METRICS
from ctmasknet.report.run_files import described_sets
from ctmasknet.report.source import ReportSource

METRIC_NAMES = {
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
HEADLINE = ("accuracy", "sensitivity", "specificity", "precision", "auroc", "ece")

POOLING_TEXTS = {
    "mean": "the mean of their slices' scores",
    "max": "their best slice for each disease, and the least normal slice for normal",
    "top_k_mean": "the mean of their {top_k} best slices for each disease, and of the {top_k} "
    "least normal for normal",
    "learned": "a logistic regression on their slices' logits, fitted on validation",
}

LEVEL_NAMES = {"slices": "Slices", "scans": "Scans", "patients": "Patients"}


@dataclass(frozen=True)
class Cell:
    """A figure as text and its interval as text, "" without one."""

    value: str
    interval: str


@dataclass(frozen=True)
class MetricRow:
    """One line of a table of metrics: of which class, and a cell for each level."""

    of: str
    cells: list[Cell]


@dataclass(frozen=True)
class MetricGroup:
    """The lines of one metric."""

    name: str
    rows: list[MetricRow]


def figure_text(metric: str, value: float | None) -> str:
    """``91.7 %`` or ``0.917``, by the metric; a dash when undefined."""
    if value is None:
        return "–"
    return f"{value:.1f} %" if metric.split("-")[0] in PERCENT_METRICS else f"{value:.3f}"


def cell(metric: str, interval: Mapping[str, Any]) -> Cell:
    """An interval (see :class:`ctmasknet.evaluation.uncertainty.Interval`) as text."""
    value = figure_text(metric, interval["value"])
    if interval["low"] is None:
        return Cell(value, "")
    low, high = (figure_text(metric, interval[end]).removesuffix(" %") for end in ("low", "high"))
    return Cell(value, f"{low}–{high}")


def metric_groups(
    levels: Mapping[str, Mapping[str, Any]], bases: Sequence[str] | None = None
) -> list[MetricGroup]:
    """Metrics with the levels side by side.

    Args:
        levels: those that there are, of :func:`classification_report`.
        bases: metrics without class, such as :data:`HEADLINE`; all by default. The ECE of a single
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
            cells = [cell(name, level["metrics"][name]) for level in levels.values()]
            rows.append(MetricRow("mean of classes" if of == "macro" else of or "all", cells))
        groups.append(MetricGroup(METRIC_NAMES[base], rows))
    return groups


def pooling_text(source: ReportSource) -> str:
    """How slices become scans and patients, as a clause."""
    top_k = source.evaluation["settings"]["top_k"] if source.evaluation else "k"
    # A prediction folder writes "top_k_mean (k = 5)"
    return POOLING_TEXTS[source.pooling_name.split(" ")[0]].format(top_k=top_k)


def shows_phantoms(source: ReportSource) -> bool:
    """Whether the record says that the reported slices were synthesised."""
    return any(
        item.get("name") == source.dataset and item.get("phantoms")
        for entry in source.entries
        for described in described_sets(entry).values()
        for item in described
    )


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
        found.append(
            "All figures are of this set of patients. Another hospital, scanner or share of the "
            "ill gives others; precision most of all."
        )
    found.append(
        "Boxes, masks and weights drawn on slices are input to the decision, not its cause."
    )
    return found
