"""Pictures of slices as data URIs: the slice, what a painter draws on it, pictures made before."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ctmasknet.data.images import IMAGE_SUFFIXES, naming_file
from ctmasknet.data.natural import natural_key
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.gallery import CONTACT_SHEET
from ctmasknet.report.json_lines import json_lines
from ctmasknet.report.slice_files import FoundSlice, SliceFiles

#: Longer side (px) of a slice, and of a picture from a folder, which may hold panels and text.
SLICE_PX, PAGE_PX = 384, 900
_QUALITY = 72

#: Keys of a line that name a picture, and its caption.
_PICTURE_KEYS = {
    "picture": "box weights: input to the decision, not its cause",
    "overlay": "lesions",
}

#: A reported slice and what was found of it -> (H, W, 3) uint8 RGB pictures with captions.
Painter = Callable[[SlicePrediction, FoundSlice], list[tuple[np.ndarray, str]]]


@dataclass(frozen=True)
class Picture:
    """A picture inside the page: ``uri`` is a data URI, ``width`` and ``height`` px."""

    caption: str
    alt: str
    uri: str
    width: int
    height: int


class SlicePictures:
    """All pictures there are of a reported slice.

    Args:
        names: of all reported slices.
        files: finds them.
        folders: pictures made before, see :func:`index_pictures`; each has to hold one of these
            slices.
        more: a folder that may hold some.
        painter: draws evidence, see :mod:`.evidence`; None draws none.

    Raises:
        CTMaskNetError: a folder that does not exist, tells nothing, or shows other slices.
    """

    def __init__(
        self,
        names: Iterable[str],
        files: SliceFiles,
        *,
        folders: Iterable[str | os.PathLike] = (),
        more: str | os.PathLike | None = None,
        painter: Painter | None = None,
    ):
        names = list(names)
        self._stems = Counter(_stem(name) for name in names)
        self._files = files
        self._made = []
        for folder in folders:
            made = index_pictures(folder)
            if not made:
                raise CTMaskNetError(
                    f"{folder}: names no picture that tells its slice; correct --pictures"
                )
            if not any(self._made_of(made, name) for name in names):
                raise CTMaskNetError(
                    f"{folder}: its pictures are of other slices than the predictions; correct "
                    "--pictures"
                )
            self._made.append(made)
        if more is not None:
            self._made.append(index_pictures(more))
        self._painter = painter

    def of(self, row: SlicePrediction) -> list[Picture]:
        """The slice as it is, the evidence in it, and pictures from folders; none where no file is
        found.

        Raises:
            CTMaskNetError: a file that is there but cannot be read.
        """
        pictures = []
        found = self._files.find(row.file)
        if found is not None:
            pictures.append(encode(found.pixels, "slice", f"CT slice {row.file}"))
            for drawn, caption in self._painter(row, found) if self._painter else ():
                pictures.append(encode(drawn, caption, f"CT slice {row.file}: {caption}"))
        for made in self._made:
            for caption, path in self._made_of(made, row.file):
                with naming_file(path), Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
                pictures.append(encode(pixels, caption, f"{caption} of {row.file}", PAGE_PX))
        return pictures

    def _made_of(
        self, made: Mapping[str, list[tuple[str, Path]]], file: str
    ) -> list[tuple[str, Path]]:
        """(caption, file) of a slice's pictures in a folder, by its name or its own stem."""
        stem = _stem(file)
        return made.get(file) or (made.get(stem, []) if self._stems[stem] == 1 else [])


def index_pictures(folder: str | os.PathLike) -> dict[str, list[tuple[str, Path]]]:
    """Pictures in a folder by the slice they show.

    A ``.jsonl`` file there tells: lines with ``file`` and ``picture`` (``tools/explain.py``) or
    ``overlay`` (``tools/predict.py``), relative to the folder, by name or else by stem. Otherwise a
    picture belongs to the slice whose stem it has, after the number in front where all are numbered
    as by ``tools/visualize.py`` (``001_110_104.png`` shows ``110_104``). A stem that several
    pictures or slices have tells nothing.

    Returns:
        name or stem of a slice -> (caption, file) of each picture.

    Raises:
        CTMaskNetError: no such folder, no picture in it, or a broken line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CTMaskNetError(f"{folder}: no such folder; correct --pictures")
    told: dict[str, list[tuple[str, Path]]] = {}
    listings = sorted(folder.glob("*.jsonl"))
    for listing in listings:
        for item in json_lines(listing):
            for key, caption in _PICTURE_KEYS.items():
                path = folder / str(item.get(key, ""))
                if "file" in item and path.is_file():
                    told.setdefault(str(item["file"]), []).append((caption, path))
    if listings:
        # The same slices may be named by another path there
        stems = Counter(_stem(name) for name in told)
        return {_stem(name): of for name, of in told.items() if stems[_stem(name)] == 1} | told
    paths = [
        path
        for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name != CONTACT_SHEET
    ]
    if not paths:
        raise CTMaskNetError(f"{folder}: no picture in this folder; correct --pictures")
    numbers = [f"{number:03d}_" for number in range(1, len(paths) + 1)]
    numbered = all(map(str.startswith, [path.name for path in paths], numbers))
    for path, number in zip(paths, numbers, strict=True):
        stem = path.stem.removeprefix(number) if numbered else path.stem
        told.setdefault(stem, []).append((folder.name, path))
    return {stem: pictures for stem, pictures in told.items() if len(pictures) == 1}


def encode(pixels: np.ndarray, caption: str, alt: str, longer_side_px: int = SLICE_PX) -> Picture:
    """A (H, W, 3) uint8 RGB array as WebP inside a data URI, reduced to ``longer_side_px``."""
    image = Image.fromarray(pixels)
    image.thumbnail((longer_side_px, longer_side_px), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="WEBP", quality=_QUALITY, method=4)
    coded = base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(caption, alt, f"data:image/webp;base64,{coded}", image.width, image.height)


def _stem(file: str) -> str:
    return Path(file).stem
