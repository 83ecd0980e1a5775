"""Writes the viewer's pages: one a patient, or one a scan where no patient is known, and a list."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import ctmasknet
from ctmasknet.console.progress import Progress
from ctmasknet.ct.scan import CTSlice
from ctmasknet.data.registry import lesion_colors
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.pooling import normal_index
from ctmasknet.files import atomic_write, check_writable, remove_unfinished, writing
from ctmasknet.names import readable_stem
from ctmasknet.report.pictures import boxes_that_moved
from ctmasknet.report.sections import rendered
from ctmasknet.report.viewer.prediction import ViewedPrediction, ViewedScan, read_prediction
from ctmasknet.report.viewer.slices import (
    HU_KNOTS,
    LEVEL_KNOTS,
    MIN_SCORE,
    Coding,
    SliceFinder,
    choose_coding,
    lesion_data,
    pixels_of,
    spread_indices,
)

_LOGGER = logging.getLogger(__name__)
_FOLDER, _INDEX = "viewer", "index.html"
#: Of pictures in a page of 400 slices; base64 counted.
_PICTURE_BYTES = 20e6
#: Slices of a page at most: a larger scan is cut, a patient with more gets several pages.
_MOST_SLICES = 1000
#: Kinds of scans whose slices are known to be upright; pictures do not state their sides.
_UPRIGHT = ("dicom", "nifti", "itk")
#: Where the template ends and slices begin.
_SLICES_HERE = "<!-- slices -->"
#: What moved the called class: (slice's line, its source) -> [x0, y0, x1, y1, weight] of boxes, px.
Evidence = Callable[[Mapping[str, Any], CTSlice], list[list[float]]]


@dataclass(frozen=True)
class _Page:
    """The scans of one file; ``part`` says which of a patient's, "" for the only one."""

    title: str
    file: str
    scans: tuple[ViewedScan, ...]
    part: str = ""


def write_viewers(
    folder: str | os.PathLike,
    *,
    images: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    config_file: str = "",
    weights: str | None = None,
    opts: Sequence[str] = (),
) -> list[Path]:
    """Write ``FOLDER/viewer``: a page a patient (a scan, where no patient is known), and a list.

    A page needs no other file: pictures of all slices, outlines and boxes of all lesions, scores.
    HU are kept as 256 levels, so that the reader chooses the window; they are for the eye.

    Args:
        folder: of a finished ``tools/predict.py``.
        images: a folder below which the slices lie, or files and folders; what the prediction
            names elsewhere, but for ``folder`` itself, is not looked at.
        config_file, weights, opts: of the model that predicted; with one of them it tells the boxes
            that moved the called class of each slice.

    Returns:
        the files, the list last.

    Raises:
        CTMaskNetError: see :func:`.read_prediction` and
            :func:`ctmasknet.report.pictures.boxes_that_moved`; no slice is found; a file cannot be
            written.
    """
    prediction = read_prediction(folder)
    if images is None or isinstance(images, str | os.PathLike):
        images = [] if images is None else [images]
    for one in images:
        if not Path(one).exists():
            raise CTMaskNetError(f"{one}: no such file or folder; correct `images`")
    output = prediction.folder / _FOLDER
    check_writable(output, folder=True)
    evidence = None
    if config_file or weights or "MODEL.WEIGHTS" in opts:
        names = list(prediction.image_classes)
        evidence = boxes_that_moved(config_file, opts, prediction.folder, names, weights)
    finder = SliceFinder([*images, prediction.folder], prediction.rescale, prediction.axes)
    pages, written, absent = list(_pages(prediction)), [], []
    count = sum(len(scan.slices) for page in pages for scan in page.scans)
    with writing(output), Progress("viewer", count) as progress:
        remove_unfinished(output)
        for page in pages:
            shown = [one["file"] for scan in page.scans for one in scan.slices]
            sources = finder.find(shown)
            absent += [name for name in shown if name not in sources]
            if not sources:
                progress.update(len(shown))
                continue
            path = output / page.file
            with atomic_write(path) as stream:
                for text in _texts(page, prediction, sources, evidence, progress.update):
                    stream.write(text)
            written.append(path)
    if not written:
        raise CTMaskNetError(
            f"{folder}: none of its slices is found, such as {absent[0]}; name the folder below "
            "which they lie as `images`"
        )
    if absent:
        _LOGGER.warning(
            "%s: %d of %d slices lie neither here nor in `images`, or cannot be read, and are "
            "not shown, such as %s",
            *(folder, len(absent), count, absent[0]),
        )
    with writing(output):
        with atomic_write(output / _INDEX) as stream:
            stream.write(_index(pages, {path.name for path in written}, prediction))
        for old in set(output.glob("*.html")) - {*written, output / _INDEX}:
            old.unlink()
    return [*written, output / _INDEX]


