"""Pictures as slices: PNG, JPEG, TIFF (a slice a page) and BMP.

A picture states no HU. With 8 bits a channel it is taken to be windowed already and passes
unchanged; with more it is refused unless the caller states the rescale. Nor does it state an
orientation: it stays as it lies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageSequence

from ctmasknet.ct.find import natural_key
from ctmasknet.ct.pictures import check_not_turned, is_deep
from ctmasknet.ct.scan import (
    CTScan,
    CTSlice,
    UnsuitableFile,
    check_claimed_size,
    decoding,
    mark_outside,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import parse_published_name

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_TIFF_SUBFILE_TYPE = 254


@dataclass(frozen=True)
class PictureSource:
    """Reads one page of one picture file.

    Attributes:
        page: from 0, thumbnails counted; 0 where there are none.
        deep: more than 8 bits a channel.
        rescale: (slope, intercept) from stored value to HU, of deep pictures.
    """

    file: str
    page: int
    deep: bool
    rescale: tuple[float, float] | None

    def read_picture(self, frame: int | None) -> np.ndarray | None:
        if self.deep:
            return None
        with decoding(self.file), Image.open(self.file, formats=_FORMATS) as image:
            image.seek(self.page)
            return _eight_bit(image)

    def read_hu(self, frame: int | None) -> np.ndarray:
        if not self.deep:
            raise CTMaskNetError(f"{self.file}: an 8-bit picture states no HU; use its pixels")
        with decoding(self.file):
            stored = _deep(self.file, self.page)
        slope, intercept = self.rescale
        return mark_outside((stored * float(slope) + intercept).astype(np.float32))


def read_picture_file(
    file: str, name: str, rescale: tuple[float, float] | None = None
) -> list[CTSlice]:
    """The slices of one picture file, from its headers alone.

    Args:
        file: path.
        name: how the slices are called; where a TIFF has pages, ``#0000``, ``#0001``, ... appended.
        rescale: see :func:`ctmasknet.ct.read.read_scans`.

    Raises:
        UnsuitableFile: more than 8 bits a channel and no ``rescale``; a TIFF without a full page.
        CTMaskNetError: damaged, too large, or with an orientation tag that turns it.
    """
    with decoding(file), Image.open(file, formats=_FORMATS) as image:
        pages = list(_pages(file, image))
    if not pages:
        raise UnsuitableFile(
            f"{file}: marks all its pages as thumbnails or transparency masks; give full slices"
        )
    patient, scan = patient_and_scan(file)
    slices = []
    for page, height, width, deep in pages:
        check_claimed_size(file, (height, width))
        if deep and rescale is None:
            raise UnsuitableFile(
                f"{file}: has more than 8 bits a channel and states no HU; state its rescale slope "
                "and intercept, or give an 8-bit copy or the DICOM or NIfTI file it came from"
            )
        several = len(pages) > 1
        slices.append(
            CTSlice(
                file=file,
                frame=page if several else None,
                name=f"{name}#{page:04d}" if several else name,
                patient=patient,
                scan=Path(name).stem if several else scan,
                shape=(height, width),
                spacing_mm=None,
                position_mm=None,
                source=PictureSource(file, page, deep, rescale),
            )
        )
    return slices


def picture_scans(slices: list[CTSlice]) -> list[CTScan]:
    """Group slices to scans, each in the natural order of its names; a TIFF with pages is one."""
    groups: dict[tuple[str, str, str], list[CTSlice]] = {}
    for one in slices:
        paged = "" if one.frame is None else one.file
        groups.setdefault((one.patient, one.scan, paged), []).append(one)
    return [
        CTScan(
            patient=patient,
            scan=scan,
            kind="image",
            slices=tuple(sorted(group, key=lambda one: natural_key(one.name))),
            affine=None,
        )
        for (patient, scan, _), group in groups.items()
    ]


def patient_and_scan(file: str) -> tuple[str, str]:
    """From a COVIDx-CT or lesion slice's name; else no patient, and the folder as scan."""
    if name := parse_published_name(file):
        return name.patient, name.scan
    return "", os.path.dirname(file) or "."


def _pages(file: str, image: Image.Image) -> Iterator[tuple[int, int, int, bool]]:
    """(page, height, width, more than 8 bits a channel) of every slice in a file."""
    paged = image.format == "TIFF"
    for page, frame in enumerate(ImageSequence.Iterator(image) if paged else [image]):
        # Bit 0: a smaller copy of another page, bit 2: its transparency mask.
        if paged and frame.tag_v2.get(_TIFF_SUBFILE_TYPE, 0) & 0b101:
            continue
        check_not_turned(file, frame)
        yield page, frame.height, frame.width, is_deep(frame)


def _eight_bit(image: Image.Image) -> np.ndarray:
    """Grey levels, or RGB where the channels differ. Alpha is dropped, a palette resolved."""
    if image.mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("L"))
    rgb = np.asarray(image.convert("RGB"))
    return _one_channel(rgb) if _channels_agree(rgb) else rgb


def _deep(file: str, page: int) -> np.ndarray:
    """(H, W) stored values of a picture with more than 8 bits a channel."""
    with Image.open(file, formats=_FORMATS) as image:
        image.seek(page)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return np.asarray(image)
        several = getattr(image, "n_frames", 1) > 1
    if several:
        decoded = cv2.imreadmulti(file, page, 1, flags=cv2.IMREAD_UNCHANGED)[1]
        channels = decoded[0] if decoded else None
    else:
        channels = cv2.imread(file, cv2.IMREAD_UNCHANGED)
    if channels is None:
        raise CTMaskNetError(f"{file}: damaged or of an unknown layout; restore the file")
    if channels.ndim == 3 and not _channels_agree(channels[..., :3]):
        raise UnsuitableFile(f"{file}: in colour, so it states no HU")
    return _one_channel(channels)


def _channels_agree(channels: np.ndarray) -> bool:
    return bool((channels == channels[..., :1]).all())


def _one_channel(channels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(channels[..., 0]) if channels.ndim == 3 else channels
