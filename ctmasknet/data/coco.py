"""COCO lesions from any hand: every entry is checked once, when a file is read, and takes one form.

Files that people or annotation tools wrote may lack ``area`` and ``iscrowd``, hold polygons or
uncompressed run lengths, ids as text, or annotations numbered from 0 (COCO's evaluation takes 0 for
"no match"). What can be read is read; the rest is refused before pycocotools sees it, whose C code
trusts sizes, counts and coordinates.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO

from ctmasknet.ct.find import check_name
from ctmasknet.ct.pictures import check_sides
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import read_json

#: A polygon may be longer than the image's width and height together by this; each px of it costs.
_LONGEST_OUTLINE = 200
#: px by which a box may reach over the image's edge; tools round.
_BOX_TOLERANCE_PX = 1.0
#: How far an edge of a box may lie from that of its mask: so many px and this share of its side.
_LOOSE_PX, _LOOSE_SHARE = 3.0, 0.05


class _Fault(Exception):
    """What is wrong with one entry."""


def read_coco(path: str | os.PathLike) -> dict[str, Any]:
    """The COCO document of a file, as :func:`checked_coco` makes it.

    Raises:
        CTMaskNetError: unreadable, no JSON, or as :func:`checked_coco`.
    """
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise CTMaskNetError(f"{path}: cannot be read as JSON ({error}); check the path") from None
    return checked_coco(document, path)


def coco_index(path: str | os.PathLike) -> COCO:
    """pycocotools' index of the document of a file.

    Raises:
        CTMaskNetError: as :func:`read_coco`.
    """
    return indexed(read_coco(path))


def indexed(document: dict[str, Any]) -> COCO:
    """pycocotools' index of a checked document."""
    index = COCO()
    index.dataset = document
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def checked_coco(
    document: Any, path: str | os.PathLike, on_bad: Callable[[str, str], None] | None = None
) -> dict[str, Any]:
    """A COCO document in the form that everything else relies on; the one given stays as it is.

    Ids are whole numbers, those of annotations count from 1. Images have ``file_name`` and sides
    that a slice may have. Annotations have ``bbox`` [x, y, w, h] px, ``area`` px, ``iscrowd`` 0 or
    1 and, unless no annotation of the file has one, ``segmentation``: compressed RLE, ``counts`` as
    str. Masks cover at least one px, but for those of predictions (with a ``score``, 0..1). Other
    entries are kept.

    Args:
        document: parsed JSON.
        path: its file, for messages.
        on_bad: called with (file_name of an image, what is wrong) for each image with a fault, of
            its own or of an annotation, which is then left out with all of its annotations: half of
            its lesions would be taught as background. An annotation of no image is called by
            ``path``. None: the first fault is an error.

    Raises:
        CTMaskNetError: names file, entry and what is wrong with it.
    """
    if not isinstance(document, dict):
        raise CTMaskNetError(f"{path}: holds no lesions in COCO's form; check the path")
    for key in ("images", "categories", "annotations"):
        entries = document.get(key)
        if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
            raise CTMaskNetError(
                f"{path}: no COCO lesions, it has no list '{key}'; give a COCO json of images, "
                "categories and annotations"
            )
    images = _by_id(document["images"], "image", path, _image, on_bad)
    categories = _by_id(document["categories"], "category", path, _category)
    names = [category["name"] for category in categories.values()]
    if not names:
        raise CTMaskNetError(f"{path}: it has no categories; name those of the lesions")
    if len(set(names)) < len(names):
        raise CTMaskNetError(f"{path}: two categories have one name ({', '.join(names)})")
    annotations: list[dict[str, Any]] = []
    stated, spoilt = {_whole(item.get("id")) for item in document["images"]}, set()
    masks = any(item.get("segmentation") for item in document["annotations"])
    for number, item in enumerate(document["annotations"], 1):
        try:
            read = _annotation(item, images, categories, masks)
            others = {key: value for key, value in item.items() if key != "segmentation"}
            annotations.append({**others, **read})
        except _Fault as fault:
            of = images.get(_whole(item.get("image_id")), {}).get("file_name")
            message = (
                f"{path}: annotation {_entry(item, number)}{f' of {of}' if of else ''}: {fault}"
            )
            if on_bad is None:
                raise CTMaskNetError(f"{message}; correct it or take it out") from None
            if of is not None:
                on_bad(of, message)
                spoilt.add(_whole(item["image_id"]))
            elif _whole(item.get("image_id")) not in stated - images.keys():
                on_bad(f"{path}#annotation-{_entry(item, number)}", message)
    kept = [item for item in annotations if item["image_id"] not in spoilt]
    for number, item in enumerate(kept, 1):
        item["id"] = number
    return {
        **document,
        "images": [image for id_, image in images.items() if id_ not in spoilt],
        "categories": list(categories.values()),
        "annotations": kept,
    }


