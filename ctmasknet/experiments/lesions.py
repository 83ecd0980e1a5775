"""What a run of a lesion network found, slice by slice, and the figures of many of them.

A result file keeps of each slice what the figures are made of, so that they have intervals over
patients and paired differences: COCO's matches at an IoU of 0.5 of every detection, by class, with
boxes and with masks; the authors' per-image AP; Dice at 256 cuts and at a score of 0.5. Slices of
all folds are one set: each was found by the model that was not trained on it, and AP ranks their
detections together.

Shapes: P patients, B resamples (weights (B, P)), D detections.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ctmasknet.data.registry import known_sets, lesion_truth, register_prepared
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.lesions.dice import DiceEvaluator, dice_maps
from ctmasknet.evaluation.lesions.per_image_ap import PerImageAPEvaluator
from ctmasknet.files import read_json
from ctmasknet.schema import (
    UnlikeForm,
    form,
    listing,
    maybe,
    names_of,
    number,
    record,
    text,
    whole_from_0,
)

#: A detection on a slice without lesions is a false positive from this score on.
FALSE_POSITIVE_SCORE = 0.5
_TASKS = {"box": "bbox", "mask": "segm"}
_CUTS = 256


@form("a text of 0, 1 and -")
def _hits(value: Any) -> str:
    if not isinstance(value, str) or set(value) - {"0", "1", "-"}:
        raise ValueError
    return value


def _of_class(value: Any, key: str) -> dict[str, Any]:
    found = _CLASS(value, key)
    if {len(found["scores"])} != {len(found[kind]) for kind in _TASKS}:
        raise UnlikeForm(key, value, "an object with a hit for every score")
    return found


_CLASS = record({"lesions": whole_from_0, "scores": listing(number), "box": _hits, "mask": _hits})
_SLICE = record(
    {
        "per_image_ap": number,
        "classes": names_of(_of_class),
        "dice": names_of(record({"steps": listing(listing(number, 2)), "at_half": number})),
    }
)
#: Of a result file what :func:`of_evaluation` and :func:`false_positives` give.
LESION_FORM = {
    "class_names": listing(text),
    "patients": names_of(listing(_SLICE)),
    "normals": maybe(names_of(listing(whole_from_0))),
}


def detections_of(name: str, root: str, folder: Path) -> tuple[COCO, list[dict[str, Any]]]:
    """The truth of a prepared set below ``root``, and what an evaluation wrote into ``folder``.

    Raises:
        CTMaskNetError: no such set, or the evaluation left no lesions.
    """
    register_prepared(root)
    if not known_sets([name]):
        raise CTMaskNetError(f"{name}: no such set below {root}; name one of its sets of lesions")
    path = folder / "coco_instances_results.json"
    if not path.is_file():
        raise CTMaskNetError(f"{path}: the evaluation left no lesions; is this a lesion network?")
    truth = lesion_truth(name)
    return truth, [result for result in read_json(path) if result["image_id"] in truth.imgs]


def of_evaluation(name: str, root: str, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """``patients`` of a result file: of each patient the slices, as the module says.

    Args:
        name: the set that was evaluated.
        root: of the prepared sets.
        folder: of the evaluation, with ``coco_instances_results.json``.

    Returns:
        the names of the files, sorted, in whose order slices stand, and ``{"class_names",
        "patients"}``.

    Raises:
        CTMaskNetError: see :func:`detections_of`.
    """
    truth, results = detections_of(name, root, folder)
    names = {one["id"]: one["name"] for one in truth.dataset["categories"]}
    matches = {kind: _matches(truth, results, task) for kind, task in _TASKS.items()}
    of_image: dict[int, list[dict[str, Any]]] = {image: [] for image in truth.imgs}
    for result in results:
        of_image[result["image_id"]].append(result)
    each_ap = PerImageAPEvaluator(name, distributed=False)
    each_dice = DiceEvaluator(name, distributed=False)
    to_index = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    patients: dict[str, list[dict[str, Any]]] = {}
    images = sorted(truth.imgs.values(), key=lambda image: image["file_name"])
    for image in images:
        annotations = truth.imgToAnns.get(image["id"], [])
        instances = instances_of(image, of_image[image["id"]], to_index)
        dice = each_dice.measure(instances, annotations)
        found = {
            "per_image_ap": round(float(each_ap.measure(instances, annotations).mean()), 5),
            "classes": {
                of_class: _one_class(matches, (image["id"], category), annotations)
                for category, of_class in names.items()
            },
            "dice": {
                of_map: {"steps": _steps(levels), "at_half": round(half, 5)}
                for of_map, (levels, half) in dice.items()
            },
        }
        patients.setdefault(str(image.get("patient") or image["file_name"]), []).append(found)
    files = [Path(image["file_name"]).name for image in images]
    return files, {"class_names": list(names.values()), "patients": patients}


def false_positives(name: str, root: str, folder: Path) -> dict[str, list[int]]:
    """By patient the number of false positives of each slice of a set without lesions.

    Raises:
        CTMaskNetError: the set has lesions; see also :func:`detections_of`.
    """
    truth, results = detections_of(name, root, folder)
    if truth.anns:
        raise CTMaskNetError(f"{name}: has {len(truth.anns)} lesions; normals is of a set without")
    counts = dict.fromkeys(truth.imgs, 0)
    for result in results:
        counts[result["image_id"]] += result["score"] >= FALSE_POSITIVE_SCORE
    patients: dict[str, list[int]] = {}
    for image in sorted(truth.imgs.values(), key=lambda image: image["file_name"]):
        patient = str(image.get("patient") or image["file_name"])
        patients.setdefault(patient, []).append(counts[image["id"]])
    return patients


def _matches(truth: COCO, results: Sequence[Mapping[str, Any]], task: str) -> dict[tuple, tuple]:
    """(image, category) -> (scores, hits at an IoU of 0.5: ``1``, ``0``, or ``-`` for what lies in
    a crowd), best first."""
    if not results:
        return {}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(list(results))), task)
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [len(results)]
        evaluation.evaluate()
    found = {}
    for one in filter(None, evaluation.evalImgs):
        pairs = zip(one["dtMatches"][0], one["dtIgnore"][0], strict=True)
        hits = "".join("-" if ignored else "01"[int(match > 0)] for match, ignored in pairs)
        found[one["image_id"], one["category_id"]] = one["dtScores"], hits
    return found


def _one_class(
    matches: Mapping[str, Mapping[tuple, tuple]],
    key: tuple[int, int],
    annotations: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    found = {kind: matches[kind].get(key, ((), "")) for kind in _TASKS}
    whole = [a for a in annotations if a["category_id"] == key[1] and not a.get("iscrowd")]
    return {
        "lesions": len(whole),
        "scores": [round(float(score), 5) for score in found["box"][0]],
        **{kind: hits for kind, (_, hits) in found.items()},
    }


def instances_of(
    image: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    to_index: Mapping[int, int],
    *,
    with_masks: bool = True,
) -> Instances:
    """COCO's results of an image as Detectron2 has them, on the CPU.

    Args:
        image: ``height`` and ``width``, px.
        results: of the image alone.
        to_index: category id -> class index.
        with_masks: whether the model makes them.
    """
    size = image["height"], image["width"]
    boxes = np.array([result["bbox"] for result in results]).reshape(-1, 4)
    found = Instances(
        size,
        pred_boxes=Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)),
        scores=torch.tensor([result["score"] for result in results], dtype=torch.float32),
        pred_classes=torch.tensor(
            [to_index[result["category_id"]] for result in results], dtype=torch.int64
        ),
    )
    if with_masks:
        masks = [rle.decode(result["segmentation"]).astype(bool) for result in results]
        found.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size))
    return found


def _steps(levels: np.ndarray) -> list[list[float]]:
    """(256,) Dice by cut as (first cut, Dice) of each run of equal ones."""
    values = np.round(levels, 5)
    starts = np.flatnonzero(np.append(True, np.diff(values) != 0))
    return [[int(start), float(values[start])] for start in starts]


def _levels(steps: Sequence[Sequence[float]]) -> np.ndarray:
    starts, values = np.array(steps).T
    return np.repeat(values, np.diff(np.append(starts, _CUTS)).astype(int))


class LesionFigures:
    """The figures of one model on all its slices, as functions of how often a patient counts."""

    def __init__(self, results: Sequence[Mapping[str, Any]]):
        """
        Args:
            results: result files of folds, whose slices become one set; a patient of two folds is
                one.
        """
        self.class_names: list[str] = list(results[0]["class_names"])
        slices = [(p, s) for one in results for p, found in one["patients"].items() for s in found]
        self.patients = list(dict.fromkeys(patient for patient, _ in slices))
        place = {patient: index for index, patient in enumerate(self.patients)}
        self._whose = np.array([place[patient] for patient, _ in slices])
        self._slices = [found for _, found in slices]
        #: Maps that Dice is of: classes, and all together.
        self.maps = list(dice_maps(self.class_names))

    @property
    def num_slices(self) -> int:
        return len(self._slices)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """(B, P) counts to (B,) of each figure.

        Returns:
            ``mean-<map>``, ``maximum-<map>`` and ``at-0.5-<map>``, Dice in 0..1;
            ``box-AP50``, ``mask-AP50`` (means over classes) and ``per-image-AP``, percent; NaN
            where a resample has no lesion.
        """
        found: dict[str, np.ndarray] = {}
        for of_map in self.maps:
            found |= self._dice(weights, of_map)
        for kind in _TASKS:
            each = [self._ap50(weights, kind, of_class) for of_class in self.class_names]
            found[f"{kind}-AP50"] = np.mean(each, axis=0)
        values = 100 * np.array([one["per_image_ap"] for one in self._slices])
        found["per-image-AP"] = self._sums(weights, values) / self._sums(weights, values * 0 + 1)
        return found

    def _sums(self, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(B, P) and (n, ...) of all slices -> (B, ...)."""
        sums = np.zeros((weights.shape[1], *values.shape[1:]))
        np.add.at(sums, self._whose, values)
        return weights @ sums

    def _dice(self, weights: np.ndarray, of_map: str) -> dict[str, np.ndarray]:
        nothing = {"steps": [[0, 0.0]], "at_half": 0.0}
        every = [one["dice"].get(of_map, nothing) for one in self._slices]
        has = np.array([of_map in one["dice"] for one in self._slices], dtype=float)
        with np.errstate(invalid="ignore", divide="ignore"):
            count = self._sums(weights, has)
            levels = self._sums(weights, np.stack([_levels(one["steps"]) for one in every]))
            levels = levels / count[:, None]
            half = self._sums(weights, np.array([one["at_half"] for one in every])) / count
        return {
            f"mean-{of_map}": levels.mean(axis=1),
            f"maximum-{of_map}": levels.max(axis=1),
            f"at-0.5-{of_map}": half,
        }

    def _ap50(self, weights: np.ndarray, kind: str, of_class: str) -> np.ndarray:
        """COCO's: precision made non-increasing, at 101 recalls."""
        found = [one["classes"][of_class] for one in self._slices]
        lesions = self._sums(weights, np.array([one["lesions"] for one in found], dtype=float))
        scores = np.concatenate([one["scores"] for one in found])
        marks = np.array([mark for one in found for mark in one[kind]], dtype="U1")
        whose = np.repeat(self._whose, [len(one["scores"]) for one in found])
        order = np.argsort(-scores, kind="stable")
        order = order[marks[order] != "-"]
        hits, whose = marks[order] == "1", whose[order]
        recalls = np.linspace(0, 1, 101)
        area = np.full(len(weights), math.nan)
        for draw in np.flatnonzero(lesions):
            counted = weights[draw][whose].astype(float)
            right = np.cumsum(counted * hits)
            every = np.cumsum(counted)
            precision = np.divide(right, every, out=np.zeros_like(right), where=every > 0)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            first = np.searchsorted(right / lesions[draw], recalls, side="left")
            area[draw] = 100 * np.append(envelope, 0.0)[first].mean()
        return area


def false_positive_figures(results: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(P,) false positives and (P,) slices of each patient without lesions, both summed over
    results; empty where a result has none."""
    found: dict[str, list[int]] = {}
    for one in results:
        if one["normals"] is None:
            return np.zeros(0), np.zeros(0)
        for patient, counts in one["normals"].items():
            found.setdefault(patient, []).extend(counts)
    return (
        np.array([sum(counts) for counts in found.values()], dtype=float),
        np.array([len(counts) for counts in found.values()], dtype=float),
    )