def _pages(prediction: ViewedPrediction) -> Iterator[_Page]:
    patients: dict[tuple[str, int], list[ViewedScan]] = {}
    for number, scan in enumerate(prediction.scans):
        patient = scan.about["patient"]
        # Without a patient each scan is its own
        patients.setdefault((patient, 0 if patient else number), []).extend(_cut(scan))
    for number, ((patient, _), scans) in enumerate(patients.items(), start=1):
        title = patient or scans[0].title or "scan"
        groups: list[list[ViewedScan]] = []
        for scan in scans:
            its = sum(len(one.slices) for one in groups[-1]) if groups else _MOST_SLICES
            if its + len(scan.slices) > _MOST_SLICES:
                groups.append([])
            groups[-1].append(scan)
        stem = f"{number:06d}_{readable_stem(title)}"
        for index, group in enumerate(groups, start=1):
            part = f"part {index} of {len(groups)}" if len(groups) > 1 else ""
            file = f"{stem}{f'_{index}' if part else ''}.html"
            yield _Page(title, file, tuple(group), part)


def _cut(scan: ViewedScan) -> list[ViewedScan]:
    starts = range(0, len(scan.slices), _MOST_SLICES)
    if len(starts) == 1:
        return [scan]
    cut = []
    for start in starts:
        its = scan.slices[start : start + _MOST_SLICES]
        name = f"{scan.title}, slices {start + 1} to {start + len(its)}"
        cut.append(replace(scan, about={**scan.about, "scan": name, "series": None}, slices=its))
    return cut


def _texts(
    page: _Page,
    prediction: ViewedPrediction,
    sources: Mapping[str, CTSlice],
    evidence: Evidence | None,
    told: Callable[[int], Any],
) -> Iterator[str]:
    """The page in parts, a slice at a time."""
    lesions = {
        one["file"]: [
            lesion_data(lesion)
            for lesion in prediction.lesions.get(one["file"], ())
            if lesion.get("score", 1.0) >= _least_score(prediction)
        ]
        for scan in page.scans
        for one in scan.slices
    }
    first = _first(page, prediction, lesions)
    begin, end = _page_text(page, prediction, lesions, first, evidence).split(_SLICES_HERE)
    coding = _coding(page, sources)
    yield begin
    order = [(s, n) for s, scan in enumerate(page.scans) for n in range(len(scan.slices))]
    # The one that is shown first is read first
    for scan, number in [first, *(one for one in order if one != first)]:
        line = page.scans[scan].slices[number]
        value = _slice_value(line, lesions[line["file"]], sources, evidence, coding)
        yield f'<script type="text/plain" id="slice-{scan}-{number}">{_json(value)}</script>\n'
        told(1)
    yield end


def _slice_value(
    line: Mapping[str, Any],
    lesions: Sequence[tuple[list[Any], list[list[int]]]],
    sources: Mapping[str, CTSlice],
    evidence: Evidence | None,
    coding: Coding,
) -> dict[str, Any]:
    """What is only read when a slice is shown."""
    value: dict[str, Any] = {
        "outlines": [outlines for _, outlines in lesions],
        "boxes": [
            [box["class"], round(box["score"], 3), *(round(side, 1) for side in box["box_px"])]
            for box in line["boxes"]
        ],
    }
    source = sources.get(line["file"])
    if source is None:
        return value
    try:
        pixels = pixels_of(source)
    except CTMaskNetError as error:
        return value | {"fault": str(error)}
    shape, stated = pixels.grey.shape[:2], (line["height"], line["width"])
    if shape != stated:
        told = [f"{height} x {width}" for height, width in (shape, stated)]
        return value | {
            "fault": f"The file that is found has {told[0]} px and not the {told[1]} of the "
            "prediction: it is another one."
        }
    if evidence is not None:
        value["moved"] = evidence(line, source)
    return value | {"hu": pixels.is_hu, "picture": coding.data(pixels.grey)}


def _least_score(prediction: ViewedPrediction) -> float:
    return min(MIN_SCORE, prediction.score_threshold)


def _coding(page: _Page, sources: Mapping[str, CTSlice]) -> Coding:
    """How pictures are written, so that the page stays small."""
    there = [sources[s["file"]] for scan in page.scans for s in scan.slices if s["file"] in sources]
    samples = []
    for index in spread_indices(len(there)):
        try:
            samples.append(pixels_of(there[index]).grey)
        except CTMaskNetError:
            continue
    return choose_coding(samples, len(there), _PICTURE_BYTES)


