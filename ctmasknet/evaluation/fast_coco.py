"""COCO evaluation by faster-coco-eval, in C++ and on several threads, with pycocotools' figures.

The library is optional: ``pip install ctmasknet[coco]``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pycocotools.mask as rle

from ctmasknet.errors import CTMaskNetError

if TYPE_CHECKING:
    from faster_coco_eval import COCOeval_faster


def use_fast_coco(wanted: str) -> bool:
    """Whether faster-coco-eval evaluates.

    Args:
        wanted: ``TEST.COCO_FAST``: auto (where the library is installed) | on | off.

    Raises:
        CTMaskNetError: another value, or ``on`` without the library.
    """
    if wanted not in ("auto", "on", "off"):
        raise CTMaskNetError(f"TEST.COCO_FAST is {wanted!r}; choose one of auto, on, off")
    if wanted == "off":
        return False
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if wanted == "on" and not installed:
        raise CTMaskNetError(
            "TEST.COCO_FAST is 'on' but faster-coco-eval is missing; "
            'pip install "ctmasknet[coco]", or set it to auto'
        )
    return installed


def fast_coco_eval(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    task: str,
    max_dets: Sequence[int],
    image_ids: Sequence[int] | None = None,
) -> COCOeval_faster:
    """Evaluate detections as pycocotools would.

    Args:
        truth: a COCO document; stays as it is.
        results: at least one detection in COCO's format; they stay as they are.
        task: ``bbox`` | ``segm``.
        max_dets: three counts of best detections of an image, of which the last limits AP.
        image_ids: the images that count; None: all.

    Returns:
        with ``stats`` (the 12 figures, 0..1 or -1 for none) and ``eval["precision"]`` (IoU, recall,
        class, area range, max_dets).
    """
    from faster_coco_eval import COCO, COCOeval_faster

    # The library keeps decoded masks in the annotations it is given
    annotations = [dict(found) for found in truth["annotations"]]
    if task == "segm":
        shapes = [{"segmentation": result["segmentation"]} for result in results]
        areas = [int(rle.area(shape["segmentation"])) for shape in shapes]
    else:
        shapes = [{"bbox": result["bbox"]} for result in results]
        areas = [shape["bbox"][2] * shape["bbox"][3] for shape in shapes]
    detections = [
        {
            "id": number,
            "image_id": result["image_id"],
            "category_id": result["category_id"],
            "score": result["score"],
            "area": area,
            "iscrowd": 0,
            **shape,
        }
        for number, (result, shape, area) in enumerate(zip(results, shapes, areas, strict=True), 1)
    ]
    evaluation = COCOeval_faster(
        COCO({**truth, "annotations": annotations}),
        COCO({**truth, "annotations": detections}),
        task,
    )
    evaluation.params.maxDets = list(max_dets)
    if image_ids is not None:
        evaluation.params.imgIds = list(image_ids)
    evaluation.run()
    return evaluation
