"""Which slices a report shows: the worst errors, or without labels what a reader should look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ctmasknet.evaluation.pooling import normal_index
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.report.source import ReportSource
from ctmasknet.report.units_table import margin_of

#: So many slices of one patient at most, so that one bad scan does not fill the page.
PER_PATIENT = 2


@dataclass(frozen=True)
class ChosenSlices:
    """Slices under one heading, in order; ``rule`` says how they were chosen, ``found`` of how
    many."""

    heading: str
    rule: str
    rows: list[SlicePrediction]
    found: int


def choose_slices(source: ReportSource, count: int) -> list[ChosenSlices]:
    """The slices to show, at most ``count``, under each heading :data:`PER_PATIENT` of a patient.

    With labels: errors, that with the largest margin (score of the called class less that of the
    true one) first. Without: half of them slices whose best two classes are closest, half those
    with the highest score of each class but normal.

    Args:
        source: predictions.
        count: slices in all; 0 for none.
    """
    if count < 1:
        return []
    if source.evaluation is not None:
        wrong = [row for row in source.rows if row.label not in (None, row.pred)]
        wrong.sort(key=lambda row: -margin_of(row.scores, row.pred, row.label))
        rule = (
            "Slices called wrong, the most confident error first (score of the called class less "
            "that of the true one)"
        )
        return [_chosen("Worst errors", rule, wrong, count)]
    closest = sorted(source.rows, key=lambda row: margin_of(row.scores, row.pred, None))
    half = -(-count // 2)
    rule = "Slices whose best two classes score closest"
    groups = [_chosen("Most uncertain slices", rule, closest, half)]
    normal = normal_index(source.class_names)
    diseases = [index for index in range(len(source.class_names)) if index != normal]
    rest = count - half
    for place, index in enumerate(diseases):
        share = rest // len(diseases) + (place < rest % len(diseases))
        highest = sorted(source.rows, key=lambda row: -row.scores[index])
        name = source.class_names[index]
        rule = f"Slices with the highest score for {name}"
        groups.append(_chosen(f"Highest score for {name}", rule, highest, share))
    return [group for group in groups if group.rows]


def _chosen(heading: str, rule: str, rows: Sequence[SlicePrediction], count: int) -> ChosenSlices:
    return ChosenSlices(heading, rule, _few_of_each(rows, count), len(rows))


def _few_of_each(rows: Iterable[SlicePrediction], count: int) -> list[SlicePrediction]:
    """The first ``count`` rows, without the third and later of a patient."""
    seen: Counter[str] = Counter()
    chosen = []
    for row in rows:
        if len(chosen) == count:
            break
        if row.patient and seen[row.patient] == PER_PATIENT:
            continue
        seen[row.patient] += 1
        chosen.append(row)
    return chosen
