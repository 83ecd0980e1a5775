"""What every CT file becomes: scans of axial slices that stand upright and are read one at a time;
and the one window through which Hounsfield units become 8-bit grey levels.

"Upright" is how the public slices lie: front up, spine down, the patient's right on the image's
left. In patient coordinates columns run to the patient's left, rows to the back, slices to the
head.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ctmasknet.errors import CTMaskNetError


@dataclass(frozen=True)
class Window:
    """Levels from ``center_hu - width_hu / 2`` (0) to ``center_hu + width_hu / 2`` (255), in HU.

    The default is the window in which the pictures of CNCB, the paper's data, are drawn as far as
    their grey levels tell (``docs/data.md``).

    Raises:
        CTMaskNetError: a center or width that is no finite number, or a width of 0 or less.
    """

    center_hu: float = -700.0
    width_hu: float = 1000.0

    def __post_init__(self):
        if not (math.isfinite(self.center_hu) and math.isfinite(self.width_hu)):
            raise CTMaskNetError(f"window: {self} is not finite; give center and width in HU")
        if self.width_hu <= 0:
            raise CTMaskNetError(
                f"window: the width is {self.width_hu} HU; set INPUT.WINDOW_WIDTH_HU above 0"
            )

    def to_uint8(self, hu: np.ndarray) -> np.ndarray:
        """Clip to the window and map it linearly to 0..255, rounded to the nearest level.

        Args:
            hu: Hounsfield units, any shape.

        Returns:
            uint8 of the same shape.
        """
        low = self.center_hu - self.width_hu / 2
        share = (np.asarray(hu, dtype=np.float32) - low) * (255.0 / self.width_hu)
        return np.rint(share.clip(0, 255)).astype(np.uint8)


def parse_window(text: str) -> Window:
    """``"-700,1000"`` -> center and width in HU.

    Raises:
        CTMaskNetError: another form, or no window.
    """
    try:
        center, width = map(float, text.split(","))
    except ValueError:
        raise CTMaskNetError(
            f"`window` {text}: expected CENTER,WIDTH in HU, such as -700,1000"
        ) from None
    return Window(center, width)


#: What makes HU of values that state none: slope and intercept; or :data:`GREY`.
Rescale = tuple[float, float] | str
#: Values 0..255 are grey levels already, and pass unchanged as those of 8-bit pictures do.
GREY = "grey"


def parse_rescale(text: str) -> Rescale:
    """``"1,-1024"`` -> slope and intercept from value to HU; ``"grey"`` -> :data:`GREY`.

    Raises:
        CTMaskNetError: another form, and as :func:`check_rescale`.
    """
    if text == GREY:
        return GREY
    try:
        slope, intercept = map(float, text.split(","))
    except ValueError:
        raise CTMaskNetError(
            f"`rescale` {text}: expected SLOPE,INTERCEPT from stored value to HU, such as 1,-1024, "
            f"or {GREY} where values are grey levels 0..255 already"
        ) from None
    check_rescale((slope, intercept))
    return slope, intercept


def as_rescale(stated: Any) -> Rescale | None:
    """A rescale as JSON holds it; None for none and for what is no rescale."""
    if isinstance(stated, list) and len(stated) == 2:
        return tuple(map(float, stated))
    return GREY if stated == GREY else None


def check_rescale(rescale: Rescale | None) -> None:
    """Refuse what makes no HU.

    Raises:
        CTMaskNetError: a slope of 0, or a number that is not finite.
    """
    if rescale in (None, GREY):
        return
    if not (np.isfinite(rescale).all() and rescale[0] != 0):
        raise CTMaskNetError(
            f"`rescale` is {rescale}; expected a finite slope other than 0, and a finite intercept"
        )


def grey_levels(file: str, values: np.ndarray) -> np.ndarray:
    """Values as the grey levels that they are (:data:`GREY`), rounded; NaN is black.

    Args:
        file: named in the error.
        values: (H, W), 0..255.

    Returns:
        (H, W) uint8.

    Raises:
        CTMaskNetError: a value outside of 0..255.
    """
    known = np.nan_to_num(values, nan=0.0)
    if known.size and (known.min() < 0 or known.max() > 255):
        raise CTMaskNetError(
            f"{file}: holds values of {known.min():g} to {known.max():g}, so they are no grey "
            f"levels 0..255; give `rescale` SLOPE,INTERCEPT instead of {GREY}, or leave it out"
        )
    return np.rint(known).astype(np.uint8)


#: Told of (file, reason).
Report = Callable[[str, str], None]
#: Longest side of a slice, px; nothing larger is decoded.
MAX_SIDE_PX = 4096
#: Most voxels one file may claim: 8,192 slices of 512 x 512.
MAX_VOXELS = 2**31
#: Most slices one file may hold: 2 m of them, 0.2 mm apart.
MAX_SLICES = 10_000
#: Compressed files may expand to this many bytes, or this many times; CT compresses about 2-fold,
#: padded and masked CT some 20-fold.
FREE_BYTES, MAX_EXPANSION = 2**26, 200
#: How much is expanded at a time.
CHUNK_BYTES = 2**22
#: HU of air.
AIR_HU = -1000.0
#: HU given to pixels that were not measured and hold no value of their own. Below air, as what
#: scanners write outside their circle (-1024, -2000, -2048, -3024), so that it is black.
OUTSIDE_HU = -2048.0


class UnsuitableFile(CTMaskNetError):
    """A sound file that is no axial CT in HU. Refused when named; left out of a folder, with the
    reason among the scan's problems."""


