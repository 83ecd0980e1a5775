"""What the work around the networks costs.

Slices from PNG files to the model's input; COCO evaluation; label masks to COCO annotations;
registering a large set and looking for leaks.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as rle

from ctmasknet.benchmarks.harness import comparison, interleaved
from ctmasknet.config_file import read_cfg
from ctmasknet.ct.pictures import read_grey
from ctmasknet.data.duplicates import DEFAULT_DISTANCE, close_pairs
from ctmasknet.data.label_masks import mask_type_classes, read_mask
from ctmasknet.data.mapper import LesionMapper, SliceMapper
from ctmasknet.data.patients import COVIDX_CT, check_held_out
from ctmasknet.data.registry import dataset_dicts, register_prepared, unregister
from ctmasknet.data.splits import SPLITS
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import LesionEvaluator
from ctmasknet.files import write_json
from ctmasknet.names import parse_slice_name
from ctmasknet.phantom.patient import phantom_patient
from ctmasknet.phantom.write import LESION_TREE, write_phantom_lesions
from ctmasknet.prepare.masks_to_coco import MIN_AREA_PX, Conversion, convert_slices, mask_instances
from ctmasknet.prepare.pairs import LesionPair

_SIDE = 512


def loading(*, kind: str, slices: int, repeats: int, seed: int) -> dict[str, Any]:
    """Decode and map the grey PNG files of a phantom patient in one process.

    A step that takes t seconds a slice is kept busy by as many readers as these seconds over t.

    Args:
        kind: ``lesions``, with boxes and masks, or ``slices``.
        slices: of the patient, 512 px.
    """
    lesions = kind == "lesions"
    cfg = read_cfg("configs/seg.yaml" if lesions else "configs/cls.yaml", ["MODEL.WEIGHTS", ""])
    with phantom_dicts(slices, _SIDE, seed) as dicts:
        if not lesions:
            dicts = [{"file_name": one["file_name"]} for one in dicts]
        mappers = {
            "Detectron2's mapper": DatasetMapper(cfg, lesions),
            "ctmasknet's mapper": LesionMapper(cfg, True) if lesions else SliceMapper(cfg, False),
            "decoding alone": lambda one: read_grey(one["file_name"]),
        }
        ways = {name: _each(mapper, dicts) for name, mapper in mappers.items()}
        timings = interleaved(ways, repeats)
    return comparison(
        f"PNG files of {slices} slices of {_SIDE} px{' with lesions' if lesions else ''} to the "
        "model's input, one process",
        timings,
        next(iter(mappers)),
        "cpu",
    )


def _each(
    mapper: Callable[[dict[str, Any]], Any], dicts: list[dict[str, Any]]
) -> Callable[[], None]:
    def call() -> None:
        for one in dicts:
            mapper(one)

    return call


@contextlib.contextmanager
def phantom_dicts(slices: int, side: int, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Dataset dicts of the slices of a phantom patient, all with lesions; the files are there
    within the context alone.

    Args:
        slices: how many.
        side: of the slices, px.
        seed: of the phantom.
    """
    classes = mask_type_classes("both")
    with tempfile.TemporaryDirectory() as folder:
        dicts = []
        for number, one in enumerate(phantom_patient("covid", seed, side, slices)):
            path = Path(folder) / f"{number}.png"
            Image.fromarray(one.image).save(path)
            # What a slice of the usual side would keep
            found = mask_instances(one.mask, classes, int(MIN_AREA_PX * (side / _SIDE) ** 2))
            for instance in found:
                instance["bbox_mode"] = BoxMode.XYWH_ABS
                instance["category_id"] -= 1
            dicts.append({"file_name": str(path), "image_id": number, "annotations": found})
        yield dicts


_COCO_NAME = "benchmark_coco_evaluation"


