"""The authors' average precision: one precision-recall curve an image, then the mean over images.

It is not COCO's AP, which ranks the detections of all images together, makes one curve a class and
averages over classes. Published segmentation figures (reference) are of the kind computed here.

For one image and one IoU threshold t (reference):

- the lesions are walked, not the predictions: each marks as a hit the prediction of its class with
  the highest IoU among those with IoU strictly above t, whatever its score, and even if another
  lesion has marked it; a prediction that is marked twice is one hit. So a duplicate that has the
  better score and the lesser overlap is a false positive above the hit;
- the predictions in order of score, hits or not, give the image's own precision-recall curve, and
  AP is the area under it, precision made non-increasing;
- an image with neither prediction nor ground truth counts 1, with only one of the two 0.

The published tables count scores above 0.75, with at most 128 detections after NMS at 0.75
(``TEST.DETECTIONS_PER_IMAGE``, ``MODEL.ROI_HEADS.NMS_THRESH_TEST``). The authors cut masks at a
logit of 0.5, masks here are cut at a probability of 0.5.

The reference leaves open, and this module decides: all classes of an image share one ranking and
one curve; the area is taken over every step of recall (the all-points rule, no fixed recall grid),
so false positives ranked below the last hit cost nothing; ties in score or IoU keep the order
given; every processed image counts the same. A crowd region (``iscrowd`` 1) counts for one lesion
like any other: the authors' sets have none, so their rule has no exception for them, and to leave
one out would make false positives of what was rightly found in it.

Shapes: P predictions, G ground truths, T IoU thresholds.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from ctmasknet.data.registry import lesion_truth
from ctmasknet.errors import CTMaskNetError

#: .50:.05:.95, exact to the last digit so that ``== 0.75`` finds its column.
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


def per_image_ap(
    pred_scores: Sequence[float],
    pred_classes: Sequence[int],
    iou: np.ndarray,
    gt_classes: Sequence[int],
    thresholds: Sequence[float] = IOU_THRESHOLDS,
) -> np.ndarray:
    """Average precision of one image, by the rule at the top of this module.

    Args:
        pred_scores: (P,) in any order.
        pred_classes: (P,) class indices.
        iou: (P, G) overlap of prediction and ground truth, 0..1.
        gt_classes: (G,) class indices.
        thresholds: (T,) IoU thresholds, 0..1.

    Returns:
        (T,) float64 in 0..1.
    """
    scores = np.asarray(pred_scores, dtype=np.float64).reshape(-1)
    truth = np.asarray(gt_classes, dtype=np.int64).reshape(-1)
    count, wanted = len(scores), len(truth)
    if not count or not wanted:
        return np.full(len(thresholds), float(count == wanted))
    order = np.argsort(-scores, kind="stable")
    classes = np.asarray(pred_classes, dtype=np.int64).reshape(-1)[order]
    # A pair of different classes can never match, whatever the threshold
    overlap = np.asarray(iou, dtype=np.float64).reshape(count, wanted)[order]
    overlap = np.where(classes[:, None] == truth[None, :], overlap, -1.0)
    return np.array([_area(_hits(overlap, threshold), wanted) for threshold in thresholds])


def _hits(overlap: np.ndarray, threshold: float) -> np.ndarray:
    """(P,) bool: predictions, in ranked order, that a lesion marks; (P, G) overlaps."""
    hits = np.zeros(len(overlap), dtype=bool)
    hits[overlap.argmax(axis=0)[overlap.max(axis=0) > threshold]] = True
    return hits


def _area(hits: np.ndarray, wanted: int) -> float:
    """Area under the precision envelope; recall rises by ``1 / wanted`` at each hit only."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / wanted)


