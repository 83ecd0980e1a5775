"""What a viewer shows of a prediction: scans with their slices' scores, boxes and lesions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctmasknet.ct.arrays import Axes
from ctmasknet.ct.scan import Rescale, Window
from ctmasknet.data.coco import checked_coco
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import read_json
from ctmasknet.names import readable_stem
from ctmasknet.report.pictures import recorded_axes, recorded_rescale, recorded_window
from ctmasknet.report.source import json_lines, read_run
from ctmasknet.schema import (
    checked,
    listing,
    maybe,
    names_of,
    number,
    one_of,
    record,
    text,
    whole_from_0,
    whole_from_1,
    within,
)

_LISTING, _LESIONS = "predictions.jsonl", "lesions.json"
#: Of runs that do not state theirs.
_SCORE_THRESHOLD = 0.75
_SHARE = within(0, 1)
_BOX = record({"class": text, "score": _SHARE, "box_px": listing(number, 4)})
_SLICE = record(
    {
        "file": text,
        "patient": text,
        "scan": text,
        "height": whole_from_1,
        "width": whole_from_1,
        "spacing_mm": maybe(listing(number, 2)),
        "position_mm": maybe(number),
        "pred": maybe(text),
        "scores": maybe(names_of(_SHARE)),
        "boxes": listing(_BOX),
        "problems": maybe(listing(text)),
    }
)
_SCAN = record(
    {
        "patient": text,
        "scan": text,
        "kind": text,
        "slices": whole_from_0,
        "problems": listing(text),
        "pred": maybe(text),
        "scores": maybe(names_of(_SHARE)),
        "pooling": maybe(text),
        "series": maybe(text),
        "counts": maybe(one_of(False, True)),
        "reconstruction": maybe(text),
        "cautions": maybe(listing(text)),
    }
)


@dataclass(frozen=True)
class ViewedScan:
    """A scan as ``predictions.jsonl`` has it: ``about`` is its own line, ``slices`` are those of
    its slices, feet to head."""

    about: Mapping[str, Any]
    slices: tuple[Mapping[str, Any], ...]

    @property
    def title(self) -> str:
        """What people call it: a DICOM series by number and description, else the scan's name."""
        return self.about["series"] or self.about["scan"]

    @property
    def own_name(self) -> str:
        """Patient and title as a part of a file's name."""
        return readable_stem(self.about["patient"], self.title)


@dataclass(frozen=True)
class ViewedPrediction:
    """A prediction that viewers are made of.

    Attributes:
        folder: of ``tools/predict.py``.
        scans: in the order of the inputs; scans without a slice are left out.
        image_classes: C names in the order of the scores; empty from a lesion detector.
        lesion_classes: names in the order of the lesions' classes; empty where none were asked for.
        lesions: annotations of ``lesions.json`` by the name of their slice.
        score_threshold: that of the run, 0..1.
        window: through which the model saw HU; None where the run does not say.
        rescale, axes: that were given to the run.
    """

    folder: Path
    scans: tuple[ViewedScan, ...]
    image_classes: tuple[str, ...]
    lesion_classes: tuple[str, ...]
    lesions: Mapping[str, list[Mapping[str, Any]]]
    score_threshold: float
    window: Window | None
    rescale: Rescale | None
    axes: Axes | None


def read_prediction(folder: str | os.PathLike) -> ViewedPrediction:
    """Read the folder of ``tools/predict.py``.

    Raises:
        CTMaskNetError: no prediction, one that is not finished, or damaged files.
    """
    folder = Path(folder)
    path = folder / _LISTING
    if not path.is_file():
        raise CTMaskNetError(
            f"{path}: no such file; a viewer is made of the folder of a finished prediction"
        )
    forms, found = {"slice": _SLICE, "scan": _SCAN}, {"slice": [], "scan": []}
    for item in json_lines(path):
        level = item.get("level")
        if level in forms:
            found[level].append(checked(path, item, forms[level], "a prediction", "predict again"))
    slices, scans = iter(found["slice"]), []
    for about in found["scan"]:
        its = tuple(itertools.islice(slices, about["slices"]))
        if any(one["scan"] != about["scan"] for one in its) or len(its) < about["slices"]:
            raise CTMaskNetError(
                f"{path}: scan {about['scan']} has other slices than it says; predict again"
            )
        if its:
            scans.append(ViewedScan(about, its))
    classes = next((tuple(one["scores"]) for one in found["slice"] if one["scores"]), ())
    if any(tuple(one["scores"] or ()) != classes for one in found["slice"]):
        raise CTMaskNetError(f"{path}: its slices have scores of unlike classes; predict again")
    files = [one["file"] for one in found["slice"]]
    if len(set(files)) < len(files):
        # Lesions are known by the name of their slice
        raise CTMaskNetError(f"{path}: two of its slices have one name; predict again")
    lesion_classes, lesions = _read_lesions(folder / _LESIONS)
    _, entries = read_run(folder)
    return ViewedPrediction(
        folder,
        tuple(scans),
        classes,
        lesion_classes,
        lesions,
        recorded_threshold(entries),
        recorded_window(entries),
        recorded_rescale(entries),
        recorded_axes(entries),
    )


def _read_lesions(path: Path) -> tuple[tuple[str, ...], dict[str, list[Mapping[str, Any]]]]:
    """Class names, and annotations by the name of their slice, ``class`` (index) among them."""
    if not path.is_file():
        return (), {}
    document = checked_coco(read_json(path), path)
    index = {one["id"]: number for number, one in enumerate(document["categories"])}
    names = {one["id"]: one["file_name"] for one in document["images"]}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in document["annotations"]:
        lesion = {**one, "class": index[one["category_id"]]}
        found.setdefault(names[one["image_id"]], []).append(lesion)
    return tuple(one["name"] for one in document["categories"]), found


def recorded_threshold(entries: Sequence[Mapping[str, Any]]) -> float:
    """The score that lesions of the latest run in ``run.json`` have to exceed, 0..1."""
    settings = entries[-1].get("settings") if entries else None
    options = settings.get("options") if isinstance(settings, dict) else None
    value = options.get("score_threshold") if isinstance(options, dict) else None
    fits = isinstance(value, int | float) and 0 <= value <= 1
    return float(value) if fits else _SCORE_THRESHOLD
