"""The one decoder of pictures: PNG, JPEG, TIFF and BMP, told apart by content.

What every command sees of a file is decided here. Grey levels and colours of 8 bits a channel are
taken: a palette is resolved, alpha dropped, CMYK and YCbCr become RGB. More than 8 bits a channel
(:mod:`ctmasknet.ct.picture_slices` reads those where their rescale is stated), several pages,
an orientation tag that turns the picture, other formats (WebP, GIF, PostScript, ...) and damaged
files are refused in one line that names the file. Pages that a TIFF marks as thumbnails or masks of
another page are passed over.

:func:`read_picture`, :func:`read_grey` and :func:`read_rgb` decode, :func:`read_values` is for
label masks; :func:`check_eight_bit` looks at headers alone. Then what is done to many pictures at
once: :func:`find_unreadable` checks them, :func:`write_in_grey_window` copies them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from ctmasknet.ct.scan import MAX_SIDE_PX, decoding, reason_of
from ctmasknet.errors import CTMaskNetError
from ctmasknet.workers import map_in_processes

#: Longest side over shortest.
MAX_RATIO = 64
#: Pillow knows more; some of them start programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
#: Of a progressive JPEG; encoders make up to a dozen.
_MAX_SCANS = 100
#: Pages of a TIFF: so many, and one more for every so many bytes.
_MAX_PAGES, _BYTES_A_PAGE = 1000, 1000
#: How files of the first three begin.
_HEADS = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"),
    *(b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
)
_GREY_MODES = ("1", "L", "LA", "La")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
#: Pillow's modes with more than 8 bits a channel; a conversion would clip them at 255.
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
#: Modes in which a value may be a label.
_VALUE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", *_DEEP_MODES)
#: Pillow stretches grey levels of 2 and 4 bits to 0..255; these factors undo it.
_GREY_STRETCH = {"L;2": 85, "L;4": 17}
_PNG_BIT_DEPTH_OFFSET = 24
_TIFF_SUBFILE_TYPE, _TIFF_BITS_PER_SAMPLE = 254, 258
#: The orientation tag (EXIF, TIFF), and its values that mean turned or mirrored.
_ORIENTATION, _TURNED = 274, range(2, 9)
#: The boundary around the decoder, in the words of a set's pictures.
_naming_file = functools.partial(
    decoding,
    missing="no such image; check the folder of the images",
    damaged="unreadable or truncated image",
    remedy="restore the file or drop it from its list",
)


class Page(NamedTuple):
    """A page of a picture file that may be a slice.

    Attributes:
        number: from 0, thumbnails counted.
        height, width: px.
        deep: more than 8 bits a channel.
    """

    number: int
    height: int
    width: int
    deep: bool


def is_picture_header(head: bytes) -> bool:
    """Whether the first 18 bytes or more of a file begin as a picture that is read does."""
    return head.startswith(_HEADS) or (head.startswith(b"BM") and head[15:18] == b"\0\0\0")


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """Read an 8-bit slice in full, so that a truncated file is found.

    Returns:
        uint8, (H, W) where the file holds grey levels, else (H, W, 3) RGB.

    Raises:
        CTMaskNetError: missing, unreadable or truncated file; another format; more than 8 bits a
            channel; a side above :data:`MAX_SIDE_PX` or :data:`MAX_RATIO` times the other; several
            pages; an orientation tag that turns it.
    """
    return _read(path, None)


def read_grey(path: str | os.PathLike) -> np.ndarray:
    """Read an 8-bit slice as grey levels: (H, W) uint8. Raises as :func:`read_picture`."""
    return _read(path, "L")


def read_rgb(path: str | os.PathLike, *, is_slice: bool = True) -> np.ndarray:
    """Read an 8-bit picture as RGB: (H, W, 3) uint8. Raises as :func:`read_picture`.

    Args:
        path: the file.
        is_slice: False for drawn pictures, which may have longer sides.
    """
    return _read(path, "RGB", is_slice)


def read_values(path: str | os.PathLike, *, as_rgb: bool = False) -> np.ndarray:
    """Read the values of a label mask as stored, of any depth: a palette's indices, the numbers
    0..3 of 2 bits.

    Args:
        path: the file.
        as_rgb: the colours instead, of 8 bits a channel: (H, W, 3) uint8, those of a palette too.

    Returns:
        (H, W), or (H, W, C) where there are several channels; bool, integers or float.

    Raises:
        CTMaskNetError: as :func:`read_picture`, but for the depth; colours that are no numbers
            (CMYK, YCbCr); JPEG, whatever the file's name.
    """
    with _naming_file(path), opened(path) as image:
        page = _only_page(path, image)
        if image.format == "JPEG" or image.info.get("compression") == "jpeg":
            raise CTMaskNetError(
                f"{path}: is a JPEG by its content, which cannot hold labels: it changes values at "
                "edges; store masks as PNG"
            )
        check_sides(path, page[1:3])
        if as_rgb:
            if page.deep:
                raise CTMaskNetError(f"{path}: colours of more than 8 bits; store it with 8")
            return eight_bit_pixels(path, image, page.number, "RGB")
        if image.mode not in _VALUE_MODES:
            raise CTMaskNetError(
                f"{path}: is stored in colours ({image.mode}); label values need one grey channel, "
                "equal channels or a palette"
            )
        return stored_values(path, image, page)


def check_eight_bit(path: str | os.PathLike) -> tuple[int, int]:
    """Look at the headers alone for what :func:`read_picture` refuses.

    Returns:
        (H, W), px.

    Raises:
        CTMaskNetError: as :func:`read_picture`, but for truncated pixels.
    """
    with _naming_file(path), opened(path) as image:
        return _eight_bit_page(path, image)[1:3]


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


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """A picture file whose headers are read and whose pixels are not.

    Raises:
        CTMaskNetError: no regular file, such as a pipe, which would be waited for.
        Exception: whatever Pillow raises at damage; name the file around it.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CTMaskNetError(f"{path}: not a regular file; give a picture")
    try:
        image = Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        raise OSError("not recognised as PNG, JPEG, TIFF or BMP") from None
    with image:
        if image.format == "JPEG":
            check_scans(path, Path(path).read_bytes())
        yield image


