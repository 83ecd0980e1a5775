"""``scans.csv`` and ``patients.csv``: what a classifier said of each scan and patient."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ctmasknet.csv_tables import safe_cell
from ctmasknet.evaluation.pooling import POOLED_LEVELS, PooledPrediction
from ctmasknet.evaluation.predictions import COUNTS
from ctmasknet.files import atomic_write

#: The file of each level, beside ``predictions.csv``.
POOLED_FILES = {level: f"{level}.csv" for level in POOLED_LEVELS}


def write_pooled_csv(
    folder: str | os.PathLike,
    level: str,
    pooled: Iterable[PooledPrediction],
    class_names: Sequence[str],
    pooling: str,
    counts: Sequence[bool] | None = None,
) -> Path:
    """Write ``[patient,]scan,label,pred,n_slices,pooling,score_<class>...`` of scans, or the same
    without ``scan`` of patients, whole or not; by the rules of ``predictions.csv``.

    Args:
        folder: that of ``predictions.csv``.
        level: ``"scans"`` or ``"patients"``.
        pooled: one a line; the label is empty where it is unknown or where slices disagree.
        class_names: C names in the order of the scores.
        pooling: how slices became a scan or patient, in words.
        counts: of each whether it counts for its patient; a last column, None for none.

    Returns:
        the file, with its header alone where there is no scan or patient.
    """
    path = Path(folder) / POOLED_FILES[level]
    names = POOLED_LEVELS[level]
    header = [*names, "label", "pred", "n_slices", "pooling"]
    header += [*(f"score_{name}" for name in class_names), *[COUNTS] * (counts is not None)]
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for number, one in enumerate(pooled):
            label = "" if one.label is None else class_names[one.label]
            words = (*(getattr(one, name) for name in names), label, class_names[one.pred])
            values = [str(one.slices), pooling, *(format(score, ".9g") for score in one.scores)]
            values += [] if counts is None else [str(int(counts[number]))]
            writer.writerow([*map(safe_cell, words), *values])
    return path