def _entry(item: Mapping[str, Any], number: int) -> str:
    """How messages call an entry: by its id, else as the ``number``-th."""
    return f"{item['id']!r:.40}" if item.get("id") is not None else f"number {number} (without id)"


def _by_id(entries, what: str, path, read, on_bad=None) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    count = Counter(_whole(item.get("id")) for item in entries)
    for number, item in enumerate(entries, 1):
        try:
            id_ = _whole(item.get("id"))
            if id_ is None:
                raise _Fault("its id is no whole number")
            if count[id_] > 1:
                raise _Fault("another has this id too")
            found[id_] = {**item, **read(item), "id": id_}
        except (_Fault, CTMaskNetError) as fault:
            message = f"{path}: {what} {_entry(item, number)}: {fault}"
            if on_bad is None:
                raise CTMaskNetError(message) from None
            on_bad(str(item.get("file_name") or f"{path}#{what}-{_entry(item, number)}"), message)
    return found


def _image(item: Mapping[str, Any]) -> dict[str, Any]:
    file, sides = item.get("file_name"), [_whole(item.get(key)) for key in ("height", "width")]
    if not isinstance(file, str) or not file:
        raise _Fault("states no file_name")
    check_name(file)
    if None in sides or min(sides) < 1:
        raise _Fault(f"{file} states no height and width of at least 1 px")
    check_sides(file, sides)
    return {"height": sides[0], "width": sides[1]}


def _category(item: Mapping[str, Any]) -> dict[str, Any]:
    name = item.get("name")
    if name is None or not str(name):
        raise _Fault("has no name")
    check_name(str(name))
    return {"name": str(name)}


def _annotation(
    item: Mapping[str, Any],
    images: Mapping[int, Mapping[str, Any]],
    categories: Mapping[int, Any],
    masks: bool,
) -> dict[str, Any]:
    image_id, category_id = _whole(item.get("image_id")), _whole(item.get("category_id"))
    if image_id not in images:
        raise _Fault(f"image_id={item.get('image_id')!r:.40} is of no image of the file")
    if category_id not in categories:
        raise _Fault(f"category_id={item.get('category_id')!r:.40} is of no category of the file")
    found = {"image_id": image_id, "category_id": category_id}
    if item.get("ignore"):
        raise _Fault("'ignore' is not known here")
    found["iscrowd"] = _whole(item.get("iscrowd") or 0)
    if found["iscrowd"] not in (0, 1):
        raise _Fault(f"iscrowd={item['iscrowd']!r:.40} is neither 0 nor 1")
    predicted = item.get("score") is not None
    if predicted and not (is_number(item["score"]) and 0 <= item["score"] <= 1):
        raise _Fault(f"score={item['score']!r:.40} is not within 0..1")
    shape = images[image_id]["height"], images[image_id]["width"]
    box, area = item.get("bbox"), item.get("area")
    if masks:
        mask = _mask(item.get("segmentation"), *shape)
        covered = int(rle.area(mask))
        if not covered and not predicted:
            raise _Fault("its mask covers no px of the image")
        found["segmentation"] = {"size": list(shape), "counts": mask["counts"].decode("ascii")}
        of_mask = rle.toBbox(mask).tolist()
        box = of_mask if box is None else box
        area = covered if area is None else area
    found["bbox"] = _box(box, *shape, predicted)
    if masks and not predicted:
        _check_fits(box, of_mask)
    found["area"] = box[2] * box[3] if area is None else area
    if not is_number(found["area"]) or found["area"] < 0:
        raise _Fault(f"area={area!r:.40} is no number of px")
    return found