def check_scans(path: str | os.PathLike, encoded: bytes) -> None:
    """Refuse a JPEG of more scans than encoders make: each goes over the whole picture, so that
    some kB would take minutes.

    Raises:
        CTMaskNetError: more than 100 scans.
    """
    scans = encoded.count(b"\xff\xda") if encoded.startswith(b"\xff\xd8") else 0
    if scans > _MAX_SCANS:
        raise CTMaskNetError(
            f"{path}: a JPEG of {scans} scans, which no encoder makes; save it again as PNG"
        )


def slice_pages(path: str | os.PathLike, image: Image.Image) -> list[Page]:
    """The pages of an opened file that may be slices. Leaves the image at its last page.

    Raises:
        CTMaskNetError: an orientation tag that turns a page; an animation; far more pages than a
            file of its size has slices.
    """
    if image.format != "TIFF":
        if getattr(image, "n_frames", 1) > 1:
            raise CTMaskNetError(
                f"{path}: holds {image.n_frames} frames; save each slice as a picture of its own"
            )
        _check_not_turned(path, image)
        return [Page(0, image.height, image.width, _is_deep(image))]
    pages = []
    most = _MAX_PAGES + os.path.getsize(path) // _BYTES_A_PAGE
    for number, frame in enumerate(ImageSequence.Iterator(image)):
        if number >= most:
            raise CTMaskNetError(
                f"{path}: holds more than {most} pages, which are too many for slices in a file of "
                "its size; the file is damaged"
            )
        # Bit 0: a smaller copy of another page, bit 2: its transparency mask.
        if not frame.tag_v2.get(_TIFF_SUBFILE_TYPE, 0) & 0b101:
            _check_not_turned(path, frame)
            pages.append(Page(number, frame.height, frame.width, _is_deep(frame)))
    return pages


def eight_bit_pixels(
    path: str | os.PathLike, image: Image.Image, number: int = 0, mode: str | None = None
) -> np.ndarray:
    """Decode a page of 8 bits a channel.

    Args:
        path: for errors.
        image: as :func:`opened`.
        number: of the page.
        mode: ``L`` or ``RGB``; None: as stored.

    Returns:
        uint8, (H, W) or (H, W, 3) RGB.
    """
    _load(path, image, number)
    if image.mode not in (*_GREY_MODES, *_COLOUR_MODES):
        raise CTMaskNetError(
            f"{path}: its pixels are of mode {image.mode}; save the slice in grey levels or RGB"
        )
    # By way of RGB, since the L of a YCbCr picture is another grey.
    image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    return np.asarray(image if mode in (None, image.mode) else image.convert(mode))


