"""Pages of pictures: panels side by side with captions, a header and a legend; and contact sheets.

Pictures are (H, W, 3) uint8 RGB arrays, lengths are px.
"""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ctmasknet.files import atomic_write, write_json, writing

_BACKGROUND = (24, 24, 28)
_TEXT = (235, 235, 235)
_TEXT_PX = 16
_LINE_PX = 24
_MARGIN_PX = 10
#: Room a header needs on one line, whatever the slice measures.
_LEAST_WIDTH_PX = 560


@dataclass(frozen=True)
class Chunk:
    """A few words that stay on one line, after a square of colour if ``swatch`` is given."""

    text: str
    color: tuple[int, int, int] = _TEXT
    bold: bool = False
    swatch: tuple[int, int, int] | None = None

    def width(self) -> float:
        square = _TEXT_PX + 6 if self.swatch else 0
        return square + _font(self.bold).getlength(self.text)


@dataclass(frozen=True)
class Panel:
    """A picture (H, W, 3) with the caption that stands above it."""

    caption: str
    picture: np.ndarray


def compose_page(
    panels: Sequence[Panel],
    *,
    title: str = "",
    header: Sequence[Sequence[Chunk]] = (),
    legend: Sequence[Chunk] = (),
) -> np.ndarray:
    """Set panels side by side under a title and header lines, over a legend.

    Text never leaves the page: lines break between chunks, a long title is shortened in its middle.

    Args:
        panels: one or more pictures, of any size.
        title: first line, bold.
        header: further lines.
        legend: last lines.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    least = math.ceil((_LEAST_WIDTH_PX - _MARGIN_PX) / len(panels)) - _MARGIN_PX
    columns = []
    tallest = max(panel.picture.shape[0] for panel in panels)
    for panel in panels:
        width = max(panel.picture.shape[1], least)
        caption = _strip([[Chunk(panel.caption)]], width, margin=0)
        columns.append((caption, _padded(panel.picture, tallest, width)))
    captions = max(caption.shape[0] for caption, _ in columns)
    stacked = [
        np.vstack([_padded(caption, captions, caption.shape[1]), picture])
        for caption, picture in columns
    ]
    gap = np.full((captions + tallest, _MARGIN_PX, 3), _BACKGROUND, dtype=np.uint8)
    row = np.hstack([gap, *(each for column in stacked for each in (column, gap))])
    width = row.shape[1]
    lines = [[Chunk(title, bold=True)]] if title else []
    above, below = [*lines, *header], [legend] if legend else []
    return np.vstack([_strip(above, width), row, _strip(below, width)])


def contact_sheet(
    pictures: Sequence[np.ndarray], columns: int, cell_width: int | None = None
) -> np.ndarray:
    """Set pictures in rows of ``columns``, each centred in a cell as large as the largest.

    Args:
        pictures: (H, W, 3) uint8 RGB, one or more, of any size.
        columns: pictures a row, at least 1.
        cell_width: px; wider pictures are reduced to it.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    if not pictures or columns < 1:
        raise ValueError(f"a contact sheet of {len(pictures)} pictures in {columns} columns")
    cells = [_reduced(picture, cell_width) for picture in pictures]
    height = max(cell.shape[0] for cell in cells) + _MARGIN_PX
    width = max(cell.shape[1] for cell in cells) + _MARGIN_PX
    cells = [_padded(cell, height, width) for cell in cells]
    columns = min(columns, len(cells))
    empty = _padded(np.zeros((0, 0, 3), dtype=np.uint8), height, width)
    cells += [empty] * (-len(cells) % columns)
    rows = [np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    return np.vstack(rows)


def png_bytes(picture: np.ndarray) -> bytes:
    """An (H, W, 3) uint8 RGB picture as the content of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()


def write_picture(
    path: str | os.PathLike, picture: np.ndarray | bytes, numbers: dict[str, Any] | None = None
) -> None:
    """Write a picture, and the numbers it shows as JSON beside it, each whole or not at all.

    Args:
        path: of the PNG file.
        picture: (H, W, 3) uint8 RGB, or the file's content.
        numbers: None writes no JSON.

    Raises:
        CTMaskNetError: they cannot be written.
    """
    png = picture if isinstance(picture, bytes) else png_bytes(picture)
    with writing(path):
        with atomic_write(path, "wb") as stream:
            stream.write(png)
        if numbers is not None:
            write_json(Path(path).with_suffix(".json"), numbers, 1)


def _strip(lines: Sequence[Sequence[Chunk]], width: int, margin: int = _MARGIN_PX) -> np.ndarray:
    """Lines of chunks on the background, (H', width, 3); no lines make a thin empty strip."""
    room = width - 2 * margin
    wrapped = [part for line in lines for part in _wrapped(line, room)]
    height = _LINE_PX * len(wrapped) + _MARGIN_PX
    strip = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(wrapped):
        x, middle = margin, _MARGIN_PX // 2 + _LINE_PX * number + _LINE_PX // 2
        for chunk in line:
            start = x
            if chunk.swatch:
                top = middle - _TEXT_PX // 2
                draw.rectangle([x, top, x + _TEXT_PX - 1, top + _TEXT_PX - 1], fill=chunk.swatch)
                start = x + _TEXT_PX + 6
            text = _shortened(chunk, room)
            draw.text((start, middle), text, chunk.color, font=_font(chunk.bold), anchor="lm")
            x += chunk.width() + _space()
    return np.asarray(strip)


def _wrapped(line: Sequence[Chunk], room: float) -> list[list[Chunk]]:
    parts: list[list[Chunk]] = []
    x = 0.0
    for chunk in line:
        if not parts or x + chunk.width() > room:
            parts.append([])
            x = 0.0
        parts[-1].append(chunk)
        x += chunk.width() + _space()
    return parts


def _shortened(chunk: Chunk, room: float) -> str:
    """The text, without as much of its middle as makes it fit; the end of a file name says most."""
    text, font = chunk.text, _font(chunk.bold)
    room -= chunk.width() - font.getlength(text)
    letters = len(text)
    while letters > 2 and font.getlength(text) > room:
        letters -= 1
        head = letters // 3
        text = f"{chunk.text[:head]}…{chunk.text[len(chunk.text) - (letters - head) :]}"
    return text


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Centre a picture left to right, and set it at the top, on a background of (height, width)."""
    page = np.full((height, width, 3), _BACKGROUND, dtype=np.uint8)
    left = (width - picture.shape[1]) // 2
    page[: picture.shape[0], left : left + picture.shape[1]] = picture
    return page


def _reduced(picture: np.ndarray, width: int | None) -> np.ndarray:
    if width is None or picture.shape[1] <= width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _space() -> float:
    return _font(False).getlength("  ")


@functools.cache
def _font(bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, so that no font of the system is needed."""
    weight = "bold" if bold else "normal"
    properties = font_manager.FontProperties(family="DejaVu Sans", weight=weight)
    return ImageFont.truetype(font_manager.findfont(properties), _TEXT_PX)
