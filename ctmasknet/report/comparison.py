"""Systems compared on the same patients: from files and run folders to ``comparison.json``, a
picture, and a section of the report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ctmasknet.console.progress import tracked
from ctmasknet.engine.checkpoint import read_spec
from ctmasknet.engine.record import hardware
from ctmasknet.engine.runs.identity import RUN
from ctmasknet.engine.setup import BEST_CHECKPOINT
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.comparison import (
    COST_COLUMNS,
    compare_systems,
    comparison_text,
    cost_cells,
    figure_of,
    p_text,
)
from ctmasknet.evaluation.subgroups import SMALL_GROUP
from ctmasknet.files import atomic_write, check_writable, read_json, write_json, writing
from ctmasknet.paper.model_costs import MEASURED_ON, model_costs
from ctmasknet.report.forms import comparison_form
from ctmasknet.report.source import find_predictions, read_run, run_folders
from ctmasknet.schema import checked

_NAME = "comparison.json"
_SHOWN = {
    "accuracy": "accuracy, %",
    "sensitivity-macro": "mean sensitivity, %",
    "auroc-macro": "mean area under ROC",
}


def write_comparison(
    systems: Sequence[str],
    output: str | os.PathLike,
    *,
    dataset: str | None = None,
    against: str | None = None,
    measure: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Compare systems and write ``comparison.json`` and ``comparison.png``.

    Args:
        systems: ``[NAME=]PATH`` each, a ``predictions.csv`` or the folder of a run.
        output: folder, made when missing.
        dataset: which of several evaluated sets.
        against: the picture shows differences from this system; default the first.
        measure: find out what each system's model costs
            (:func:`ctmasknet.paper.model_costs.model_costs`), where its run's folder has one:
            ``costs`` of the system in ``comparison.json``, or ``costs_unknown``, the reason.
        options: of :func:`ctmasknet.evaluation.comparison.compare_systems`.

    Raises:
        CTMaskNetError: see there; two systems of one name; nothing is written then.
    """
    folder = check_writable(output, folder=True)
    files: dict[str, Path] = {}
    for item in systems:
        name, path = _system(item, dataset)
        if name in files:
            raise CTMaskNetError(
                f"{item}: a second system called {name}; put NAME= in front of one of them"
            )
        files[name] = path
    comparison = compare_systems(files, **options)
    comparison_text(comparison, against)  # refuses another name before anything is written
    if measure:
        for system in tracked(comparison["systems"], "costs of models", unit="model"):
            system |= _costs(files[system["name"]])
        comparison["settings"]["costs"] = MEASURED_ON | {"cpu": hardware("cpu")["cpu"]}
    picture = _picture(comparison, against)
    with writing(folder):
        write_json(folder / _NAME, comparison, indent=1)
        with atomic_write(folder / "comparison.png", mode="wb") as stream:
            FigureCanvasAgg(picture).print_png(stream)
    return comparison


def read_comparison(path: str | os.PathLike) -> dict[str, Any]:
    """``comparison.json``, itself or its folder.

    Raises:
        CTMaskNetError: it is missing, or another file.
    """
    path = Path(path)
    path = path / _NAME if path.is_dir() else path
    if not path.is_file():
        raise CTMaskNetError(f"{path}: no such file; tools/compare.py writes it")
    what = "a comparison of tools/compare.py"
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise CTMaskNetError(f"{path}: not {what} ({error}); write it anew") from None
    return checked(path, found, comparison_form, what, "write it anew")


