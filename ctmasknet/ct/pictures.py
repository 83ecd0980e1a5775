"""Files of 8-bit pictures: read them, check many of them, write copies in a narrower grey window.

Every problem is told as one :class:`CTMaskNetError` that names the file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctmasknet.ct.scan import MAX_SIDE_PX
from ctmasknet.errors import CTMaskNetError
from ctmasknet.workers import map_in_processes

#: Longest side over shortest.
MAX_RATIO = 64
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
#: What Pillow raises at damaged files; UnidentifiedImageError is an OSError.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
)
#: Pillow's modes with more than 8 bits a channel; a conversion to RGB would clip them at 255.
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_PNG_BIT_DEPTH_PLACE = 24
_TIFF_BITS_PER_SAMPLE = 258
#: The orientation tag (EXIF, TIFF), and its values that mean turned or mirrored.
_ORIENTATION, _TURNED = 274, range(2, 9)


@contextlib.contextmanager
def naming_file(path: str | os.PathLike) -> Iterator[None]:
    """Turn what Pillow and the file system raise inside the block into an error that names
    ``path``."""
    try:
        yield
    except FileNotFoundError:
        raise CTMaskNetError(f"{path}: no such image; check the folder of the images") from None
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CTMaskNetError(
            f"{path}: unreadable or truncated image ({reason}); "
            "restore the file or drop it from its list"
        ) from None


def check_sides(name: str | os.PathLike, shape: Sequence[int]) -> None:
    """Refuse a slice with a side above :data:`MAX_SIDE_PX`, or with one that is more than
    :data:`MAX_RATIO` times the other.

    Args:
        name: of the slice, for the error.
        shape: (H, W) or (H, W, 3), px.
    """
    height, width = shape[:2]
    if max(height, width) > MAX_SIDE_PX:
        side = f"width is {width}" if width > height else f"height is {height}"
        raise CTMaskNetError(
            f"{name}: the {side} px, above the limit of {MAX_SIDE_PX} px a side; reduce the image"
        )
    if max(height, width) > MAX_RATIO * min(height, width):
        raise CTMaskNetError(
            f"{name}: is {width} x {height} px (width x height), more than {MAX_RATIO} times as "
            "long as it is wide; this is no CT slice"
        )


def check_one_page(path: str | os.PathLike, image: Image.Image) -> None:
    """Refuse a TIFF of several pages, of which all but the first would be lost.

    Args:
        path: for the error.
        image: as opened.
    """
    if image.format == "TIFF" and image.n_frames > 1:
        raise CTMaskNetError(
            f"{path}: holds {image.n_frames} pages; save each slice as a picture of its own"
        )


def is_deep(image: Image.Image) -> bool:
    """Whether an opened picture, or its present page, has more than 8 bits a channel."""
    # Pillow narrows 16 bits a channel to 8 in colour and with alpha, so its mode is no guide.
    if image.format == "PNG":
        place = image.fp.tell()
        image.fp.seek(_PNG_BIT_DEPTH_PLACE)
        depth = image.fp.read(1)[0]
        image.fp.seek(place)
        return depth > 8
    if image.format == "TIFF":
        return max(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (1,))) > 8
    return image.mode in _DEEP_MODES


def check_not_turned(path: str | os.PathLike, image: Image.Image) -> None:
    """Refuse an opened picture, or its present page, whose orientation tag tells viewers to turn or
    mirror it: programs differ in whether they follow the tag.

    Raises:
        CTMaskNetError: such a picture.
    """
    if image.format == "TIFF":
        stated = image.tag_v2.get(_ORIENTATION)
    else:
        exif = Image.Exif()  # image.getexif() would decode a PNG
        exif.load(image.info.get("exif", b""))
        stated = exif.get(_ORIENTATION)
    if stated in _TURNED:
        raise CTMaskNetError(
            f"{path}: its orientation tag ({stated}) says that it is stored turned or mirrored; "
            "save it upright, without the tag"
        )


def check_eight_bit(path: str | os.PathLike) -> None:
    """Refuse a picture with more than 8 bits a channel, a side above :data:`MAX_SIDE_PX`, several
    pages, or an orientation tag that turns it. Reads the header only.

    Raises:
        CTMaskNetError: such a picture, or a missing or unreadable file.
    """
    with naming_file(path), Image.open(path) as image:
        mode, (width, height) = image.mode, image.size
        check_one_page(path, image)
        deep = is_deep(image)
        check_not_turned(path, image)
    check_sides(path, (height, width))
    if deep:
        raise CTMaskNetError(
            f"{path}: has more than 8 bits a channel (mode {mode}); "
            "convert it through one HU window to 8 bits first"
        )


def read_grey(path: str | os.PathLike) -> np.ndarray:
    """Read a picture as uint8 grey levels of shape (H, W).

    Raises:
        CTMaskNetError: missing, unreadable or truncated file, or more than 8 bits a channel.
    """
    check_eight_bit(path)
    with naming_file(path), Image.open(path) as image:
        return np.asarray(image.convert("L"))


def find_unreadable(
    paths: Iterable[str | os.PathLike], workers: int = 1, *, headers_only: bool = False
) -> dict[str, str]:
    """Decode every picture completely.

    Args:
        paths: the files.
        workers: number of processes; 1 stays in this one.
        headers_only: decode nothing: finds what is no picture, too large or not of 8 bits, but no
            truncated one. 100,000 files of a local disk take some seconds.

    Returns:
        file -> what is wrong with it, for the damaged ones only.
    """
    paths = [os.fspath(path) for path in paths]
    look = functools.partial(_problem_of, read=check_eight_bit if headers_only else read_grey)
    title = "headers" if headers_only else "verify"
    problems = map_in_processes(look, paths, workers, title=title)
    return {path: problem for path, problem in zip(paths, problems, strict=True) if problem}


def write_in_grey_window(
    copies: Mapping[str, str], window: tuple[int, int], workers: int = 1, *, skip_bad: bool = False
) -> dict[str, str]:
    """Write 8-bit grey PNG copies whose contrast is stretched.

    Grey levels are clipped to [low, high] and mapped linearly to 0..255, rounded to the nearest
    level.

    Args:
        copies: source file -> PNG file to write; missing folders are made.
        window: (low, high), 8-bit grey levels, 0 <= low < high <= 255.
        workers: number of processes; 1 stays in this one.
        skip_bad: sources that cannot be read are no error.

    Returns:
        source -> what is wrong with it, for those.

    Raises:
        CTMaskNetError: a bad window or a source that cannot be read (the copies made so far stay:
            write into a temporary folder).
    """
    table = window_table(window)
    for folder in {Path(target).parent for target in copies.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    problems = map_in_processes(
        functools.partial(_copy_in_window, table=table),
        list(copies.items()),
        workers,
        title="grey window",
    )
    found = {file: why for file, why in zip(copies, problems, strict=True) if why}
    if not skip_bad:
        raise_problems(list(found.values()), len(copies))
    return found


def window_table(window: tuple[int, int]) -> list[int]:
    """The 256 output levels, one for each input level, of :func:`write_in_grey_window`."""
    low, high = window
    if not 0 <= low < high <= 255:
        raise CTMaskNetError(
            f"grey window {low},{high}: expected two 8-bit grey levels with 0 <= LOW < HIGH <= 255"
        )
    levels = (np.arange(256).clip(low, high) - low) * 255.0 / (high - low)
    return np.rint(levels).astype(int).tolist()


def raise_problems(problems: list[str], total: int) -> None:
    """Raise one error that quotes the first of ``problems`` and counts the rest; nothing when there
    is none."""
    if problems:
        more = f" (and {len(problems) - 1} more of {total} images)" if len(problems) > 1 else ""
        raise CTMaskNetError(f"{problems[0]}{more}")


def _problem_of(path: str, read: Callable[[str], Any]) -> str | None:
    try:
        read(path)
    except CTMaskNetError as error:
        return str(error)
    return None


def _copy_in_window(source_and_target: tuple[str, str], table: list[int]) -> str | None:
    source, target = source_and_target
    try:
        grey = read_grey(source)
    except CTMaskNetError as error:
        return str(error)
    Image.fromarray(np.asarray(table, dtype=np.uint8)[grey]).save(target, format="PNG")
    return None
