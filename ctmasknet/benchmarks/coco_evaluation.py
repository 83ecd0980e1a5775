"""COCO evaluation of a synthetic lesion set against pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle
from detectron2.data import MetadataCatalog

from ctmasknet.benchmarks.timing import comparison, interleaved
from ctmasknet.evaluation import LesionEvaluator

_NAME = "benchmark_coco_evaluation"


def coco_evaluation(*, slices: int, detections: int, repeats: int, seed: int) -> dict[str, Any]:
    """``LesionEvaluator.evaluate`` of boxes and masks, by faster-coco-eval and by pycocotools.

    Lesions are ellipses; detections are the lesions moved and scaled, and others at random.

    Args:
        slices: slices of 512 px.
        detections: of each slice.
        repeats: times each is measured.
        seed: of the ellipses.
    """
    chance = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        truth, predictions = synthetic_lesions(chance, slices, detections)
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(truth), encoding="utf-8")
        MetadataCatalog.get(_NAME).set(
            json_file=str(path),
            thing_classes=["ggo", "consolidation"],
        )
        try:
            figures: dict[str, Any] = {}
            ways = {
                "pycocotools": _evaluation("off", predictions, figures),
                "faster-coco-eval": _evaluation("on", predictions, figures),
            }
            seconds = interleaved(ways, repeats)
        finally:
            MetadataCatalog.remove(_NAME)
    stock, fast = (figures[way] for way in ("off", "on"))
    differences = (stock[task][name] - fast[task][name] for task in stock for name in stock[task])
    return comparison(
        f"COCO evaluation, boxes and masks, {slices} slices with {detections} detections each",
        seconds,
        "pycocotools",
        "cpu",
        figures={"largest difference in AP": max(map(abs, differences))},
        results=stock,
    )


def synthetic_lesions(
    chance: np.random.Generator, slices: int, detections: int, lesions: int = 6, side: int = 512
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO document and detections on it as Detectron2's evaluator keeps them.

    Args:
        chance: draws the lesions.
        slices: images; every seventh has no lesion.
        detections: of each image; the first find a lesion each, the rest are anywhere.
        lesions: of each other image, of two classes.
        side: of the images, px.

    Returns:
        the document, and for each image ``image_id`` and ``instances``.
    """
    images, annotations, predictions = [], [], []
    for image_id in range(1, slices + 1):
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": side})
        images[-1]["width"] = side
        ellipses = chance.uniform((0, 0, 3, 3), (side, side, side / 7, side / 7), (lesions, 4))
        ellipses = ellipses[: 0 if image_id % 7 == 0 else lesions]
        for number, ellipse in enumerate(ellipses):
            found = _annotation(image_id, 1 + number % 2, ellipse, side)
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **found})
        others = chance.uniform((0, 0, 3, 3), (side, side, side / 7, side / 7), (detections, 4))
        near = ellipses[: len(others)] * chance.normal(1, 0.05, ellipses[: len(others)].shape)
        others[: len(near)] = near
        classes = np.where(chance.random(len(others)) < 0.9, np.arange(len(others)) % 2, 0)
        # Two decimals: many tie
        scores = chance.beta(1, 3, len(others)).round(2)
        scores[: len(near)] = chance.beta(3, 1, len(near)).round(2)
        instances = [
            {**_annotation(image_id, 1 + int(number), ellipse, side), "score": float(score)}
            for number, ellipse, score in zip(classes, others, scores, strict=True)
        ]
        predictions.append({"image_id": image_id, "instances": instances})
    categories = [{"id": 1, "name": "ggo"}, {"id": 2, "name": "consolidation"}]
    truth = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    return truth, predictions


def _annotation(image_id: int, category_id: int, ellipse: np.ndarray, side: int) -> dict[str, Any]:
    """The ellipse (x, y, half width, half height; px) within the image."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x = (ellipse[0] + ellipse[2] * np.cos(angle)).clip(0, side)
    y = (ellipse[1] + ellipse[3] * np.sin(angle)).clip(0, side)
    code = rle.frPyObjects([np.stack([x, y], 1).ravel().tolist()], side, side)[0]
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": rle.toBbox(code).tolist(),
        "area": float(rle.area(code)),
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
    }


def _evaluation(fast: str, predictions: list[dict[str, Any]], figures: dict[str, Any]):
    evaluator = LesionEvaluator(_NAME, distributed=False, fast=fast)
    # Not Detectron2's compiled evaluation, where it is built
    evaluator._use_fast_impl = False
    evaluator.reset()
    evaluator._predictions = predictions

    def evaluate() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            figures[fast] = evaluator.evaluate()

    return evaluate
