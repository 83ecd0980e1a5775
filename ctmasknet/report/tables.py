"""What the page lists and counts: patients, slices to look at, and scores above a threshold.

The page's slider gets histograms over a fixed list of thresholds in place of the scores, so that
its size does not grow with the data and every count is exact, not rounded. The list holds 0, 0.001
.. 1 and the operating points chosen on validation.

Shapes: n units, C classes, T thresholds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from ctmasknet.ct.find import natural_key
from ctmasknet.evaluation.pooling import (
    POOLED_LEVELS,
    PooledPrediction,
    normal_index,
    pooled_units,
    slice_units,
)
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.report.neighbours import SeenSlice, are_named_as_neighbours
from ctmasknet.report.source import ReportSource

#: More rows make a page that no mail takes and no browser sorts at once.
MAX_ROWS = 2000
#: So many slices of one patient, or of a scan that names none, at most, so that one bad scan does
#: not fill the page.
PER_PATIENT = 2
# Steps of the slider over 0..1.
_STEPS = 1000


class UnitRow(NamedTuple):
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


class UnitsTable(NamedTuple):
    """The table of patients or, where no slice names its patient, of slices.

    ``kind`` is "patients" or "slices"; ``left_out`` counts lines beyond :data:`MAX_ROWS`, ``lone``
    those that are scans without a patient, ``nameless`` slices that no line is made of; ``columns``
    are dicts of ``name`` and whether it holds a ``number``.
    """

    kind: str
    rows: list[UnitRow]
    left_out: int
    lone: int
    nameless: int
    columns: list[dict[str, Any]]
    caption: str


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
    # Other reconstructions of a scan that counts
    scans.subtract(one.patient for one in source.series if not one.counts)
    patients = source.pooled["patients"]
    rows = [_row(names, item.patient, scans[item.patient], item.slices, item) for item in patients]
    rows += [_row(names, item.scan, 1, item.slices, item) for item in lone]
    kind, columns = "patients", [("Patient", False), ("Scans", True), ("Slices", True)]
    caption = f"Scores pooled by {source.pooling_name}. "
    if not rows:
        rows = [_row(names, row.file, 0, 1, row) for row in source.rows]
        kind, nameless, columns = "slices", 0, [("Slice", False)]
        caption = "Scores are sigmoids; they need not sum to 1. "
    rows.sort(key=lambda row: natural_key(row.name))
    rows.sort(key=lambda row: (row.verdict != "wrong", -row.margin * (row.verdict == "wrong")))
    if source.evaluation:
        columns += [("True class", False), ("Called", False), ("Verdict", False)]
        caption = f"Errors first, the most confident at the top. {caption}"
    else:
        columns.append(("Called", False))
    columns += [(f"Score {name}", True) for name in names]
    return UnitsTable(
        kind,
        rows[:max_rows],
        max(0, len(rows) - max_rows),
        len(lone),
        nameless,
        [{"name": name, "number": number} for name, number in columns],
        f"{caption}A heading's button sorts.",
    )


def _margin(scores: Sequence[float], pred: int, label: int | None) -> float:
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
) -> UnitRow:
    label, pred = said.label, said.pred
    mixed = isinstance(said, PooledPrediction) and said.mixed
    truth = "mixed" if mixed else "" if label is None else names[label]
    verdict = "" if label is None else "right" if label == pred else "wrong"
    margin = _margin(said.scores, pred, label)
    return UnitRow(unit, scans, slices, truth, names[pred], verdict, tuple(said.scores), margin)


class ChosenSlices(NamedTuple):
    """Slices under one heading, in order; ``rule`` says how they were chosen, ``found`` of how
    many."""

    heading: str
    rule: str
    rows: list[SlicePrediction]
    found: int


def choose_slices(
    source: ReportSource, count: int, seen: Mapping[str, SeenSlice] | None = None
) -> list[ChosenSlices]:
    """The slices to show, at most ``count``, under each heading :data:`PER_PATIENT` of a patient
    (of a scan, where it names none); without labels more where there is room.

    With labels: errors, that with the largest margin (score of the called class less that of the
    true one) first. Without: half of them slices whose best two classes are closest, half those
    with the highest score of each class but normal. Scans that do not count for their patient are
    left to the one that does. Of neighbours that show one lesion the first alone is chosen.

    Args:
        source: predictions.
        count: slices in all; 0 for none.
        seen: what ``predictions.jsonl`` tells of slices, by name. Without it errors whose names
            follow each other within a scan pass for neighbours.
    """
    if count < 1:
        return []
    rows = [row for row in source.rows if row.counts]
    if source.evaluation is not None:
        wrong = [row for row in rows if row.label not in (None, row.pred)]
        wrong.sort(key=lambda row: -_margin(row.scores, row.pred, row.label))
        rule = (
            "Slices called wrong, the most confident error first (score of the called class less "
            "that of the true one)"
        )
        return [_chosen("Worst errors", rule, wrong, count, seen, labelled=True)]
    closest = sorted(rows, key=lambda row: _margin(row.scores, row.pred, None))
    half = -(-count // 2)
    rule = "Slices whose best two classes score closest"
    groups = [_chosen("Most uncertain slices", rule, closest, half, seen)]
    normal = normal_index(source.class_names)
    diseases = [index for index in range(len(source.class_names)) if index != normal]
    rest = count - half
    for number, index in enumerate(diseases):
        share = rest // len(diseases) + (number < rest % len(diseases))
        highest = sorted(rows, key=lambda row: -row.scores[index])
        name = source.class_names[index]
        rule = f"Slices with the highest score for {name}"
        groups.append(_chosen(f"Highest score for {name}", rule, highest, share, seen))
    return [group for group in groups if group.rows]


def _chosen(
    heading: str,
    rule: str,
    rows: Sequence[SlicePrediction],
    count: int,
    seen: Mapping[str, SeenSlice] | None,
    *,
    labelled: bool = False,
) -> ChosenSlices:
    chosen = few_of_each(rows, count, seen, more=not labelled, by_name=labelled and not seen)
    return ChosenSlices(heading, rule, chosen, len(rows))


class _Named(Protocol):
    """What is chosen from: slices that tell their file, patient and scan, "" where unknown."""

    file: str
    patient: str
    scan: str


_Row = TypeVar("_Row", bound=_Named)


def few_of_each(
    rows: Iterable[_Row],
    count: int,
    seen: Mapping[str, SeenSlice] | None = None,
    *,
    more: bool = True,
    by_name: bool = False,
) -> list[_Row]:
    """The first ``count`` rows in their order without the third and later of a patient, or of a
    scan that names none; with ``more``, these too where the others leave room. Neighbours with the
    lesion of a row that is chosen are not.

    Args:
        rows: slices, the one most worth a look first.
        count: how many.
        seen: what is known of slices, by file.
        more: fill up with later ones of a patient.
        by_name: slices of a scan whose file names follow each other pass for neighbours.
    """
    seen = seen or {}
    chosen: list[tuple[int, _Row]] = []
    of_scan: dict[tuple[str, str], list[_Row]] = {}
    number: Counter[tuple[str, str]] = Counter()
    later = []

    def is_new(row: _Row) -> bool:
        own = seen.get(row.file)
        for other in of_scan.get((row.patient, row.scan), ()):
            its = seen.get(other.file)
            if own and its and own.shows_the_lesion_of(its):
                return False
            if by_name and row.scan and are_named_as_neighbours([row.file, other.file]):
                return False
        return True

    def take(place: int, row: _Row) -> None:
        if len(chosen) < count and is_new(row):
            chosen.append((place, row))
            of_scan.setdefault((row.patient, row.scan), []).append(row)
            number[owner(row)] += 1

    def owner(row: _Row) -> tuple[str, str]:
        return (row.patient, "") if row.patient else ("", row.scan)

    for place, row in enumerate(rows):
        if any(owner(row)) and number[owner(row)] >= PER_PATIENT:
            later.append((place, row))
        else:
            take(place, row)
    for place, row in later if more else ():
        take(place, row)
    return [row for _, row in sorted(chosen, key=lambda one: one[0])]


def threshold_data(
    rows: Sequence[SlicePrediction],
    pooled: Mapping[str, Sequence[PooledPrediction]],
    class_names: Sequence[str],
    evaluation: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The slider's data as plain JSON values.

    Args:
        rows: slices.
        pooled: scans and patients by level.
        class_names: C names.
        evaluation: see :func:`classification_report`; None without labels.

    Returns:
        ``{"class_names", "labelled", "thresholds": T rising values, "levels": {level: {class:
        {"class": histogram or None, "others": histogram}}}, "operating_points": {level: {class:
        index into thresholds}}}``. A histogram is ``[index, count, index, count, ...]``: so many
        units score at least that threshold but less than the next. ``class`` counts units of the
        class and ``others`` the rest; without labels ``class`` is None and ``others`` counts all.
        Levels without a unit are left out.
    """
    points: dict[str, dict[str, float]] = {}
    for level, found in (evaluation["levels"] if evaluation else {}).items():
        if found and found["operating_points"]:
            points[level] = {c: p["threshold"] for c, p in found["operating_points"].items()}
    chosen = [value for by_class in points.values() for value in by_class.values()]
    thresholds = np.unique([*(np.arange(_STEPS + 1) / _STEPS), *chosen])
    levels: dict[str, Any] = {}
    for level in ("slices", *POOLED_LEVELS):
        items = rows if level == "slices" else pooled[level]
        labels = None
        if evaluation is not None:
            units = slice_units(rows) if level == "slices" else pooled_units(items)
            scores, labels = units.scores, units.labels
        else:
            scores = np.array([item.scores for item in items], dtype=np.float64)
        if not len(scores):
            continue
        levels[level] = {}
        for index, name in enumerate(class_names):
            inside = np.zeros(len(scores), dtype=bool) if labels is None else labels == index
            own, others = (_histogram(scores[m, index], thresholds) for m in (inside, ~inside))
            levels[level][name] = {"class": None if labels is None else own, "others": others}
    return {
        "class_names": list(class_names),
        "labelled": evaluation is not None,
        "thresholds": thresholds.tolist(),
        "levels": levels,
        "operating_points": {
            level: {
                name: int(np.searchsorted(thresholds, value)) for name, value in by_class.items()
            }
            for level, by_class in points.items()
        },
    }


def _histogram(scores: np.ndarray, thresholds: np.ndarray) -> list[int]:
    # A score at a threshold reaches it, as in threshold_metrics
    index = np.searchsorted(thresholds, scores, side="right") - 1
    numbers, counts = np.unique(index.clip(min=0), return_counts=True)
    return np.stack([numbers, counts], axis=1).ravel().tolist()
