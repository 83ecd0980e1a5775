"""Tables and a plot of a plan of lesion networks: figures over the slices of all folds, each with
its interval over patients, and paired differences. A figure of several seeds is their mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.intervals import Interval, bootstrap_intervals
from ctmasknet.experiments.lesions import (
    FALSE_POSITIVE_SCORE,
    LesionFigures,
    false_positive_figures,
)
from ctmasknet.experiments.overview import arms_run, steps_of, told_apart
from ctmasknet.experiments.plan import Arm, Plan

_Results = Mapping[str, Mapping[str, Any]]
_DICE = {"mean": "Dice, mean of 256 cuts", "maximum": "Dice, maximum", "at-0.5": "Dice at 0.5"}
_AP = {"box-AP50": "box AP50, %", "mask-AP50": "mask AP50, %", "per-image-AP": "per-image AP, %"}
_RESAMPLES = 1000


def lesion_tables(plan: Plan, results: _Results) -> str:
    """Markdown: Dice, AP and false positives of every arm, then differences from ``against``.

    Raises:
        CTMaskNetError: two arms were evaluated on other slices.
    """
    models = {arm.name: _models(plan, results, arm) for arm in plan.arms}
    arms = [arm for arm in plan.arms if models[arm.name]]
    if not arms:
        return f"No network was run on every fold yet. {_what_was_run(plan, results, [])}"
    found = {arm: _figures(of_seed) for arm, of_seed in models.items()}
    known = models[arms[0].name]
    maps = known[0].maps
    dice_rows, ap_rows = [], []
    for arm in arms:
        here = found[arm.name]
        for of_map in maps:
            cells = [_shown(here.get(f"{kind}-{of_map}"), ".3f") for kind in _DICE]
            dice_rows.append([arm.title, *([of_map] if len(maps) > 1 else []), *cells])
        cells = [_shown(here.get(name), ".1f") for name in _AP]
        ap_rows.append([arm.title, *cells, *([_normal(plan, results, arm)] * bool(plan.normals))])
    of_class = ["class"] if len(maps) > 1 else []
    parts = [
        "Dice of lesion maps, 0..1, of the slices that have the lesion, with 95 % intervals over "
        "patients:",
        _table(["", *of_class, *_DICE.values()], dice_rows),
        "Lesions one by one: COCO's AP50 of all folds' detections ranked together, and the "
        "authors' per-image AP of masks (scores above 0.75)"
        + (
            f"; false positives a slice of {plan.normals}, whose slices have no lesion, from a "
            f"score of {FALSE_POSITIVE_SCORE:g} on:"
            if plan.normals
            else ":"
        ),
        _table(["", *_AP.values(), *["false positives"] * bool(plan.normals)], ap_rows),
    ]
    parts += _differences(plan, results, models)
    return "\n\n".join([*parts, _what_was_run(plan, results, known)])


def _models(plan: Plan, results: _Results, arm: Arm) -> list[LesionFigures]:
    """One of each seed with which an arm was run on every fold."""
    return [
        LesionFigures(_of_seed(plan, results, arm.name, seed))
        for seed in _seeds(plan, results, arm)
    ]


def _seeds(plan: Plan, results: _Results, *arms: Arm) -> list[int]:
    return [
        seed
        for seed in plan.seeds
        if all(f"{fold.name}/{arm.name}/{seed}" in results for arm in arms for fold in plan.folds)
    ]


def _of_seed(plan: Plan, results: _Results, arm: str, seed: int) -> list[Mapping[str, Any]]:
    return [results[f"{fold.name}/{arm}/{seed}"] for fold in plan.folds]


def _figures(models: Sequence[LesionFigures]) -> dict[str, Interval]:
    if not models:
        return {}
    return _intervals(lambda weights: _mean([one(weights) for one in models]), models[0])


def _intervals(
    statistic: Callable[[np.ndarray], dict[str, np.ndarray]], model: LesionFigures
) -> dict[str, Interval]:
    return bootstrap_intervals(statistic, len(model.patients), n_boot=_RESAMPLES)


def _mean(found: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}


def _normal(plan: Plan, results: _Results, arm: Arm) -> str:
    seeds = _seeds(plan, results, arm)
    every = [one for seed in seeds for one in _of_seed(plan, results, arm.name, seed)]
    wrong, slices = false_positive_figures(every)
    if not len(slices):
        return "not run"

    def mean(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": (weights @ wrong) / (weights @ slices)}

    return _shown(bootstrap_intervals(mean, len(slices), n_boot=_RESAMPLES)["mean"], ".2f")


def _differences(
    plan: Plan, results: _Results, models: Mapping[str, Sequence[LesionFigures]]
) -> list[str]:
    against = next(arm for arm in plan.arms if arm.name == plan.against)
    whole = models[against.name][0].maps[-1] if models[against.name] else "lesions"
    names = {f"{kind}-{whole}": title for kind, title in _DICE.items()} | _AP
    found = {
        arm.title: _difference(plan, results, [arm.name, against.name], seeds)
        for arm in plan.arms
        if arm is not against and (seeds := _seeds(plan, results, arm, against))
    }
    if not found:
        return []
    forms = {name: "+.3f" if "Dice" in title else "+.1f" for name, title in names.items()}
    rows = [[title, *(_shown(own[n], forms[n]) for n in names)] for title, own in found.items()]
    told = (f"maximum-{whole}", "box-AP50", "mask-AP50")
    said = [
        told_apart(names[n].removesuffix(", %"), against.title, {t: found[t][n] for t in found})
        for n in told
    ]
    return [
        f"More than {against.title}, on the same slices, with 95 % intervals over patients:",
        _table(["", *names.values()], rows),
        "\n".join(f"- {one}" for one in said),
    ]


def _difference(
    plan: Plan, results: _Results, arms: Sequence[str], seeds: Sequence[int]
) -> dict[str, Interval]:
    for fold in plan.folds:
        runs = [f"{fold.name}/{arm}/{seed}" for arm in arms for seed in seeds]
        for name in runs:
            if results[name]["files_sha256"] != results[runs[0]]["files_sha256"]:
                raise CTMaskNetError(
                    f"{name}: was evaluated on other slices than {runs[0]}; remove the older file"
                )
    own, other = (
        [LesionFigures(_of_seed(plan, results, arm, seed)) for seed in seeds] for arm in arms
    )

    def more(weights: np.ndarray) -> dict[str, np.ndarray]:
        ahead, behind = (_mean([one(weights) for one in models]) for models in (own, other))
        return {name: ahead[name] - behind[name] for name in ahead}

    return _intervals(more, own[0])


def _what_was_run(plan: Plan, results: _Results, known: Sequence[LesionFigures]) -> str:
    seconds = [sum(result["seconds"].values()) for result in results.values()]
    took = f", median {statistics.median(seconds):.0f} s each" if seconds else ""
    counted = ""
    if known:
        counted = f"; {known[0].num_slices} slices of {len(known[0].patients)} patients"
    lacking = [arm.title for arm in plan.arms if not _seeds(plan, results, arm)]
    return (
        f"{len(results)} of {len(plan.runs)} runs, {len(plan.folds)} folds, seeds "
        f"{', '.join(map(str, plan.seeds))}{took}{counted}."
        + (f" Not run on every fold: {', '.join(lacking)}." if lacking else "")
        + f" {steps_of(plan)} Made by `python tools/experiments.py {plan.file}`."
    )


def _shown(interval: Interval | None, form: str) -> str:
    if interval is None or interval.value is None:
        return "not run" if interval is None else "-"
    if interval.low is None:
        return f"{interval.value:{form}}"
    return f"{interval.value:{form}} ({interval.low:{form}}..{interval.high:{form}})"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


def lesion_plot(plan: Plan, results: _Results) -> Figure:
    """Dice (maximum, of all lesions) and box AP50 of every arm: a dot a fold and seed, a bar over
    all slices."""
    arms = arms_run(plan, results)
    figure = Figure(figsize=(9, 1.4 + 0.4 * len(arms)), dpi=120, layout="constrained")
    figure.suptitle(plan.title, fontsize=10)
    panels = figure.subplots(1, 2, sharey=True)
    for row, arm in enumerate(arms):
        names = [f"{fold.name}/{arm.name}/{seed}" for fold in plan.folds for seed in plan.seeds]
        each = [LesionFigures([results[name]]) for name in names if name in results]
        whole = _models(plan, results, arm)
        for axes, value_of in zip(panels, (_dice_of, _box_ap_of), strict=True):
            dots = [value_of(one) for one in each]
            axes.plot(dots, [row] * len(dots), "o", ms=4, alpha=0.6, color="C0")
            if whole:
                mean = statistics.fmean(value_of(one) for one in whole)
                axes.plot([mean], [row], "|", ms=16, mew=2, color="black")
    panels[0].set_yticks(range(len(arms)), [arm.title for arm in arms])
    panels[0].invert_yaxis()
    for axes, title in zip(panels, ("Dice, maximum", "box AP50, %"), strict=True):
        axes.set_xlabel(f"{title} (a dot a fold, bars are of all)")
        axes.grid(axis="x", alpha=0.3)
    return figure


def _value(model: LesionFigures, name: str) -> float:
    return float(model(np.ones((1, len(model.patients))))[name][0])


def _dice_of(model: LesionFigures) -> float:
    return _value(model, f"maximum-{model.maps[-1]}")


def _box_ap_of(model: LesionFigures) -> float:
    return _value(model, "box-AP50")
