"""``make demo``: every step is a tool, run as a user would run it, on phantom patients."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from ctmasknet.console.progress import duration
from ctmasknet.engine.record import hardware
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import check_writable, read_json, replace_between_marks, write_json
from ctmasknet.schema import Form, checked, names_of, number, record, text, whole_from_0

_ROOT = Path(__file__).resolve().parent.parent
_MARK = "summary.json"
LESION_TEST_SET = "cncb_lesions_merge_test"
SLICE_TEST_SET = "covidx_ct_test"
SLICE_VAL_SET = "covidx_ct_val"
_REPORT = "report.html"
#: Of a demo that was measured: how long each stage took, and where.
_MEASURED = _ROOT / "docs" / "results" / "demo" / "summary_1.json"


def stages(output: Path, phantom_seed: int, seed: int) -> dict[str, list[list[str]]]:
    """The demo's command lines, in order, by stage.

    Args:
        output: folder of the demo; raw phantoms, prepared sets, runs and pictures go below it.
        phantom_seed: seed of the phantom patients.
        seed: seed of the patient split, of the training and of the choice of pictures.
    """
    raw, prepared = output / "raw", output / "datasets"
    seg, cls, cls_s, control = (output / name for name in ("seg", "cls", "cls_s", "control"))

    def train_net(config: str, folder: Path, *more: str) -> list[str]:
        command = ["tools/train_net.py", "--config-file", f"configs/demo/{config}.yaml"]
        flags = [word for word in more if word.startswith("--")]
        overrides = [word for word in more if not word.startswith("--")]
        return [*command, *flags, "OUTPUT_DIR", str(folder), "SEED", str(seed), *overrides]

    def predictions(dataset: str) -> str:
        return str(cls / "inference" / dataset / "predictions.csv")

    detector = ["MODEL.WEIGHTS", str(seg / "model_best.pth")]
    # Heads on the same boxes
    rows = ["MODEL.RANKED_BOXES.CACHE_DIR", str(output / "ranked_boxes")]
    pictures = ["--limit", "18", "--seed", str(seed)]
    return {
        "phantoms": [
            [
                *("datasets/prepare_phantom.py", "--output", str(raw)),
                *("--seed", str(phantom_seed), "--side", "256"),
                *("--lesion-patients", "120", "--lesion-slices", "3", "--slices", "3"),
                *("--train-patients", "240", "--val-patients", "16", "--test-patients", "40"),
            ]
        ],
        "conversion": [
            [
                *("datasets/prepare_cncb_lesions.py", "--source", str(raw / "cncb_lesions_raw")),
                *("--output-root", str(prepared), "--min-area-px", "25", "--seed", str(seed)),
                *("--split", "train:0.75,val:0.1,test:0.15"),
            ],
            [
                *("datasets/prepare_covidx_ct.py", "--source", str(raw / "covidx_ct_raw")),
                *("--output-root", str(prepared)),
            ],
        ],
        "detector": [train_net("seg", seg)],
        "detector evaluation": [train_net("seg", seg, "--eval-only")],
        "classifier": [train_net("cls", cls, *detector, *rows)],
        "classifier evaluation": [train_net("cls", cls, "--eval-only", *rows)],
        "classifier S": [
            train_net("cls_s", cls_s, *detector, *rows),
            train_net("cls_s", cls_s, "--eval-only", *rows),
        ],
        "control": [train_net("control", control), train_net("control", control, "--eval-only")],
        "overlays": [
            [
                *("tools/visualize.py", "--config-file", "configs/demo/seg.yaml"),
                *("--dataset", LESION_TEST_SET, "--output", str(output / "overlays" / "lesions")),
                *(*pictures, "OUTPUT_DIR", str(seg)),
            ],
            [
                *("tools/visualize.py", "--config-file", "configs/demo/cls.yaml"),
                *("--dataset", SLICE_TEST_SET, "--output", str(output / "overlays" / "slices")),
                *(*pictures, "OUTPUT_DIR", str(cls)),
            ],
        ],
        "tables and figures": [
            [
                *("tools/paper_tables.py", "--results", str(seg), str(cls), str(cls_s)),
                *("--output", str(output / "paper")),
            ],
            [
                *("tools/paper_figures.py", "figure1", "--dataset", "cncb_lesions_both_train"),
                *("--output", str(output / "paper" / "figure1.png")),
            ],
            [
                *("tools/paper_figures.py", "figure2", "--dataset", LESION_TEST_SET),
                *("--config-file", "configs/demo/seg.yaml", "--seed", str(seed)),
                *("--output", str(output / "paper" / "figure2.png")),
                *("--opts", "OUTPUT_DIR", str(seg)),
            ],
        ],
        # After the tables, which show every set that was evaluated. What training left of the
        # validation set is of its last evaluation, not of the best weights.
        "report": [
            train_net("cls", cls, "--eval-only", *rows, "DATASETS.TEST", f"({SLICE_VAL_SET!r},)"),
            [
                *("tools/evaluate_predictions.py", "--predictions", predictions(SLICE_TEST_SET)),
                *("--validation", predictions(SLICE_VAL_SET), "--output", str(cls / "report")),
                *("--seed", str(seed)),
            ],
            [
                *("tools/report.py", str(cls), "--output", str(output / _REPORT)),
                *("--gallery", "12", "--config-file", "configs/demo/cls.yaml"),
            ],
        ],
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
    output = check_writable(output, folder=True)
    _clear(output)
    environment = {**os.environ, "DETECTRON2_DATASETS": str(output / "datasets")}
    seconds: dict[str, float] = {}
    every = stages(output, phantom_seed, seed)
    measured = _measured(every)
    if measured:
        in_all = duration(time_left({}, measured))
        print(f"about {in_all} in all: an estimate, measured {_where(measured)}", flush=True)
    for place, (stage, commands) in enumerate(every.items(), start=1):
        start = time.perf_counter()
        so_far = f", {duration(sum(seconds.values()))} so far" if seconds else ""
        if seconds and measured:
            so_far += f", about {duration(time_left(seconds, measured))} left"
        print(f"\n[{place} of {len(every)}: {stage}{so_far}]", flush=True)
        for command in commands:
            print(f"python {shlex.join(command)}", flush=True)
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


def time_left(seconds: Mapping[str, float], measured: Mapping[str, Any]) -> float:
    """Seconds that the stages which are not done will take.

    Args:
        seconds: of each stage that is done; they tell how much slower or faster it is here.
        measured: a demo's summary.
    """
    usual = measured["seconds"]
    before = sum(usual[stage] for stage in seconds)
    pace = sum(seconds.values()) / before if before else 1.0
    return pace * sum(value for stage, value in usual.items() if stage not in seconds)


def _measured(every: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary that times are estimated from; None where there is none, of these stages."""
    try:
        found = checked(_MEASURED, read_json(_MEASURED), _SUMMARY, "a summary of a demo", "")
    except (OSError, ValueError, CTMaskNetError):  # a demo goes on without an estimate
        return None
    return found if set(found["seconds"]) == set(every) else None