class EachSliceEvaluator(DatasetEvaluator):
    """Measures each slice of a registered lesion data set by itself, once, and gathers."""

    def __init__(self, dataset_name: str, distributed: bool):
        """
        Args:
            dataset_name: a registered data set of lesions.
            distributed: gather from all processes; False evaluates this process alone.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._coco = lesion_truth(dataset_name)
        to_index = metadata.get("thing_dataset_id_to_contiguous_id")
        self._class_index = to_index or {
            category: index for index, category in enumerate(sorted(self._coco.getCatIds()))
        }
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._measured: dict[int, Any] = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take a batch: ``image_id`` of the inputs, ``instances`` (in image px) of the outputs.

        Raises:
            CTMaskNetError: masks are asked for and the model has none.
        """
        for item, output in zip(inputs, outputs, strict=True):
            self._measured[item["image_id"]] = self.measure(
                output["instances"].to(torch.device("cpu")),
                self._coco.imgToAnns.get(item["image_id"], []),
            )

    def measure(self, instances: Instances, annotations: Sequence[dict[str, Any]]) -> Any:
        """What is kept of a slice: predictions on the CPU, annotations as in the json."""
        raise NotImplementedError

    def gathered(self) -> list[Any] | None:
        """What was kept of all processes' slices, in the order of their ids; None on others than
        the main process."""
        shares = [self._measured]
        if self._distributed:
            comm.synchronize()
            shares = comm.gather(self._measured, dst=0)
            if not comm.is_main_process():
                return None
        merged = dict(itertools.chain.from_iterable(share.items() for share in shares))
        return [merged[key] for key in sorted(merged)]


class PerImageAPEvaluator(EachSliceEvaluator):
    """The authors' per-image mean AP over a registered lesion data set, beside COCO's.

    Results on the main process (``{}`` on others), in percent:
    ``{"per_image": {"AP", "AP50", "AP75"}}`` where AP is the mean over .50:.05:.95.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        score_threshold: float = 0.75,
        iou_type: str = "segm",
        distributed: bool = True,
    ):
        """
        Args:
            dataset_name: a registered data set of lesions.
            score_threshold: only predictions above it count (the published tables: 0.75; 0.05 is
                the default of the authors' script).
            iou_type: ``"segm"`` for mask overlap (the authors'), ``"bbox"`` for box overlap.
            distributed: gather from all processes; False evaluates this process alone.
        """
        if iou_type not in ("segm", "bbox"):
            raise CTMaskNetError(f"iou_type: {iou_type!r} is not one of segm, bbox")
        self._score_threshold = score_threshold
        self._iou_type = iou_type
        super().__init__(dataset_name, distributed)

    def measure(self, instances: Instances, annotations: Sequence[dict[str, Any]]) -> np.ndarray:
        instances = instances[instances.scores > self._score_threshold]
        return per_image_ap(
            instances.scores.numpy(),
            instances.pred_classes.numpy(),
            self._overlap(instances, annotations),
            [self._class_index[annotation["category_id"]] for annotation in annotations],
        )

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Gather and average over images; see the class for what is returned."""
        found = self.gathered()
        if found is None:
            return OrderedDict()
        logger = logging.getLogger(__name__)
        if not found:
            logger.warning("No slice was processed: there is no per-image AP.")
            return OrderedDict()
        mean = 100.0 * np.mean(found, axis=0)
        results = OrderedDict(
            AP=float(mean.mean()),
            AP50=float(mean[IOU_THRESHOLDS.index(0.5)]),
            AP75=float(mean[IOU_THRESHOLDS.index(0.75)]),
        )
        logger.info(
            "Per-image AP (the authors') over %d slices:\n%s",
            len(found),
            create_small_table(results),
        )
        return OrderedDict(per_image=results)

    def _overlap(self, instances: Instances, annotations: Sequence[dict[str, Any]]) -> np.ndarray:
        """(P, G) IoU of masks or boxes."""
        if not len(instances) or not annotations:
            return np.zeros((len(instances), len(annotations)))
        if self._iou_type == "bbox":
            ours = instances.pred_boxes.tensor.numpy().astype(np.float64)
            ours[:, 2:] -= ours[:, :2]
            theirs = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
        else:
            if not instances.has("pred_masks"):
                raise CTMaskNetError(
                    "MODEL.MASK_ON: per-image AP compares masks and this model makes none; "
                    "set it to True or evaluate boxes (iou_type bbox)"
                )
            masks = instances.pred_masks.numpy().astype(np.uint8)
            ours = mask_util.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
            theirs = [self._coco.annToRLE(annotation) for annotation in annotations]
        # Crowd regions are lesions like any other, see the top of this module
        return np.asarray(mask_util.iou(ours, theirs, [0] * len(annotations)))
