"""Lesions of all slices in COCO's format: ``COCO(file)`` of pycocotools reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pycocotools import mask as coco_mask

from ctmasknet.files import atomic_write
from ctmasknet.predict.results import numbers


def write_coco(
    path: str | os.PathLike,
    slices: Callable[[], Iterator[dict[str, Any]]],
    lesion_classes: Sequence[str],
) -> None:
    """Write images, categories and annotations, ids from 1; written as it goes, for it may be
    large.

    Annotations have ``score``, so they also are COCO results. ``bbox`` is (x, y, width, height) px,
    ``segmentation`` an RLE; boxes without masks have none.

    Args:
        path: of the file, written whole.
        slices: gives the lines of :func:`ctmasknet.predict.results.slice_record`; called twice.
        lesion_classes: names of the classes.
    """
    info = {"description": "lesions predicted by ctmasknet; research, not diagnosis"}
    categories = [{"id": number, "name": name} for number, name in enumerate(lesion_classes, 1)]
    with atomic_write(path) as stream:
        stream.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)}')
        for key, values in (("images", _images(slices())), ("annotations", _lesions(slices()))):
            stream.write(f',\n"{key}": [')
            for number, value in enumerate(values):
                stream.write((",\n" if number else "\n") + json.dumps(value))
            stream.write("]")
        stream.write("}\n")


def _images(slices: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    keys = ("height", "width", "patient", "scan", "spacing_mm", "position_mm")
    for number, line in enumerate(slices, start=1):
        yield {"id": number, "file_name": line["file"], **{key: line[key] for key in keys}}


def _lesions(slices: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    count = 0
    for number, line in enumerate(slices, start=1):
        for lesion in line["lesions"]:
            count += 1
            x0, y0, x1, y1 = lesion["box_px"]
            found = {
                "id": count,
                "image_id": number,
                "category_id": lesion["class"] + 1,
                "bbox": numbers([x0, y0, x1 - x0, y1 - y0]),
                "area": (x1 - x0) * (y1 - y0),
                "score": lesion["score"],
                "iscrowd": 0,
            }
            if "rle" in lesion:
                rle = {"size": [line["height"], line["width"]], "counts": lesion["rle"]}
                found |= {"segmentation": rle, "area": int(coco_mask.area(rle))}
            yield found
