"""Masks whose colours are their classes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from ctmasknet.csv_tables import read_csv_rows
from ctmasknet.ct.pictures import read_values
from ctmasknet.data.label_masks import label_values
from ctmasknet.errors import CTMaskNetError

_HEX = re.compile(r"#?([0-9a-fA-F]{6})")
_NUMBERS = re.compile(r"(\d{1,3})[ ,;]+(\d{1,3})[ ,;]+(\d{1,3})")


def read_colors(text: str) -> dict[int, str]:
    """Read ``#ff0000:ggo,#0000ff:consolidation``, or a CSV file ``color,class`` (``#ff0000`` or
    ``255 0 0``).

    Returns:
        class of each colour, 0xRRGGBB; black is background unless it is another.

    Raises:
        CTMaskNetError: another form, an unknown class, a colour given twice.
    """
    if ":" in text and not os.path.isfile(text):
        parts = [part.strip().rpartition(":") for part in text.split(",")]
        rows = [(f"`colors` {text}", color, name) for color, _, name in parts]
    else:
        table = read_csv_rows(text, ("color", "class"), what="table of colours")
        rows = [(f"{text}:{number}", row["color"], row["class"]) for number, row in table]
    classes: dict[int, str] = {}
    for where, color, name in rows:
        code = _code(color)
        if code is None:
            raise CTMaskNetError(f"{where}: {color!r} is no colour such as #ff0000; correct it")
        if code in classes:
            raise CTMaskNetError(f"{where}: the colour {color} is given twice; remove one")
        classes[code] = name
    try:
        label_values(classes.values())
    except CTMaskNetError as error:
        raise CTMaskNetError(f"`colors` {text}: {error}") from None
    return {0: "background", **classes}


def color_values(
    path: str | os.PathLike, classes: Mapping[int, str], labels: Mapping[int, str]
) -> np.ndarray:
    """The label values (H, W) uint8 of a coloured or palette mask; alpha is dropped.

    Args:
        path: the picture.
        classes: class of each colour, as :func:`read_colors`.
        labels: class of each value.

    Raises:
        CTMaskNetError: as :func:`~ctmasknet.ct.pictures.read_values`; colours of no class, which
            are named and counted.
    """
    channels = read_values(path, as_rgb=True).astype(np.int32)
    codes = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    found, inverse, count = np.unique(codes, return_inverse=True, return_counts=True)
    px_of = dict(zip(found.tolist(), count.tolist(), strict=True))
    unknown = sorted(((n, code) for code, n in px_of.items() if code not in classes), reverse=True)
    if unknown:
        shown = ", ".join(f"#{code:06x} ({n} px)" for n, code in unknown[:5])
        raise CTMaskNetError(
            f"{path}: {sum(n for n, _ in unknown)} px are of {len(unknown)} colours without a "
            f"class: {shown}{', ...' if len(unknown) > 5 else ''}; add them to `colors`, or draw "
            "the mask without smoothed edges"
        )
    value_of = {name: value for value, name in labels.items()}
    values = np.array([value_of[classes[code]] for code in found.tolist()], np.uint8)
    return values[inverse.reshape(codes.shape)]


def _code(color: str) -> int | None:
    if match := _HEX.fullmatch(color.strip()):
        return int(match[1], 16)
    if match := _NUMBERS.fullmatch(color.strip()):
        red, green, blue = map(int, match.groups())
        if max(red, green, blue) <= 255:
            return red << 16 | green << 8 | blue
    return None
