"""Masks read as planes of label values, whatever they hold.

H, W are the sides of a mask in px.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ctmasknet.classes import MASK_LABELS
from ctmasknet.data.label_masks import (
    Orientation,
    check_known_values,
    read_mask,
    read_one_channel,
    values_present,
    whole_values,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.masks.colours import color_values
from ctmasknet.prepare.masks.instances import InstanceTable, class_values

#: Where classes overlap, the later of these counts.
PAINT_ORDER = ("background", "lung", "lesion", "ggo", "consolidation")


@dataclass(frozen=True)
class ClassMasks:
    """The masks of one image, one file a class: class name -> file, or folder of pictures."""

    files: Mapping[str, Path]


@dataclass(frozen=True)
class MaskPlane:
    """A mask.

    Attributes:
        values: (H, W) label values.
        numbers: (H, W) of the instances, 0 outside; None: lesions are connected components.
        overlap_px: of how many px two classes' files say that they are theirs.
    """

    values: np.ndarray
    numbers: np.ndarray | None = None
    overlap_px: int = 0

    def upright(self, orientation: Orientation) -> MaskPlane:
        numbers = None if self.numbers is None else orientation.upright(self.numbers)
        return MaskPlane(orientation.upright(self.values), numbers, self.overlap_px)


@dataclass(frozen=True)
class MaskCode:
    """What masks hold.

    Args:
        labels: name of each label value.
        colors: class of each colour, 0xRRGGBB: pictures are read by their colours; None: by their
            values.
        instances: class of each value, which is an instance then; None: values are labels.
    """

    labels: Mapping[int, str] = field(default_factory=lambda: dict(MASK_LABELS))
    colors: Mapping[int, str] | None = None
    instances: InstanceTable | None = None

    def values_of(self, name: str | None, image: str) -> Mapping[int, str]:
        """Names of the values in a file: of the class ``name``, if it is one's, and of the image
        with this relative path."""
        if name is not None:
            return {0: "background", 1: name}
        return self.labels if self.instances is None else self.instances.of(image)

    def read(self, path: Path, name: str | None = None, image: str = "") -> np.ndarray:
        """The values (H, W) of a picture as :meth:`values_of` names them.

        Raises:
            CTMaskNetError: as :func:`~ctmasknet.data.label_masks.read_mask`; a colour without a
                class; a file of one class with several values.
        """
        if name is not None:
            return self.checked(path, read_one_channel(path), name, image)
        if self.colors is not None:
            return color_values(path, self.colors, self.labels)
        argument = "labels" if self.instances is None else "instances"
        return read_mask(path, self.values_of(name, image), argument)

    def checked(
        self, path: str | os.PathLike, values: np.ndarray, name: str | None, image: str
    ) -> np.ndarray:
        """The values (H, W) as stored, checked, as :meth:`values_of` names them."""
        if name is None:
            argument = "labels" if self.instances is None else "instances"
            return check_known_values(path, values, self.values_of(name, image), argument)
        values = whole_values(path, values)
        inside = [value for value in values_present(values) if value]
        if len(inside) > 1:
            raise CTMaskNetError(
                f"{path}: holds the values {', '.join(map(str, inside[:8]))}, and a mask of one "
                "class has 0 and one other; mend it, or give masks of several classes with `labels`"
            )
        return (values != 0).astype(np.uint8)

    def plane(self, values: np.ndarray, image: str = "") -> MaskPlane:
        """The plane that :meth:`read` or :meth:`checked` gave for a file of all classes."""
        if self.instances is None:
            return MaskPlane(values)
        return MaskPlane(class_values(values, self.instances.of(image), self.labels), values)

    def painted(self, inside: Mapping[str, np.ndarray]) -> MaskPlane:
        """A plane of the values (H, W) of each class, 0 outside; where they overlap, consolidation
        counts before GGO, lesion and lung."""
        value_of = {name: value for value, name in self.labels.items()}
        shape = next(iter(inside.values())).shape
        values = np.full(shape, value_of["background"], np.uint8)
        count = np.zeros(shape, np.uint8)
        for name in sorted(inside, key=PAINT_ORDER.index):
            values[inside[name] != 0] = value_of[name]
            count += inside[name] != 0
        return MaskPlane(values, None, int((count > 1).sum()))
