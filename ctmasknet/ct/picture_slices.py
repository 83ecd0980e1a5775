"""Pictures as slices: PNG, JPEG, TIFF (a slice a page) and BMP.

A picture states no HU. With 8 bits a channel it is taken to be windowed already and passes
unchanged; with more it is refused unless the caller states the rescale. Nor does it state an
orientation: it stays as it lies.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ctmasknet.ct.find import natural_key
from ctmasknet.ct.pictures import Page, eight_bit_pixels, opened, slice_pages, stored_values
from ctmasknet.ct.scan import (
    GREY,
    CTScan,
    CTSlice,
    Rescale,
    UnsuitableFile,
    check_claimed_size,
    decoding,
    grey_levels,
    mark_outside,
    max_expanded_bytes,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import parse_published_name


@dataclass(frozen=True)
class PageSource:
    """Reads one page of one picture file.

    Attributes:
        rescale: of deep pages: stored value -> HU, or that values are grey levels.
    """

    file: str
    page: Page
    rescale: Rescale | None

    def read_picture(self, frame: int | None) -> np.ndarray | None:
        if self.page.deep:
            return grey_levels(self.file, self._stored(frame)) if self.rescale == GREY else None
        with decoding(self.file), self._opened(frame) as image:
            return _one_channel(eight_bit_pixels(self.file, image, self.page.number))

    def read_hu(self, frame: int | None) -> np.ndarray:
        if not self.page.deep:
            raise CTMaskNetError(f"{self.file}: an 8-bit picture states no HU; use its pixels")
        if self.rescale == GREY:
            raise CTMaskNetError(f"{self.file}: grey levels state no HU; use its pixels")
        slope, intercept = self.rescale
        return mark_outside((self._stored(frame) * slope + intercept).astype(np.float32))

    def _stored(self, frame: int | None) -> np.ndarray:
        """(H, W) values of a deep page, float64."""
        with decoding(self.file), self._opened(frame) as image:
            stored = stored_values(self.file, image, self.page)
            stored = _one_channel(stored[..., :3] if stored.ndim == 3 else stored)
        if stored.ndim == 3:
            raise UnsuitableFile(f"{self.file}: in colour, so it states no HU")
        return stored.astype(np.float64)

    def _opened(self, frame: int | None) -> contextlib.AbstractContextManager[Image.Image]:
        return opened(self.file) if frame is None else _kept_open(self.file)


_kept = threading.local()


@contextlib.contextmanager
def _kept_open(file: str) -> Iterator[Image.Image]:
    """A file of pages, left open by each thread until it reads another: to reach a page, the links
    from all pages before it have to be followed."""
    status = os.stat(file)
    # A forked process shares its parent's position in the file, so it opens its own.
    key = file, status.st_size, status.st_mtime_ns, os.getpid()
    if getattr(_kept, "key", None) != key:
        _forget()
        _kept.stack = contextlib.ExitStack()
        _kept.image, _kept.key = _kept.stack.enter_context(opened(file)), key
    try:
        yield _kept.image
    except BaseException:
        _forget()
        raise


@atexit.register  # before the interpreter takes apart what closing a file needs
def _forget() -> None:
    if hasattr(_kept, "stack"):
        _kept.key = None
        _kept.stack.close()


def read_picture_file(file: str, name: str, rescale: Rescale | None = None) -> list[CTSlice]:
    """The slices of one picture file, from its headers alone.

    Args:
        file: path.
        name: how the slices are called; where a TIFF has pages, ``#0000``, ``#0001``, ... appended.
        rescale: see :func:`ctmasknet.ct.read.read_scans`.

    Raises:
        UnsuitableFile: more than 8 bits a channel and no ``rescale``; a TIFF without a full page.
        CTMaskNetError: damaged, too large, packed as no CT is, animated, or with an orientation tag
            that turns it.
    """
    with decoding(file), opened(file) as image:
        pages = slice_pages(file, image)
    if not pages:
        raise UnsuitableFile(
            f"{file}: marks all its pages as thumbnails or transparency masks; give full slices"
        )
    published = parse_published_name(file)
    several = len(pages) > 1
    claimed, size = sum(page.height * page.width for page in pages), os.path.getsize(file)
    if several and claimed > max_expanded_bytes(size):
        raise CTMaskNetError(
            f"{file}: claims to expand {claimed / size:.0f}-fold to {len(pages)} pages of "
            f"{claimed >> 20} MiB, as no CT does; the file is damaged"
        )
    slices = []
    for page in pages:
        check_claimed_size(file, (page.height, page.width))
        if page.deep and rescale is None:
            raise UnsuitableFile(
                f"{file}: has more than 8 bits a channel and states no HU; give `rescale` "
                "SLOPE,INTERCEPT to HU, an 8-bit copy, or the DICOM or NIfTI file it came from"
            )
        scan = published.scan if published else os.path.dirname(file) or "."
        slices.append(
            CTSlice(
                file=file,
                frame=page.number if several else None,
                name=f"{name}#{page.number:04d}" if several else name,
                patient=published.patient if published else "",
                scan=Path(name).stem if several else scan,
                shape=(page.height, page.width),
                spacing_mm=None,
                position_mm=None,
                source=PageSource(file, page, rescale),
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
        CTScan(patient, scan, "image", tuple(sorted(group, key=lambda one: natural_key(one.name))))
        for (patient, scan, _), group in groups.items()
    ]


def _one_channel(pixels: np.ndarray) -> np.ndarray:
    """(H, W) where all channels are equal."""
    if pixels.ndim == 2 or not (pixels == pixels[..., :1]).all():
        return pixels
    return np.ascontiguousarray(pixels[..., 0])
