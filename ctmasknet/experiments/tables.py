"""Tables and a plot of a plan's result files."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from ctmasknet.experiments.lesion_tables import lesion_plot, lesion_tables
from ctmasknet.experiments.overview import arms_run, steps_of, told_apart, write_overview
from ctmasknet.experiments.plan import Arm, Fold, Plan
from ctmasknet.experiments.results import (
    accuracy,
    area_under_roc,
    difference,
    seeds_of,
    sensitivities,
)
from ctmasknet.files import atomic_write, replace_between_marks

_NOT_RUN = "not run"
_Results = Mapping[str, Mapping[str, Any]]


def write_plan_tables(
    plan: Plan, results: _Results, folder: Path, evidence: str | os.PathLike | None = None
) -> str:
    """Write ``tables.md`` and ``plot.png`` into the plan's folder, where anything was run.

    Args:
        plan, results: the plan, and the results by the names of its runs.
        folder: of the plan.
        evidence: Markdown file with marks of the plan's name, for tables and plot too; with marks
            ``plans``, for what was run of all plans that stand beside this one.

    Returns:
        the tables; "" where nothing was run.

    Raises:
        CTMaskNetError: ``evidence`` has no such marks.
    """
    of_lesions, tables = plan.task == "lesions", ""
    if results:
        tables = lesion_tables(plan, results) if of_lesions else plan_tables(plan, results)
        with atomic_write(folder / "tables.md") as stream:
            stream.write(f"# {plan.title}\n\n{tables}\n")
        figure = lesion_plot(plan, results) if of_lesions else _plot(plan, results)
        with atomic_write(folder / "plot.png", mode="wb") as stream:
            FigureCanvasAgg(figure).print_png(stream)
    if evidence is not None:
        plot = Path(os.path.relpath(folder / "plot.png", Path(evidence).parent)).as_posix()
        shown = f"{tables}\n\n![{plan.title}]({plot})" if tables else ""
        replace_between_marks(evidence, plan.name, shown)
        write_overview(evidence, Path(plan.file).parent, folder.parent)
    return tables


def plan_tables(plan: Plan, results: _Results) -> str:
    """Markdown: accuracy of every arm by fold, then differences from ``against``. What has no run
    is named below and has no row or column."""
    folds = [f for f in plan.folds if any(n.startswith(f"{f.name}/") for n in results)]
    arms = arms_run(plan, results)
    against = next(arm for arm in plan.arms if arm.name == plan.against)
    known = [result for result in results.values() if result["class_names"]]
    names = known[0]["class_names"] if known else []
    # A mean over some of the folds, or over unlike sets, is none of the plan's
    alike = len({fold.evaluated_on for fold in folds}) == 1
    whole = [list(folds)] if alike and 1 < len(folds) == len(plan.folds) else []
    groups = [*([fold] for fold in folds), *whole]
    accuracies = [
        [
            arm.title,
            *(_spread(_accuracies(plan, results, arm, [fold])) for fold in folds),
            *(_mean(_accuracies(plan, results, arm, every)) for every in whole),
            _of_classes(plan, results, arm),
        ]
        for arm in arms
    ]
    columns = [*(fold.name for fold in folds), *["all"] * len(whole)]
    differences = [
        [arm.title, *(_points(plan, results, arm, group) for group in groups)]
        for arm in arms
        if arm is not against
    ]
    said = "; ".join(f"{fold.name}: {_counts(results, fold)}" for fold in folds)
    seconds = [sum(result["seconds"].values()) for result in results.values()]
    took = f", median {statistics.median(seconds):.0f} s each" if seconds else ""
    lacking = [
        *(fold.name for fold in plan.folds if fold not in folds),
        *(arm.title for arm in plan.arms if arm not in arms),
    ]
    return "\n\n".join(
        [
            "Accuracy in percent, mean of the seeds (lowest..highest):",
            _table(["", *columns, "sensitivity " + ", ".join(names)], accuracies),
            *_areas(plan, results, arms, folds, names),
            f"Points of accuracy more than {against.title}, with 95 % intervals over patients "
            "(the same slices and seeds):",
            _table(["", *columns], differences),
            *_in_words(plan, results, arms, folds),
            f"{len(results)} of {len(plan.runs)} runs, seeds "
            f"{', '.join(map(str, plan.seeds))}{took}; {said}."
            + (f" Not run: {', '.join(lacking)}." if lacking else "")
            + f" {steps_of(plan)} Made by `python tools/experiments.py {plan.file}`.",
        ]
    )


def _in_words(
    plan: Plan, results: _Results, arms: Sequence[Arm], folds: Sequence[Fold]
) -> list[str]:
    """Which arms name more slices than ``against``, on all folds or, where they are evaluated on
    unlike sets, on each."""
    alike = len({fold.evaluated_on for fold in folds}) == 1
    against = next(arm for arm in plan.arms if arm.name == plan.against)
    said = []
    for group in [list(folds)] if alike else [[fold] for fold in folds]:
        found = {
            arm.title: interval
            for arm in arms
            if arm is not against
            and (interval := difference(plan, results, arm.name, group)) is not None
        }
        where = "" if alike else f"{group[0].name}: "
        said.append(f"{where}{told_apart('accuracy', against.title, found)}")
    return ["\n".join(f"- {one}" for one in said) if len(said) > 1 else said[0]]


def _areas(
    plan: Plan, results: _Results, arms: Sequence[Arm], folds: Sequence[Fold], names: Sequence[str]
) -> list[str]:
    """A table of areas under the ROC curve, where there are two classes."""
    if len(names) != 2:
        return []
    rows = [[arm.title, *(_area(plan, results, arm, fold) for fold in folds)] for arm in arms]
    return [
        f"Area under the ROC curve of {names[-1]}, mean of the seeds, with 95 % intervals over "
        "patients:",
        _table(["", *(fold.name for fold in folds)], rows),
    ]


def _area(plan: Plan, results: _Results, arm: Arm, fold: Fold) -> str:
    seeds = seeds_of(plan, results, fold, [arm.name])
    interval = area_under_roc([results[f"{fold.name}/{arm.name}/{seed}"] for seed in seeds])
    if interval is None or interval.value is None:
        return _NOT_RUN
    if interval.low is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f}..{interval.high:.3f})"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


class _Runs(list):
    """Figures of the runs of a cell that are there; ``missing`` counts the others."""

    missing = 0

    @property
    def note(self) -> str:
        return f" [{len(self)} of {len(self) + self.missing} runs]" if self.missing else ""


def _accuracies(plan: Plan, results: _Results, arm: Arm, folds: Sequence[Fold]) -> _Runs:
    found, seeds = _Runs(), [(fold, seeds_of(plan, results, fold, [arm.name])) for fold in folds]
    for fold, there in seeds:
        found += [accuracy(results[f"{fold.name}/{arm.name}/{seed}"]) for seed in there]
    found.missing = len(folds) * len(plan.seeds) - len(found)
    # A mean over some of the folds is none of the plan's
    return found if all(there for _, there in seeds) else _Runs()


def _mean(values: _Runs) -> str:
    return f"{statistics.fmean(values):.1f}{values.note}" if values else _NOT_RUN


def _spread(values: _Runs) -> str:
    if len(values) < 2:
        return _mean(values)
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ({min(values):.1f}..{max(values):.1f}){values.note}"


def _of_classes(plan: Plan, results: _Results, arm: Arm) -> str:
    found = [
        sensitivities(results[f"{fold.name}/{arm.name}/{seed}"])
        for fold in plan.folds
        for seed in seeds_of(plan, results, fold, [arm.name])
    ]
    classes = sorted({name for one in found for name in one})
    means = [statistics.fmean(one[c] for one in found if c in one) for c in classes]
    return ", ".join(f"{mean:.1f}" for mean in means) or _NOT_RUN


def _points(plan: Plan, results: _Results, arm: Arm, folds: Sequence[Fold]) -> str:
    interval = difference(plan, results, arm.name, folds)
    if interval is None:
        return _NOT_RUN
    seeds = [len(seeds_of(plan, results, fold, [arm.name, plan.against])) for fold in folds]
    note = ""
    if min(seeds) < len(plan.seeds):
        note = f" [{sum(seeds)} of {len(folds) * len(plan.seeds)} pairs]"
    if interval.low is None:
        return f"{interval.value:+.1f}{note}"
    return f"{interval.value:+.1f} ({interval.low:+.1f}..{interval.high:+.1f}){note}"


def _counts(results: _Results, fold: Fold) -> str:
    own = [result for name, result in results.items() if name.startswith(f"{fold.name}/")]
    if not own:
        return _NOT_RUN
    return f"{own[0]['n']} slices of {len(own[0]['patients'])} patients"


def _plot(plan: Plan, results: _Results) -> Figure:
    """A dot a run: by arm, or where arms are points of lines, by their ``x``."""
    lines = [arm for arm in plan.arms if arm.series is not None]
    arms = arms_run(plan, results)
    height = 4.5 if lines else 1.2 + 0.4 * len(arms)
    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title(plan.title, fontsize=10)
    if lines:
        _draw_lines(plan, results, axes)
        axes.set_ylabel("accuracy, %")
        return figure
    shown = [(n, f) for n, f in enumerate(plan.folds) if _counts(results, f) != _NOT_RUN]
    for row, arm in enumerate(arms):
        for number, fold in shown:
            found = [results.get(f"{fold.name}/{arm.name}/{seed}") for seed in plan.seeds]
            dots = [accuracy(one) for one in found if one]
            label = fold.name if row == 0 else None
            axes.plot(
                dots, [row] * len(dots), "o", ms=4, alpha=0.7, color=f"C{number}", label=label
            )
        if every := _accuracies(plan, results, arm, plan.folds):
            axes.plot([statistics.fmean(every)], [row], "|", ms=16, mew=2, color="black")
    axes.set_yticks(range(len(arms)), [arm.title for arm in arms])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy, % (a dot a run, bars are means)")
    axes.grid(axis="x", alpha=0.3)
    if shown:
        axes.legend(fontsize=8)
    return figure


def _draw_lines(plan: Plan, results: _Results, axes: Any) -> None:
    series = dict.fromkeys(arm.series for arm in plan.arms if arm.series is not None)
    for number, name in enumerate(series):
        points = []
        for arm in plan.arms:
            found = [
                results.get(f"{fold.name}/{arm.name}/{seed}")
                for fold in plan.folds
                for seed in plan.seeds
            ]
            dots = [accuracy(one) for one in found if one]
            if arm.series == name and dots:
                axes.plot([arm.x] * len(dots), dots, "o", ms=3, alpha=0.4, color=f"C{number}")
                points.append((arm.x, statistics.fmean(dots)))
        points.sort()
        axes.plot(
            *zip(*points, strict=True) if points else ([], []), color=f"C{number}", label=name
        )
    axes.set_xscale("log")
    ticks = sorted({arm.x for arm in plan.arms if arm.x is not None})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel(plan.x_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
