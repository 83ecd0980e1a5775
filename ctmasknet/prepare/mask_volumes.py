"""Label masks that are volumes: NIfTI, MetaImage, NRRD and DICOM-SEG, upright and on the
grid of their scan.

Upright as in :mod:`ctmasknet.ct.scan`; affines map upright (column, row, slice) indices to RAS
mm.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pydicom

from ctmasknet.ct.arrays import ArrayVolume, Axes, read_array
from ctmasknet.ct.dicom.bytes import check_items
from ctmasknet.ct.dicom.series import beside_mm, grid_affine
from ctmasknet.ct.find import kind_of
from ctmasknet.ct.itk import read_itk_volume
from ctmasknet.ct.nifti import read_volume
from ctmasknet.ct.orientation import Upright, upright
from ctmasknet.ct.scan import CTScan, check_claimed_size, decoding
from ctmasknet.ct.sidecar import stated_layout
from ctmasknet.data.label_masks import MAX_MASK_EXPANSION, background_value, check_known_values
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.masks.planes import PAINT_ORDER

#: Segmentation Storage and Label Map Segmentation Storage.
_SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
#: Label name -> words all of which a segment's label or coded meaning holds.
_SEGMENT_WORDS = {
    "ggo": (("ground", "glass"), ("ggo",)),
    "consolidation": (("consolidation",),),
    "lesion": (("lesion",), ("opacity",), ("opacities",), ("infiltrat",)),
    "lung": (("lung",),),
    "background": (("background",),),
}
#: RAS from DICOM's LPS.
_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: How far volume and mask may differ: spacing, direction of an axis, position of any corner voxel.
_SPACING_TOLERANCE_MM = 0.01
_ANGLE_TOLERANCE_DEGREES = 0.5
_POSITION_TOLERANCE_MM = 0.5
#: Share of a slice's step by which a slice may lie beside its position in a grid.
_POSITION_SHARE = 0.1


@dataclass(frozen=True)
class MaskVolume:
    """A mask in memory or on disk.

    Attributes:
        file: path.
        turn: of its grid; its ``shape`` (columns, rows, slices) and ``affine`` are upright.
        values: number of a slice as stored -> (H, W) values, unsigned, upright.
        partial: slices without any label may be left out of the file.
        placed: it states where it lies; else its slices are those of its scan, in their order.
    """

    file: str
    turn: Upright
    values: Callable[[int], np.ndarray]
    partial: bool
    placed: bool = True

    def plane(self, index: int) -> np.ndarray:
        """(H, W) values of one slice, unsigned, upright, counted from the feet."""
        last = self.turn.shape[2] - 1
        return self.values(last - index if self.turn.flips[2] else index)


def seg_series(file: str) -> str | None:
    """The series that a DICOM-SEG is of, "" where it states none; None for any other file."""
    if kind_of(file) != "dicom":
        return None
    with decoding(file):
        check_items(file)
        header = pydicom.dcmread(
            file,
            stop_before_pixels=True,
            force=True,
            specific_tags=["SOPClassUID", "ReferencedSeriesSequence"],
        )
        if header.get("SOPClassUID") not in _SEG_CLASSES:
            return None
        series = header.get("ReferencedSeriesSequence") or []
        return str(series[0].get("SeriesInstanceUID") or "") if len(series) == 1 else ""


def read_mask_volume(
    file: str,
    labels: Mapping[int, str],
    segments: Mapping[str, str] | None = None,
    check: Callable[[str, np.ndarray], np.ndarray] | None = None,
    axes: Axes | None = None,
) -> MaskVolume:
    """Open a mask volume.

    Args:
        file: NIfTI, MetaImage, NRRD, NumPy or DICOM-SEG; told apart by content.
        labels: name of each mask value.
        segments: label name of a segment, by its number, its label or its coded meaning (in any
            case); goes before the words these hold, such as "ground glass".
        check: (file, stored values of a slice) -> whole values, of other files than DICOM-SEG;
            default: those that ``labels`` names.
        axes: of an array; None: what is stated beside it.

    Raises:
        CTMaskNetError: damaged, oblique, another format; a segment whose names say nothing or
            contradict each other; no value labelled background for what is in no segment.
    """
    kind = kind_of(file)
    if kind in ("nifti", "itk"):
        read = read_volume if kind == "nifti" else read_itk_volume
        volume = read(file, MAX_MASK_EXPANSION)
        check = check or functools.partial(_as_labels, labels)
        return MaskVolume(file, volume.turn, lambda at: check(file, volume.values(at)), False)
    if kind == "array":
        array = read_array(file, axes, MAX_MASK_EXPANSION)
        check = check or functools.partial(_as_labels, labels)
        values = functools.partial(_checked_values, array, check)
        return MaskVolume(file, array.turn, values, False, placed=False)
    return _read_seg(file, labels, segments or {})


def _checked_values(
    array: ArrayVolume, check: Callable[[str, np.ndarray], np.ndarray], at: int
) -> np.ndarray:
    return check(array.file, array.values(at))


def mask_axes(file: str, scan: CTScan, given: Axes | None) -> Axes | None:
    """How a mask lies that is an array: as given, as stated beside it (None), as its scan does. A
    name of an array in these is of the scan's file."""
    source = scan.slices[0].source
    if given is None and isinstance(source, ArrayVolume) and stated_layout(file).axes is None:
        given = source.axes
    return None if given is None else replace(given, array="")


