"""The paper's Figures 1 and 2 for any prepared lesion data set."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ctmasknet.data.registry import lesion_colors
from ctmasknet.data.statistics import lesion_statistics
from ctmasknet.draw.pages import write_picture
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import check_writable

_CLASS_TITLES = {"ggo": "Ground glass opacity", "consolidation": "Consolidation"}
#: Bins of the area histogram.
_AREA_BINS = 40
#: Counts above it share the last bar, when the largest is far beyond.
_COUNT_BARS = 25


def figure_1(dataset: str, output: str | os.PathLike) -> dict[str, Any]:
    """Draw Figure 1: row 1.1 lesions an image, row 1.2 their area, a column for every class.

    Images without a lesion of a class are counted in the bar at 0.

    Args:
        dataset: a registered lesion data set.
        output: PNG file; the numbers drawn stand beside it, ``.json`` for ``.png``.

    Returns:
        :func:`lesion_statistics`, and for every class ``count_bars`` (images with 0, 1, ...
        lesions) and ``area_bars`` ({"edges": percent, "counts"}), as drawn.

    Raises:
        CTMaskNetError: see :func:`lesion_statistics`; ``output`` is no PNG or cannot be written.
    """
    output = png_path(output)
    numbers = lesion_statistics(dataset)
    names = list(numbers["classes"])
    figure = Figure(figsize=(5.2 * len(names), 7.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    draw_lesion_statistics(figure.subplots(2, len(names), squeeze=False), numbers)
    figure.suptitle(f"{dataset}: {numbers['images']:,} images", fontsize=11)
    write_figure(figure, output, numbers)
    return numbers


def draw_lesion_statistics(grid: np.ndarray, numbers: dict[str, Any]) -> None:
    """Draw Figure 1 into axes; ``numbers`` of :func:`lesion_statistics` get the bars drawn.

    Args:
        grid: (2, C) axes, a column for every class.
        numbers: changed in place, see :func:`figure_1`.
    """
    names = list(numbers["classes"])
    items = numbers["classes"].values()
    most = max(max(item["per_image"]) for item in items)
    largest = max(max(item["area_percent"], default=0.0) for item in items)
    edges = np.linspace(0.0, _rounded_up(largest), _AREA_BINS + 1)
    for column, (name, color) in enumerate(zip(names, lesion_colors(names), strict=True)):
        item = numbers["classes"][name]
        item["count_bars"] = np.bincount(item["per_image"], minlength=most + 1).tolist()
        histogram, _ = np.histogram(item["area_percent"], edges)
        item["area_bars"] = {"edges": edges.tolist(), "counts": histogram.tolist()}
        title = f"({chr(ord('a') + column)}) {_CLASS_TITLES.get(name, name)}"
        shade = tuple(value / 255 for value in color)
        _draw_counts(grid[0, column], item, title, shade, numbers["images"])
        _draw_areas(grid[1, column], item, shade)
    grid[0, 0].set_ylabel("1.1   images")
    grid[1, 0].set_ylabel("1.2   instances")


def png_path(output: str | os.PathLike) -> Path:
    """Check that a figure's name is a PNG's, and that it can be written.

    Raises:
        CTMaskNetError: it is not, or cannot.
    """
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise CTMaskNetError(f"{path}: figures are PNG files; give `output` NAME.png")
    return check_writable(path)


def write_figure(figure: Figure, path: Path, numbers: dict[str, Any] | None = None) -> None:
    """Write a figure as PNG; see :func:`ctmasknet.draw.pages.write_picture`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_picture(path, buffer.getvalue(), numbers)


def _draw_counts(axes, item: dict[str, Any], title: str, color, images: int) -> None:
    shown = bars = item["count_bars"]
    labels = None
    if len(bars) > _COUNT_BARS + 5:
        shown = [*bars[:_COUNT_BARS], sum(bars[_COUNT_BARS:])]
        labels = f"last bar: {_COUNT_BARS} or more"
    axes.bar(range(len(shown)), shown, width=0.85, color=color, edgecolor="black", linewidth=0.4)
    axes.set_title(title)
    axes.set_xlabel("instances in an image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    few = sum(bars[:5]) / images
    text = f"{item['instances']:,} instances\n{100 * few:.1f} % of images: fewer than 5"
    _state(axes, f"{text}\n{labels}" if labels else text)


def _draw_areas(axes, item: dict[str, Any], color) -> None:
    bars = item["area_bars"]
    edges = np.asarray(bars["edges"])
    look = {"color": color, "edgecolor": "black", "linewidth": 0.4}
    axes.bar(edges[:-1], bars["counts"], width=np.diff(edges), align="edge", **look)
    axes.set_xlabel("area of an instance, % of the image")
    axes.set_xlim(0, edges[-1])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if item["instances"]:
        lines = [f"median {item['median_area_percent']:.2f} %"]
        lines += [f"{100 * s:.1f} % below {mark} %" for mark, s in item["below_percent"].items()]
        _state(axes, "\n".join(lines))


def _state(axes, text: str) -> None:
    axes.text(0.97, 0.95, text, transform=axes.transAxes, ha="right", va="top", fontsize=10)


def _rounded_up(largest: float) -> float:
    """The end of an axis that shows ``largest``: the next of a few steps times a power of ten."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    # A value on the edge belongs to the last bin
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if largest <= step * power)