def _first(
    page: _Page, prediction: ViewedPrediction, lesions: Mapping[str, Any]
) -> tuple[int, int]:
    """(scan, slice) that is shown first, of scans that count for the patient: the one with most
    lesion, else the one whose scores say least that it is normal, else the middle of the first scan
    of all."""
    normal = normal_index(prediction.image_classes) if prediction.image_classes else None
    best, found = 0.0, (0, len(page.scans[0].slices) // 2)
    for kind in ("lesions", "scores"):
        for number, scan in enumerate(page.scans):
            counted = scan.about["counts"] is not False
            for index, line in enumerate(scan.slices if counted else ()):
                if kind == "lesions":
                    facts = (facts for facts, _ in lesions[line["file"]])
                    value = sum(one[2] for one in facts if one[1] > prediction.score_threshold)
                else:
                    scores = (line["scores"] or {}).values()
                    value = max((s for i, s in enumerate(scores) if i != normal), default=0.0)
                if value > best:
                    best, found = value, (number, index)
        if best:
            break
    return found


def _page_text(
    page: _Page,
    prediction: ViewedPrediction,
    lesions: Mapping[str, Any],
    first: tuple[int, int],
    evidence: Evidence | None,
) -> str:
    """The whole page but its slices."""
    assets = resources.files("ctmasknet.report") / "assets"
    names = ("viewer.js", "report.css", "viewer.css")
    script, *styles = ((assets / name).read_text(encoding="utf-8").strip() for name in names)
    classes = prediction.lesion_classes
    window = prediction.window
    data = {
        "classes": prediction.image_classes,
        "lesionClasses": classes,
        "colors": ["#{:02x}{:02x}{:02x}".format(*color) for color in lesion_colors(classes)],
        "threshold": prediction.score_threshold,
        "knots": {"hu": HU_KNOTS, "level": LEVEL_KNOTS},
        "window": None if window is None else [window.center_hu, window.width_hu],
        "first": first,
        "scans": [_scan_value(scan, prediction, lesions) for scan in page.scans],
    }
    cautions = dict.fromkeys(c for scan in page.scans for c in scan.about["cautions"] or ())
    return rendered(
        "viewer.html.j2",
        title=page.title,
        part=page.part,
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style="\n".join(styles),
        data=_json(data),
        classes=prediction.image_classes,
        lesion_classes=list(zip(classes, data["colors"], strict=True)),
        with_evidence=evidence is not None,
        threshold=prediction.score_threshold,
        min_score=_least_score(prediction),
        window=window,
        scans=[{**one.about, "title": one.title, "counted": _counted(one)} for one in page.scans],
        upright=all(scan.about["kind"] in _UPRIGHT for scan in page.scans),
        cautions=list(cautions),
        version=ctmasknet.__version__,
    )


def _counted(scan: ViewedScan) -> str:
    """Whether it counts for its patient, in words; "" where there was no choice."""
    if not scan.about["reconstruction"] or scan.about["counts"] is None:
        return ""
    return "counted" if scan.about["counts"] else "not counted: another reconstruction is"


def _scan_value(
    scan: ViewedScan, prediction: ViewedPrediction, lesions: Mapping[str, Any]
) -> dict[str, Any]:
    about = scan.about
    return {
        "name": scan.title,
        "counted": _counted(scan),
        "upright": about["kind"] in _UPRIGHT,
        "pred": about["pred"],
        "scores": [about["scores"].get(name) for name in prediction.image_classes]
        if about["scores"]
        else [],
        "slices": [
            {
                "file": line["file"],
                "size": [line["height"], line["width"]],
                "spacing": line["spacing_mm"],
                "z": line["position_mm"],
                "pred": line["pred"],
                "scores": [round(one, 4) for one in (line["scores"] or {}).values()],
                "problems": line["problems"] or [],
                "lesions": [facts for facts, _ in lesions[line["file"]]],
            }
            for line in scan.slices
        ],
    }


def _index(pages: Sequence[_Page], files: set[str], prediction: ViewedPrediction) -> str:
    """The list of pages, of which ``files`` were written."""
    assets = resources.files("ctmasknet.report") / "assets"
    rows = [
        {
            "href": page.file if page.file in files else "",
            "title": page.title,
            "part": page.part,
            "scans": [
                {
                    "name": scan.title,
                    "counted": _counted(scan),
                    "slices": len(scan.slices),
                    "pred": scan.about["pred"] or "",
                    "problems": len(scan.about["problems"]),
                }
                for scan in page.scans
            ],
        }
        for page in pages
    ]
    return rendered(
        "viewer_index.html.j2",
        title=f"Scans: {prediction.folder.resolve().name}",
        style=(assets / "report.css").read_text(encoding="utf-8").strip(),
        rows=rows,
        with_classes=bool(prediction.image_classes),
        version=ctmasknet.__version__,
    )


def _json(value: Any) -> str:
    """JSON that cannot end the script it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=np.ndarray.tolist)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
