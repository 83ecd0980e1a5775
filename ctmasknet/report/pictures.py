"""Pictures of slices as data URIs: the slice, what a painter draws on it, pictures made before."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctmasknet.data.datasets import dataset_dicts
from ctmasknet.data.images import IMAGE_SUFFIXES, naming_file
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.gallery import CONTACT_SHEET, read_rgb
from ctmasknet.report.json_lines import json_lines

#: Longer side (px) of a slice, and of a picture from a folder, which may hold panels and text.
SLICE_PX, PAGE_PX = 384, 900
_QUALITY = 72

#: Keys of a line that name a picture, and its caption.
_PICTURE_KEYS = {
    "picture": "box weights: input to the decision, not its cause",
    "overlay": "lesions",
}

#: A reported slice and its dataset dict -> (H, W, 3) uint8 RGB pictures with captions.
Painter = Callable[[SlicePrediction, Mapping[str, Any]], list[tuple[np.ndarray, str]]]


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
        files: names of all reported slices.
        dataset: name of the data set, whose prepared json tells where slices lie; None without.
        images: folder that names in the predictions are relative to.
        folders: pictures made before, see :func:`index_pictures`.
        painter: draws evidence, see :mod:`.evidence`; None draws none.

    Raises:
        CTMaskNetError: a folder that does not exist or tells nothing.
    """

    def __init__(
        self,
        files: Iterable[str],
        *,
        dataset: str | None = None,
        images: str | os.PathLike | None = None,
        folders: Iterable[str | os.PathLike] = (),
        painter: Painter | None = None,
    ):
        self._stems = Counter(_stem(file) for file in files)
        self._entries = _entries_of(dataset)
        self._images = None if images is None else Path(images)
        if self._images is not None and not self._images.is_dir():
            raise CTMaskNetError(f"{images}: no such folder; correct --images")
        self._made = [index_pictures(folder) for folder in folders]
        self._painter = painter

    def of(self, row: SlicePrediction) -> list[Picture]:
        """The slice as it is, with lesions, and pictures from folders; none where no file is found.

        Raises:
            CTMaskNetError: an image that is there but cannot be read.
        """
        pictures = []
        entry = self._entry(row.file)
        if entry is not None:
            pixels = read_rgb(entry["file_name"], None)
            pictures.append(encode(pixels, "slice", f"CT slice {row.file}"))
            if self._painter:
                for drawn, caption in self._painter(row, entry):
                    pictures.append(encode(drawn, caption, f"CT slice {row.file}: {caption}"))
        for made in self._made:
            stem = _stem(row.file)
            by_stem = made.get(stem, []) if self._stems[stem] == 1 else []
            for caption, path in made.get(row.file) or by_stem:
                with naming_file(path), Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
                pictures.append(encode(pixels, caption, f"{caption} of {row.file}", PAGE_PX))
        return pictures

    def _entry(self, file: str) -> Mapping[str, Any] | None:
        """The slice's dataset dict, or one with its file alone; None when there is no file."""
        entry = self._entries.get(file)
        if entry is not None and os.path.isfile(entry["file_name"]):
            return entry
        for path in ([self._images / file] if self._images else []) + [Path(file)]:
            if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                return {"file_name": str(path)}
        return None


def index_pictures(folder: str | os.PathLike) -> dict[str, list[tuple[str, Path]]]:
    """Pictures in a folder by the slice they show.

    A ``.jsonl`` file there tells: lines with ``file`` and ``picture`` (``tools/explain.py``) or
    ``overlay`` (``tools/predict.py``), relative to the folder. Otherwise a picture belongs to the
    slice whose stem it has, after the number in front where all are numbered as by
    ``tools/visualize.py`` (``001_110_104.png`` shows ``110_104``). A stem that several pictures or
    slices have tells nothing.

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
        return told
    paths = [
        path
        for path in sorted(folder.iterdir())
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


def _entries_of(dataset: str | None) -> dict[str, Mapping[str, Any]]:
    """Dataset dicts by the name that predictions have for them; none where it is not prepared."""
    if dataset is None:
        return {}
    try:
        entries = dataset_dicts(dataset)
    except CTMaskNetError:
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        name = entry.get("image_id")
        found[name if isinstance(name, str) else entry["file_name"]] = entry
    return found


def _stem(file: str) -> str:
    return Path(file).stem