def _as_labels(labels: Mapping[int, str], file: str, stored: np.ndarray) -> np.ndarray:
    return check_known_values(file, stored, labels).astype(np.min_scalar_type(max(labels)))


def _read_seg(file: str, labels: Mapping[int, str], segments: Mapping[str, str]) -> MaskVolume:
    """The segments of a DICOM-SEG, painted over one another."""
    try:
        import highdicom
    except ImportError:
        raise CTMaskNetError(
            f"{file}: reading DICOM-SEG needs highdicom, which is not installed: "
            "pip install highdicom"
        ) from None
    if seg_series(file) is None:
        raise CTMaskNetError(f"{file}: no DICOM-SEG, NIfTI, MetaImage or NRRD; give a label mask")
    with decoding(file):
        seg = highdicom.seg.segread(file)
        size = int(seg.Rows), int(seg.Columns), int(seg.NumberOfFrames)
        numbers = list(seg.segment_numbers)
        described = {number: seg.get_segment_description(number) for number in numbers}
        names = {
            number: (str(one.segment_label), str(one.segmented_property_type.meaning))
            for number, one in described.items()
        }
        grid = seg.get_volume_geometry()
    check_claimed_size(file, size)
    if grid is None:
        raise CTMaskNetError(
            f"{file}: its frames make no even grid; give a mask of parallel slices"
        )
    slices, rows, columns = grid.spatial_shape
    check_claimed_size(file, (rows, columns, slices))
    value_of = {
        number: _value_of(file, number, names[number], labels, segments) for number in numbers
    }
    shape = slices, rows, columns
    painted = np.full(shape, background_value(labels), np.min_scalar_type(max(labels)))
    order = [PAINT_ORDER.index(labels[value_of[number]]) for number in numbers]
    for _, number in sorted(zip(order, numbers, strict=True)):
        with decoding(file):
            # One segment at a time: a lesion mask of a scan with ten of them would not fit.
            inside = seg.get_volume(segment_numbers=[number]).array[..., 0] >= 0.5
        painted[inside] = value_of[number]
    turn = upright(_FROM_LPS @ grid.affine, painted.shape, file)
    return MaskVolume(
        file, turn, lambda stored: turn.plane(np.take(painted, stored, axis=turn.axes[2])), True
    )


def _value_of(
    file: str,
    number: int,
    names: tuple[str, str],
    labels: Mapping[int, str],
    segments: Mapping[str, str],
) -> int:
    given = {name.lower(): label for name, label in segments.items()}
    label = next(
        (given[name] for name in (str(number), *map(str.lower, names)) if name in given), None
    )
    shown = f"segment {number} (label {names[0]!r}, coded meaning {names[1]!r})"
    if label is None:
        told = {_label_in(name) for name in names} - {None}
        if told in ({"lesion", "ggo"}, {"lesion", "consolidation"}):  # one name says more
            told -= {"lesion"}
        if len(told) != 1:
            what = f"may be {' or '.join(sorted(told))}" if told else "is no label we know"
            raise CTMaskNetError(
                f"{file}: {shown} {what} by its names; say which of {', '.join(PAINT_ORDER)} it "
                f'is with `segment` "{names[0]}=LABEL"'
            )
        (label,) = told
    for value, name in sorted(labels.items()):
        if name == label:
            return value
    raise CTMaskNetError(
        f"{file}: {shown} is {label}, but no mask value is labelled so; add one to `labels`, such "
        f"as {max(labels) + 1}:{label}"
    )


def _label_in(name: str) -> str | None:
    name = name.lower()
    for label, choices in _SEGMENT_WORDS.items():
        if any(all(word in name for word in words) for words in choices):
            return label
    return None


