"""Metrics to files, so that a resumed training leaves the files of an unbroken one.

``metrics.json`` holds what a repeated run repeats: losses, learning rate, evaluation. What clock
or machine say (seconds, memory) goes to ``timings.json``. Both have one JSON object a line, as
Detectron2 writes them, numbers smoothed by the median of the last 20 iterations. A training that
ends draws ``learning_curves.png`` from the first.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import resource
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cycler import cycler
from detectron2.engine import HookBase, hooks
from detectron2.utils.events import EventWriter, get_event_storage
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write, parse_json, plain_file

_METRICS = "metrics.json"
_TIMINGS = "timings.json"
_PICTURE = "learning_curves.png"
#: Of curves: the colours of Okabe and Ito that are seen on white, which colour-blind readers tell
#: apart, and dashes and marks for who sees none.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1)), (0, (2, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
#: Evaluation figures shown, whichever the run has, all in percent.
_SHOWN = ("bbox/AP50", "segm/AP50", "per_image/AP", "slices/accuracy")
_SENSITIVITY = "slices/sensitivity-"
_Curve = tuple[list[int], list[float]]
#: Scalars that no two runs share, beside those named for their unit.
_OF_THE_MACHINE = ("time", "data_time", "rank_data_time")
#: Iterations over which the writers smooth.
_WINDOW = 20


def is_timing(name: str) -> bool:
    """Whether a scalar depends on clock or machine and not on the run's configuration."""
    return name in _OF_THE_MACHINE or name.endswith(("_seconds", "_mb"))


