"""Slices from PNG files to the model's input, against Detectron2's mapper."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from PIL import Image

from ctmasknet.benchmarks.timing import comparison, interleaved
from ctmasknet.data.images import read_grey
from ctmasknet.data.label_masks import mask_type_classes
from ctmasknet.data.mapper import LesionMapper, SliceMapper
from ctmasknet.data.masks_to_coco import mask_instances
from ctmasknet.data.phantom_patient import phantom_patient
from ctmasknet.engine.setup import read_cfg

_SIDE = 512


def loading(*, kind: str, slices: int, repeats: int, seed: int) -> dict[str, Any]:
    """Decode and map the grey PNG files of a phantom patient in one process.

    A step that takes t seconds a slice is kept busy by as many readers as these seconds over t.

    Args:
        kind: ``lesions``, with boxes and masks, or ``slices``.
        slices: of the patient, 512 px.
        repeats: times all of them are mapped.
        seed: of the phantom.
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
        timings = interleaved(
            {name: _each(mapper, dicts) for name, mapper in mappers.items()}, repeats
        )
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
            found = mask_instances(one.mask, classes)
            for instance in found:
                instance["bbox_mode"] = BoxMode.XYWH_ABS
                instance["category_id"] -= 1
            dicts.append({"file_name": str(path), "image_id": number, "annotations": found})
        yield dicts