def stored_values(path: str | os.PathLike, image: Image.Image, page: Page) -> np.ndarray:
    """Decode the values of a page as they are stored: (H, W), or (H, W, C) with channels in any
    order.

    Args:
        path: for errors.
        image: as :func:`opened`.
        page: one of :func:`slice_pages`.
    """
    several = getattr(image, "n_frames", 1) > 1
    image.seek(page.number)
    factor = _GREY_STRETCH.get(_raw_mode(image), 1)
    _load(path, image, page.number)
    if not page.deep or image.mode in _DEEP_MODES:
        values = np.asarray(image)
        return values // factor if factor > 1 else values
    # Pillow has narrowed the channels to 8 bits.
    if several:
        _, found = cv2.imreadmulti(os.fspath(path), page.number, 1, flags=cv2.IMREAD_UNCHANGED)
        values = found[0] if found else None
    else:
        values = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise CTMaskNetError(f"{path}: damaged or of an unknown layout; restore the file")
    return values


def _read(path: str | os.PathLike, mode: str | None, is_slice: bool = True) -> np.ndarray:
    with _naming_file(path), opened(path) as image:
        page = _eight_bit_page(path, image, is_slice)
        return eight_bit_pixels(path, image, page.number, mode)


def _eight_bit_page(path: str | os.PathLike, image: Image.Image, is_slice: bool = True) -> Page:
    page = _only_page(path, image)
    if is_slice:
        check_sides(path, page[1:3])
    if page.deep:
        raise CTMaskNetError(
            f"{path}: has more than 8 bits a channel (mode {image.mode}); "
            "convert it through one HU window to 8 bits first, as the preparation does with "
            "`rescale` SLOPE,INTERCEPT"
        )
    return page


def _only_page(path: str | os.PathLike, image: Image.Image) -> Page:
    """Its page; leaves the image there."""
    pages = slice_pages(path, image)
    if not pages:
        raise CTMaskNetError(
            f"{path}: marks all its pages as thumbnails or transparency masks; give a full slice"
        )
    if len(pages) > 1:
        raise CTMaskNetError(
            f"{path}: holds {len(pages)} pages; save each slice as a picture of its own"
        )
    image.seek(pages[0].number)
    return pages[0]


def _load(path: str | os.PathLike, image: Image.Image, number: int) -> None:
    image.seek(number)
    image.load()
    _check_not_turned(path, image, loaded=True)


def _check_not_turned(path: str | os.PathLike, image: Image.Image, *, loaded: bool = False) -> None:
    """Refuse a page whose orientation tag tells viewers to turn or mirror it: programs differ in
    whether they follow the tag.

    Args:
        path: for errors.
        image: at that page.
        loaded: its pixels are decoded, so that tags behind them are known too.
    """
    if image.format == "TIFF":
        stated = image.tag_v2.get(_ORIENTATION)
    else:
        try:
            if loaded:
                stated = image.getexif().get(_ORIENTATION)  # EXIF or XMP; decodes a PNG
            else:
                exif = Image.Exif()
                exif.load(image.info.get("exif", b""))
                stated = exif.get(_ORIENTATION)
        except Exception as error:  # whatever its parser stumbles on
            raise CTMaskNetError(
                f"{path}: its EXIF data are damaged ({reason_of(error)}), so nothing says if it "
                "is stored turned; save it upright, without them"
            ) from None
    if stated in _TURNED:
        raise CTMaskNetError(
            f"{path}: its orientation tag ({stated}) says that it is stored turned or mirrored; "
            "save it upright, without the tag"
        )


def _is_deep(image: Image.Image) -> bool:
    """Whether the present page of a picture that is not decoded has more than 8 bits a channel."""
    # Pillow narrows 16 bits a channel to 8 in colour and with alpha, so its mode is no guide.
    if image.format == "PNG":
        offset = image.fp.tell()
        image.fp.seek(_PNG_BIT_DEPTH_OFFSET)
        depth = image.fp.read(1)[0]
        image.fp.seek(offset)
        return depth > 8
    if image.format == "TIFF":
        return max(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (1,))) > 8
    return image.mode in _DEEP_MODES


def _raw_mode(image: Image.Image) -> str | None:
    """The pixel layout in the file, such as ``L;2``; known before decoding only."""
    arguments = image.tile[0][3] if image.tile else None
    return arguments[0] if isinstance(arguments, tuple) and arguments else arguments


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
        functools.partial(_problem_of, read=functools.partial(_copy_in_window, table=table)),
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


def _problem_of(item: Any, read: Callable[[Any], Any]) -> str | None:
    try:
        read(item)
    except CTMaskNetError as error:
        return str(error)
    return None


def _copy_in_window(source_and_target: tuple[str, str], table: list[int]) -> None:
    source, target = source_and_target
    levels = np.asarray(table, dtype=np.uint8)
    Image.fromarray(levels[read_grey(source)]).save(target, format="PNG")
