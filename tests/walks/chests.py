"""Chests for raw trees: phantoms as pictures and as HU, and what was made of them, counted apart
from the code that prepares sets."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from ctmasknet.phantom.patient import PhantomSlice, phantom_patient

SIDE = 128
_SEED = 5
#: Of a lesion; those of this many px or less are left out by default.
_MIN_PX = 100


@dataclass
class Made:
    """What a raw tree holds.

    Attributes:
        sets: prepared set (``covid1920/merge``, ``ctset``) -> what has to be in it: ``slices``,
            ``patients`` and ``lesions``, or slices and patients by class.
        given: variables for the terminal, such as ``SCAN``.
        predicted: slices of each scan that is given to prediction, in the order of the calls.
    """

    sets: dict[str, dict[str, int]] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    predicted: list[int] = field(default_factory=list)

    def count(self, name: str, **more: int) -> None:
        """Add to what a set has to hold."""
        counts = self.sets.setdefault(name, {})
        for what, number in more.items():
            counts[what] = counts.get(what, 0) + number


@functools.lru_cache(maxsize=64)
def chest(kind: str, patient: int, slices: int, infected_only: bool = True) -> list[PhantomSlice]:
    """Slices of a phantom from the feet to the head, ``SIDE`` px."""
    made = phantom_patient(kind, _SEED, SIDE, slices, patient=patient, infected_only=infected_only)
    return made[::-1]


def in_hu(image: np.ndarray) -> np.ndarray:
    """HU int16 of a phantom's picture, whose window is -600 / 1500."""
    return np.round(image / 255 * 1500 - 1350).astype(np.int16)


def volume(kind: str, patient: int, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """HU int16 and labels uint8 (2 GGO, 3 consolidation), both (slices, SIDE, SIDE)."""
    drawn = chest(kind, patient, slices, infected_only=False)
    mask = np.stack([one.mask for one in drawn])
    return np.stack([in_hu(one.image) for one in drawn]), np.where(mask > 1, mask, 0)


def lesions_in(mask: np.ndarray) -> int:
    """8-connected components of more than 100 px in a binary mask (H, W)."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return sum(int((labels == each).sum()) > _MIN_PX for each in range(1, count + 1))


def save(path: Path, picture: np.ndarray, **how) -> None:
    """Write a picture (H, W) uint8 or uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **how)
