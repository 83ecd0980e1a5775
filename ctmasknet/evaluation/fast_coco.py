"""COCO evaluation by faster-coco-eval, in C++, with pycocotools' figures.

Import this module only where that library is there: ``pip install "ctmasknet[coco]"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pycocotools.mask as rle
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools.coco import COCO as PlainCOCO


class FastCOCOeval(COCOeval_faster):
    """Takes masks from ``rle`` of the annotations, where they stand already.

    The library would decode and encode every mask again, which is half of its time.
    """

    def _prepare(self) -> None:
        computes_rle, self.params.compute_rle = self.params.compute_rle, False
        super()._prepare()
        self.params.compute_rle = computes_rle


def fast_coco_eval(
    truth: PlainCOCO,
    results: Sequence[Mapping[str, Any]],
    task: str,
    max_dets: Sequence[int],
    image_ids: Sequence[int] | None = None,
) -> FastCOCOeval:
    """Evaluate detections as pycocotools would.

    Args:
        truth: the lesions; stays as it is.
        results: at least one detection in COCO's format, masks as RLE; they stay as they are.
        task: ``bbox`` | ``segm``.
        max_dets: three counts of best detections of an image, of which the last limits AP.
        image_ids: the images that count; None: all.

    Returns:
        with ``stats`` (the 12 figures, 0..1 or -1 for none) and ``eval["precision"]`` (IoU, recall,
        class, area range, max_dets).
    """
    with_masks = task == "segm"
    lesions = [
        {**lesion, "rle": truth.annToRLE(lesion)} if with_masks else dict(lesion)
        for lesion in truth.dataset["annotations"]
    ]
    detections = []
    for number, result in enumerate(results, 1):
        found = {name: result[name] for name in ("image_id", "category_id", "score")}
        if with_masks:
            found["rle"] = result["segmentation"]
            area = int(rle.area(result["segmentation"]))
        else:
            found["bbox"] = result["bbox"]
            area = result["bbox"][2] * result["bbox"][3]
        detections.append({**found, "id": number, "area": area, "iscrowd": 0})
    known, found = (
        COCO({**truth.dataset, "annotations": annotations}) for annotations in (lesions, detections)
    )
    # Masks of one slice and class are too few for its threads to pay
    evaluation = FastCOCOeval(known, found, task, rle_iou_max_workers=1)
    evaluation.params.maxDets = list(max_dets)
    if image_ids is not None:
        evaluation.params.imgIds = list(image_ids)
    evaluation.run()
    return evaluation
