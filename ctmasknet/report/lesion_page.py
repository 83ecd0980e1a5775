"""The page of a lesion detector's prediction: scans with their lesions, problems, pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctmasknet
from ctmasknet.errors import CTMaskNetError
from ctmasknet.report.forms import LESIONS_OF_SCAN, LESIONS_OF_SLICE
from ctmasknet.report.pictures import (
    SliceFiles,
    SlicePictures,
    recorded_axes,
    recorded_rescale,
    recorded_window,
)
from ctmasknet.report.sections import rendered
from ctmasknet.report.source import json_lines, read_run, read_told
from ctmasknet.report.tables import MAX_ROWS
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
                names = [scan[key] or "–" for key in ("patient", "scan")]
                scans.append((*names, scan["slices"], scan["slices_with"]))
            elif item.get("level") == "slice":
                one = LESIONS_OF_SLICE(item, "slice")
                best = max((box["score"] for box in one["boxes"]), default=0.0)
                slices.append((best, one["file"], one["lesions"]))
    except UnlikeForm as error:
        raise CTMaskNetError(
            f"{listing}: no prediction of a lesion detector ({error}); predict again"
        ) from None
    problems, cautions = read_told(listing)
    _, entries = read_run(Path(folder))
    seen = recorded_window(entries), folder, recorded_rescale(entries)
    files = SliceFiles(None, images, *seen, recorded_axes(entries))
    found = SlicePictures(
        [name for _, name, _ in slices], files, folders=pictures, more=Path(folder)
    )
    shown = [
        {"file": name, "best": best, "lesions": count, "pictures": found.of(_named(name))}
        for best, name, count in sorted(slices, key=lambda one: -one[0])[: max(0, gallery)]
    ]
    style = resources.files("ctmasknet.report") / "assets" / "report.css"
    page = rendered(
        "lesions.html.j2",
        title=f"Lesions: {Path(folder).resolve().name}",
        style=style.read_text(encoding="utf-8").strip(),
        version=ctmasknet.__version__,
        cautions=cautions,
        problems=problems[:MAX_ROWS],
        more_problems=max(0, len(problems) - MAX_ROWS),
        classes=list(dict.fromkeys(name for *_, counts in scans for name in counts)),
        scans=scans[:MAX_ROWS],
        more_scans=max(0, len(scans) - MAX_ROWS),
        slices=len(slices),
        lesions=sum(count for *_, count in slices),
        shown=shown,
        commands=[str(entry["command"]) for entry in entries if "command" in entry],
    )
    return page, files


def _named(file: str) -> Any:
    return SimpleNamespace(file=file)