class SliceSource(Protocol):
    """Where a slice's pixels come from. Small, so that a slice can be sent to another process."""

    def read_hu(self, frame: int | None) -> np.ndarray:
        """(H, W) float32 HU, upright."""

    def read_picture(self, frame: int | None) -> np.ndarray | None:
        """(H, W) or (H, W, 3) uint8 when the file holds grey levels and no HU; else None."""


@dataclass(frozen=True)
class CTSlice:
    """One axial slice. Its pixels are read from the file whenever they are asked for.

    Attributes:
        file: path of the file that holds it.
        frame: index inside the file, from 0, in stored order; None when the file is the slice.
        name: unique within one :func:`ctmasknet.ct.read.read_scans` call: the file as given,
            with ``#0012`` appended when it has frames.
        patient: "" when the source states none.
        scan: series UID, volume name or folder.
        shape: (H, W) px, upright.
        spacing_mm: distance between (rows, columns), upright.
        position_mm: along the patient's axis, towards the head (z of RAS).
        source: reads the pixels.
    """

    file: str
    frame: int | None
    name: str
    patient: str
    scan: str
    shape: tuple[int, int]
    spacing_mm: tuple[float, float] | None
    position_mm: float | None
    source: SliceSource = field(repr=False, compare=False)

    def hu(self) -> np.ndarray:
        """(H, W) float32 HU, upright. What was not measured lies at or below air
        (:func:`mark_outside`).

        Raises:
            CTMaskNetError: a damaged file, or an 8-bit picture, which states no HU.
        """
        return self.source.read_hu(self.frame)

    def pixels(self, window: Window) -> np.ndarray:
        """Grey levels, upright: HU through ``window``; an 8-bit picture as it is.

        Returns:
            (H, W) uint8; (H, W, 3) RGB for a picture whose channels differ.

        Raises:
            CTMaskNetError: a damaged file.
        """
        picture = self.source.read_picture(self.frame)
        return window.to_uint8(self.hu()) if picture is None else picture


@dataclass(frozen=True)
class CTScan:
    """The slices of one series, volume or folder of pictures.

    Attributes:
        patient: "" when the source states none.
        scan: as in its slices.
        kind: ``dicom``, ``nifti``, ``itk`` or ``image``.
        slices: feet to head; pictures in the natural order of their names.
        affine: (4, 4) upright (column, row, slice) index -> RAS mm. None for pictures, and where
            slices are missing, unevenly spaced or shifted sideways. With a single slice the third
            column is a unit vector.
        problems: what was missing, doubled or left out, one sentence each.
    """

    patient: str
    scan: str
    kind: str
    slices: tuple[CTSlice, ...]
    affine: np.ndarray | None = field(default=None, compare=False)
    problems: tuple[str, ...] = ()

    def with_problems(self, more: Sequence[str]) -> CTScan:
        return replace(self, problems=(*self.problems, *more)) if more else self


