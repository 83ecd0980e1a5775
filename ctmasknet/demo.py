"""``make demo``: every step is a tool, run as a user would run it, on phantom patients."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from ctmasknet.engine.record import hardware
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import replace_between_marks, write_json

_ROOT = Path(__file__).resolve().parent.parent
_MARK = "summary.json"
LESION_TEST_SET = "cncb_lesions_merge_test"
SLICE_TEST_SET = "covidx_ct_test"


def stages(output: Path, phantom_seed: int, seed: int) -> dict[str, list[list[str]]]:
    """The demo's command lines (``demo.json``), in order, by stage.

    The report comes after the tables, which show every set that was evaluated. It needs the
    validation set anew: what training left of that is of its last evaluation, not of the best
    weights.

    Args:
        output: folder of the demo; raw phantoms, prepared sets, runs and pictures go below it.
        phantom_seed: seed of the phantom patients.
        seed: seed of the patient split, of the training and of the choice of pictures.
    """
    values = {"phantom_seed": phantom_seed, "seed": seed, "output": output}
    values |= {name: output / name for name in ("raw", "datasets", "seg", "cls", "control")}
    lines = json.loads(Path(__file__).with_name("demo.json").read_text(encoding="utf-8"))
    return {
        stage: [[word.format(**values) for word in line.split()] for line in commands]
        for stage, commands in lines.items()
    }


def run_demo(output: str | os.PathLike, phantom_seed: int, seed: int) -> dict[str, Any]:
    """Run all stages, print the two tables and write ``<output>/summary.json``.

    A folder left by an earlier demo is replaced.

    Returns:
        what ``summary.json`` holds: AP in percent, everything else in 0..1, seconds a stage, the
        command and the hardware.

    Raises:
        CTMaskNetError: ``output`` holds something else, or a step ends with an error.
    """
    output = Path(output)
    _clear(output)
    environment = {**os.environ, "DETECTRON2_DATASETS": str(output / "datasets")}
    seconds: dict[str, float] = {}
    for stage, commands in stages(output, phantom_seed, seed).items():
        start = time.perf_counter()
        for command in commands:
            print(f"\n[{stage}] python {shlex.join(command)}", flush=True)
            done = subprocess.run([sys.executable, *command], cwd=_ROOT, env=environment)
            if done.returncode:
                raise CTMaskNetError(
                    f"demo: the step above ended with exit code {done.returncode}; see its message"
                )
        seconds[stage] = round(time.perf_counter() - start, 1)
    summary = summarize(output, seconds)
    summary["command"] = f"make demo PHANTOM_SEED={phantom_seed} SEED={seed}"
    summary["hardware"] = hardware("cuda" if torch.cuda.is_available() else "cpu")
    write_json(output / _MARK, summary, indent=1)
    print(_tables(summary, output))
    return summary


def summarize(output: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Collect the figures that the evaluations wrote below ``output``."""
    lesions = _results(output / "seg", LESION_TEST_SET)
    slices = _results(output / "cls", SLICE_TEST_SET)["slices"]
    control = _results(output / "control", SLICE_TEST_SET)["slices"]
    counted = output / "cls" / "inference" / SLICE_TEST_SET / "slices_metrics.json"
    prefix = "sensitivity-"
    return {
        "lesions": {"box_ap50": lesions["bbox"]["AP50"], "segm_ap50": lesions["segm"]["AP50"]},
        "slices": {
            "n": json.loads(counted.read_text(encoding="utf-8"))["n"],
            "accuracy": slices["accuracy"] / 100,
            "sensitivity": {
                name.removeprefix(prefix): value / 100
                for name, value in slices.items()
                if name.startswith(prefix)
            },
        },
        "control": {"accuracy": control["accuracy"] / 100},
        "seconds": seconds,
    }


def write_readme_table(readme: str | os.PathLike, summaries: Sequence[str | os.PathLike]) -> None:
    """Replace what stands between the demo's marks in ``readme`` by a table of these summaries.

    Raises:
        CTMaskNetError: a summary is missing or none, or the marks are.
    """
    columns = []
    for path in summaries:
        try:
            columns.append(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise CTMaskNetError(f"{path}: no summary of a demo ({error}); run make demo") from None
    rows = [_figures(column) for column in columns]
    table = tabulate(
        [[name, *(row[name] for row in rows)] for name in rows[0]],
        headers=["held-out phantom patients", *(f"`{c['command']}`" for c in columns)],
        tablefmt="pipe",
        disable_numparse=True,
    )
    machine = columns[0]["hardware"]
    where = f"{machine['cpu']}, {machine['cores']} cores, device {machine['device']}"
    note = (
        f"Measured on: {where}. Made by `python tools/demo.py --readme` from "
        "`docs/results/demo/*.json`."
    )
    replace_between_marks(readme, "demo", f"{table}\n\n{note}")


def _figures(summary: dict[str, Any]) -> dict[str, str]:
    lesions, slices = summary["lesions"], summary["slices"]
    return {
        "lesion box AP50 (%)": f"{lesions['box_ap50']:.1f}",
        "lesion mask AP50 (%)": f"{lesions['segm_ap50']:.1f}",
        "slices": str(slices["n"]),
        "slice accuracy": f"{slices['accuracy']:.3f}",
        **{f"sensitivity {name}": f"{x:.3f}" for name, x in slices["sensitivity"].items()},
        "accuracy, detector with random weights": f"{summary['control']['accuracy']:.3f}",
        "seconds in all": f"{sum(summary['seconds'].values()):.0f}",
    }


def _results(run: Path, dataset: str) -> dict[str, Any]:
    path = run / "inference" / dataset / "results.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _tables(summary: dict[str, Any], output: Path) -> str:
    timed = [[stage, f"{value:.1f}"] for stage, value in summary["seconds"].items()]
    return "\n".join(
        [
            "",
            tabulate(
                _figures(summary).items(),
                headers=["held-out phantom patients", ""],
                disable_numparse=True,
            ),
            "",
            tabulate(timed, headers=["stage", "seconds"], disable_numparse=True),
            "",
            f"pictures: {output / 'overlays'}, {output / 'paper'}",
            f"figures:  {output / _MARK}",
            f"report:   {output / 'report.html'}",
        ]
    )


def _clear(output: Path) -> None:
    if not output.exists():
        return
    if not output.is_dir() or not ((output / "raw").is_dir() or not any(output.iterdir())):
        raise CTMaskNetError(f"{output}: is not a demo's folder; name another with --output")
    shutil.rmtree(output)
