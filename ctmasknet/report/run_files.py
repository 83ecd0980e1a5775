"""What a run's folder says of the run itself: its record, its data sets, slices it left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctmasknet.data.bad_slices import REPORT as BAD_SLICES
from ctmasknet.engine.run_record import RUN_RECORD
from ctmasknet.errors import CTMaskNetError


def read_run(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """``run.json`` of the folder (or of the run whose ``inference/<data set>`` it is), as it is.

    A report only shows the record, so any JSON will do; what is no list of runs is shown whole.
    """
    for path in (place / RUN_RECORD for place in run_folders(folder)):
        if not path.is_file():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CTMaskNetError(
                f"{path}: not a run's record ({error}); restore or remove the file"
            ) from error
        runs = record.get("entries", [record]) if isinstance(record, dict) else []
        runs = runs if isinstance(runs, list) else []
        return record, [entry for entry in runs if isinstance(entry, dict)]
    return None, []


def run_folders(folder: Path) -> list[Path]:
    """Where the run's own files may lie: the folder, and the ``OUTPUT_DIR`` that it is
    ``inference/<data set>`` of."""
    place = folder.resolve().parent
    return [folder, place.parent] if place.name == "inference" else [folder]


def described_sets(entry: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The data sets of a run in ``run.json`` by split, those that are described as
    :func:`ctmasknet.engine.run_record.describe_dataset` does it."""
    sets = entry.get("datasets")
    return {
        split: [item for item in described if isinstance(item, dict)]
        for split, described in (sets.items() if isinstance(sets, dict) else ())
        if isinstance(described, list)
    }


def dataset_names(entry: Mapping[str, Any], split: str) -> list[str]:
    """Names of the data sets of one split (``train``, ``val``, ``test``) of a run."""
    return [str(item.get("name")) for item in described_sets(entry).get(split, ())]


def read_bad_slices(predictions: Path, dataset: str | None) -> tuple[int, int] | None:
    """(unreadable, all) slices or files behind ``predictions``; None where none was left out.

    ``bad_slices.json`` lies beside a prediction, or beside the folders of an evaluation's sets.
    """
    folder = predictions.resolve().parent
    path = (folder if dataset is None else folder.parent) / BAD_SLICES
    if not path.is_file():
        return None
    try:
        sets = json.loads(path.read_text(encoding="utf-8"))["sets"]
        found = {name: (int(item["bad"]), int(item["total"])) for name, item in sets.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CTMaskNetError(
            f"{path}: not a list of bad slices ({type(error).__name__}: {error}); restore or "
            "remove the file"
        ) from error
    bad, total = found.get(dataset or "inputs", (0, 0))
    return (bad, total) if bad else None
