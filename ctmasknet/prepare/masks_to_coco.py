"""Label masks to lesion instances: connected components of each class, as COCO annotations with
RLE.

Source: paper section 2.1 and the reference (8-connected components, those of 100 px or fewer
dropped).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctmasknet.classes import MASK_LABELS, MASK_TYPES
from ctmasknet.ct.pictures import read_picture
from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.data.label_masks import (
    LESION_LABELS,
    UPRIGHT,
    Orientation,
    check_same_size,
    mask_type_classes,
    read_mask,
    values_present,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.components import components
from ctmasknet.prepare.pairs import LesionPair
from ctmasknet.workers import map_in_processes

#: Components of this area or less are dropped (reference).
MIN_AREA_PX = 100


def mask_instances(
    mask: np.ndarray,
    classes: Sequence[tuple[str, Sequence[int]]],
    min_area_px: int = MIN_AREA_PX,
) -> list[dict[str, Any]]:
    """Connected components (8-connectivity) of each class of a label mask.

    The class comes from the mask value alone, whatever other values are present.

    Args:
        mask: (H, W) integer label values.
        classes: name and mask values of each class, in category order. A component is one of the
            union of the values.
        min_area_px: components of this area or less, in px, are dropped.

    Returns:
        COCO annotations without ``id`` and ``image_id``, by class and then by place (top, left,
        height, width): ``category_id`` (from 1), ``bbox`` [x, y, w, h] px reaching from the first
        row and column of the component to one past its last, ``area`` px, ``iscrowd`` 0,
        ``segmentation`` (compressed RLE, ``counts`` as str).
    """
    instances = []
    for category_id, (_, values) in enumerate(classes, 1):
        inside = mask == values[0] if len(values) == 1 else np.isin(mask, list(values))
        for box, area, code in components(inside.view(np.uint8), min_area_px):
            instances.append(
                {
                    "category_id": category_id,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                    "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
                }
            )
    return instances


@dataclass(frozen=True)
class Conversion:
    """How masks are converted; the same for every slice of a set.

    Args:
        labels: name of each mask value.
        mask_types: the mask types to make, keys of ``MASK_TYPES``.
        min_area_px: components of this area or less are dropped.
        orientation: how the arrays on disk become upright.
        copies: folder for upright PNG copies of the images; None leaves the images where they are.
    """

    labels: Mapping[int, str] = field(default_factory=lambda: dict(MASK_LABELS))
    mask_types: tuple[str, ...] = tuple(MASK_TYPES)
    min_area_px: int = MIN_AREA_PX
    orientation: Orientation = UPRIGHT
    copies: Path | None = None


@dataclass(frozen=True)
class ConvertedSlice:
    """A slice as converted.

    Args:
        pair: its files and patient.
        file: path of the image to register, relative to the image folder.
        height, width: px, upright.
        lesions: names of the lesion labels present, of any area.
        instances: annotations of each mask type.
        scan: of a volume's slice its series or volume; else "".
    """

    pair: LesionPair
    file: str
    height: int
    width: int
    lesions: tuple[str, ...]
    instances: dict[str, list[dict[str, Any]]]
    scan: str = ""


def lesions_of(
    mask: np.ndarray, how: Conversion
) -> tuple[tuple[str, ...], dict[str, list[dict[str, Any]]]]:
    """Names of the lesion labels present in a mask (H, W), and its annotations of each mask
    type."""
    present = {how.labels[value] for value in values_present(mask)}
    lesions = tuple(name for name in LESION_LABELS if name in present)
    return lesions, {
        mask_type: mask_instances(mask, mask_type_classes(mask_type, how.labels), how.min_area_px)
        for mask_type in how.mask_types
    }


def convert_slice(pair: LesionPair, how: Conversion) -> ConvertedSlice:
    """Read one image and its mask, check them against each other, and find the lesions of every
    mask type.

    Raises:
        CTMaskNetError: a file cannot be decoded or is too large, the sizes differ, or the mask has
            an unknown value.
    """
    image = read_picture(pair.image)
    mask = read_mask(pair.mask, how.labels)
    check_same_size(pair.image, image, pair.mask, mask)
    mask = how.orientation.upright(mask)
    file = pair.file
    if how.copies is not None:
        file = str(Path(file).with_suffix(".png").as_posix())
        target = how.copies / file
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(how.orientation.upright(image)).save(target)
    lesions, instances = lesions_of(mask, how)
    return ConvertedSlice(pair, file, *mask.shape, lesions, instances)


def convert_slices(
    pairs: Sequence[LesionPair],
    how: Conversion,
    workers: int = 1,
    start_method: str | None = None,
    *,
    skip_bad: bool = False,
) -> Iterator[ConvertedSlice | BadSlice]:
    """Convert slices in their order; with ``skip_bad`` one that cannot be comes as a
    :class:`~ctmasknet.data.bad_slices.BadSlice`. See
    :func:`~ctmasknet.workers.map_in_processes`."""
    convert = functools.partial(_convert_or_bad if skip_bad else convert_slice, how=how)
    yield from map_in_processes(convert, pairs, workers, start_method=start_method)


def coco_document(
    slices: Iterable[ConvertedSlice], mask_type: str, info: Mapping[str, Any]
) -> dict[str, Any]:
    """The COCO document of one split. Ids count from 1 in the order of ``slices``."""
    images, annotations = [], []
    for image_id, item in enumerate(slices, 1):
        images.append(
            {
                "id": image_id,
                "file_name": item.file,
                "height": item.height,
                "width": item.width,
                "patient": item.pair.patient,
                **({"scan": item.scan} if item.scan else {}),
            }
        )
        for instance in item.instances[mask_type]:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **instance})
    return {
        "info": dict(info),
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(MASK_TYPES[mask_type], 1)],
    }


def _convert_or_bad(pair: LesionPair, how: Conversion) -> ConvertedSlice | BadSlice:
    try:
        return convert_slice(pair, how)
    except CTMaskNetError as error:
        return BadSlice.from_error(str(pair.image), error)