def covering_slices(scan: CTScan, mask: MaskVolume) -> list[int | None]:
    """For each slice of ``scan`` the slice of ``mask`` that covers it; None: nothing is labelled.

    Raises:
        CTMaskNetError: shape, spacing, orientation or position differ beyond tolerance; the
            message gives both.
    """
    name = f"{scan.slices[0].file} and its mask {mask.file}"
    rows, columns = scan.slices[0].shape
    if not mask.placed:
        ours = columns, rows, len(scan.slices)
        if ours != mask.turn.shape:
            raise _disagree(name, "shape", _times(ours), _times(mask.turn.shape), "px")
        return list(range(len(scan.slices)))
    affine, numbers = _grid(scan, mask.file)
    ours, theirs = (columns, rows, numbers[-1] + 1), mask.turn.shape
    compared = 2 if mask.partial else 3
    if ours[:compared] != theirs[:compared]:
        raise _disagree(name, "shape", _times(ours[:compared]), _times(theirs[:compared]), "px")
    here, there = affine[:3, :3], mask.turn.affine[:3, :3]
    lengths = np.linalg.norm(here, axis=0), np.linalg.norm(there, axis=0)
    alone = mask.partial or len(scan.slices) == 1
    for axis in range(2 if alone else 3):
        if abs(lengths[0][axis] - lengths[1][axis]) > _SPACING_TOLERANCE_MM:
            raise _disagree(name, "spacing", *(_mm(each, 3) for each in lengths), "mm")
    cosines = ((here / lengths[0]) * (there / lengths[1])).sum(axis=0)
    for axis in range(2 if alone else 3):
        angle = np.degrees(np.arccos(np.clip(cosines[axis], -1, 1)))
        if angle > _ANGLE_TOLERANCE_DEGREES:
            axes = (
                _mm(here[:, axis] / lengths[0][axis], 4),
                _mm(there[:, axis] / lengths[1][axis], 4),
            )
            what = (
                f"orientation ({('columns', 'rows', 'slices')[axis]} differ by {angle:.1f} degrees)"
            )
            raise _disagree(name, what, *axes, "")
    start, step = _start_and_step(affine, mask) if mask.partial else (0, 1)
    _check_corners(name, affine, mask.turn, start, step)
    last = start + step * (theirs[2] - 1)
    if not 0 <= start <= last < ours[2]:
        raise CTMaskNetError(
            f"{name} disagree in place: the mask covers slices {start} to {last} of 0 to "
            f"{ours[2] - 1}; give the mask of this scan"
        )
    covered = {start + step * index: index for index in range(theirs[2])}
    return [covered.get(number) for number in numbers]


def _grid(scan: CTScan, mask: str) -> tuple[np.ndarray, list[int]]:
    """Affine of the scan's grid, and the number of each slice in it; slices may be missing.

    Raises:
        CTMaskNetError: slices at other positions than those of an even grid.
    """
    if scan.affine is not None:
        return scan.affine, list(range(len(scan.slices)))
    positions = np.array([one.position_mm for one in scan.slices], dtype=np.float64)
    numbers = (positions - positions[0]) / np.median(np.diff(positions))
    even = np.isfinite(numbers).all() and np.abs(numbers - np.rint(numbers)).max() < _POSITION_SHARE
    even = even and beside_mm(scan.slices) <= _POSITION_TOLERANCE_MM
    if not even or scan.slices[0].spacing_mm is None:
        problems = "; ".join(scan.problems) or "no spacing is stated"
        raise CTMaskNetError(
            f"{scan.slices[0].file}: its slices make no even grid to hold the mask {mask} "
            f"against ({problems}); restore the series"
        )
    whole = [round(number) for number in numbers.tolist()]
    return grid_affine(scan.slices, whole[-1]), whole


def _start_and_step(affine: np.ndarray, mask: MaskVolume) -> tuple[int, int]:
    relative = np.linalg.inv(affine) @ mask.turn.affine
    step = 1 if mask.turn.shape[2] == 1 else max(1, round(float(relative[2, 2])))
    return round(float(relative[2, 3])), step


def _check_corners(name: str, ours: np.ndarray, theirs: Upright, start: int, step: int) -> None:
    """The mask's corner voxels, by its own affine and by the scan's."""
    columns, rows, slices = (side - 1 for side in theirs.shape)
    for corner in np.ndindex(2, 2, 2):
        column, row, index = corner[0] * columns, corner[1] * rows, corner[2] * slices
        here = (ours @ [column, row, start + step * index, 1])[:3]
        there = (theirs.affine @ [column, row, index, 1])[:3]
        if np.linalg.norm(here - there) > _POSITION_TOLERANCE_MM:
            what = f"place (of the voxel in column {column}, row {row}, slice {index})"
            raise _disagree(name, what, _mm(here, 1), _mm(there, 1), "mm")


def _disagree(name: str, what: str, ours: str, theirs: str, unit: str) -> CTMaskNetError:
    unit = unit and f" {unit}"
    return CTMaskNetError(
        f"{name} disagree in {what}: {ours}{unit} and {theirs}{unit}; give the mask of this scan, "
        "on its grid"
    )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _mm(values: np.ndarray, digits: int) -> str:
    return "(" + ", ".join(f"{value:.{digits}f}" for value in values) + ")"
