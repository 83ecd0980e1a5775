"""``predictions.csv``: what a classifier said of each slice, the file other tools start from."""

from __future__ import annotations

import csv
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scipy.special import expit

from ctmasknet.csv_tables import safe_cell, text_of_cell
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write, plain_file

_ROW_FIELDS = ("file", "patient", "scan", "label", "pred")
#: A last column that prediction writes where a study holds several reconstructions.
COUNTS = "counts"
# A score and the sigmoid of its logit, both rounded to four decimals, differ by less.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class SlicePrediction:
    """One line of the file: ``label`` (None when unknown) and ``pred`` are class indices.

    ``logits`` and ``scores`` hold C floats in class order; a score is the sigmoid of its logit.
    ``counts`` is False of slices whose scan does not count for its patient, for another
    reconstruction of the same study does. ``metadata`` is what is known of the patient, column ->
    text, "" where nothing is stated.
    """

    file: str
    patient: str
    scan: str
    label: int | None
    pred: int
    logits: tuple[float, ...]
    scores: tuple[float, ...]
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    counts: bool = True


def write_predictions_csv(
    path: str | os.PathLike,
    rows: Iterable[SlicePrediction],
    class_names: Sequence[str],
    *,
    with_counts: bool = False,
) -> None:
    """Write ``file,patient,scan,label,pred,logit_<class>...,score_<class>...``, whole or not; then
    a column for each that the rows' ``metadata`` have.

    Classes are written by name, an unknown label is empty; nine digits keep a float32 exactly. Text
    that a spreadsheet would run has a ``'`` in front (:func:`ctmasknet.csv_tables.safe_cell`).
    ``with_counts`` writes :attr:`SlicePrediction.counts` behind the scores, 1 or 0.
    """
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        columns: list[str] = []
        if isinstance(rows, Sequence):  # a prediction, which streams its rows, knows no metadata
            columns = list(dict.fromkeys(name for row in rows for name in row.metadata))
        writer.writerow([*_header(class_names), *[COUNTS] * with_counts, *map(safe_cell, columns)])
        for row in rows:
            label = "" if row.label is None else class_names[row.label]
            values = [format(float(value), ".9g") for value in (*row.logits, *row.scores)]
            words = (row.file, row.patient, row.scan, label, class_names[row.pred])
            values += [str(int(row.counts))] * with_counts
            known = [safe_cell(row.metadata.get(name, "")) for name in columns]
            writer.writerow([*map(safe_cell, words), *values, *known])


def read_predictions_csv(path: str | os.PathLike) -> tuple[list[SlicePrediction], list[str]]:
    """Read what :func:`write_predictions_csv` wrote.

    Returns:
        The rows in file order, and the class names in the order of the logits. Columns behind the
        scores are the rows' ``metadata``.

    Raises:
        CTMaskNetError: the file is missing or has another header, or a line does not parse or
            contradicts itself: a logit or score that is no finite number, a score outside 0..1 or
            unlike the sigmoid of its logit (by more than 1e-4, so that four decimals will do), a
            ``pred`` whose logit is not the highest (one of several that are will do), a patient
        with two values in a column of the metadata.
    """
    path = Path(path)
    try:
        # Spreadsheets put a byte order mark before the header
        with plain_file(path).open(encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CTMaskNetError(
            f"{path}: cannot read predictions ({error}); an evaluation of a classifier writes them"
        ) from error
    header = lines[0] if lines else []
    names = [field.removeprefix("logit_") for field in header if field.startswith("logit_")]
    width = len(_header(names))
    with_counts = header[width : width + 1] == [COUNTS]
    columns = [text_of_cell(name) for name in header[width + with_counts :]]
    unfit = "" in columns or len(set(header)) < len(header)
    if not names or header[:width] != _header(names) or unfit:
        raise CTMaskNetError(
            f"{path}: not a predictions file; its first line must be "
            f"{','.join(_ROW_FIELDS)},logit_<class>...,score_<class>..., and behind them any "
            "columns of patient metadata, each with a name of its own"
        )
    rows = []
    known: dict[str, Mapping[str, str]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        row = _parse(path, number, line, names, columns, with_counts=with_counts)
        first = known.setdefault(row.patient, row.metadata) if row.patient else row.metadata
        if first != row.metadata:
            column = next(name for name in columns if first[name] != row.metadata[name])
            raise CTMaskNetError(
                f"{path}, line {number}: patient {row.patient} has the {column} "
                f"{row.metadata[column]!r}, and {first[column]!r} on an earlier line; correct one"
            )
        rows.append(row)
    return rows, names


def _header(class_names: Sequence[str]) -> list[str]:
    kinds = itertools.product(("logit", "score"), class_names)
    return [*_ROW_FIELDS, *(f"{kind}_{name}" for kind, name in kinds)]


def _parse(
    path: Path,
    number: int,
    line: list[str],
    names: list[str],
    columns: list[str],
    *,
    with_counts: bool,
) -> SlicePrediction:
    """One line of a predictions file; ``number`` counts from 1 for the message."""
    try:
        *words, values = *line[: len(_ROW_FIELDS)], line[len(_ROW_FIELDS) :]
        file, patient, scan, label, pred = map(text_of_cell, words)
        width = 2 * len(names)
        if len(values) != width + with_counts + len(columns):
            expected = len(_ROW_FIELDS) + width + with_counts + len(columns)
            raise ValueError(f"{len(line)} fields instead of {expected}")
        known = map(text_of_cell, values[width + with_counts :])
        counts = values[width] if with_counts else "1"
        if counts not in ("0", "1"):
            raise ValueError(f"{COUNTS} is {counts!r}, not 0 or 1")
        values = values[:width]
        numbers = tuple(float(value) for value in values)
        row = SlicePrediction(
            file=file,
            patient=patient,
            scan=scan,
            label=names.index(label) if label else None,
            pred=names.index(pred),
            logits=numbers[: len(names)],
            scores=numbers[len(names) :],
            counts=counts == "1",
            metadata=dict(zip(columns, known, strict=True)),
        )
        _check(row, names)
        return row
    except ValueError as error:
        raise CTMaskNetError(
            f"{path}, line {number}: {error}; write the file anew by an evaluation of a classifier"
        ) from error


def _check(row: SlicePrediction, names: list[str]) -> None:
    """Refuse a row that contradicts itself by a ValueError."""
    for name, logit, score in zip(names, row.logits, row.scores, strict=True):
        if not math.isfinite(logit):
            raise ValueError(f"logit_{name} is {logit}, no finite number")
        if not 0 <= score <= 1:
            raise ValueError(f"score_{name} is {score:g}, not within 0..1")
        if abs(score - expit(logit)) > _TOLERANCE:
            raise ValueError(
                f"score_{name} is {score:g}, but the sigmoid of logit_{name} is {expit(logit):.6g}"
            )
    best = max(row.logits)
    if row.logits[row.pred] < best:
        raise ValueError(
            f"pred is {names[row.pred]}, but logit_{names[row.logits.index(best)]} is the highest"
        )