def _where(measured: Mapping[str, Any]) -> str:
    machine = measured["hardware"]
    place = os.path.relpath(_MEASURED, _ROOT)
    return f"on {machine['cpu']}, {machine['cores']} cores ({place}); each stage corrects it"


def summarize(output: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Collect the figures that the evaluations wrote below ``output``.

    Raises:
        CTMaskNetError: a file of them is missing, or of another form.
    """
    lesions = _results(output / "seg", LESION_TEST_SET, _LESION_RESULTS)
    control = _results(output / "control", SLICE_TEST_SET, _SLICE_RESULTS)["slices"]
    return {
        "lesions": {"box_ap50": lesions["bbox"]["AP50"], "segm_ap50": lesions["segm"]["AP50"]},
        "slices": _slice_figures(output / "cls"),
        "slices_s": _slice_figures(output / "cls_s"),
        "control": {"accuracy": control["accuracy"] / 100},
        "seconds": seconds,
    }


def _slice_figures(run: Path) -> dict[str, Any]:
    slices = _results(run, SLICE_TEST_SET, _SLICE_RESULTS)["slices"]
    counted = _results(run, SLICE_TEST_SET, _COUNTS, "slices_metrics.json")
    prefix = "sensitivity-"
    return {
        "n": counted["n"],
        "accuracy": slices["accuracy"] / 100,
        "sensitivity": {
            name.removeprefix(prefix): value / 100
            for name, value in slices.items()
            if name.startswith(prefix)
        },
    }


def write_readme_table(readme: str | os.PathLike, summaries: Sequence[str | os.PathLike]) -> None:
    """Replace what stands between the demo's marks in ``readme`` by a table of these summaries.

    Raises:
        CTMaskNetError: a summary is missing or none, or the marks are.
    """
    columns = []
    for path in summaries:
        try:
            columns.append(read_json(path))
        except (OSError, ValueError) as error:
            raise CTMaskNetError(f"{path}: no summary of a demo ({error}); run make demo") from None
    what = "a summary of a demo"
    columns = [
        checked(path, column, _SUMMARY, what, "run make demo")
        for path, column in zip(summaries, columns, strict=True)
    ]
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
        f"Measured on: {where}. Made by `python tools/demo.py --readme {os.fspath(readme)} "
        "docs/results/demo/*.json`."
    )
    replace_between_marks(readme, "demo", f"{table}\n\n{note}")


_SLICES = record({"n": whole_from_0, "accuracy": number, "sensitivity": names_of(number)})
_SUMMARY = record(
    {
        "lesions": record({"box_ap50": number, "segm_ap50": number}),
        "slices": _SLICES,
        "slices_s": _SLICES,
        "control": record({"accuracy": number}),
        "seconds": names_of(number),
        "command": text,
        "hardware": record({"cpu": text, "cores": whole_from_0, "device": text}),
    }
)


def _slice_results(value: Any, key: str) -> dict[str, Any]:
    found = record({"accuracy": number})(value, key)
    shown = [name for name in found if name.startswith("sensitivity-")]
    return record(dict.fromkeys(shown, number))(found, key)


_LESION_RESULTS = record(dict.fromkeys(("bbox", "segm"), record({"AP50": number})))
_SLICE_RESULTS = record({"slices": _slice_results})
_COUNTS = record({"n": whole_from_0})


def _figures(summary: dict[str, Any]) -> dict[str, str]:
    lesions, slices = summary["lesions"], summary["slices"]
    return {
        "lesion box AP50 (%)": f"{lesions['box_ap50']:.1f}",
        "lesion mask AP50 (%)": f"{lesions['segm_ap50']:.1f}",
        "slices": str(slices["n"]),
        "slice accuracy": f"{slices['accuracy']:.3f}",
        **{f"sensitivity {name}": f"{x:.3f}" for name, x in slices["sensitivity"].items()},
        "slice accuracy, S on the same boxes": f"{summary['slices_s']['accuracy']:.3f}",
        "slice accuracy, S on a detector with random weights": (
            f"{summary['control']['accuracy']:.3f}"
        ),
        "threads": str(summary["hardware"].get("threads", "not recorded")),
        "seconds in all": f"{sum(summary['seconds'].values()):.0f}",
    }


def _results(run: Path, dataset: str, form: Form, name: str = "results.json") -> dict[str, Any]:
    path = run / "inference" / dataset / name
    what, remedy = "figures of a demo's evaluation", "run make demo again"
    try:
        return checked(path, read_json(path), form, what, remedy)
    except (OSError, ValueError) as error:
        raise CTMaskNetError(f"{path}: not {what} ({error}); {remedy}") from None


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
            f"report:   {output / _REPORT}",
            "weights:  `make weights` trains a pair for predictions on your own scans, on real "
            "slices too (docs/weights.md)",
        ]
    )


def _clear(output: Path) -> None:
    if not output.exists():
        return
    if not output.is_dir() or not ((output / "raw").is_dir() or not any(output.iterdir())):
        raise CTMaskNetError(f"{output}: is not a demo's folder; name another with --output")
    shutil.rmtree(output)
