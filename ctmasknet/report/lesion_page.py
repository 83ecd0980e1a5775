"""The page of a lesion detector's prediction: scans with their lesions, problems, pictures."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import ctmasknet
from ctmasknet.errors import CTMaskNetError
from ctmasknet.report.forms import LESIONS_OF_SCAN, LESIONS_OF_SLICE
from ctmasknet.report.neighbours import read_seen, slice_heading
from ctmasknet.report.pictures import (
    SliceFiles,
    SlicePictures,
    recorded_axes,
    recorded_rescale,
    recorded_window,
)
from ctmasknet.report.sections import rendered
from ctmasknet.report.source import json_lines, read_run, read_told
from ctmasknet.report.tables import MAX_ROWS, PER_PATIENT, few_of_each
from ctmasknet.report.viewer.prediction import recorded_threshold
from ctmasknet.schema import UnlikeForm

_LISTING = "predictions.jsonl"


def is_of_a_detector(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a prediction that names no class of any slice."""
    folder = Path(folder)
    evaluated = (folder / "predictions.csv").is_file() or any(folder.glob("inference/*/*.csv"))
    return (folder / _LISTING).is_file() and not evaluated


def lesion_page(
    folder: str | os.PathLike,
    images: str | os.PathLike | None,
    pictures: Sequence[str | os.PathLike],
    gallery: int,
    options: Mapping[str, Any],
) -> tuple[str, SliceFiles]:
    """The page as text, and what found its slices.

    Args:
        folder: of ``tools/predict.py`` with a detector.
        images, pictures, gallery: see :func:`ctmasknet.report.page.write_report`.
        options: its other arguments, which such a page has no use for.

    Raises:
        CTMaskNetError: one of the options is given; a broken listing.
    """
    for name, value in options.items():
        if value:
            raise CTMaskNetError(
                f"`{name}`: the page of a lesion detector's prediction has none; leave it out"
            )
    listing = Path(folder) / _LISTING
    scans, slices = [], []
    try:
        for item in json_lines(listing):
            if item.get("level") == "scan":
                scan = LESIONS_OF_SCAN(item, "scan")
                counted = {None: "", True: " (counted)", False: " (not counted: another series is)"}
                name = (scan["series"] or scan["scan"] or "–") + counted[scan["counts"]]
                scans.append((scan["patient"] or "–", name, scan["slices"], scan["slices_with"]))
            elif item.get("level") == "slice":
                one = LESIONS_OF_SLICE(item, "slice")
                scores = [box["score"] for box in one["boxes"]]
                names = {key: one[key] or "" for key in ("file", "patient", "scan")}
                slices.append(_Slice(**names, scores=scores, candidates=one["lesions"]))
    except UnlikeForm as error:
        raise CTMaskNetError(
            f"{listing}: no prediction of a lesion detector ({error}); predict again"
        ) from None
    problems, cautions = read_told(listing)
    _, entries = read_run(Path(folder))
    seen = recorded_window(entries), folder, recorded_rescale(entries)
    files = SliceFiles(None, images, *seen, recorded_axes(entries))
    found = SlicePictures([one.file for one in slices], files, folders=pictures, more=Path(folder))
    places = read_seen(listing) if gallery > 0 else {}
    best_first = sorted(slices, key=lambda one: -one.best)
    threshold = recorded_threshold(entries)
    shown = [
        {
            "heading": slice_heading(one.file, one.patient, one.scan, places.get(one.file)),
            "best": one.best,
            "above": one.above(threshold),
            "candidates": one.candidates,
            "pictures": found.of(one),
        }
        for one in few_of_each(best_first, max(0, gallery), places)
    ]
    assets = resources.files("ctmasknet.report") / "assets"
    style, script = (
        (assets / name).read_text(encoding="utf-8").strip() for name in ("report.css", "zoom.js")
    )
    page = rendered(
        "lesions.html.j2",
        title=f"Lesions: {Path(folder).resolve().name}",
        style=style,
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=ctmasknet.__version__,
        cautions=cautions,
        problems=problems[:MAX_ROWS],
        more_problems=max(0, len(problems) - MAX_ROWS),
        classes=list(dict.fromkeys(name for *_, counts in scans for name in counts)),
        scans=scans[:MAX_ROWS],
        more_scans=max(0, len(scans) - MAX_ROWS),
        slices=len(slices),
        lesions=sum(one.candidates for one in slices),
        threshold=threshold,
        per_patient=PER_PATIENT,
        shown=shown,
        commands=[str(entry["command"]) for entry in entries if "command" in entry],
    )
    return page, files


@dataclass(frozen=True)
class _Slice:
    """A slice: scores of its best boxes, and its lesions of any score."""

    file: str
    patient: str
    scan: str
    scores: list[float]
    candidates: int

    @property
    def best(self) -> float:
        return max(self.scores, default=0.0)

    def above(self, threshold: float) -> str:
        """How many score above it; the listing knows the best alone."""
        count = sum(score > threshold for score in self.scores)
        more = count == len(self.scores) < self.candidates
        return f"{count} or more" if more else str(count)
