"""What a cell says of a run: its figures and its hardware in a few words."""

from __future__ import annotations

from ctmasknet.paper.runs import Measured, Run
from ctmasknet.paper.table import NOT_RUN


def hardware_of(run: Run) -> str:
    """CPU and cores, or GPU, of the training; else of an evaluation."""
    record = run.training or next((m.evaluation for m in run.measured if m.evaluation), None)
    if record is None:
        return "not recorded"
    parts = record["hardware"]
    if parts["gpu"]:
        return f"{parts['num_gpus']} x {parts['gpu']}"
    return f"{parts['cpu']}, {parts['cores']} cores"


def percent(value: float | None) -> str:
    """A figure in percent; None (a share of nothing) is "undefined"."""
    return "undefined" if value is None else f"{value:.2f}"


def lesion_result(measured: Measured | None) -> str:
    """The figures of a detector in a few words."""
    if measured is None:
        return NOT_RUN
    parts = {"box AP50": ("bbox", "AP50"), "mask AP50": ("segm", "AP50")}
    parts |= {"per-image AP50": ("per_image", "AP50")}
    return ", ".join(
        f"{name} {percent(measured.figures[task][key])}"
        for name, (task, key) in parts.items()
        if task in measured.figures
    )


def slice_result(measured: Measured | None) -> str:
    """The figures of a classifier in a few words."""
    if measured is None:
        return NOT_RUN
    slices = measured.figures["slices"]
    prefix = "sensitivity-"
    classes = ", ".join(
        f"{key.removeprefix(prefix)} {percent(value)}"
        for key, value in slices.items()
        if key.startswith(prefix)
    )
    return f"accuracy {percent(slices['accuracy'])}; sensitivity {classes}"
