"""The table of patients (or, where no slice names its patient, of slices)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctmasknet.data.natural import natural_key
from ctmasknet.evaluation.pooling import PooledPrediction
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.report.source import ReportSource

#: More rows make a page that no mail takes and no browser sorts at once.
MAX_ROWS = 2000


@dataclass(frozen=True)
class UnitRow:
    """One line: ``truth`` is a class name, "mixed" or "" (unknown); ``verdict`` "right", "wrong" or
    "" where there is no one truth; ``scores`` C floats in 0..1; ``margin`` is what the called
    class scores over the true one, or, when right or unknown, over the next."""

    name: str
    scans: int
    slices: int
    truth: str
    pred: str
    verdict: str
    scores: tuple[float, ...]
    margin: float


@dataclass(frozen=True)
class UnitsTable:
    """Lines, and what is not among them.

    ``kind`` is "patients" or "slices"; ``left_out`` counts lines beyond :data:`MAX_ROWS`, ``lone``
    those that are scans without a patient, ``nameless`` slices that no line is made of.
    """

    kind: str
    rows: list[UnitRow]
    left_out: int
    lone: int
    nameless: int


def units_table(source: ReportSource, max_rows: int = MAX_ROWS) -> UnitsTable:
    """Wrong ones first, the most confident error at the top; then by name.

    Args:
        source: predictions, pooled.
        max_rows: lines kept, from the top.
    """
    names = source.class_names
    # A volume states no patient, yet is one scan
    lone = [item for item in source.pooled["scans"] if not item.patient]
    nameless = sum(not row.patient for row in source.rows) - sum(item.slices for item in lone)
    scans = Counter(item.patient for item in source.pooled["scans"])
    rows = [
        _row(names, item.patient, scans[item.patient], item.slices, item, item.mixed)
        for item in source.pooled["patients"]
    ]
    rows += [_row(names, item.scan, 1, item.slices, item, item.mixed) for item in lone]
    kind = "patients"
    if not rows:
        rows = [_row(names, row.file, 0, 1, row, mixed=False) for row in source.rows]
        kind, nameless = "slices", 0
    rows.sort(key=lambda row: natural_key(row.name))
    rows.sort(key=lambda row: (row.verdict != "wrong", -row.margin * (row.verdict == "wrong")))
    return UnitsTable(kind, rows[:max_rows], max(0, len(rows) - max_rows), len(lone), nameless)


def units_columns(source: ReportSource, table: UnitsTable) -> list[dict[str, Any]]:
    """``name`` of each column and whether it holds a ``number``."""
    columns = [("Patient" if table.kind == "patients" else "Slice", False)]
    if table.kind == "patients":
        columns += [("Scans", True), ("Slices", True)]
    if source.evaluation:
        columns.append(("True class", False))
    columns.append(("Called", False))
    if source.evaluation:
        columns.append(("Verdict", False))
    columns += [(f"Score {name}", True) for name in source.class_names]
    return [{"name": name, "number": number} for name, number in columns]


def units_caption(source: ReportSource, table: UnitsTable) -> str:
    """In which order lines stand, and what the scores are."""
    order = "Errors first, the most confident at the top. " if source.evaluation else ""
    scores = (
        f"Scores pooled by {source.pooling_name}. "
        if table.kind == "patients"
        else "Scores are sigmoids; they need not sum to 1. "
    )
    return f"{order}{scores}A heading's button sorts."


def margin_of(scores: Sequence[float], pred: int, label: int | None) -> float:
    """Score of the called class less that of the true one, or of the next best where the call is
    right or the truth unknown."""
    others = [score for index, score in enumerate(scores) if index != pred]
    if label is not None and label != pred:
        return scores[pred] - scores[label]
    return scores[pred] - max(others, default=0.0)


def _row(
    names: Sequence[str],
    unit: str,
    scans: int,
    slices: int,
    said: PooledPrediction | SlicePrediction,
    mixed: bool,
) -> UnitRow:
    label, pred = said.label, said.pred
    truth = "mixed" if mixed else "" if label is None else names[label]
    verdict = "" if label is None else "right" if label == pred else "wrong"
    margin = margin_of(said.scores, pred, label)
    return UnitRow(unit, scans, slices, truth, names[pred], verdict, tuple(said.scores), margin)
