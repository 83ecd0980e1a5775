"""Pictures as slices: PNG, JPEG, TIFF and BMP.

A picture states no HU. With 8 bits it is taken to be windowed already and passes unchanged; with
more it is refused unless the caller states the rescale.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ctmasknet.data.classes import parse_lesion_name, parse_slice_name
from ctmasknet.data.ct_scan import CTScan, CTSlice, check_claimed_size, outside_to_air
from ctmasknet.data.images import naming_file
from ctmasknet.errors import CTMaskNetError

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_DEEP_MODES = ("I", "F")  # and all of I;16


@dataclass(frozen=True)
class PictureSource:
    """Reads one picture file."""

    file: str
    deep: bool
    rescale: tuple[float, float] | None

    def read_picture(self, frame: int | None) -> np.ndarray | None:
        if self.deep:
            return None
        with naming_file(self.file), Image.open(self.file, formats=_FORMATS) as image:
            image.seek(frame or 0)
            return _eight_bit(image)

    def read_hu(self, frame: int | None) -> np.ndarray:
        if not self.deep:
            raise CTMaskNetError(f"{self.file}: an 8-bit picture states no HU; use its pixels")
        with naming_file(self.file), Image.open(self.file, formats=_FORMATS) as image:
            image.seek(frame or 0)
            stored = np.asarray(image)
        slope, intercept = self.rescale
        return outside_to_air(stored.astype(np.float32) * slope + intercept)


def read_picture_file(
    file: str, name: str, rescale: tuple[float, float] | None = None
) -> list[CTSlice]:
    """The slices of one picture file, from its header alone: one, or one a page."""
    with naming_file(file), Image.open(file, formats=_FORMATS) as image:
        frames = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
        width, height = image.size
        deep = image.mode in _DEEP_MODES or image.mode.startswith("I;16")
    check_claimed_size(file, (height, width, frames))
    if deep and rescale is None:
        raise CTMaskNetError(
            f"{file}: has more than 8 bits a pixel and states no HU; give its rescale slope and "
            "intercept, or an 8-bit copy"
        )
    patient, scan = patient_and_scan(file)
    return [
        CTSlice(
            file=file,
            frame=frame if frames > 1 else None,
            name=f"{name}#{frame:04d}" if frames > 1 else name,
            patient=patient,
            scan=scan if frames == 1 else Path(name).stem,
            shape=(height, width),
            spacing_mm=None,
            position_mm=None,
            source=PictureSource(file, deep, rescale),
        )
        for frame in range(frames)
    ]


def picture_scans(slices: list[CTSlice]) -> list[CTScan]:
    """Group slices to scans, each in the natural order of its names."""
    groups: dict[tuple[str, str], list[CTSlice]] = {}
    for one in slices:
        groups.setdefault((one.patient, one.scan), []).append(one)
    return [
        CTScan(
            patient=patient,
            scan=scan,
            kind="image",
            slices=tuple(sorted(group, key=lambda one: natural_key(one.name))),
            affine=None,
        )
        for (patient, scan), group in groups.items()
    ]


def patient_and_scan(file: str) -> tuple[str, str]:
    """From a COVIDx-CT or lesion slice's name; else no patient, and the folder as scan."""
    for parse in (parse_slice_name, parse_lesion_name):
        try:
            parsed = parse(file)
        except CTMaskNetError:
            continue
        # Lesion patients are numbers; "slice_12.png" is no patient called "slice".
        if parsed.patient.isdigit():
            return parsed.patient, parsed.scan
    return "", os.path.dirname(file) or "."


def natural_key(name: str) -> list:
    """Sorts ``s2`` before ``s10``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _eight_bit(image: Image.Image) -> np.ndarray:
    """Grey levels, or RGB where the channels differ. Alpha is dropped, a palette resolved."""
    if image.mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("L"))
    rgb = np.asarray(image.convert("RGB"))
    grey = rgb[..., 0]
    same = np.array_equal(grey, rgb[..., 1]) and np.array_equal(grey, rgb[..., 2])
    return np.ascontiguousarray(grey) if same else rgb
