"""COCO box and mask AP of lesions, with the slices that have none kept and looked at apart."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import logging
import math
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.logger import create_small_table

from ctmasknet.data.registry import lesion_truth
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write, write_json

_LOGGER = logging.getLogger(__name__)


def lesion_free_metrics(
    scores: Iterable[Sequence[float]], score_threshold: float
) -> OrderedDict[str, float]:
    """False positives on slices without a lesion.

    COCO's AP hardly sees them: it ranks them among all detections of the data set.

    Args:
        scores: for each slice without ground truth the scores of its detections, 0..1.
        score_threshold: a detection counts from this score on.

    Returns:
        ``slices``, ``slices-with-false-positives@<threshold>`` (both counts) and
        ``false-positives-per-slice@<threshold>`` (NaN without any such slice).
    """
    counts = [sum(score >= score_threshold for score in slice_scores) for slice_scores in scores]
    at = f"@{score_threshold:g}"
    return OrderedDict(
        [
            ("slices", float(len(counts))),
            (f"slices-with-false-positives{at}", float(sum(count > 0 for count in counts))),
            (f"false-positives-per-slice{at}", sum(counts) / len(counts) if counts else math.nan),
        ]
    )


def ap_names(class_names: Sequence[str]) -> list[str]:
    """What Detectron2 calls the figures of boxes or masks: over all, by IoU, by size, by class."""
    each = [f"AP-{name}" for name in class_names] if len(class_names) > 1 else []
    return ["AP", "AP50", "AP75", "APs", "APm", "APl", *each]


def use_fast_coco(wanted: str) -> bool:
    """Whether faster-coco-eval evaluates.

    Args:
        wanted: ``TEST.COCO_FAST``: auto (where the library is installed) | always | never.

    Raises:
        CTMaskNetError: another value, or ``always`` without the library.
    """
    if wanted not in ("auto", "always", "never"):
        raise CTMaskNetError(f"TEST.COCO_FAST is {wanted!r}; choose one of auto, always, never")
    if wanted == "never":
        return False
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if wanted == "always" and not installed:
        raise CTMaskNetError(
            "TEST.COCO_FAST is 'always' but faster-coco-eval is missing; "
            "pip install faster-coco-eval, or set it to auto"
        )
    return installed


class LesionEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluation for a lesion data set, which may hold slices without lesions.

    Results on the main process: ``"bbox"`` and, for a model with masks, ``"segm"`` as Detectron2
    reports them (AP in percent), and ``"lesion_free"`` as :func:`lesion_free_metrics` reports it.
    A model that detects nothing has AP 0 (Detectron2 alone: NaN); without any ground truth AP is
    NaN. faster-coco-eval gives the figures where it is installed; without it Detectron2's compiled
    evaluation where that is built, else pycocotools.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        false_positive_score: float = 0.5,
        fast: str = "auto",
    ):
        """
        Args:
            dataset_name: a registered data set of lesions.
            tasks: ``"bbox"``, ``"segm"``; default: boxes, and masks if the model makes them.
            distributed: gather from all processes.
            output_dir: folder for the predictions in COCO's format; None writes nothing.
            max_dets_per_image: so many best detections of a slice count
                (``TEST.DETECTIONS_PER_IMAGE``); default 100.
            false_positive_score: a detection on a slice without lesions is a false positive from
                this score on.
            fast: whether faster-coco-eval evaluates (``TEST.COCO_FAST``): auto | always | never.

        Raises:
            CTMaskNetError: ``fast`` is something else, or on without the library; a broken file
                (:func:`~ctmasknet.data.coco.checked_coco`).
        """
        self._fast = use_fast_coco(fast)
        # Checked before Detectron2 reads the file, which takes it as it is
        lesions = lesion_truth(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        with contextlib.ExitStack() as held:
            if not metadata.get("json_file"):
                # Detectron2 writes one of its own otherwise, and reads it again another time
                written = Path(held.enter_context(tempfile.TemporaryDirectory()), "lesions.json")
                write_json(written, lesions.dataset)
                metadata.json_file = str(written)
                held.callback(delattr, metadata, "json_file")
            super().__init__(
                dataset_name,
                tuple(tasks) if tasks else None,
                distributed,
                output_dir,
                max_dets_per_image=max_dets_per_image,
            )
        self._coco_api = lesions
        self._false_positive_score = false_positive_score

    def reset(self) -> None:
        super().reset()
        self._with_masks = False

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take a batch; see Detectron2's ``COCOEvaluator.process``.

        Raises:
            CTMaskNetError: the model has more classes than the data set.
        """
        names = self._metadata.get("thing_classes") or ()
        for item, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            self._with_masks |= instances.has("pred_masks")
            if len(instances) and names and int(instances.pred_classes.max()) >= len(names):
                raise CTMaskNetError(
                    f"{item.get('file_name', item['image_id'])}: the model predicts lesion class "
                    f"{int(instances.pred_classes.max())} but the data set has only {len(names)} "
                    f"({', '.join(names)}); evaluate on the mask type the model was trained on"
                )
        super().process(inputs, outputs)

    def _tasks_from_predictions(self, predictions: Sequence[dict[str, Any]]) -> list[str]:
        tasks = set(super()._tasks_from_predictions(predictions))
        # Without a single detection the predictions cannot tell whether the model has masks
        return sorted(tasks | ({"segm"} if self._with_masks else set()))

    def _eval_predictions(self, predictions: Sequence[dict[str, Any]], img_ids=None) -> None:
        unique = list({prediction["image_id"]: prediction for prediction in predictions}.values())
        lesion_free = [
            [instance["score"] for instance in prediction["instances"]]
            for prediction in unique
            if not self._coco_api.getAnnIds(imgIds=[prediction["image_id"]])
        ]
        if img_ids is None and len(unique) < len(self._coco_api.imgs):
            # Lesions of a slice that could not be read were not missed.
            img_ids = [prediction["image_id"] for prediction in unique]
        if self._fast:
            self._eval_fast(unique, img_ids)
        else:
            super()._eval_predictions(unique, img_ids=img_ids)
        metrics = lesion_free_metrics(lesion_free, self._false_positive_score)
        _LOGGER.info("Slices without lesions:\n%s", create_small_table(metrics))
        self._results["lesion_free"] = metrics

    def _eval_fast(self, predictions: Sequence[dict[str, Any]], img_ids=None) -> None:
        """What Detectron2's ``_eval_predictions`` does, by faster-coco-eval."""
        from ctmasknet.evaluation.lesions.fast_coco import FastCOCO

        results = list(itertools.chain.from_iterable(item["instances"] for item in predictions))
        category_ids = self._metadata.get("thing_dataset_id_to_contiguous_id", {})
        category_of = {number: category_id for category_id, number in category_ids.items()}
        for result in results:
            number = result["category_id"]
            result["category_id"] = category_of.get(number, number)
        if self._output_dir:
            with atomic_write(Path(self._output_dir) / "coco_instances_results.json") as stream:
                stream.write(json.dumps(results))
        if not self._do_evaluation:
            _LOGGER.info("The data set has no annotations to evaluate against.")
            return
        detections = FastCOCO(self._coco_api, results) if results else None
        for task in sorted(self._tasks or self._tasks_from_predictions(results)):
            found = None
            if detections:
                found = detections.evaluate(task, self._max_dets_per_image, img_ids)
            self._results[task] = self._derive_coco_results(
                found, task, class_names=self._metadata.get("thing_classes")
            )

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None) -> dict[str, float]:
        if coco_eval is not None:
            return super()._derive_coco_results(coco_eval, iou_type, class_names)
        truths = len(self._coco_api.anns)
        value = 0.0 if truths else math.nan
        _LOGGER.warning(
            "The model detected nothing in the whole data set (%d lesions): %s AP is %s.",
            truths,
            iou_type,
            value,
        )
        return dict.fromkeys(ap_names(class_names or ()), value)
