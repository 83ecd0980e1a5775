"""From the name that predictions have for a slice to its pixels."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctmasknet.data.ct_io import read_scans
from ctmasknet.data.ct_scan import CTSlice
from ctmasknet.data.datasets import dataset_dicts
from ctmasknet.data.images import IMAGE_SUFFIXES
from ctmasknet.data.window import Window
from ctmasknet.errors import CTMaskNetError
from ctmasknet.gallery import read_rgb

#: Place of a slice inside its file, as :class:`CTSlice` names it.
_FRAME = re.compile(r"#\d{4,}$")


@dataclass(frozen=True)
class FoundSlice:
    """A slice that was found: ``entry`` is its dataset dict (``file_name`` at least), ``pixels``
    (H, W, 3) uint8 RGB, uncropped; ``is_picture``: ``file_name`` is an 8-bit picture."""

    entry: Mapping[str, Any]
    pixels: np.ndarray
    is_picture: bool


class SliceFiles:
    """Finds slices of a data set, pictures, and slices of DICOM and NIfTI files.

    Args:
        dataset: name of the data set, whose prepared json tells where slices lie; None without.
        images: folder that names in the predictions are relative to; None for where one is.
        window: shows HU as grey levels.

    Raises:
        CTMaskNetError: ``images`` does not exist.
    """

    def __init__(
        self,
        dataset: str | None = None,
        images: str | os.PathLike | None = None,
        window: Window | None = None,
    ):
        self._entries = _entries_of(dataset)
        self._images = None if images is None else Path(images)
        if self._images is not None and not self._images.is_dir():
            raise CTMaskNetError(f"{images}: no such folder; correct --images")
        self._window = window or Window()
        # Slices of a volume come one after the other
        self._volume = functools.lru_cache(maxsize=4)(_slices_of)

    def find(self, file: str) -> FoundSlice | None:
        """The slice of that name, None where there is no file.

        Raises:
            CTMaskNetError: a file that is there but cannot be read.
        """
        entry = self._entries.get(file)
        if entry is not None and os.path.isfile(entry["file_name"]):
            return FoundSlice(entry, read_rgb(entry["file_name"], None), True)
        name = _FRAME.sub("", file)
        for path in ([self._images / name] if self._images else []) + [Path(name)]:
            if not path.is_file():
                continue
            # A page of a TIFF is named as a slice of a volume is
            if path.suffix.lower() in IMAGE_SUFFIXES and name == file:
                entry = {"file_name": str(path)}
                return FoundSlice(entry, read_rgb(entry["file_name"], None), True)
            wanted = f"{path}{file[len(name) :]}"
            for one in self._volume(str(path)):
                if one.name == wanted:
                    pixels = one.pixels(self._window)
                    grey = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
                    return FoundSlice({"file_name": wanted}, grey, False)
        return None


def recorded_window(entries: Sequence[Mapping[str, Any]]) -> Window | None:
    """The HU window of the latest run in ``run.json`` that states one."""
    for entry in reversed(entries):
        config = entry.get("config")
        inputs = config.get("INPUT") if isinstance(config, dict) else None
        if isinstance(inputs, dict) and {"WINDOW_CENTER_HU", "WINDOW_WIDTH_HU"} <= set(inputs):
            return Window(inputs["WINDOW_CENTER_HU"], inputs["WINDOW_WIDTH_HU"])
    return None


def _slices_of(path: str) -> tuple[CTSlice, ...]:
    return tuple(one for scan in read_scans([path]) for one in scan.slices)


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
