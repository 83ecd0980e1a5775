"""Which slices show what another slice shows: neighbours of one scan with the same lesion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ctmasknet.report.source import json_lines

#: Slices farther apart than this do not pass for neighbours, mm; or slices, where mm are unknown.
_NEAR_MM, _NEAR_SLICES = 20.0, 4
#: Of the smaller of two boxes, the share that lies in the other.
_SAME_SHARE = 0.5
_LAST_NUMBER = re.compile(r"(\d+)\D*$")


class SeenSlice(NamedTuple):
    """A slice as ``predictions.jsonl`` tells of it: patient and scan, what people call the scan,
    its number in it (from 1) of how many, mm along the body (None where unknown), and its best box,
    px (None without)."""

    scan: tuple[str, str]
    called: str
    number: int
    of: int
    position_mm: float | None
    box: tuple[float, float, float, float] | None

    def shows_the_lesion_of(self, other: SeenSlice) -> bool:
        """Whether both are neighbours whose best boxes lie on each other."""
        if self.scan != other.scan or self.box is None or other.box is None:
            return False
        if self.position_mm is None or other.position_mm is None:
            near = abs(self.number - other.number) <= _NEAR_SLICES
        else:
            near = abs(self.position_mm - other.position_mm) <= _NEAR_MM
        return near and _share(self.box, other.box) >= _SAME_SHARE


def read_seen(path: Path | None) -> dict[str, SeenSlice]:
    """The slices of a ``predictions.jsonl`` by name; none of None, nor of lines that tell too
    little.

    Raises:
        CTMaskNetError: the file cannot be read.
    """
    if path is None:
        return {}
    found: dict[str, tuple[Any, ...]] = {}
    counts: dict[tuple[str, str], int] = {}
    called: dict[tuple[str, str], str] = {}
    for item in json_lines(path):
        scan = (str(item.get("patient") or ""), str(item.get("scan") or ""))
        if item.get("level") == "scan" and item.get("series"):
            called[scan] = str(item["series"])
        elif item.get("level") == "slice" and "file" in item:
            counts[scan] = counts.get(scan, 0) + 1
            where = _number(item.get("position_mm")), _best(item.get("boxes"))
            found[str(item["file"])] = scan, counts[scan], where
    return {
        name: SeenSlice(scan, called.get(scan, ""), number, counts[scan], *where)
        for name, (scan, number, where) in found.items()
    }


def slice_heading(file: str, patient: str, scan: str, seen: SeenSlice | None) -> tuple[str, str]:
    """What a picture of a slice is headed by, and the line below: patient, series or scan and
    number over the file, or the file over patient and scan where no number is known."""
    if seen is not None and seen.called:
        scan = seen.called
    elif scan:
        scan = "" if scan == patient else f"scan {scan}"
    where = "" if seen is None else f"slice {seen.number} of {seen.of}"
    words = " \u00b7 ".join(filter(None, (f"patient {patient}" if patient else "", scan, where)))
    return (file, words) if seen is None else (words, file)


def are_named_as_neighbours(names: Sequence[str]) -> bool:
    """Whether the last numbers of two file names, without their endings, follow each other."""
    numbers = [_LAST_NUMBER.search(re.sub(r"\.\D\w*$", "", name)) for name in names]
    return all(numbers) and abs(int(numbers[0][1]) - int(numbers[1][1])) <= 1


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if fits else None


def _best(boxes: Any) -> tuple[float, float, float, float] | None:
    first = boxes[0] if isinstance(boxes, list) and boxes else None
    box = first.get("box_px") if isinstance(first, dict) else None
    sides = tuple(map(_number, box)) if isinstance(box, list) else ()
    return sides if len(sides) == 4 and None not in sides else None


def _share(one: Sequence[float], other: Sequence[float]) -> float:
    sides = [min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1)]
    common = max(0.0, sides[0]) * max(0.0, sides[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / max(min(areas), 1e-9)
