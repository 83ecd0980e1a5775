"""DICOM-SEG files as label masks: which of their segments is which label, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pydicom

from ctmasknet.data.ct_files import kind_of
from ctmasknet.data.ct_orientation import Upright, upright
from ctmasknet.data.ct_scan import check_claimed_size, decoding
from ctmasknet.data.label_masks import background_value
from ctmasknet.errors import CTMaskNetError

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
#: Where segments overlap, the later of these counts.
_PAINT_ORDER = ("background", "lung", "lesion", "ggo", "consolidation")
#: RAS from DICOM's LPS.
_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class SegMask:
    """The segments of a DICOM-SEG, painted over one another; ``painted`` is as stored."""

    file: str
    turn: Upright
    painted: np.ndarray
    partial: bool = True

    def plane(self, index: int) -> np.ndarray:
        stored = np.take(self.painted, stored_index(self.turn, index), axis=self.turn.axes[2])
        return self.turn.plane(stored)


def seg_series(file: str) -> str | None:
    """The series that a DICOM-SEG is of, "" where it states none; None for any other file."""
    if kind_of(file) != "dicom":
        return None
    with decoding(file):
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


def read_seg(file: str, labels: Mapping[int, str], segments: Mapping[str, str]) -> SegMask:
    """See :func:`ctmasknet.data.mask_volumes.read_mask_volume`."""
    try:
        import highdicom
    except ImportError:
        raise CTMaskNetError(
            f"{file}: reading DICOM-SEG needs highdicom, which is not installed: "
            'pip install "ctmasknet[seg]"'
        ) from None
    if seg_series(file) is None:
        raise CTMaskNetError(f"{file}: no DICOM-SEG and no NIfTI; give a label mask")
    with decoding(file):
        seg = highdicom.seg.segread(file)
        size = int(seg.Rows), int(seg.Columns), int(seg.NumberOfFrames)
        numbers = list(seg.segment_numbers)
        names = {number: _names_of(seg.get_segment_description(number)) for number in numbers}
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
    order = [_PAINT_ORDER.index(labels[value_of[number]]) for number in numbers]
    for _, number in sorted(zip(order, numbers, strict=True)):
        with decoding(file):
            # One segment at a time: a lesion mask of a scan with ten of them would not fit.
            inside = seg.get_volume(segment_numbers=[number]).array[..., 0] >= 0.5
        painted[inside] = value_of[number]
    return SegMask(file, upright(_FROM_LPS @ grid.affine, painted.shape, file), painted)


def _names_of(description) -> tuple[str, str]:
    return str(description.segment_label), str(description.segmented_property_type.meaning)


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
                f"{file}: {shown} {what} by its names; say which of {', '.join(_PAINT_ORDER)} it "
                f'is with --segment "{names[0]}=LABEL"'
            )
        (label,) = told
    for value, name in sorted(labels.items()):
        if name == label:
            return value
    raise CTMaskNetError(
        f"{file}: {shown} is {label}, but no mask value is labelled so; add one to --labels, such "
        f"as {max(labels) + 1}:{label}"
    )


def _label_in(name: str) -> str | None:
    name = name.lower()
    for label, choices in _SEGMENT_WORDS.items():
        if any(all(word in name for word in words) for words in choices):
            return label
    return None


def stored_index(turn: Upright, index: int) -> int:
    """Where the slice ``index``, counted from the feet, is stored."""
    return turn.shape[2] - 1 - index if turn.flips[2] else index


def parse_segments(values: list[str], names: tuple[str, ...]) -> dict[str, str]:
    """``["Infiltrate=lesion"]`` -> ``{"Infiltrate": "lesion"}``.

    Args:
        values: NAME=LABEL each.
        names: the labels there are.

    Raises:
        CTMaskNetError: another form, an unknown label.
    """
    segments = {}
    for value in values:
        name, _, label = value.rpartition("=")
        if not name or label not in names:
            raise CTMaskNetError(
                f"--segment {value}: expected NAME=LABEL with a label of {', '.join(names)}"
            )
        segments[name] = label
    return segments