def coco_evaluation(*, slices: int, detections: int, repeats: int, seed: int) -> dict[str, Any]:
    """``LesionEvaluator.evaluate`` of boxes and masks, by faster-coco-eval and by pycocotools.

    Lesions are ellipses; detections are the lesions moved and scaled, and others at random.

    Args:
        slices: slices of 512 px.
        detections: of each slice.
    """
    chance = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        truth, predictions = synthetic_lesions(chance, slices, detections)
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(truth), encoding="utf-8")
        classes = ["ggo", "consolidation"]
        MetadataCatalog.get(_COCO_NAME).set(json_file=str(path), thing_classes=classes)
        try:
            figures: dict[str, Any] = {}
            ways = {
                "pycocotools": _evaluation("never", predictions, figures),
                "faster-coco-eval": _evaluation("always", predictions, figures),
            }
            seconds = interleaved(ways, repeats)
        finally:
            MetadataCatalog.remove(_COCO_NAME)
    stock, fast = (figures[way] for way in ("never", "always"))
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
    chance: np.random.Generator, slices: int, detections: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO document of images of 512 px and detections on it as Detectron2's evaluator keeps
    them.

    Args:
        chance: draws the lesions.
        slices: images; every seventh has no lesion, the others six of two classes.
        detections: of each image; the first find a lesion each, the rest are anywhere.

    Returns:
        the document, and for each image ``image_id`` and ``instances``.
    """
    images, annotations, predictions = [], [], []
    limits = (0, 0, 3, 3), (_SIDE, _SIDE, _SIDE / 7, _SIDE / 7)
    for image_id in range(1, slices + 1):
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": _SIDE})
        images[-1]["width"] = _SIDE
        ellipses = chance.uniform(*limits, (6, 4))
        ellipses = ellipses[: 0 if image_id % 7 == 0 else 6]
        for number, ellipse in enumerate(ellipses):
            found = _annotation(image_id, 1 + number % 2, ellipse)
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **found})
        others = chance.uniform(*limits, (detections, 4))
        near = ellipses[: len(others)] * chance.normal(1, 0.05, ellipses[: len(others)].shape)
        others[: len(near)] = near
        classes = np.where(chance.random(len(others)) < 0.9, np.arange(len(others)) % 2, 0)
        # Two decimals: many tie
        scores = chance.beta(1, 3, len(others)).round(2)
        scores[: len(near)] = chance.beta(3, 1, len(near)).round(2)
        instances = [
            {**_annotation(image_id, 1 + int(number), ellipse), "score": float(score)}
            for number, ellipse, score in zip(classes, others, scores, strict=True)
        ]
        predictions.append({"image_id": image_id, "instances": instances})
    categories = [{"id": 1, "name": "ggo"}, {"id": 2, "name": "consolidation"}]
    truth = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    return truth, predictions


def _annotation(image_id: int, category_id: int, ellipse: np.ndarray) -> dict[str, Any]:
    """The ellipse (x, y, half width, half height; px) within the image."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x = (ellipse[0] + ellipse[2] * np.cos(angle)).clip(0, _SIDE)
    y = (ellipse[1] + ellipse[3] * np.sin(angle)).clip(0, _SIDE)
    code = rle.frPyObjects([np.stack([x, y], 1).ravel().tolist()], _SIDE, _SIDE)[0]
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": rle.toBbox(code).tolist(),
        "area": float(rle.area(code)),
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
    }


def _evaluation(fast: str, predictions: list[dict[str, Any]], figures: dict[str, Any]):
    evaluator = LesionEvaluator(_COCO_NAME, distributed=False, fast=fast)
    # Not Detectron2's compiled evaluation, where it is built
    evaluator._use_fast_impl = False
    evaluator.reset()
    evaluator._predictions = predictions

    def evaluate() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            figures[fast] = evaluator.evaluate()

    return evaluate


def mask_conversion(*, patients: int, repeats: int, seed: int) -> dict[str, Any]:
    """Instances of phantom masks of 512 px, read already, against scikit-image and pycocotools.

    Args:
        patients: of five slices each.

    Raises:
        CTMaskNetError: scikit-image is missing.
    """
    classes = mask_type_classes("both")
    with _phantom(patients, seed) as pairs:
        masks = [read_mask(pair.mask) for pair in pairs]
    ways = {
        "scikit-image loop": lambda: [usual_instances(mask, classes) for mask in masks],
        "ctmasknet": lambda: [mask_instances(mask, classes) for mask in masks],
    }
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        timings = interleaved(ways, repeats)
    finally:
        cv2.setNumThreads(threads)
    usual, ours = (sorted(str(one) for found in way() for one in found) for way in ways.values())
    if usual != ours:
        raise AssertionError("the two ways found different instances")
    return comparison(
        f"mask to COCO, {len(masks)} phantom masks of 512 px in memory, one process",
        timings,
        "scikit-image loop",
        "cpu",
        figures={"instances": len(ours)},
    )


def mask_conversion_processes(
    *, patients: int, rounds: int, most: int, repeats: int, seed: int
) -> dict[str, Any]:
    """All three mask types from image and mask files, in 1, 2, 4, ... processes.

    Args:
        patients: of five slices each.
        rounds: times that all of them are converted in one measurement.
        most: processes, at most.
    """
    how = Conversion()
    with _phantom(patients, seed) as pairs:
        pairs = list(pairs) * rounds

        def convert(workers: int) -> int:
            return sum(1 for _ in convert_slices(pairs, how, workers))

        counts = [2**n for n in range(most.bit_length()) if 2**n <= most]
        ways = {f"processes: {count}": lambda count=count: convert(count) for count in counts}
        timings = interleaved(ways, repeats)
    return comparison(
        f"image and mask files to COCO, {len(pairs)} slices of 512 px, three mask types",
        timings,
        "processes: 1",
        "cpu",
    )


