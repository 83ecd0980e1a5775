"""One picture of a data set: classes, slices a patient, sizes, grey levels, lesions, samples."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ctmasknet.ct.pictures import read_grey
from ctmasknet.data.registry import dataset_dicts
from ctmasknet.draw.lesion_statistics import draw_lesion_statistics, png_path, write_figure
from ctmasknet.errors import CTMaskNetError

#: Sample slices of the picture.
_SAMPLES = 12


def draw_card(card: Mapping[str, Any], output: str | os.PathLike, seed: int = 0) -> None:
    """Draw the card as a PNG, whole or not at all.

    Lesion statistics (the paper's Figure 1) are over all lesion sets with the classes of the first.

    Args:
        card: of :func:`ctmasknet.prepare.card.data_card`; its sets are registered.
        output: PNG file.
        seed: of the choice of sample slices.

    Raises:
        CTMaskNetError: ``output`` is no PNG or cannot be written.
    """
    output = png_path(output)
    sets = card["sets"]
    lesions = _pooled([one["lesions"] for one in sets.values() if "lesions" in one])
    rows = [3.0, *([5.6] if lesions else []), 4.4]
    figure = Figure(figsize=(16, sum(rows) + 0.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    rows_of_plots = figure.subfigures(len(rows), 1, height_ratios=rows)
    top = rows_of_plots[0].subplots(1, 4)
    _draw_classes(top[0], sets)
    _draw_slices_a_patient(top[1], list(sets))
    _draw_sizes(top[2], sets)
    _draw_grey_levels(top[3], sets)
    if lesions:
        grid = rows_of_plots[1].subplots(2, len(lesions["classes"]), squeeze=False)
        draw_lesion_statistics(grid, lesions)
    _draw_samples(rows_of_plots[-1], list(sets), seed)
    figure.suptitle(", ".join(sets), fontsize=12)
    write_figure(figure, output)


def _pooled(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Lesion statistics of several sets as of one."""
    found = [one for one in found if list(one["classes"]) == list(found[0]["classes"])]
    if not found:
        return None
    classes = {}
    for name, first in found[0]["classes"].items():
        items = [one["classes"][name] for one in found]
        areas = np.concatenate([item["area_percent"] for item in items])
        classes[name] = {
            "instances": len(areas),
            "per_image": [count for item in items for count in item["per_image"]],
            "area_percent": areas.tolist(),
            "median_area_percent": float(np.median(areas)) if len(areas) else None,
            "below_percent": {
                mark: float((areas < float(mark)).mean()) if len(areas) else None
                for mark in first["below_percent"]
            },
        }
    return {"images": sum(one["images"] for one in found), "classes": classes}


def _draw_classes(axes, sets: Mapping[str, Any]) -> None:
    classes = list(dict.fromkeys(name for one in sets.values() for name in one["classes"]))
    width = 0.8 / len(sets)
    for index, (name, one) in enumerate(sets.items()):
        places = np.arange(len(classes)) + (index - (len(sets) - 1) / 2) * width
        heights = [one["classes"].get(label, 0) for label in classes]
        axes.bar_label(axes.bar(places, heights, width, label=name), fontsize=7)
    axes.set_xticks(range(len(classes)), classes, rotation=20 if len(classes) > 3 else 0)
    axes.set_title("slices or lesions of each class", fontsize=10)
    axes.legend(fontsize=7)


def _draw_slices_a_patient(axes, names: Sequence[str]) -> None:
    counts = []
    for dicts in map(dataset_dicts, names):
        # None where slices name no patient, as in the card
        named = all("patient" in d for d in dicts)
        counts.append(list(Counter(str(d["patient"]) for d in dicts).values()) if named else [])
    most = max(3, *(max(found, default=0) for found in counts))
    edges = np.linspace(0.5, most + 0.5, min(most, 30) + 1)
    axes.hist(counts, edges)
    axes.set_title("patients by number of slices", fontsize=10)
    axes.set_xlabel("slices of a patient")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def _draw_sizes(axes, sets: Mapping[str, Any]) -> None:
    for one in sets.values():
        sides = np.array([[int(s) for s in size.split("x")] for size in one["sizes"]])
        if len(sides):
            share = np.array(list(one["sizes"].values())) / sum(one["sizes"].values())
            axes.scatter(sides[:, 1], sides[:, 0], 10 + 140 * share, alpha=0.5)
    axes.set_title("sizes, area of a dot: share of the slices", fontsize=10)
    axes.set_xlabel("width, px")
    axes.set_ylabel("height, px")
    axes.margins(0.2)


def _draw_grey_levels(axes, sets: Mapping[str, Any]) -> None:
    for name, one in sets.items():
        if one["grey_levels"]:
            histogram = np.array(one["grey_levels"]["histogram"])
            axes.plot(100 * histogram / histogram.sum(), linewidth=1, label=name)
    axes.set_yscale("log")
    axes.set_title("pixels of each grey level, %", fontsize=10)
    axes.set_xlabel("grey level, 8 bits")


def _draw_samples(figure, names: Sequence[str], seed: int) -> None:
    chance = np.random.default_rng(seed)
    chosen = []
    for index, name in enumerate(names):
        dicts = dataset_dicts(name)
        share = _SAMPLES // len(names) + (index < _SAMPLES % len(names))
        picked = chance.choice(len(dicts), min(share, len(dicts)), replace=False)
        chosen += [(name, dicts[i]["file_name"]) for i in sorted(picked)]
    for axes in (grid := figure.subplots(2, _SAMPLES // 2)).flat:
        axes.set_axis_off()
    for axes, (name, file) in zip(grid.flat, chosen, strict=False):
        axes.set_title(f"{name}\n{os.path.basename(file)}", fontsize=7)
        try:
            axes.imshow(read_grey(file), cmap="gray", vmin=0, vmax=255)
        except CTMaskNetError:
            axes.text(0.5, 0.5, "damaged", ha="center")
