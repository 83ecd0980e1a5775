"""How long the paper's runs take: computed, as seconds that benchmarks measured times counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import read_json, replace_between_marks
from ctmasknet.schema import checked, names_of, number, record, text, whole_from_0

#: Slices of the published lists: the authors' of lesions, their 3,000 of COVIDx-CT-1, and its own.
LIST_SLICES = {
    "lesions, training": 650,
    "lesions, validation": 100,
    "classes, training": 3000,
    "classes, validation": 21_036,
    "classes, test": 21_191,
}
#: What is measured: its file, the way in it, and how many slices one of its seconds are of.
_MEASURED = {
    "lesion step": ("step_segmentation.json", "ctmasknet", 1),
    "heads step": ("heads_cache.json", "cached rows", 8),
    "heads_bn step": ("step_heads_bn.json", "ctmasknet", 1),
    "full step": ("step_full.json", "ctmasknet", 1),
    "inference": ("inference.json", "ctmasknet, model as trained", 1),
}
_FORM = record(
    {
        "timings": names_of(record({"median_s": number})),
        "circumstances": record(
            {"hardware": record({"cpu": text, "cores": whole_from_0}), "git_commit": text}
        ),
    }
)
#: Configuration of a run -> what its steps are.
_RUNS = {
    "configs/seg.yaml": "lesion step",
    "configs/cls.yaml": "heads step",
    "configs/cls_heads_bn.yaml": "heads_bn step",
    "configs/cls_full.yaml": "full step",
}


def write_hours(page: str | os.PathLike, benchmarks: str | os.PathLike, made_by: str) -> None:
    """Write the hours of the paper's runs between the marks ``hours`` of a page.

    Args:
        page: a Markdown file.
        benchmarks: folder of what ``tools/benchmark.py`` wrote.
        made_by: the command, told below the table.

    Raises:
        CTMaskNetError: a file is missing or no result of a benchmark, or the marks are.
    """
    seconds, machine = _seconds_a_slice(Path(benchmarks))
    rows = [
        [f"`{config}`", *(f"{hours:.1f}" if hours else "-" for hours in _hours(config, seconds))]
        for config in _RUNS
    ]
    headers = ["configuration", "caching", "training", "validation", "test", "hours in all"]
    table = tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)
    told = ", ".join(f"{name} {value:.4f}" for name, value in seconds.items())
    note = (
        f"Computed, not run: seconds a slice ({told}), medians measured on {machine}, times the "
        f"slices of the published lists and the epochs of the configurations. Made by `{made_by}`."
    )
    replace_between_marks(page, "hours", f"{table}\n\n{note}")


def _seconds_a_slice(folder: Path) -> tuple[dict[str, float], str]:
    seconds: dict[str, float] = {}
    machines: set[str] = set()
    for name, (file, way, slices) in _MEASURED.items():
        path, what = folder / file, "what tools/benchmark.py wrote"
        remedy = "name a folder of such files"
        try:
            found: Mapping[str, Any] = checked(path, read_json(path), _FORM, what, remedy)
            seconds[name] = found["timings"][way]["median_s"] / slices
        except (OSError, ValueError, LookupError) as error:
            raise CTMaskNetError(f"{path}: not {what} ({error}); {remedy}") from None
        hardware = found["circumstances"]["hardware"]
        machines.add(f"{hardware['cpu']}, {hardware['cores']} cores")
    return seconds, "; ".join(sorted(machines))


def _hours(config: str, seconds: Mapping[str, float]) -> list[float]:
    """Of caching rows, training, validation, test, all."""
    cfg = read_cfg(config)
    kind = _RUNS[config]
    lesions = kind == "lesion step"
    of = "lesions" if lesions else "classes"
    training, validation = LIST_SLICES[f"{of}, training"], LIST_SLICES[f"{of}, validation"]
    evaluations = cfg.SOLVER.MAX_EPOCHS / cfg.TEST.EVAL_EPOCHS
    cached = kind == "heads step"  # its rows are computed once, of both sets
    parts = [
        (training + validation) * seconds["inference"] if cached else 0.0,
        cfg.SOLVER.MAX_EPOCHS * training * seconds[kind],
        0.0 if cached else evaluations * validation * seconds["inference"],
        0.0 if lesions else LIST_SLICES["classes, test"] * seconds["inference"],
    ]
    return [part / 3600 for part in (*parts, sum(parts))]
