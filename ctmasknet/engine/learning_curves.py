"""Learning curves as a picture, from metrics.json."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ctmasknet.engine.writers import METRICS
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write

PICTURE = "learning_curves.png"
#: Evaluation figures shown, whichever the run has, all in percent.
_SHOWN = ("bbox/AP50", "segm/AP50", "per_image/AP", "slices/accuracy")
_SENSITIVITY = "slices/sensitivity-"

Curve = tuple[list[int], list[float]]


def read_metrics(path: str | os.PathLike) -> dict[str, Curve]:
    """The curves in a ``metrics.json``.

    Returns:
        name of a scalar -> iterations (from 1) and values; undefined values are left out.

    Raises:
        CTMaskNetError: the file is missing, damaged or empty.
    """
    curves: dict[str, Curve] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        for line in lines:
            entry = json.loads(line)
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
    parts = [name for name in curves if name.startswith("loss_")]
    for name in parts if len(parts) > 1 else []:
        losses.plot(*curves[name], linewidth=0.8, alpha=0.6, label=f"training {name}")
    for name, label, style in (
        ("total_loss", "training, all", {"color": "black"}),
        ("validation/total_loss", "validation, all", {"color": "crimson", "marker": "o"}),
    ):
        if name in curves:
            losses.plot(*curves[name], label=label, **style)
    losses.set(ylabel="loss", ylim=(0, None))
    for name, curve in curves.items():
        if name in _SHOWN or name.startswith(_SENSITIVITY):
            figures.plot(*curve, marker="o", label=name)
    figures.set(ylabel="on the validation set (%)", ylim=(0, 100))
    if "lr" in curves:
        rate.plot(*curves["lr"], color="grey")
    rate.set(ylabel="learning rate", xlabel="iteration")
    for axes in (losses, figures, rate):
        axes.grid(alpha=0.3)
        if best_iteration is not None:
            axes.axvline(best_iteration + 1, color="green", linestyle=":", label="best model")
        if axes is not rate and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    with atomic_write(picture, "wb") as stream:
        figure.savefig(stream, format="png", dpi=100)


class LearningCurves(HookBase):
    """Draws the curves of a training that has ended, ``learning_curves.png`` in its folder."""

    def __init__(self, folder: str | os.PathLike):
        self._folder = Path(folder)

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.trainer.max_iter or self.trainer.is_stopping:
            best: dict[str, Any] = self.trainer.best
            try:
                draw_curves(
                    self._folder / METRICS, self._folder / PICTURE, best.get("best_iteration")
                )
            except CTMaskNetError as error:
                # A finished training is worth more than its picture.
                logging.getLogger(__name__).warning("No learning curves: %s", error)
