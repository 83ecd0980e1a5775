"""What tables of plans say in words: which arms are told apart, how long each was trained, and what
was run of all plans of a folder.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from tabulate import tabulate

from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.intervals import Interval
from ctmasknet.experiments.plan import Arm, ArmRun, Plan, read_plan
from ctmasknet.experiments.results import opts_of, read_results
from ctmasknet.files import plain_file, replace_between_marks

_MARK = "plans"


def arms_run(plan: Plan, results: Collection[str]) -> list[Arm]:
    """The arms of which there is a run, by the names of all runs that there are."""
    run = {name.split("/")[1] for name in results}
    return [arm for arm in plan.arms if arm.name in run]


def told_apart(of: str, against: str, found: Mapping[str, Interval]) -> str:
    """One sentence: of which arms a difference's interval is above zero, below it, or holds it.

    Args:
        of: what the differences are of.
        against: title of the arm that they are differences from.
        found: differences by the titles of the arms.
    """
    sides: dict[str, list[str]] = {
        f"More {of} than {against}, the interval above zero": [],
        f"Less {of} than {against}, the interval below zero": [],
        f"Not told apart in {of} from {against}": [],
    }
    above, below, neither = sides.values()
    for title, interval in found.items():
        if interval.low is None:
            side = neither
        else:
            side = above if interval.low > 0 else below if interval.high < 0 else neither
        side.append(title)
    said = [f"{side}: {'; '.join(titles)}." for side, titles in sides.items() if titles]
    return " ".join(said) or f"Nothing to set beside {against}."


def steps_of(plan: Plan) -> str:
    """How many steps of how many slices the arms of a plan are trained."""
    arms: dict[str, list[str]] = {}
    for arm in plan.arms:
        if arm.baseline:
            continue
        solver = read_cfg(arm.config_file, opts_of(plan, ArmRun(plan.folds[0], arm, 0))).SOLVER
        long = f"{solver.MAX_EPOCHS} epochs" if solver.MAX_EPOCHS else f"{solver.MAX_ITER} steps"
        arms.setdefault(f"{long} of {solver.IMS_PER_BATCH} slices", []).append(arm.title)
    if len(arms) == 1:
        return f"Trained for {next(iter(arms))}."
    most = max(arms, key=lambda long: len(arms[long]), default=None)
    others = [f"{'; '.join(arms[long])}: {long}" for long in arms if long != most]
    return f"Trained for {most} ({', '.join(others)})." if arms else ""


def write_overview(evidence: str | os.PathLike, plans: Path, results: Path) -> None:
    """Write a table of all plans between the marks ``plans`` of a Markdown file, if it has them.

    Args:
        evidence: the file.
        plans: folder of the plans.
        results: folder of their result files.
    """
    if f"<!-- {_MARK}: begin -->" not in plain_file(evidence).read_text(encoding="utf-8"):
        return
    rows = [_row(read_plan(path), results) for path in sorted(plans.glob("*.yaml"))]
    headers = ["plan", "what it asks", "runs", "minutes"]
    table = tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)
    replace_between_marks(evidence, _MARK, table)


def _row(plan: Plan, results: Path) -> list[str]:
    wanted = len(plan.runs)
    try:
        done = read_results(plan, results / plan.name)
    except CTMaskNetError:
        return [f"`{plan.name}`", plan.title, f"those there are of another plan, of {wanted}", ""]
    minutes = sum(sum(one["seconds"].values()) for one in done.values()) / 60
    runs = f"{len(done)} of {wanted}" if done else f"not run ({wanted})"
    return [f"`{plan.name}`", plan.title, runs, f"{minutes:.0f}" if done else ""]
