"""Label masks: what their values mean; reading, checking and turning them; which file is whose."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ctmasknet.classes import MASK_LABELS, MASK_TYPES
from ctmasknet.ct.arrays import read_array
from ctmasknet.ct.find import check_name, find_files
from ctmasknet.ct.pictures import read_values
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import ARRAY_SUFFIXES, PatientRule

#: Masks compress far better than CT; no mask of a chest compresses better than this.
MAX_MASK_EXPANSION = 2000
#: How far from a whole number a label may be stored.
_ROUNDED = 0.01
#: Names a mask value may have. All but the last three are background for the detector.
LABEL_NAMES = ("background", "lung", "ggo", "consolidation", "lesion")
LESION_LABELS = LABEL_NAMES[2:]
#: Label names whose pixels make up each class of each mask type.
_SOURCES = {"ggo": ("ggo",), "consolidation": ("consolidation",), "lesion": LESION_LABELS}


def parse_labels(text: str) -> dict[int, str]:
    """Read ``0:background,1:ggo,2:consolidation``. Several values may share a name.

    Raises:
        CTMaskNetError: another form, a value given twice, or a name not in :data:`LABEL_NAMES`.
    """
    labels: dict[int, str] = {}
    for part in text.split(","):
        value, _, name = part.strip().partition(":")
        if not value.isdecimal() or not name:
            raise CTMaskNetError(f"labels {text}: {part!r} is not VALUE:NAME, such as 1:ggo")
        if name not in LABEL_NAMES:
            raise CTMaskNetError(
                f"labels {text}: unknown name {name!r}; the names are {', '.join(LABEL_NAMES)} "
                "(call any other tissue background)"
            )
        if int(value) in labels:
            raise CTMaskNetError(f"labels {text}: the value {value} is given twice")
        labels[int(value)] = name
    return labels


def label_values(names: Iterable[str]) -> dict[int, str]:
    """Values for ``names``, which the masks themselves do not number: background is 0.

    Raises:
        CTMaskNetError: a name not in :data:`LABEL_NAMES`, or none of a lesion.
    """
    names = set(names)
    if unknown := sorted(names - set(LABEL_NAMES)):
        raise CTMaskNetError(
            f"unknown class {unknown[0]!r}; the classes are {', '.join(LABEL_NAMES)} (call any "
            "other tissue background)"
        )
    if not names & set(LESION_LABELS):
        raise CTMaskNetError(f"no class is of lesions; these are {', '.join(LESION_LABELS)}")
    return {LABEL_NAMES.index(name): name for name in LABEL_NAMES if name in names | {"background"}}


def mask_type_classes(
    mask_type: str, labels: Mapping[int, str] = MASK_LABELS
) -> list[tuple[str, tuple[int, ...]]]:
    """The classes of a mask type in category order, each with the mask values that belong to it.

    Raises:
        CTMaskNetError: the mask type is unknown, or no label of ``labels`` yields one of its
            classes.
    """
    if mask_type not in MASK_TYPES:
        raise CTMaskNetError(
            f"mask type {mask_type!r}: unknown; the types are {', '.join(MASK_TYPES)}"
        )
    classes = []
    for name in MASK_TYPES[mask_type]:
        values = tuple(v for v, label in sorted(labels.items()) if label in _SOURCES[name])
        if not values:
            raise CTMaskNetError(
                f"mask type {mask_type}: no mask value is labelled {' or '.join(_SOURCES[name])}; "
                "change the labels or the mask type"
            )
        classes.append((name, values))
    return classes


def background_value(labels: Mapping[int, str]) -> int:
    """The lowest mask value of background: what pixels are that a mask says nothing of.

    Raises:
        CTMaskNetError: no value is labelled so.
    """
    values = [value for value, name in labels.items() if name == "background"]
    if not values:
        raise CTMaskNetError(
            "labels: no mask value is labelled background, which all that is not in a segment is; "
            "add one to `labels`, such as 0:background"
        )
    return min(values)


def supported_mask_types(labels: Mapping[int, str]) -> tuple[str, ...]:
    """The mask types all of whose classes occur in ``labels``."""
    names = set(labels.values())
    return tuple(
        mask_type
        for mask_type, classes in MASK_TYPES.items()
        if all(names & set(_SOURCES[name]) for name in classes)
    )


@dataclass(frozen=True)
class Orientation:
    """How an array on disk becomes upright: transpose, then flip.

    Upright means spine down and the patient's right on the image's left.
    """

    transpose: bool = False
    flip_vertical: bool = False
    flip_horizontal: bool = False

    @property
    def is_upright(self) -> bool:
        """True when the array on disk is used as it is."""
        return not (self.transpose or self.flip_vertical or self.flip_horizontal)

    def upright(self, array: np.ndarray) -> np.ndarray:
        """Turn ``array`` (H, W[, C]); with ``transpose`` the result is (W, H[, C])."""
        if self.transpose:
            array = array.swapaxes(0, 1)
        if self.flip_vertical:
            array = array[::-1]
        if self.flip_horizontal:
            array = array[:, ::-1]
        return np.ascontiguousarray(array)


#: The array on disk is used as it is.
UPRIGHT = Orientation()


def read_mask(
    path: str | os.PathLike, labels: Mapping[int, str] = MASK_LABELS, argument: str = "labels"
) -> np.ndarray:
    """Read a label mask: grey, palette (the indices count, not the colours) or RGB with equal
    channels.

    Args:
        path: the file; an array of NumPy's is rows and columns.
        labels: name of each value.
        argument: what gives them, for errors.

    Returns:
        (H, W) values as on disk; uint8, or int32 where the file has more than 8 bits.

    Raises:
        CTMaskNetError: the file cannot be decoded, is a JPEG, its channels differ, or it holds
            values that are no whole numbers or outside ``labels``.
    """
    return check_known_values(path, read_one_channel(path), labels, argument)


def read_one_channel(path: str | os.PathLike) -> np.ndarray:
    """(H, W) values of a mask as stored, as :func:`read_mask` takes them, of any values."""
    if os.fspath(path).lower().endswith(ARRAY_SUFFIXES):
        array = read_array(os.fspath(path), max_expansion=MAX_MASK_EXPANSION)
        if not array.is_slice:
            raise CTMaskNetError(f"{path}: has three axes, and the mask of a picture two; mend it")
        return array.values(None)
    values = read_values(path)
    if values.ndim == 3:
        # Two and four channels end in alpha.
        colours = values if values.shape[2] == 3 else values[..., : (values.shape[2] - 1) or 1]
        if (colours != colours[..., :1]).any():
            raise CTMaskNetError(
                f"{path}: a coloured mask; label values need one grey channel, equal channels or "
                "a palette; or say with `colors` what the colours are"
            )
        values = colours[..., 0]
    return values


def whole_values(path: str | os.PathLike, values: np.ndarray) -> np.ndarray:
    """``values`` (H, W) of the mask ``path`` as uint8 if they have 8 bits, else int32. Values
    within 0.01 of a whole number are that number.

    Raises:
        CTMaskNetError: others are no whole numbers.
    """
    if values.dtype.kind == "f":
        # Stored through a float scale: 0.9960785 is 1
        whole = np.rint(values)
        if not (np.abs(values - whole) <= _ROUNDED).all():
            raise CTMaskNetError(
                f"{path}: holds values that are no whole numbers; a label mask is expected"
            )
        values = whole
    return values.astype(np.uint8 if values.dtype.itemsize == 1 else np.int32)


def check_known_values(
    path: str | os.PathLike, values: np.ndarray, labels: Mapping[int, str], argument: str = "labels"
) -> np.ndarray:
    """:func:`whole_values`, if ``labels``, which ``argument`` gives, names every one of them.

    Raises:
        CTMaskNetError: it does not, the message has values and labels; or some are no whole
            numbers.
    """
    values = whole_values(path, values)
    unknown = sorted(set(values_present(values)) - set(labels))
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        known = [f"{value}:{name}" for value, name in sorted(labels.items())]
        known = ",".join(known[:8]) + (",..." if len(known) > 8 else "")
        raise CTMaskNetError(
            f"{path}: mask value {shown} is outside the labels {known}; mend the mask or change "
            f"`{argument}`"
        )
    return values


def values_present(mask: np.ndarray) -> list[int]:
    """The values of a mask (H, W), ascending."""
    if mask.dtype == np.uint8:  # a histogram is 20 times as fast
        counts = cv2.calcHist([np.ascontiguousarray(mask)], [0], None, [256], [0, 256])
        return np.flatnonzero(counts).tolist()
    return np.unique(mask).tolist()


def check_same_size(
    path: str | os.PathLike, shape: tuple[int, ...], mask_path: Path, mask: np.ndarray, what: str
) -> None:
    """Raise :class:`CTMaskNetError` unless the image or slice (``what``) ``path`` of ``shape``
    (H, W[, 3]) and its mask (H, W) have one size."""
    if shape[:2] != mask.shape[:2]:
        (h, w), (mask_h, mask_w) = shape[:2], mask.shape[:2]
        raise CTMaskNetError(
            f"{path}: the {what} is {w} x {h} px (width x height) and its mask {mask_path} is "
            f"{mask_w} x {mask_h} px; they must be equal"
        )


MASK_SUFFIXES = (".png", ".tif", ".tiff", *ARRAY_SUFFIXES)


def files_by_key(folder: Path, suffixes: tuple[str, ...], rule: PatientRule) -> dict[str, str]:
    """Relative path of each slice's file; linked folders count, each once, hidden ones do not.

    Raises:
        CTMaskNetError: as :func:`named_by_key`.
    """
    files = (Path(each.path) for each in find_files([folder]))
    found = [p.relative_to(folder).as_posix() for p in files if p.suffix.lower() in suffixes]
    return named_by_key(folder, {file: file for file in found}, rule)


def named_by_key(folder: Path, name_of: Mapping[str, str], rule: PatientRule) -> dict[str, str]:
    """Slice -> file of ``name_of``, which gives the name that each file below ``folder`` goes by.

    Raises:
        CTMaskNetError: a name that no list can hold, that says nothing by ``rule``, or that says
            what another says.
    """
    found: dict[str, str] = {}
    for file, name in name_of.items():
        check_name(str(folder / file))
        try:
            key = rule.key(name)
        except CTMaskNetError as error:
            raise CTMaskNetError(
                f"{folder}: {error}; for other names give `patient_pattern`, `groups` or "
                "`patients` each-file"
            ) from None
        if key in found:
            raise CTMaskNetError(
                f"{folder / file}: the slice {key} is named twice, also as "
                f"{folder / found[key]}; remove one"
            )
        found[key] = file
    return found
