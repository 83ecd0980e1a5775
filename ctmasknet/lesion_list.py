"""Predictions, ground truth and annotations in one form: a list of lesions in px of their slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, BoxMode, Instances, PolygonMasks
from detectron2.utils.visualizer import GenericMask

from ctmasknet.errors import CTMaskNetError

#: Predictions or ground truth of Detectron2, or the ``annotations`` of a dataset dict.
Found = Instances | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Lesion:
    """Box (x0, y0, x1, y1) px, mask (H, W) bool and score 0..1 of a lesion; None where unknown."""

    class_index: int
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = None
    score: float | None = None


def lesions_of(
    found: Found,
    height: int,
    width: int,
    *,
    score_threshold: float = 0.0,
    mask_threshold: float = 0.5,
) -> list[Lesion]:
    """Bring predictions, ground-truth ``Instances`` or annotations to one form.

    Args:
        found: ``Instances`` with ``pred_boxes, pred_classes, scores[, pred_masks]`` or ``gt_boxes,
            gt_classes[, gt_masks]``; masks are (N, H, W) bool or probability, or (N, 1, M, M)
            probability inside the box. Or annotations with ``category_id`` (from 0), ``bbox``,
            ``bbox_mode`` and ``segmentation`` (RLE or polygons).
        height: H of the slice, px.
        width: W of the slice, px.
        score_threshold: predictions have to score more than this.
        mask_threshold: mask pixels have to be more probable than this.

    Raises:
        CTMaskNetError: a mask of another size than the slice.
    """
    if isinstance(found, Instances):
        return _from_instances(found, height, width, score_threshold, mask_threshold)
    lesions = []
    for annotation in found:
        mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
        box = BoxMode.convert([float(v) for v in annotation["bbox"]], mode, BoxMode.XYXY_ABS)
        segmentation = annotation.get("segmentation")
        mask = None
        if segmentation:
            mask = GenericMask(segmentation, height, width).mask.astype(bool)
            _check_size(mask.shape, height, width)
        lesions.append(Lesion(int(annotation["category_id"]), tuple(box), mask))
    return lesions


def check_score_threshold(threshold: float) -> None:
    """Refuse what no score can be compared with, such as a percentage.

    Raises:
        CTMaskNetError: outside 0..1, or no number.
    """
    if not 0 <= threshold <= 1:
        raise CTMaskNetError(f"--score-threshold: {threshold} is no score; give one of 0 to 1")


def has_masks(found: Found) -> bool:
    """Whether the lesions come with masks, even if there are none of them."""
    if isinstance(found, Instances):
        return found.has("pred_masks") or found.has("gt_masks")
    return any(annotation.get("segmentation") for annotation in found)


def _from_instances(
    instances: Instances, height: int, width: int, score_threshold: float, mask_threshold: float
) -> list[Lesion]:
    instances = instances.to(torch.device("cpu"))
    kind = "pred" if instances.has("pred_classes") else "gt"
    if instances.has("scores"):
        instances = instances[instances.scores > score_threshold]
    count = len(instances)
    boxes = instances.get(f"{kind}_boxes").tensor.tolist()
    classes = instances.get(f"{kind}_classes").tolist()
    scores = instances.scores.tolist() if instances.has("scores") else [None] * count
    masks: Sequence[np.ndarray | None] = [None] * count
    if count and instances.has(f"{kind}_masks"):
        masks = _masks(instances, kind, height, width, mask_threshold)
    return [
        Lesion(index, tuple(box), mask, score)
        for index, box, mask, score in zip(classes, boxes, masks, scores, strict=True)
    ]


def _masks(
    instances: Instances, kind: str, height: int, width: int, threshold: float
) -> np.ndarray:
    """(N, H, W) bool from whatever form Detectron2 gives masks."""
    masks = instances.get(f"{kind}_masks")
    if isinstance(masks, PolygonMasks):
        masks = [GenericMask(polygons, height, width).mask for polygons in masks.polygons]
        return np.stack(masks).astype(bool)
    masks = masks.tensor if isinstance(masks, BitMasks) else masks
    if masks.ndim == 4:
        boxes = instances.get(f"{kind}_boxes")
        masks = paste_masks_in_image(masks[:, 0], boxes, (height, width), threshold)
    elif masks.is_floating_point():
        masks = masks > threshold
    _check_size(masks.shape[1:], height, width)
    return masks.numpy().astype(bool)


def _check_size(shape: Sequence[int], height: int, width: int) -> None:
    if tuple(shape) != (height, width):
        raise CTMaskNetError(
            f"a lesion mask has {shape[1]} x {shape[0]} px but its slice {width} x {height}; "
            "prepare the data set again from images and masks of one size"
        )
