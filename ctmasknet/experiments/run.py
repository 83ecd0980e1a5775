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

from detectron2.config import CfgNode

from ctmasknet.config import is_classifier
from ctmasknet.config_file import read_cfg
from ctmasknet.engine.record import git_commit, hardware
from ctmasknet.errors import CTMaskNetError, end_with_parent, starting_processes
from ctmasknet.evaluation.predictions import read_predictions_csv
from ctmasknet.experiments.baselines import predict_by_baseline
from ctmasknet.experiments.lesions import false_positives, of_evaluation
from ctmasknet.experiments.plan import ArmRun, Plan, read_plan
from ctmasknet.experiments.results import (
    RESULT_FORMATS,
    of_files,
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
#: Figures of a run that are told when it is done.
_TOLD = ("accuracy", "bbox/AP50", "segm/AP50")
#: That a tool has for its checkpoint once it is asked to end.
_GRACE_SECONDS = 30.0
#: Command line, environment, file for what it prints -> exit code.
Call = Callable[[Sequence[str], Mapping[str, str], Path], int]


def call_tool(words: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Run a tool in a process of its own, which has the tools' imports already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    process = context.Process(target=_tool, args=(list(words), dict(environment), str(log)))
    try:
        # The server of forks ends with this process, and what it forks with the server
        with starting_processes():
            process.start()
        process.join()
    except KeyboardInterrupt:
        if process.is_alive():
            # It ends as one that was asked itself, and leaves nothing half-made
            process.terminate()
            process.join(_GRACE_SECONDS)
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
            _cfg_of(plan, ArmRun(fold, arm, plan.seeds[0]))
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
    folds = list(dict.fromkeys(run.fold for run in left))
    for fold in folds:
        for step in fold.prepare:
            if not step.makes.exists():
                step.command()  # refused before the first of them takes its time
    with folder_of_one(work, "a plan of experiments", elsewhere="name another by `work`"):
        for fold in folds:
            for step in fold.prepare:
                if not step.makes.exists():
                    name, words = f"prepare {fold.name}", step.command()
                    environment = {"DETECTRON2_DATASETS": step.datasets}
                    checked_call(call, name, words, environment, work / f"{fold.name}.log")
        for number, run in enumerate(left, start=1):
            path = result_path(folder, run)
            measured = _of_baseline if run.arm.baseline else _of_network
            found = measured(plan, run, work, call)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found, indent=1)
            done[run.name] = found
            seconds = sum(found["seconds"].values())
            print(
                f"{number} of {len(left)}: {run.name}, {_said(found['metrics'])} in {seconds:.0f} "
                f"s; {_left(len(left) - number, _seconds(done))}",
                flush=True,
            )
    print(write_plan_tables(plan, read_results(plan, folder), folder, evidence))
    return done


def what_it_takes(plan: Plan, done: Mapping[str, Mapping[str, Any]]) -> str:
    """How many runs are done and left, and how long they take by those that were measured."""
    runs = len(plan.runs)
    steps = {step.makes for fold in plan.folds for step in fold.prepare if not step.makes.exists()}
    prepared = f"; {len(steps)} steps prepare data before" if steps else ""
    arms, folds, seeds = len(plan.arms), len(plan.folds), len(plan.seeds)
    return (
        f"{plan.name}: {runs} runs ({arms} arms, {folds} folds, {seeds} seeds), {len(done)} done; "
        f"{_left(runs - len(done), _seconds(done), plan.minutes)}{prepared}"
    )


def _seconds(done: Mapping[str, Mapping[str, Any]]) -> list[float]:
    return [sum(one["seconds"].values()) for one in done.values()]


def _left(runs: int, seconds: Sequence[float], minutes: float | None = None) -> str:
    if not runs:
        return "none left"
    if not seconds and minutes is not None:
        return f"{runs} left, about {minutes:g} min on two CPU cores"
    if not seconds:
        return f"{runs} left, how long is told after the first"
    each = statistics.median(seconds)  # the first may have cached rows for all
    return f"{runs} left, {runs * each / 60:.0f} min at {each:.0f} s each"


def _cfg_of(plan: Plan, run: ArmRun) -> CfgNode:
    cfg = read_cfg(run.arm.config_file, opts_of(plan, run))
    if is_classifier(cfg) != (plan.task == "slices"):
        does = "names slices" if is_classifier(cfg) else "finds lesions"
        raise CTMaskNetError(
            f"{plan.file}: {run.arm.config_file} of arm {run.arm.name} {does}, but the plan is of "
            f"{plan.task}; say task: {'slices' if is_classifier(cfg) else 'lesions'}, or take "
            "another"
        )
    return cfg


def _said(metrics: Mapping[str, float | None]) -> str:
    told = ((name, metrics.get(name)) for name in _TOLD)
    return ", ".join(f"{name} {value:.1f} %" for name, value in told if value is not None)


def _of_network(plan: Plan, run: ArmRun, work: Path, call: Call) -> dict[str, Any]:
    """Train and evaluate."""
    output = work / run.fold.name / run.arm.name / str(run.seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.parent / f"{run.seed}.log"
    log.unlink(missing_ok=True)
    environment = {"DETECTRON2_DATASETS": run.fold.datasets}
    given, cfg = opts_of(plan, run), _cfg_of(plan, run)
    train = ["tools/train_net.py", "--config-file", run.arm.config_file]
    own = ["OUTPUT_DIR", str(output), "SEED", str(run.seed)]
    # What a training starts from is not what is evaluated
    pairs = zip(given[::2], given[1::2], strict=True)
    trained = [word for pair in pairs if pair[0] != "MODEL.WEIGHTS" for word in pair]
    if not cfg.DATASETS.VAL:  # which would choose the best
        trained += ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    sets = [run.fold.evaluated_on, *([plan.normals] if plan.normals else [])]
    evaluated = ["DATASETS.TEST", f"({', '.join(map(repr, sets))},)"]
    commands = {
        "training": [*train, "--overwrite", *own, *given],
        "evaluation": [*train, "--eval-only", *own, *trained, *evaluated],
    }
    seconds = {}
    for kind, words in commands.items():
        start = time.perf_counter()
        checked_call(call, f"{run.name} ({kind})", words, environment, log)
        seconds[kind] = round(time.perf_counter() - start, 1)
    threads = os.environ.get("OMP_NUM_THREADS")
    stated = f"OMP_NUM_THREADS={threads} " if threads else ""
    stated += f"DETECTRON2_DATASETS={shlex.quote(run.fold.datasets)}"
    lines = [f"{stated} python {shlex.join(words)}" for words in commands.values()]
    found = _OF_TASK[plan.task](plan, run, output / "inference")
    result = {**_stated(plan, run, lines, seconds, cfg.MODEL.DEVICE), **found}
    shutil.rmtree(output)
    log.unlink(missing_ok=True)
    return result


def _of_baseline(plan: Plan, run: ArmRun, work: Path, call: Call) -> dict[str, Any]:
    start = time.perf_counter()
    trained_on = _cfg_of(plan, run).DATASETS.TRAIN
    where = trained_on, run.fold.evaluated_on, run.fold.datasets
    rows, class_names = predict_by_baseline(run.arm.baseline, *where)
    seconds = {"training": round(time.perf_counter() - start, 1), "evaluation": 0.0}
    found = of_predictions(rows, run.fold.evaluated_on)
    right = 100 * sum(row.pred == row.label for row in rows) / len(rows)
    return {
        **_stated(plan, run, [f"python tools/experiments.py {plan.file}"], seconds, "cpu"),
        "class_names": class_names,
        "metrics": {"accuracy": right},
        **found,
    }


def _stated(
    plan: Plan, run: ArmRun, commands: list[str], seconds: Mapping[str, float], device: str
) -> dict[str, Any]:
    """What every result file says of its run."""
    return {
        "format": RESULT_FORMATS[plan.task],
        "plan": plan.name,
        "fold": run.fold.name,
        "arm": run.arm.name,
        "seed": run.seed,
        "config_file": run.arm.config_file,
        "opts": opts_of(plan, run),
        "baseline": run.arm.baseline,
        "evaluated_on": run.fold.evaluated_on,
        "commands": commands,
        "seconds": seconds,
        "hardware": hardware(device),
        "git_commit": git_commit(),
    }


def _of_slices(plan: Plan, run: ArmRun, inference: Path) -> dict[str, Any]:
    predictions = inference / run.fold.evaluated_on / "predictions.csv"
    if not predictions.is_file():
        raise CTMaskNetError(f"{run.name}: its evaluation left no {predictions}")
    rows, class_names = read_predictions_csv(predictions)
    return {
        "class_names": class_names,
        "metrics": read_json(predictions.with_name("results.json"))["slices"],
        **of_predictions(rows, predictions),
    }


def _of_lesions(plan: Plan, run: ArmRun, inference: Path) -> dict[str, Any]:
    root, name = run.fold.datasets, run.fold.evaluated_on
    files, found = of_evaluation(name, root, inference / name)
    results = read_json(inference / name / "results.json")
    normals = plan.normals and false_positives(plan.normals, root, inference / plan.normals)
    return {
        "metrics": {
            f"{kind}/{key}": value for kind, of in results.items() for key, value in of.items()
        },
        **of_files(files),
        **found,
        "normals_on": plan.normals,
        "normals": normals,
    }


_OF_TASK = {"slices": _of_slices, "lesions": _of_lesions}


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