class JSONLinesWriter(EventWriter):
    """Appends the scalars of its choice to a file, one line an iteration."""

    def __init__(self, path: str | os.PathLike, choose: Callable[[str], bool]):
        """
        Args:
            path: the file; made when the first line is written.
            choose: name of a scalar -> whether it belongs here.
        """
        self._path = Path(path)
        self._choose = choose
        self._last_write = -1

    def write(self) -> None:
        lines: dict[int, dict[str, float | None]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(_WINDOW)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write and self._choose(name):
                # JSON has no NaN: an undefined figure becomes null.
                lines[iteration][name] = value if math.isfinite(value) else None
        if not lines:
            return
        self._last_write = max(lines)
        with self._path.open("a", encoding="utf-8") as stream:
            for iteration in sorted(lines):
                line = {**lines[iteration], "iteration": iteration}
                stream.write(json.dumps(line, sort_keys=True) + "\n")

    def state_dict(self) -> dict[str, int]:
        """How far the file has been written: last iteration, and bytes."""
        return {"last_write": self._last_write, "bytes": self._size()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Cut off what was written after ``state`` was taken; the training will write it again."""
        self._last_write = state["last_write"]
        size = self._size()
        if size < state["bytes"]:
            logging.getLogger(__name__).warning(
                "%s is shorter than when the checkpoint was written; its earlier lines are missing",
                self._path,
            )
        elif size > state["bytes"]:
            os.truncate(self._path, state["bytes"])

    def start_anew(self) -> None:
        """Remove what an earlier training wrote."""
        self._path.unlink(missing_ok=True)

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.is_file() else 0


class MetricWriters(hooks.PeriodicWriter):
    """Writes every ``period`` iterations, and carries the scalars seen so far through a resume.

    The trainer's other writers, which depend on the first iteration, are built when training
    starts.
    """

    def __init__(self, folder: str | os.PathLike, period: int):
        """
        Args:
            folder: of ``metrics.json`` and ``timings.json``.
            period: iterations from one writing to the next.
        """
        self._files = {
            _METRICS: JSONLinesWriter(Path(folder) / _METRICS, lambda name: not is_timing(name)),
            _TIMINGS: JSONLinesWriter(Path(folder) / _TIMINGS, is_timing),
        }
        super().__init__(list(self._files.values()), period)
        self._resumed: dict[str, Any] | None = None

    def before_train(self) -> None:
        self._writers = [*self.trainer.build_writers(), *self._files.values()]
        if self._resumed is None:
            for writer in self._files.values():
                writer.start_anew()
            return
        for name, entry in self._resumed["scalars"].items():
            for value, iteration in entry["values"]:
                self.trainer.storage.put_scalar(
                    name, value, smoothing_hint=entry["smooth"], cur_iter=iteration
                )
        for name, writer in self._files.items():
            writer.load_state_dict(self._resumed["files"][name])

    def state_dict(self) -> dict[str, Any]:
        """The latest scalars, of each as many values as smoothing looks at; and of the files."""
        storage = self.trainer.storage
        scalars = {
            name: {
                "smooth": storage.smoothing_hints()[name],
                "values": [list(pair) for pair in history.values()[-_WINDOW:]],
            }
            for name, history in storage.histories().items()
        }
        files = {name: writer.state_dict() for name, writer in self._files.items()}
        return {"scalars": scalars, "files": files}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resumed = state


def read_metrics(path: str | os.PathLike) -> dict[str, _Curve]:
    """The curves in a ``metrics.json``.

    Returns:
        name of a scalar -> iterations (from 1) and values; undefined values are left out.

    Raises:
        CTMaskNetError: the file is missing, damaged or empty.
    """
    curves: dict[str, _Curve] = {}
    try:
        lines = plain_file(path).read_text(encoding="utf-8").splitlines()
        for line in lines:
            entry = parse_json(line)
            done = int(entry.pop("iteration")) + 1
            for name, value in entry.items():
                if value is not None:
                    iterations, values = curves.setdefault(name, ([], []))
                    iterations.append(done)
                    values.append(float(value))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CTMaskNetError(
            f"{path}: not a run's metrics ({type(error).__name__}: {error}); train again"
        ) from error
    if not curves:
        raise CTMaskNetError(f"{path}: holds no metrics yet; train on")
    return curves


def draw_curves(
    metrics: str | os.PathLike, picture: str | os.PathLike, best_iteration: int | None = None
) -> None:
    """Draw losses, evaluation figures and learning rate over iterations.

    Args:
        metrics: a run's ``metrics.json``.
        picture: PNG file to write.
        best_iteration: index of the iteration whose model is kept as the best, to mark it.

    Raises:
        CTMaskNetError: see :func:`read_metrics`.
    """
    curves = read_metrics(metrics)
    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    losses, figures, rate = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1])
    losses.set_prop_cycle(cycler(color=_COLORS[1:]) + cycler(linestyle=_DASHES[1:]))
    figures.set_prop_cycle(cycler(color=_COLORS) + cycler(linestyle=_DASHES, marker=_MARKERS))
    parts = [name for name in curves if name.startswith("loss_")]
    for name in parts if len(parts) > 1 else []:
        losses.plot(*curves[name], linewidth=1, label=f"training {name}")
    if "total_loss" in curves:
        losses.plot(*curves["total_loss"], label="training, all", color="black", linestyle="-")
    if (name := "validation/total_loss") in curves:
        how = {"color": "black", "linestyle": "--", "marker": "o"}
        losses.plot(*curves[name], label="validation, all", **how)
    losses.set(ylabel="loss", ylim=(0, None))
    for name, curve in curves.items():
        if name in _SHOWN or name.startswith(_SENSITIVITY):
            figures.plot(*curve, label=name)
    figures.set(ylabel="on the validation set (%)", ylim=(0, 100))
    if "lr" in curves:
        rate.plot(*curves["lr"], color="grey")
    rate.set(ylabel="learning rate", xlabel="iteration")
    for axes in (losses, figures, rate):
        axes.grid(alpha=0.3)
        if best_iteration is not None:
            axes.axvline(best_iteration + 1, color="black", linestyle=":", label="best model")
        if axes is not rate and axes.get_legend_handles_labels()[0]:
            # Beside the curves, not on them
            axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    with atomic_write(picture, "wb") as stream:
        figure.savefig(stream, format="png", dpi=100)


def draw_run(folder: str | os.PathLike, best_iteration: int | None) -> None:
    """Draw ``learning_curves.png`` in a run's folder, or log why not: a finished training is worth
    more than its picture. See :func:`draw_curves`."""
    try:
        draw_curves(Path(folder) / _METRICS, Path(folder) / _PICTURE, best_iteration)
    except CTMaskNetError as error:
        logging.getLogger(__name__).warning("No learning curves: %s", error)


class LearningCurves(HookBase):
    """Draws the curves of a training that has ended."""

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.trainer.max_iter or self.trainer.is_stopping:
            draw_run(self.trainer.cfg.OUTPUT_DIR, self.trainer.best["best_iteration"])


def peak_memory_mb(device: str) -> float:
    """Most memory held so far, MB (10^6 bytes): by tensors on CUDA, by the process on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[1]) * 1024 / 1e6
    except (OSError, TypeError):
        # Not on Linux. There, this figure would also count the process that started this one.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class PeakMemory(HookBase):
    """Puts the peak so far among the scalars where they are written, and into the log at the
    end."""

    def after_step(self) -> None:
        cfg, done = self.trainer.cfg, self.trainer.iter + 1
        if done % cfg.SOLVER.LOG_PERIOD == 0 or done == self.trainer.max_iter:
            peak = peak_memory_mb(cfg.MODEL.DEVICE)
            self.trainer.storage.put_scalar("max_memory_mb", peak, smoothing_hint=False)

    def after_train(self) -> None:
        device = self.trainer.cfg.MODEL.DEVICE
        logging.getLogger(__name__).info(
            "Peak memory: %.0f MB (%s)",
            peak_memory_mb(device),
            "allocated on the GPU" if device.startswith("cuda") else "of the process",
        )