def comparison_section(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the page shows of each level: ``level``, ``counts``, ``few``, ``columns`` and ``rows``
    of the systems, ``pair_columns`` and ``pairs``."""
    tests = ["McNemar p", *(f"DeLong p, {name}" for name in comparison["class_names"])]
    costs = any(system.get("costs") for system in comparison["systems"])
    return [
        {
            "level": level,
            "counts": counts,
            "few": counts["n_patients"] < SMALL_GROUP,
            "columns": [*(COST_COLUMNS if costs else ()), *_SHOWN.values()],
            "rows": [
                (
                    s["name"],
                    [
                        *(cost_cells(s) if costs else ()),
                        *(figure_of(m, s["levels"][level][m]) for m in _SHOWN),
                    ],
                )
                for s in comparison["systems"]
            ],
            "pair_columns": [*_SHOWN.values(), *tests],
            "pairs": [
                (f"{pair['first']} less {pair['second']}", _pair(pair["levels"][level]))
                for pair in comparison["pairs"]
            ],
        }
        for level, counts in comparison["levels"].items()
    ]


def _pair(found: Mapping[str, Any]) -> list[str]:
    differences = [figure_of(m, found["differences"][m], signed=True) for m in _SHOWN]
    return [*differences, p_text(found["mcnemar"]), *map(p_text, found["delong"].values())]


def _system(item: str, dataset: str | None) -> tuple[str, Path]:
    """Name and predictions of one system."""
    name, equals, given = item.partition("=")
    # A path may hold "=" as well
    if not equals or os.path.exists(item) or "/" in name or not name:
        name, given = "", item
    path = Path(given)
    if not path.is_dir():
        return name or path.resolve().parent.name, path
    _, entries = read_run(path)
    return name or path.resolve().name, find_predictions(path, dataset, entries)[0]


def _costs(predictions: Path) -> dict[str, Any]:
    """``costs`` of the model that made a ``predictions.csv``, or ``costs_unknown``."""
    _, entries = read_run(predictions.parent)
    if not entries:
        return {"costs": None, "costs_unknown": "no model is recorded beside it"}
    stated = next((e for e in reversed(entries) if e.get("kind") != "training"), {})
    given = Path(str(stated.get("weights") or BEST_CHECKPOINT))
    # A folder may have been moved, or be named from elsewhere
    beside = [folder / given.name for folder in run_folders(predictions.parent)]
    try:
        for path in (*beside, given):
            if path.is_file() and stated.get("weights_run") in (None, read_spec(path).get(RUN)):
                return {"costs": model_costs(path).to_json()}
    except CTMaskNetError as error:
        return {"costs": None, "costs_unknown": str(error)}
    return {"costs": None, "costs_unknown": f"{given.name} of that run is not there"}


def _picture(comparison: Mapping[str, Any], against: str | None) -> Figure:
    """Accuracies with intervals, and differences of accuracy from one system, patients (or slices)
    as judged."""
    level = "patients" if "patients" in comparison["levels"] else "slices"
    systems = comparison["systems"]
    reference = against or systems[0]["name"]
    figure = Figure(figsize=(10, 1.6 + 0.38 * len(systems)), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [system["name"] for system in systems]
    for row, system in enumerate(systems):
        _bar(left, row, system["levels"][level]["accuracy"])
    for pair in comparison["pairs"]:
        if reference in (pair["first"], pair["second"]):
            found = pair["levels"][level]["differences"]["accuracy"]
            if pair["first"] == reference:  # the other less the reference
                low, high = found["low"], found["high"]
                found = {
                    "value": None if found["value"] is None else -found["value"],
                    "low": None if high is None else -high,
                    "high": None if low is None else -low,
                }
                _bar(right, names.index(pair["second"]), found)
            else:
                _bar(right, names.index(pair["first"]), found)
    right.axvline(0, color="black", linewidth=0.8)
    left.set(xlabel=f"accuracy of {level}, %", yticks=range(len(names)), yticklabels=names)
    left.set_ylim(len(names) - 0.5, -0.5)
    right.set(xlabel=f"difference from {reference}, points (paired)")
    counts = comparison["levels"][level]
    confidence = 100 * comparison["settings"]["confidence"]
    of = "" if level == "patients" else f" of {counts['n_patients']} patients"
    figure.suptitle(f"{counts['n']} {level}{of}; {confidence:g} % intervals", fontsize=10)
    return figure


def _bar(axes: Any, row: int, interval: Mapping[str, Any]) -> None:
    if interval["value"] is None:
        return
    axes.plot([interval["value"]], [row], "o", color="#1b4f8a")
    if interval["low"] is not None:
        axes.plot(np.array([interval["low"], interval["high"]]), [row, row], color="#1b4f8a")
