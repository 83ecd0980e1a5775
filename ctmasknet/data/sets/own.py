"""Sets that a user's module registers, held to what training and evaluation take for granted."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from ctmasknet.data.prepared import is_id
from ctmasknet.errors import CTMaskNetError

_LESION_KEYS = ("height", "width", "annotations")
_ANNOTATION_KEYS = ("bbox", "bbox_mode", "category_id")


class _Fault(Exception):
    """What is wrong with one dataset dict."""


def check_own(name: str, dicts: Sequence[Any], metadata: Mapping[str, Any]) -> None:
    """Check the dataset dicts of a set by the classes that its metadata state.

    Lesion sets (``thing_classes``) need ``file_name``, ``image_id`` (a whole number, its own),
    ``height`` and ``width`` (px) and ``annotations``, each with ``bbox``, ``bbox_mode`` and
    ``category_id``; slice sets (``image_classes``) ``file_name``, ``image_id`` and ``label``.
    ``patient`` stands in all dicts or in none. A set without classes is no set to train on and is
    not looked at.

    Args:
        name: of the set.
        dicts: its dataset dicts.
        metadata: of Detectron2's catalog.

    Raises:
        CTMaskNetError: names the set, the first such dict and the key.
    """
    lesions, classes = (metadata.get(key) for key in ("thing_classes", "image_classes"))
    if not (lesions or classes):
        return
    ids: dict[Any, int] = {}
    with_patient = bool(dicts) and isinstance(dicts[0], Mapping) and "patient" in dicts[0]
    for index, entry in enumerate(dicts):
        try:
            _check_dict(entry, lesions, classes, with_patient)
            first = ids.setdefault(entry["image_id"], index)
            if first != index:
                raise _Fault(f"has the image_id {entry['image_id']!r:.60} of dict {first}")
        except _Fault as fault:
            raise CTMaskNetError(
                f"data set {name}: dict {index} {fault}; correct the function that registers it"
            ) from None


def _check_dict(entry: Any, lesions: Any, classes: Any, with_patient: bool) -> None:
    if not isinstance(entry, Mapping):
        raise _Fault(f"is {entry!r:.60}, no dict")
    needed = ["file_name", "image_id", *(_LESION_KEYS if lesions else ())]
    needed += [*(["label"] if classes else ()), *(["patient"] if with_patient else ())]
    _need(entry, needed, "lacks")
    if not isinstance(entry["file_name"], str):
        raise _Fault(f"has the file_name {entry['file_name']!r:.60}, no text")
    if not with_patient and "patient" in entry:
        raise _Fault("has a 'patient' and dict 0 has none: name all of them, or none")
    if with_patient and not is_id(entry["patient"]):
        raise _Fault(f"has the patient {entry['patient']!r:.60}, no name")
    if not isinstance(entry["image_id"], numbers.Integral if lesions else str | numbers.Integral):
        kind = "whole number" if lesions else "name"
        raise _Fault(f"has the image_id {entry['image_id']!r:.60}, no {kind}")
    if classes and not _is_index(entry["label"], len(classes)):
        raise _Fault(f"has the label {entry['label']!r:.60}, of {len(classes)} classes")
    if lesions:
        for key in ("height", "width"):
            if not _is_index(entry[key], math.inf) or not entry[key]:
                raise _Fault(f"has the {key} {entry[key]!r:.60}, no number of px")
        if not isinstance(entry["annotations"], Sequence):
            raise _Fault(f"has the annotations {entry['annotations']!r:.60}, no list")
        for number, one in enumerate(entry["annotations"]):
            _check_annotation(one, f"annotations[{number}]", len(lesions))


def _check_annotation(one: Any, where: str, classes: int) -> None:
    if not isinstance(one, Mapping):
        raise _Fault(f"has {where} {one!r:.60}, no dict")
    _need(one, _ANNOTATION_KEYS, f"has {where} without")
    try:
        box = np.asarray(one["bbox"], dtype=float)
    except (TypeError, ValueError):
        box = np.empty(0)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise _Fault(f"has {where} with the bbox {one['bbox']!r:.60}, no four numbers")
    if one["bbox_mode"] not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        raise _Fault(f"has {where} with the bbox_mode {one['bbox_mode']!r:.60}, not XY.._ABS")
    if not _is_index(one["category_id"], classes):
        raise _Fault(f"has {where} with the category_id {one['category_id']!r}, of {classes}")


def _need(entry: Mapping[str, Any], keys: Sequence[str], lacks: str) -> None:
    missing = [repr(key) for key in keys if entry.get(key) is None]
    if missing:
        raise _Fault(f"{lacks} {', '.join(missing)}")


def _is_index(value: Any, count: float) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and 0 <= value < count
