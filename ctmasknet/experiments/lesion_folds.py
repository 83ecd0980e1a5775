"""What the models of all folds found, each on the slices that it has not seen: one file of lesions
and one evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pycocotools.mask as rle
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ctmasknet.data.bad_slices import REPORT
from ctmasknet.data.registry import dataset_dicts, lesion_truth
from ctmasknet.data.sets.folds import SetFold
from ctmasknet.engine.testing import lesion_evaluator
from ctmasknet.errors import CTMaskNetError
from ctmasknet.experiments.lesions import instances_of
from ctmasknet.files import read_json, write_json
from ctmasknet.schema import (
    Form,
    checked,
    listing,
    maybe,
    names_of,
    number,
    record,
    text,
    whole_from_0,
)

RESULTS, LESIONS = "results.json", "lesions.json"
#: Of the evaluation of a fold.
DETECTIONS = "coco_instances_results.json"
_FIGURES = names_of(names_of(maybe(number)))
_FOUND = listing(record({"image_id": whole_from_0, "category_id": whole_from_0, "score": number}))
_LEFT_OUT = record({"sets": names_of(record({"files": listing(record({"file": text}))}))})
#: What a dataset dict says of its slice and ``lesions.json`` says too.
_OF_SLICES = ("patient", "scan", "spacing_mm", "position_mm")


def join_detections(output: Path, folds: Sequence[SetFold], cfg: CfgNode) -> dict[str, Any]:
    """Write ``lesions.json`` and ``results.json`` of all folds, and tell what they are worth.

    ``lesions.json`` has COCO's form: images (ids of the set, file, patient, ``fold``), categories,
    and annotations with ``score``, which are COCO results also. ``results.json`` has the figures of
    an evaluation, of all slices together: AP ranks the detections of all folds.

    Args:
        output: with the folders ``fold1``, ``fold2``, ... of evaluated trainings.
        folds: of one lesion set.
        cfg: of the trainings; says how many detections of a slice count.

    Returns:
        the figures, by kind: ``bbox``, ``segm``, ``lesion_free``, ``per_image``, ``dice``.

    Raises:
        CTMaskNetError: what an evaluation left is missing or of another form.
    """
    base = folds[0].base
    entries = {entry["image_id"]: entry for entry in dataset_dicts(base)}
    truth = lesion_truth(base)
    categories = sorted(truth.dataset["categories"], key=lambda one: one["id"])
    to_index = MetadataCatalog.get(base).get("thing_dataset_id_to_contiguous_id")
    to_index = to_index or {one["id"]: index for index, one in enumerate(categories)}
    evaluator = lesion_evaluator(cfg, base, None)
    evaluator.reset()
    images: list[dict[str, Any]] = []
    lesions: list[dict[str, Any]] = []
    for fold in folds:
        lost = _left_out(output, fold)
        mine = {entry["image_id"] for entry in dataset_dicts(fold.name)}
        found: dict[Any, list[dict[str, Any]]] = {name: [] for name in mine}
        path = evaluated(output, fold) / DETECTIONS
        for one in _read(path, _FOUND, "the detections of a fold"):
            if one["image_id"] not in mine:
                raise CTMaskNetError(
                    f"{path}: image {one['image_id']} is not of this fold; remove fold"
                    f"{fold.number} and go on with `resume`"
                )
            found[one["image_id"]].append(one)
        for name in sorted(mine):
            entry = entries[name]
            if entry["file_name"] in lost:
                continue
            size = {"height": entry["height"], "width": entry["width"]}
            known = {key: entry[key] for key in _OF_SLICES if entry.get(key) is not None}
            image = {"id": name, "file_name": str(entry["file_name"]), **size, **known}
            images.append(image | {"fold": fold.number})
            lesions += found[name]
            instances = instances_of(size, found[name], to_index, with_masks=cfg.MODEL.MASK_ON)
            evaluator.process([{**size, "image_id": name}], [{"instances": instances}])
    for number_of, one in enumerate(lesions, start=1):
        mask = one.get("segmentation")
        area = rle.area(mask) if mask else one["bbox"][2] * one["bbox"][3]
        one |= {"id": number_of, "area": float(area), "iscrowd": 0}
    figures = evaluator.evaluate()
    info = {"description": "lesions found by the models of folds that have not seen their patients"}
    document = {"info": info, "images": sorted(images, key=lambda image: image["id"])}
    write_json(output / LESIONS, document | {"categories": categories, "annotations": lesions})
    write_json(output / RESULTS, figures, 1)
    lost = len(entries) - len(images)
    print(
        f"out of fold: {len(images)} slices, {told(figures)}"
        + (f"; {lost} slices could not be read" if lost else "")
        + f"; {output / LESIONS}, {output / RESULTS}",
        flush=True,
    )
    return figures


def evaluated(output: Path, fold: SetFold) -> Path:
    """The folder in which the evaluation of a fold lies."""
    return output / f"fold{fold.number}" / "inference" / fold.name


def told_of(output: Path, fold: SetFold) -> str:
    """The figures of a fold in a few words.

    Raises:
        CTMaskNetError: its ``results.json`` cannot be read.
    """
    return told(_read(evaluated(output, fold) / RESULTS, _FIGURES, "the figures of a fold"))


def told(figures: dict[str, Any]) -> str:
    """Box and mask AP50 in percent."""
    shown = [(kind, figures[key]["AP50"]) for kind, key in _KINDS.items() if key in figures]
    return ", ".join(
        f"{kind} AP50 {'-' if x is None or math.isnan(x) else f'{x:.1f} %'}" for kind, x in shown
    )


_KINDS = {"box": "bbox", "mask": "segm"}


def _left_out(output: Path, fold: SetFold) -> set[str]:
    """The files of a fold that its evaluation could not read."""
    path = evaluated(output, fold).parent / REPORT
    if not path.is_file():
        return set()
    sets = _read(path, _LEFT_OUT, "a list of slices that could not be read")["sets"]
    return {one["file"] for one in sets.get(fold.name, {"files": []})["files"]}


def _read(path: Path, form: Form, what: str) -> Any:
    remedy = "remove the folder of this fold and go on with `resume`"
    try:
        return checked(path, read_json(path), form, what, remedy)
    except (OSError, ValueError) as error:
        raise CTMaskNetError(f"{path}: not {what} ({error}); {remedy}") from None
