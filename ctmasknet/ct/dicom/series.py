"""DICOM files as slices, and slices as series in the order of their positions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataset import Dataset

from ctmasknet.ct.dicom.bytes import read_frame, read_header
from ctmasknet.ct.dicom.frames import Frame, check_is_ct, frames_of
from ctmasknet.ct.dicom.reconstruction import Reconstruction, reconstruction_of
from ctmasknet.ct.find import natural_key
from ctmasknet.ct.orientation import Upright, upright
from ctmasknet.ct.scan import CTScan, CTSlice, Rescale, UnsuitableFile, decoding, mark_outside
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import has_control_character

#: Positions closer than this are one position, mm (or than this share of the usual step).
_SAME_MM, _SAME_SHARE = 0.05, 0.05
#: How far steps may differ, mm (or by the above share): positions are stated with two decimals.
_EVEN_MM = 0.02
#: How far a slice may lie beside the line through the first and the last, mm.
_BESIDE_MM = 0.5
#: So many slices left out for their position are named one by one; of more, one line counts them.
_MAX_NAMED = 8


@dataclass(frozen=True, eq=False)
class DicomSource:
    """Reads one frame of one DICOM file.

    Attributes:
        series: slices of one scan have the same: patient, study, series.
        image: SOPInstanceUID, "" where there is none.
        instance: InstanceNumber, 0 where there is none.
        padding: (lowest, highest) stored value that marks pixels outside the measured circle.
        about: how the series was made.
    """

    file: str
    transfer_syntax: str
    turn: Upright
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    series: tuple[str, str, str]
    image: str
    instance: int
    about: Reconstruction

    def read_picture(self, frame: int | None) -> None:
        return None

    def read_hu(self, frame: int | None) -> np.ndarray:
        stored = read_frame(self.file, frame or 0, self.transfer_syntax)
        hu = (stored * self.slope + self.intercept).astype(np.float32)
        padding = None
        if self.padding is not None:
            padding = (stored >= self.padding[0]) & (stored <= self.padding[1])
        return self.turn.plane(mark_outside(hu, padding).T)


def read_dicom_file(file: str, name: str, rescale: Rescale | None = None) -> list[CTSlice]:
    """The slices of one DICOM file, from its header alone.

    Args:
        file: path.
        name: how the slices are called; frames get ``#0000``, ``#0001``, ... appended.
        rescale: see :func:`ctmasknet.ct.read.read_scans`.

    Raises:
        UnsuitableFile: not CT, a localizer, no rescale to HU, not axial, no position, no image.
        CTMaskNetError: damaged.
    """
    header = read_header(file, check_is_ct)
    with decoding(file):
        frames = frames_of(header, file, rescale)
        padding = _padding(header)
        source = {
            "file": file,
            "transfer_syntax": str(header.file_meta.TransferSyntaxUID),
            "padding": padding,
            "series": tuple(
                str(header.get(key) or "").strip()
                for key in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
            ),
            "image": str(header.get("SOPInstanceUID") or "").strip(),
            "instance": int(header.get("InstanceNumber") or 0),
            "about": reconstruction_of(header),
        }
        shape = (int(header.Columns), int(header.Rows), 1)
    if any(map(has_control_character, source["series"])):
        raise CTMaskNetError(
            f"{file}: its PatientID or UIDs hold a line break or another control character; mend it"
        )
    many = len(frames) > 1
    return [
        _slice(
            frame, index if many else None, f"{name}#{index:04d}" if many else name, shape, source
        )
        for index, frame in enumerate(frames)
    ]


def _slice(
    frame: Frame, index: int | None, name: str, shape: tuple[int, int, int], source: dict
) -> CTSlice:
    turn = upright(frame.affine, shape, source["file"])
    if turn.axes[2] != 2:
        plane = ("sagittal", "coronal")[turn.axes.index(2)]
        raise UnsuitableFile(f"{source['file']}: not axial, a {plane} plane; give axial slices")
    patient, _, series = source["series"]
    return CTSlice(
        file=source["file"],
        frame=index,
        name=name,
        patient=patient,
        scan=series or os.path.dirname(source["file"]) or ".",
        shape=(turn.shape[1], turn.shape[0]),
        spacing_mm=turn.spacing_mm if frame.spacing_known else None,
        position_mm=float(turn.affine[2, 3]),
        source=DicomSource(turn=turn, slope=frame.slope, intercept=frame.intercept, **source),
    )


def _padding(header: Dataset) -> tuple[int, int] | None:
    """The stored values that mean "nothing measured here", as the pixels hold them."""
    first = header.get("PixelPaddingValue")
    if first is None:
        return None
    last = header.get("PixelPaddingRangeLimit")
    stated = (_as_stored(int(value), header) for value in (first, last) if value is not None)
    bounds = [value for value in stated if value is not None]
    return (min(bounds), max(bounds)) if bounds else None


def _as_stored(value: int, header: Dataset) -> int | None:
    """Files give a signed padding value as unsigned, or with more bits than they store. None: a
    value that no pixel can have; cut to the stored bits it would be that of tissue."""
    allocated = int(header.get("BitsAllocated") or 16)
    bits = int(header.get("BitsStored") or allocated)
    pattern = value & ((1 << bits) - 1)
    negative = header.get("PixelRepresentation") == 1 and pattern >> (bits - 1)
    stored = pattern - (1 << bits) if negative else pattern
    return stored if value == pattern or (value - stored) % (1 << allocated) == 0 else None


def dicom_scans(slices: list[CTSlice]) -> list[CTScan]:
    """Group slices to series, and order each by position, feet to head.

    Slices of one series that differ in size, spacing or orientation become scans of their own; the
    largest keeps the series UID, the others get ``#2``, ``#3``, ... appended.

    A series in which most images share their position with others states none (``position_mm`` is
    None): all its images stay, in the order of their instance numbers, without geometry.
    """
    series: dict[tuple, list[CTSlice]] = {}
    for one in slices:
        series.setdefault((one.source.series, one.scan), []).append(one)
    scans = []
    for members in series.values():
        grids = sorted(_same_grids(members), key=len, reverse=True)
        for number, grid in enumerate(grids, 1):
            name = grid[0].scan if number == 1 else f"{grid[0].scan}#{number}"
            scan = _ordered([replace(one, scan=name) for one in grid])
            if len(grids) > 1:
                scan = scan.with_problems(
                    [f"its series holds {len(grids)} unlike grids (size, spacing, orientation)"]
                )
            scans.append(scan)
    return scans


def _same_grids(slices: list[CTSlice]) -> list[list[CTSlice]]:
    grids: list[list[CTSlice]] = []
    for one in slices:
        axes = one.source.turn.affine[:3, :2]
        for grid in grids:
            same_axes = np.allclose(grid[0].source.turn.affine[:3, :2], axes, atol=0.01)
            if grid[0].shape == one.shape and same_axes:
                grid.append(one)
                break
        else:
            grids.append([one])
    return grids


def _ordered(grid: list[CTSlice]) -> CTScan:
    grid = sorted(grid, key=lambda one: one.position_mm)
    steps = np.diff([one.position_mm for one in grid])
    distinct = steps[steps > _SAME_MM]
    # A step that occurs, also where few slices are left.
    step = float(np.quantile(distinct, 0.5, method="lower")) if len(distinct) else 0.0
    groups = _same_positions(grid, max(_SAME_MM, _SAME_SHARE * step))
    images = _images(grid)
    if len(images) > 1 and (len(groups) == 1 or 2 * len(groups) < len(images)):
        return _unplaced(images, len(groups), len(grid) - len(images))
    kept, problems, doubled = [], [], []
    for group in groups:
        one, *others = sorted(group, key=_number)
        if kept and (missing := round((one.position_mm - kept[-1].position_mm) / step) - 1) > 0:
            problems.append(
                f"missing: {missing} between z = {kept[-1].position_mm:g} and "
                f"{one.position_mm:g} mm (step {step:g} mm)"
            )
        doubles = [
            f"duplicate position z = {other.position_mm:g} mm: {other.name} left out, "
            f"{one.name} kept"
            for other in others
        ]
        problems += doubles
        doubled += doubles
        kept.append(one)
    if len(doubled) > _MAX_NAMED:
        problems = [line for line in problems if line not in doubled]
        problems.insert(0, f"{len(doubled)} slices left out, the first: {doubled[0]}")
    gaps = np.diff([one.position_mm for one in kept])
    even = not len(gaps) or np.abs(gaps - step).max() <= max(_EVEN_MM, _SAME_SHARE * step)
    if not even and not any(problem.startswith("missing") for problem in problems):
        problems.append(f"uneven steps, {gaps.min():g} to {gaps.max():g} mm")
    shift_mm = beside_mm(kept)
    if shift_mm > _BESIDE_MM:
        problems.append(f"slices are shifted sideways against each other, by {shift_mm:.1f} mm")
    return CTScan(
        patient=kept[0].patient,
        scan=kept[0].scan,
        kind="dicom",
        slices=tuple(kept),
        affine=grid_affine(kept, len(kept) - 1) if even and shift_mm <= _BESIDE_MM else None,
        problems=tuple(problems),
    )


def _number(one: CTSlice) -> tuple:
    return one.source.instance, natural_key(one.name)


def _images(grid: list[CTSlice]) -> list[CTSlice]:
    """By their numbers, copies of one image once; an image without UID or number is like none."""
    found: dict[tuple, CTSlice] = {}
    for one in sorted(grid, key=_number):
        source = one.source
        stated = source.image and source.instance
        found.setdefault((source.image, source.instance, one.frame) if stated else (one.name,), one)
    return list(found.values())


def _unplaced(images: list[CTSlice], positions: int, copies: int) -> CTScan:
    stated = "one position" if positions == 1 else f"{positions} positions in all"
    left_out = f"; copies left out: {copies}" if copies else ""
    return CTScan(
        patient=images[0].patient,
        scan=images[0].scan,
        kind="dicom",
        slices=tuple(replace(one, position_mm=None) for one in images),
        problems=(
            f"its {len(images)} images state {stated}, so their order is that of their instance "
            f"numbers, and distances and volumes are unknown{left_out}",
        ),
    )


def _same_positions(grid: list[CTSlice], same_mm: float) -> list[list[CTSlice]]:
    """Slices in the order of their positions, those of one position together."""
    groups: list[list[CTSlice]] = []
    for one in grid:
        if groups and one.position_mm - groups[-1][0].position_mm <= same_mm:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def beside_mm(slices: Sequence[CTSlice]) -> float:
    """How far the corner of any slice lies from the line through those of the first and last."""
    if len(slices) < 3:
        return 0.0
    corners = np.array([one.source.turn.affine[:3, 3] for one in slices])
    line = corners[-1] - corners[0]
    share = (corners[:, 2] - corners[0, 2]) / line[2]
    return float(np.linalg.norm(corners - corners[0] - share[:, None] * line, axis=1).max())


def grid_affine(slices: Sequence[CTSlice], steps: int) -> np.ndarray | None:
    """(4, 4) upright (column, row, slice) index -> RAS mm of an even grid in which the last slice
    lies ``steps`` from the first; None where the files state no spacing."""
    if slices[0].spacing_mm is None:
        return None
    first, last = (one.source.turn.affine for one in (slices[0], slices[-1]))
    affine = first.copy()
    if steps:
        affine[:3, 2] = (last[:3, 3] - first[:3, 3]) / steps
    return affine
