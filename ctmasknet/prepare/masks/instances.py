"""Masks in which each value is an instance, whose class a table gives."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from ctmasknet.csv_tables import read_csv_rows
from ctmasknet.data.label_masks import label_values, values_present
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.volumes import stem_of_file


@dataclass(frozen=True)
class InstanceTable:
    """Class of the values of instance masks; 0 is background.

    Attributes:
        file: the table.
        classes: of each value, "" as the image where they hold for all.
        lines: of the images that it names.
    """

    file: str
    classes: Mapping[str, Mapping[int, str]]
    lines: Mapping[str, int]

    @property
    def names(self) -> set[str]:
        """The classes that it gives."""
        return {name for of_image in self.classes.values() for name in of_image.values()}

    def of(self, file: str) -> dict[int, str]:
        """Class of each value of an image's mask, by the image's relative path."""
        return {0: "background", **self.classes.get("", self.classes.get(stem_of_file(file), {}))}

    def check_images(self, files: Collection[str]) -> None:
        """Refuse a table that names an image which is none of ``files``."""
        known = {stem_of_file(file) for file in files}
        for name, line in self.lines.items():
            if name not in known:
                raise CTMaskNetError(
                    f"{self.file}:{line}: {name} is no image with a mask; correct the table "
                    f"(images are named such as {next(iter(files), '110_104.png')})"
                )


def read_instance_table(path: str | os.PathLike) -> InstanceTable:
    """Read a CSV file ``value,class``, or ``image,value,class`` where values mean other classes in
    other images.

    Raises:
        CTMaskNetError: the file cannot be read; a value that is no whole number above 0 or is given
            twice, an unknown class, an image in some rows only.
    """
    classes: dict[str, dict[int, str]] = {}
    lines: dict[str, int] = {}
    for number, row in read_csv_rows(path, ("value", "class"), ("image",), "table of instances"):
        where = f"{path}:{number}"
        value, image = (
            row["value"],
            stem_of_file(row["image"].replace("\\", "/").removeprefix("./")),
        )
        if not value.isdecimal() or not int(value):
            raise CTMaskNetError(f"{where}: value {value!r} is no whole number above 0; correct it")
        if int(value) in classes.setdefault(image, {}):
            raise CTMaskNetError(f"{where}: the value {value} is given twice; remove one")
        classes[image][int(value)] = row["class"]
        if image:
            lines.setdefault(image, number)
    if not classes:
        raise CTMaskNetError(f"{path}: lists no value; fill it or leave `instances` out")
    if "" in classes and lines:
        raise CTMaskNetError(f"{path}: some rows name an image and some none; name all or none")
    table = InstanceTable(os.fspath(path), classes, lines)
    try:
        label_values(table.names)
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{path}: {error}") from None
    return table


def class_values(
    numbers: np.ndarray, classes: Mapping[int, str], labels: Mapping[int, str]
) -> np.ndarray:
    """The label values (H, W) uint8 of an instance mask; arguments as of
    :func:`instance_annotations`."""
    value_of = {name: value for value, name in labels.items()}
    found, inverse = np.unique(numbers, return_inverse=True)
    values = np.array([value_of[classes[number]] for number in found.tolist()], np.uint8)
    return values[inverse.reshape(numbers.shape)]


def instance_annotations(
    numbers: np.ndarray,
    values: np.ndarray,
    classes: Sequence[tuple[str, Sequence[int]]],
    min_area_px: int,
) -> list[dict[str, Any]]:
    """One annotation of each instance, of as many parts as it has.

    Args:
        numbers: (H, W) of the instances, 0 outside.
        values: (H, W) label values, one for all px of an instance.
        classes, min_area_px: as of :func:`~ctmasknet.prepare.masks_to_coco.mask_instances`, and
            what is returned.
    """
    category_of = {value: category for category, (_, of) in enumerate(classes, 1) for value in of}
    found = []
    for number in values_present(numbers):
        inside = (numbers == number).astype(np.uint8)
        category = category_of.get(int(values[inside.view(bool)][0]))
        area = int(inside.sum())
        if category is None or area <= min_area_px:
            continue
        x, y, w, h = cv2.boundingRect(inside)
        code = rle.encode(np.asfortranarray(inside))
        found.append(
            {
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": area,
                "iscrowd": 0,
                "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
            }
        )
    return sorted(found, key=lambda one: (one["category_id"], *_place(one["bbox"])))


def _place(box: Sequence[int]) -> tuple[int, int, int, int]:
    x, y, w, h = box
    return y, x, h, w