def usual_instances(
    mask: np.ndarray, classes: Sequence[tuple[str, Sequence[int]]]
) -> list[dict[str, Any]]:
    """:func:`~ctmasknet.prepare.masks_to_coco.mask_instances` as it is mostly written: one picture
    for each component."""
    try:
        from skimage import measure
    except ImportError:
        raise CTMaskNetError("this benchmark needs scikit-image; pip install it") from None
    instances = []
    for category_id, (_, values) in enumerate(classes, 1):
        label = measure.label(np.isin(mask, list(values)), connectivity=2)
        for region in measure.regionprops(label):
            if region.area <= MIN_AREA_PX:
                continue
            code = rle.encode(np.asfortranarray((label == region.label).astype(np.uint8)))
            top, left, bottom, right = region.bbox
            instances.append(
                {
                    "category_id": category_id,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(region.area),
                    "iscrowd": 0,
                    "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
                }
            )
    return instances


@contextlib.contextmanager
def _phantom(patients: int, seed: int):
    """Image and mask files of phantom slices, as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        write_phantom_lesions(folder, seed=seed, patients=patients, slices=5, side_px=_SIDE)
        root = Path(folder) / LESION_TREE
        yield [
            LesionPair(
                key=f"{path.parent.name}_{path.stem}",
                file=f"{path.parent.name}/{path.stem}.jpg",
                image=root / "image" / path.parent.name / f"{path.stem}.jpg",
                mask=path,
                patient=path.parent.name,
            )
            for path in sorted((root / "mask").rglob("*.png"))
        ]


#: Shares of COVIDx-CT-1's splits, and about its slices a patient.
_SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
_SLICES_PER_PATIENT = 70
_NAME = "benchmark"


def registration(slices: int, repeats: int, seed: int, workers: int = 1) -> dict[str, Any]:
    """Register prepared slices in three splits and check their patients, each time from the files.

    Near-identical slices are then looked for once, among seeded hashes of as many pictures; to
    compute hashes takes as long as reading the pictures, and is not part of it.

    Args:
        slices: number in all.
        workers: threads that compare hashes.
    """
    names = [f"{_NAME}_{split}" for split in SPLITS]
    with tempfile.TemporaryDirectory() as folder:
        files = _write_set(Path(folder), slices)

        def parse() -> None:
            for file in files:
                json.loads(file.read_text(encoding="utf-8"))

        def register() -> None:
            for file in files:
                os.utime(file)  # as if it were new: what was parsed before does not count
            register_prepared(folder)
            check_held_out(*([name] for name in names))

        def load() -> None:
            register()
            for name in names:
                dataset_dicts(name)

        try:
            ways = {"json.load": parse, "register, check": register, "and dataset dicts": load}
            steps = interleaved(ways, repeats)
        finally:
            for name in names:
                unregister(name)
    chance = np.random.default_rng(seed)
    counts = [round(share * slices) for share in _SHARES.values()]
    hashes = [chance.integers(0, 2**64, (count, 4), np.uint64) for count in counts]
    begin = time.perf_counter()
    for first, second in itertools.combinations(hashes, 2):
        close_pairs(first, second, DEFAULT_DISTANCE, workers)
    seconds = time.perf_counter() - begin
    return comparison(
        f"{slices:,} slices registered and their patients checked",
        steps,
        "json.load",
        "cpu",
        figures={f"seconds to compare the splits' hashes in {workers} thread(s)": seconds},
    )


def _write_set(root: Path, slices: int) -> list[Path]:
    """The json files of a prepared set as ``prepare_covidx_ct.py`` writes them."""
    images = root / _NAME / "images"
    images.mkdir(parents=True)
    files, number = [], 0
    for split in SPLITS:
        records = []
        for _ in range(round(_SHARES[split] * slices)):
            patient, index = divmod(number, _SLICES_PER_PATIENT)
            name = ("Normal", "CP", "NCP")[patient % 3]
            file = f"{name}_{patient}_{patient + 3000}_{index:04d}.png"
            record = {"file": file, **vars(parse_slice_name(file)), "body_box": [9, 94, 512, 405]}
            records.append(record)
            number += 1
        number += -number % _SLICES_PER_PATIENT  # the next split begins with a new patient
        Image.new("L", (8, 8)).save(images / records[0]["file"])
        info = {"description": "", "image_root": "images", "patient_ids": COVIDX_CT}
        document = {"info": info, "classes": ["normal", "pneumonia", "covid"], "slices": records}
        files.append(root / _NAME / "slices" / f"{split}.json")
        write_json(files[-1], document)
    return files
