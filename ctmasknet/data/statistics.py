"""How many lesions the images of a data set have, and how large they are (paper Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog

from ctmasknet.data.registry import dataset_dicts
from ctmasknet.errors import CTMaskNetError

#: Shares of the image (percent) whose cumulative counts the figure and its numbers state.
_AREA_MARKS = (1.0, 2.0, 5.0)


def lesion_statistics(dataset: str) -> dict[str, Any]:
    """How many lesions images have, and how large these are (paper Figure 1).

    Args:
        dataset: a registered lesion data set.

    Returns:
        ``dataset``, ``images`` (number), and ``classes``: for each class name
        ``instances`` (number), ``images_without`` (images with none of this class), ``per_image``
        (list, one count an image, in the data set's order), ``area_percent`` (list, each instance's
        mask as a share of its image's area, 0..100), ``median_area_percent`` (None without any) and
        ``below_percent`` ({mark: share of the instances below it, 0..1}, None without any).

    Raises:
        CTMaskNetError: no such set, or one without lesion classes.
    """
    dicts = dataset_dicts(dataset)
    names = MetadataCatalog.get(dataset).get("thing_classes")
    if not names:
        raise CTMaskNetError(
            f"{dataset}: is not a lesion data set; give one of datasets/prepare_lesions.py"
        )
    counts = np.zeros((len(names), len(dicts)), dtype=int)
    areas: list[list[float]] = [[] for _ in names]
    for index, entry in enumerate(dicts):
        for annotation in entry["annotations"]:
            label = annotation["category_id"]
            counts[label, index] += 1
            share = _area_px(annotation, entry) / (entry["height"] * entry["width"])
            areas[label].append(100.0 * share)
    classes = {}
    for name, row, values in zip(names, counts, areas, strict=True):
        shares = np.asarray(values)
        classes[name] = {
            "instances": len(values),
            "images_without": int((row == 0).sum()),
            "per_image": row.tolist(),
            "area_percent": values,
            "median_area_percent": float(np.median(shares)) if values else None,
            "below_percent": {
                f"{mark:g}": float((shares < mark).mean()) if values else None
                for mark in _AREA_MARKS
            },
        }
    return {"dataset": dataset, "images": len(dicts), "classes": classes}


def _area_px(annotation: dict[str, Any], entry: dict[str, Any]) -> float:
    """Pixels of the mask; the box's area stands in for a missing mask."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    if isinstance(segmentation, Sequence):
        height, width = entry["height"], entry["width"]
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    return float(mask_util.area(segmentation))
