"""Curves as SVG for a page: matplotlib draws, the page's style sheet colours.

Text and axes take the colour of the text around them and each class a colour of the page, so that
one picture serves a light and a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ctmasknet.evaluation.intervals import Interval

#: Colours that matplotlib writes and :func:`_to_svg` replaces; no other line has them.
_INK = "#010203"
_GRID = "#010204"
_CLASS = "#0102{:02x}"
_CLASS_COLOR = re.compile(r"#0102([1-9a-f][0-9a-f])")
_FIRST_CLASS = 0x10
#: Classes with a colour of their own in the style sheet; more begin again.
_COLORS = 8
_DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D")
_SIDE_INCHES, _LEGEND_LINE_INCHES = 3.4, 0.19


def roc_figure(level: Mapping[str, Any], class_names: Sequence[str], key: str) -> str:
    """ROC curves of all classes against the rest, their areas in the legend, as SVG.

    Args:
        level: a level of :func:`classification_report`.
        class_names: C names.
        key: sets the names inside this picture apart from those of others on the page.
    """
    figure, axes = _square("false positive rate (1 - specificity)", "sensitivity")
    axes.plot([0, 1], [0, 1], color=_INK, alpha=0.45, linewidth=0.8)
    for index, name in enumerate(class_names):
        curves = level["curves"][name]
        if curves:
            x, y = (curves["roc"][rate] for rate in ("false_positive_rate", "true_positive_rate"))
            axes.plot(x, y, **_line(index, name, level["metrics"][f"auroc-{name}"]))
    return _to_svg(figure, axes, key)


def precision_recall_figure(level: Mapping[str, Any], class_names: Sequence[str], key: str) -> str:
    """Precision-recall curves of all classes against the rest, average precision in the legend, as
    SVG; arguments as :func:`roc_figure`."""
    figure, axes = _square("recall (sensitivity)", "precision")
    for index, name in enumerate(class_names):
        curves = level["curves"][name]
        if curves:
            x, y = (curves["precision_recall"][axis] for axis in ("recall", "precision"))
            style = _line(index, name, level["metrics"][f"average_precision-{name}"])
            # Recall falls along the points; a step holds the precision of its higher recall
            axes.plot(x, y, drawstyle="steps-post", **style)
    return _to_svg(figure, axes, key)


def reliability_figure(level: Mapping[str, Any], class_names: Sequence[str], key: str) -> str:
    """Score of the called class against how often it is right, before and (with validation) after
    the temperature, calibration errors in the legend, as SVG; dots grow with the units in their
    bin. Arguments as :func:`roc_figure`."""
    figure, axes = _square("score of the called class", "share that is right")
    axes.plot([0, 1], [0, 1], color=_INK, alpha=0.45, linewidth=0.8)
    shown = [("as scored, ECE", level)]
    if level["calibrated"]:
        shown.append(("with temperature, ECE", level["calibrated"]))
    for index, (name, part) in enumerate(shown):
        style = _line(index, name, part["metrics"]["ece"])
        bins = part["reliability"]["top_label"]
        x, y = ([point[axis] for point in bins] for axis in ("confidence", "share"))
        axes.plot(x, y, **style)
        sizes = [8 + 90 * point["n"] / level["n"] for point in bins]
        axes.scatter(x, y, s=sizes, color=style["color"], zorder=3, clip_on=False)
    return _to_svg(figure, axes, key)


def burden_scatter(
    dots: Sequence[tuple[str, np.ndarray, np.ndarray, Mapping[str, Interval]]], key: str
) -> str:
    """Measured against true shares, as SVG.

    Args:
        dots: of each class its name, (n,) true and (n,) measured shares in percent, and their
            agreement (see :func:`ctmasknet.evaluation.lesions.burden.burden_agreement`).
        key: see :func:`roc_figure`.
    """
    figure, axes = _square("ground truth, %", "measured, %")
    most = max(1e-3, *(float(side.max()) for _, *sides, _ in dots for side in sides))
    axes.set(xlim=(-0.02 * most, 1.02 * most), ylim=(-0.02 * most, 1.02 * most))
    axes.plot([0, most], [0, most], color=_INK, alpha=0.45, linewidth=0.8)
    for index, (name, true, measured, _) in enumerate(dots):
        axes.plot(true, measured, **_dots(index, name))
    return _to_svg(figure, axes, key)


def burden_differences(
    dots: Sequence[tuple[str, np.ndarray, np.ndarray, Mapping[str, Interval]]], key: str
) -> str:
    """Bland and Altman's picture: differences against the mean of both, with the mean difference
    and the limits of agreement, as SVG. Arguments as :func:`burden_scatter`."""
    figure, axes = _square("mean of both, %", "measured less ground truth, points")
    axes.set_aspect("auto")
    axes.set(xlim=(None, None), ylim=(None, None))
    axes.autoscale()
    axes.axhline(0, color=_INK, alpha=0.45, linewidth=0.8)
    for index, (name, true, measured, agreement) in enumerate(dots):
        style = _dots(index, name)
        axes.plot((true + measured) / 2, measured - true, **style)
        for figure_name in ("bias", "lower_limit", "upper_limit"):
            value = agreement[figure_name].value
            dashes = (0, (9, 2)) if figure_name == "bias" else ":"
            if value is not None:
                axes.axhline(value, color=style["color"], linestyle=dashes, linewidth=1.2)
    return _to_svg(figure, axes, key)


def _dots(index: int, name: str) -> dict[str, Any]:
    return {
        "color": _CLASS.format(_FIRST_CLASS + index % _COLORS),
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": "none",
        "markersize": 4,
        "alpha": 0.75,
        "label": _label(name),
    }


def _square(x_label: str, y_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_SIDE_INCHES, _SIDE_INCHES), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label)
    axes.set_aspect("equal")
    axes.tick_params(colors=_INK, labelsize=8)
    axes.xaxis.label.set(color=_INK, size=9)
    axes.yaxis.label.set(color=_INK, size=9)
    axes.grid(color=_GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(side in ("left", "bottom"))
    return figure, axes


def _line(index: int, name: str, area: Mapping[str, Any]) -> dict[str, Any]:
    value = "" if area["value"] is None else f" {area['value']:.3f}"
    return {
        "color": _CLASS.format(_FIRST_CLASS + index % _COLORS),
        "linestyle": _DASHES[index % len(_DASHES)],
        "linewidth": 1.8,
        "label": f"{_label(name)}{value}",
        "clip_on": False,
    }


def _label(name: str) -> str:
    """Matplotlib reads $...$ as mathematics and leaves out of a legend what begins with _."""
    return name.replace("$", r"\$").lstrip("_")


def _to_svg(figure: Figure, axes: Any, key: str) -> str:
    """An ``<svg>`` element that scales, without style sheet, outside names or needless digits."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # Above the axes, where it hides no curve
        figure.set_size_inches(_SIDE_INCHES, _SIDE_INCHES + _LEGEND_LINE_INCHES * len(handles))
        how = {"fontsize": 8, "frameon": False, "labelcolor": _INK, "handlelength": 2.6}
        figure.legend(handles, labels, loc="outside upper left", **how)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace("xlink:href", "href")
    # The only rule of the style element would reach the whole page
    for element in (r"<metadata>.*?</metadata>", r"<defs>\s*<style.*?</style>\s*</defs>"):
        text = re.sub(element, "", text, flags=re.DOTALL)
    # Of all names only those referred to (ticks, clipping) are needed
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r"<[^>]+>", lambda tag: _shortened(tag[0], used), text)
    return re.sub(r">\s+<", "><", text).strip()


def _shortened(tag: str, used: set[str]) -> str:
    """A tag with what the page needs of it; text between tags stays as it is."""
    for attribute in (r' xmlns(:xlink)?="[^"]*"', r' (width|height)="[0-9.]+pt"'):
        tag = re.sub(attribute, "", tag)
    tag = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r"\d+\.\d{4,}", lambda found: f"{float(found[0]):.2f}", tag)
    tag = tag.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    return re.sub(
        _CLASS_COLOR, lambda found: f"var(--class-{int(found[1], 16) - _FIRST_CLASS})", tag
    )