def _box(box: Any, height: int, width: int, predicted: bool) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise _Fault(f"bbox={box!r:.60} is not [x, y, width, height] in px")
    x, y, w, h = box
    beyond = max(-x, -y, x + w - width, y + h - height) > _BOX_TOLERANCE_PX
    if not predicted and (min(w, h) <= 0 or beyond):
        raise _Fault(
            f"bbox={box!r:.80} [x, y, width, height] is empty or reaches over the image of "
            f"{width} x {height} px (width x height)"
        )
    return box


def _check_fits(box: list[float], of_mask: list[float]) -> None:
    """A box by its corners is mostly inside the image too, but beside the mask."""
    for side in (0, 1):
        far = _LOOSE_PX + _LOOSE_SHARE * box[2 + side]
        ends = (
            box[side] - of_mask[side],
            box[side] + box[2 + side] - of_mask[side] - of_mask[2 + side],
        )
        if max(map(abs, ends)) > far:
            raise _Fault(
                f"bbox={box} [x, y, width, height] is not that of its mask, {of_mask}; leave bbox "
                "out to have it from the mask"
            )


def _mask(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE (``counts`` as bytes, no empty run but the first) of any form of COCO's."""
    if isinstance(segmentation, dict):
        counts, size = segmentation.get("counts"), segmentation.get("size")
        if size != [height, width]:
            raise _Fault(
                f"the size of its RLE is {size!r:.40}, that of the image {[height, width]} "
                "([height, width])"
            )
        runs = run_lengths(counts, height * width)
        if runs is None:
            raise _Fault(
                "the counts of its RLE are no run lengths that sum to the image's "
                f"{height} x {width} px"
            )
        if isinstance(counts, str):
            code = {"size": [height, width], "counts": counts.encode("ascii")}
        else:
            code = {"size": [height, width], "counts": runs.tolist()}
            code = rle.frPyObjects(code, height, width)
        # pycocotools has wrong boxes for masks with empty runs
        return code if runs[1:].all() else rle.encode(np.asfortranarray(rle.decode(code)))
    if not isinstance(segmentation, list) or not segmentation:
        raise _Fault("has no mask: 'segmentation' is neither RLE nor a list of polygons")
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(map(is_number, polygon)):
            raise _Fault("a polygon is no list of finite numbers x, y, x, y, ...")
        if len(polygon) < 6 or len(polygon) % 2:
            raise _Fault(f"a polygon has {len(polygon)} numbers; it needs 3 or more pairs x, y")
        points = np.array(polygon, np.float64).reshape(-1, 2)
        sides = np.array([width, height])
        if (points < -sides).any() or (points > 2 * sides).any():
            raise _Fault(f"a polygon reaches far outside of the image of {width} x {height} px")
        length = np.abs(np.diff(points, axis=0, append=points[:1])).sum()
        if length > _LONGEST_OUTLINE * (height + width):
            raise _Fault(f"a polygon has an outline of {length:,.0f} px")
    return rle.merge(rle.frPyObjects(segmentation, height, width))


def run_lengths(counts: Any, px: int) -> np.ndarray | None:
    """Run lengths of an RLE over so many px, compressed (text) or not (a list); None for what is
    neither, or of another number of px."""
    runs = _runs(counts)
    return None if runs is None or (runs < 0).any() or runs.sum() != px else runs


def _runs(counts: Any) -> np.ndarray | None:
    if isinstance(counts, list):
        fits = all(type(count) is int and 0 <= count < 2**31 for count in counts)
        return np.array(counts, np.int64) if fits else None
    if not isinstance(counts, str) or not counts or not counts.isascii():
        return None
    # Six bits a character: five of the number, lowest first, and whether more follow
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    end = np.flatnonzero(codes & 32 == 0)
    start = np.append(0, end[:-1] + 1)
    length = end - start + 1
    if length.max() > 7:
        return None
    bits = 5 * (np.arange(len(codes)) - np.repeat(start, length))
    runs = np.add.reduceat((codes & 31) << bits, start)
    runs -= np.where(codes[end] & 16, 1 << (5 * length), 0)  # negative
    # From the fourth on the difference to the run before the last
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs


def _whole(value: Any) -> int | None:
    """A whole number, also as text or float (1.0); None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,15}\s*", value):
        return int(value)
    if isinstance(value, (int, float)) and abs(value) < 2**53 and value == int(value):
        return int(value)
    return None


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # isfinite fails at whole numbers of 400 digits