def mark_outside(hu: np.ndarray, padding: np.ndarray | None = None) -> np.ndarray:
    """Give :data:`OUTSIDE_HU` to NaN, and to what the file marks as not measured.

    Marked pixels that are no denser than air stay as they are, so that a volume is the same in a
    format that cannot mark them.

    Args:
        hu: (H, W) float32, changed in place.
        padding: (H, W) bool, pixels that the file itself marks.
    """
    outside = np.isnan(hu)
    if padding is not None:
        outside |= padding & (hu > AIR_HU)
    hu[outside] = OUTSIDE_HU
    return hu


def check_claimed_size(file: str, shape: Sequence[int]) -> None:
    """Refuse, before anything is allocated, what no CT has.

    Args:
        file: named in the error.
        shape: (H, W) or (H, W, number of slices) as the file's header claims.

    Raises:
        CTMaskNetError: a side of 0 or above :data:`MAX_SIDE_PX`, or more than :data:`MAX_VOXELS` or
            :data:`MAX_SLICES`.
    """
    size = " x ".join(str(int(side)) for side in shape)
    if min(shape) < 1:
        raise CTMaskNetError(f"{file}: its header claims {size} px; the file is damaged")
    if max(shape[:2]) > MAX_SIDE_PX:
        raise CTMaskNetError(
            f"{file}: its header claims {size} px; the longest side read is {MAX_SIDE_PX} px"
        )
    if math.prod(map(int, shape)) > MAX_VOXELS:
        raise CTMaskNetError(
            f"{file}: its header claims {size} voxels, more than the {MAX_VOXELS} that are read"
        )
    if len(shape) > 2 and shape[2] > MAX_SLICES:
        raise CTMaskNetError(
            f"{file}: its header claims {int(shape[2])} slices, more than the {MAX_SLICES} that "
            "are read; give parts of it, or correct the order of its axes"
        )


def max_expanded_bytes(size: int, max_expansion: float = MAX_EXPANSION) -> int:
    """What a compressed file of ``size`` bytes may expand to; more is a bomb or damage."""
    return int(max(FREE_BYTES, max_expansion * size))


@contextlib.contextmanager
def unpacking(file: str) -> Iterator[None]:
    """Around what is done to a temporary file into which ``file`` is unpacked: a full disk is no
    damage of ``file``. Inside :func:`decoding`, which would say so."""
    try:
        yield
    except OSError as error:
        raise CTMaskNetError(
            f"{file}: cannot be unpacked in {tempfile.gettempdir()} ({error.strerror or error}); "
            "make room there, or name another folder in TMPDIR"
        ) from None


@contextlib.contextmanager
def decoding(
    file: str | os.PathLike,
    *,
    missing: str = "no such file",
    damaged: str = "damaged or unreadable",
    remedy: str = "restore the file or leave it out",
) -> Iterator[None]:
    """The boundary around a decoder: whatever it raises on broken bytes becomes one line that names
    ``file``; its warnings are dropped.

    Catches every Exception on purpose. Pillow, pydicom with its plugins and nibabel let through
    what their parsers stumble on (struct, zlib, index, key, attribute, recursion, memory, ...); the
    list has no end and changes with their versions. Keep blocks small: the decoder's call alone.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CTMaskNetError:
        raise
    except FileNotFoundError:
        raise CTMaskNetError(f"{file}: {missing}") from None
    except Exception as error:
        raise CTMaskNetError(f"{file}: {damaged} ({reason_of(error)}); {remedy}") from None


def reason_of(error: Exception) -> str:
    """What an exception says, as part of one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in reason)[:200]
