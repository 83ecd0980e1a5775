"""COCO evaluation by faster-coco-eval, in C++, with pycocotools' figures.

Import this module only where that library is there: ``pip install faster-coco-eval``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pycocotools.mask as rle
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools.coco import COCO as PlainCOCO


class _Evaluation(COCOeval_faster):
    """Takes masks from ``rle`` of the annotations, where they stand already.

    The library would decode and encode every mask again, which is half of its time.
    """

    def _prepare(self) -> None:
        computes_rle, self.params.compute_rle = self.params.compute_rle, False
        super()._prepare()
        self.params.compute_rle = computes_rle


class FastCOCO:
    """Detections of a data set, to be evaluated as pycocotools would."""

    def __init__(self, truth: PlainCOCO, results: Sequence[Mapping[str, Any]]):
        """
        Args:
            truth: the lesions; stays as it is.
            results: at least one detection in COCO's format with a box, masks as RLE; they stay as
                they are.
        """
        self._plain_truth = truth
        self._lesions = [dict(lesion) for lesion in truth.dataset["annotations"]]
        self._detections = [
            {
                "id": number,
                "image_id": result["image_id"],
                "category_id": result["category_id"],
                "score": result["score"],
                "bbox": result["bbox"],
                "rle": result.get("segmentation"),
                "iscrowd": 0,
            }
            for number, result in enumerate(results, 1)
        ]
        self._truth, self._found = (
            COCO({**truth.dataset, "annotations": annotations})
            for annotations in (self._lesions, self._detections)
        )

    def evaluate(
        self, task: str, max_dets: Sequence[int], image_ids: Sequence[int] | None = None
    ) -> _Evaluation:
        """
        Args:
            task: ``bbox`` | ``segm``.
            max_dets: three counts of best detections of an image, of which the last limits AP.
            image_ids: the images that count; None: all.

        Returns:
            with ``stats`` (the 12 figures, 0..1 or -1 for none) and ``eval["precision"]`` (IoU,
            recall, class, area range, max_dets).
        """
        if task == "segm":
            for lesion in self._lesions:
                lesion["rle"] = self._plain_truth.annToRLE(lesion)
            for found in self._detections:
                found["area"] = int(rle.area(found["rle"]))
        else:
            for found in self._detections:
                found["area"] = found["bbox"][2] * found["bbox"][3]
        # Masks of one slice and class are too few for its threads to pay
        evaluation = _Evaluation(self._truth, self._found, task, rle_iou_max_workers=1)
        evaluation.params.maxDets = list(max_dets)
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.run()
        return evaluation
