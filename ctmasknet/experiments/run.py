"""A plan from the first tool to the last: what is missing is made, what is there is left."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctmasknet.config_file import read_cfg
from ctmasknet.engine.record import git_commit, hardware
from ctmasknet.errors import CTMaskNetError, end_with_parent
from ctmasknet.evaluation.predictions import read_predictions_csv
from ctmasknet.experiments.plan import ArmRun, Plan, read_plan
from ctmasknet.experiments.results import (
    RESULT_FORMAT,
    of_predictions,
    opts_of,
    read_results,
    result_path,
)
from ctmasknet.experiments.tables import write_plan_tables
from ctmasknet.files import check_writable, folder_of_one, read_json, write_json

_ROOT = Path(__file__).resolve().parents[2]
#: What tools import, once for all of them.
_IMPORTED = ("ctmasknet.engine.runs.command",)
#: Command line, environment, file for what it prints -> exit code.
Call = Callable[[Sequence[str], Mapping[str, str], Path], int]


def call_tool(words: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Run a tool in a process of its own, which has the tools' imports already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    process = context.Process(target=_tool, args=(list(words), dict(environment), str(log)))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:  # nobody waits for what it is at
        process.kill()
        process.join()
        raise
    return process.exitcode


def _tool(words: list[str], environment: dict[str, str], log: str) -> None:
    with open(log, "ab") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    os.environ.update(environment)
    end_with_parent(os.getppid())
    for name in _IMPORTED:
        importlib.import_module(name)
    sys.argv = words
    runpy.run_path(str(_ROOT / words[0]), run_name="__main__")


def run_plan(
    plan_file: str | os.PathLike,
    results: str | os.PathLike,
    work: str | os.PathLike,
    *,
    tell_only: bool = False,
    tables_only: bool = False,
    evidence: str | os.PathLike | None = None,
    call: Call = call_tool,
) -> dict[str, dict[str, Any]]:
    """Do the runs of a plan that have no result file yet, and write tables and a plot of all.

    What it will take is told first.

    Args:
        plan_file: see :mod:`ctmasknet.experiments.plan`.
        results: folder of result files; the plan's stand in a folder of its name, with
            ``tables.md`` and ``plot.png``.
        work: folder of what the runs leave, which goes when their result is written.
        tell_only: run nothing, write nothing.
        tables_only: run nothing, write tables and plot of the files that are there.
        evidence: Markdown file with marks of the plan's name, for the tables too.
        call: runs a tool.

    Returns:
        the results by the names of the runs.

    Raises:
        CTMaskNetError: no such plan, a configuration that is refused, a result file of another
            plan, ``evidence`` without marks, or a tool that ended with an error; names its log.
    """
    plan = read_plan(plan_file)
    for fold in plan.folds:
        for arm in plan.arms:
            read_cfg(arm.config_file, opts_of(plan, ArmRun(fold, arm, plan.seeds[0])))
    folder, work = Path(results) / plan.name, Path(work) / plan.name
    done = read_results(plan, folder)
    left = [run for run in plan.runs if run.name not in done]
    print(what_it_takes(plan, done), flush=True)
    if tell_only:
        return done
    check_writable(folder, folder=True)
    said = write_plan_tables(plan, done, folder, evidence)
    if tables_only:
        print(said)
        return done
    check_writable(work, folder=True)
    with folder_of_one(work, "a plan of experiments", elsewhere="name another by `work`"):
        for fold in dict.fromkeys(run.fold for run in left):
            for step in fold.prepare:
                if not step.makes.exists():
                    name = f"prepare {fold.name}"
                    environment = {"DETECTRON2_DATASETS": fold.datasets}
                    checked_call(call, name, step.words, environment, work / f"{fold.name}.log")
        for number, run in enumerate(left, start=1):
            path = result_path(folder, run)
            found = _measured(plan, run, work, call)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found, indent=1)
            done[run.name] = found
            seconds = sum(found["seconds"].values())
            print(
                f"{number} of {len(left)}: {run.name}, accuracy {found['metrics']['accuracy']:.1f} "
                f"% in {seconds:.0f} s; {_left(len(left) - number, _seconds(done))}",
                flush=True,
            )
    print(write_plan_tables(plan, read_results(plan, folder), folder, evidence))
    return done


def what_it_takes(plan: Plan, done: Mapping[str, Mapping[str, Any]]) -> str:
    """How many runs are done and left, and how long they take by those that were measured."""
    runs = len(plan.runs)
    steps = [step for fold in plan.folds for step in fold.prepare if not step.makes.exists()]
    prepared = f"; {len(steps)} steps prepare data before" if steps else ""
    arms, folds, seeds = len(plan.arms), len(plan.folds), len(plan.seeds)
    return (
        f"{plan.name}: {runs} runs ({arms} arms, {folds} folds, {seeds} seeds), {len(done)} done; "
        f"{_left(runs - len(done), _seconds(done))}{prepared}"
    )


def _seconds(done: Mapping[str, Mapping[str, Any]]) -> list[float]:
    return [sum(one["seconds"].values()) for one in done.values()]


def _left(runs: int, seconds: Sequence[float]) -> str:
    if not runs:
        return "none left"
    if not seconds:
        return f"{runs} left, how long is told after the first"
    each = statistics.median(seconds)  # the first may have cached rows for all
    return f"{runs} left, {runs * each / 60:.0f} min at {each:.0f} s each"


def _measured(plan: Plan, run: ArmRun, work: Path, call: Call) -> dict[str, Any]:
    """Train and evaluate."""
    output = work / run.fold.name / run.arm.name / str(run.seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.parent / f"{run.seed}.log"
    log.unlink(missing_ok=True)
    environment = {"DETECTRON2_DATASETS": run.fold.datasets}
    given = opts_of(plan, run)
    train = ["tools/train_net.py", "--config-file", run.arm.config_file]
    own = ["OUTPUT_DIR", str(output), "SEED", str(run.seed)]
    # What a training starts from is not what is evaluated
    pairs = zip(given[::2], given[1::2], strict=True)
    trained = [word for pair in pairs if pair[0] != "MODEL.WEIGHTS" for word in pair]
    evaluated = ["DATASETS.TEST", f"({plan.evaluated_on!r},)"]
    commands = {
        "training": [*train, "--overwrite", *own, *given],
        "evaluation": [*train, "--eval-only", *own, *trained, *evaluated],
    }
    seconds = {}
    for kind, words in commands.items():
        start = time.perf_counter()
        checked_call(call, f"{run.name} ({kind})", words, environment, log)
        seconds[kind] = round(time.perf_counter() - start, 1)
    inference = output / "inference" / plan.evaluated_on
    predictions = inference / "predictions.csv"
    if not predictions.is_file():
        raise CTMaskNetError(
            f"{run.name}: its evaluation left no {predictions}; plans are of classifiers"
        )
    rows, class_names = read_predictions_csv(predictions)
    result = {
        "format": RESULT_FORMAT,
        "plan": plan.name,
        "fold": run.fold.name,
        "arm": run.arm.name,
        "seed": run.seed,
        "config_file": run.arm.config_file,
        "opts": given,
        "evaluated_on": plan.evaluated_on,
        "commands": [
            f"DETECTRON2_DATASETS={shlex.quote(run.fold.datasets)} python {shlex.join(words)}"
            for words in commands.values()
        ],
        "seconds": seconds,
        "hardware": hardware(read_cfg(run.arm.config_file, given).MODEL.DEVICE),
        "git_commit": git_commit(),
        "class_names": class_names,
        "metrics": read_json(inference / "results.json")["slices"],
        **of_predictions(rows, predictions),
    }
    shutil.rmtree(output)
    log.unlink(missing_ok=True)
    return result


def checked_call(
    call: Call, name: str, words: Sequence[str], environment: Mapping[str, str], log: Path
) -> None:
    """Run a tool.

    Raises:
        CTMaskNetError: it ended with an error; names what it was, its last line and its log.
    """
    code = call(words, environment, log)
    if code:
        raise CTMaskNetError(
            f"{name}: ended with exit code {code} ({_last_line(log)}); all it said is in {log}"
        )


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].strip()[:300] if lines else "it said nothing"
