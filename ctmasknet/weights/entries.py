"""What a checkpoint holds beside its weights, read through one schema.

Files written by others may hold anything under a known name. What means the same is taken (a whole
number for a number); the rest is refused in one line that names the entry.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ctmasknet.errors import CTMaskNetError
from ctmasknet.schema import Form, UnlikeForm, anything, form, maybe, number, record, text

#: Names of the entries: the specification, and whom the weights were trained on.
SPEC, TRAINED_ON = "ctmasknet", "trained_on"
#: Entry of a specification: temperature, thresholds and pooling.
CALIBRATION = "calibration"
#: Entry of a specification: every other key that input, boxes or scores depend on -> its value.
CONFIGURATION = "configuration"


def checked_entries(path: str | os.PathLike, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint file, its known entries being of the types they have here.

    Args:
        path: the file, for messages.
        content: see :func:`ctmasknet.weights.reader.read_checkpoint`.

    Returns:
        a copy with numbers as float.

    Raises:
        CTMaskNetError: an entry is of another type or has no such value; names it.
    """
    try:
        found = record({}, _ENTRIES)(dict(content), "")
        if SPEC in found:
            found[SPEC] = record({}, _SPEC_ENTRIES)(found[SPEC], SPEC)
    except UnlikeForm as error:
        raise CTMaskNetError(f"{os.fspath(path)}: its entry {error}; get the file anew") from None
    return found


def _expect(good: bool, value: Any) -> Any:
    if not good:
        raise ValueError
    return value


@form("a list of names, each once,")
def _names(value: Any) -> list[str]:
    names = [text(name, "") for name in _expect(isinstance(value, list | tuple), value)]
    return _expect(bool(names) and len(set(names)) == len(names), names)


@form("True or False")
def _flag(value: Any) -> bool:
    return _expect(isinstance(value, bool), value)


@form("a number above 0")
def _positive(value: Any) -> float:
    return _expect(number(value, "") > 0, float(value))


@form("a whole number within 1..10000")
def _some(value: Any) -> int:
    return _expect(type(value) is int and 0 < value <= 10_000, value)


@form("a number of iterations")
def _count(value: Any) -> int:
    return _expect(type(value) is int and value >= 0, value)


@form("an object of names")
def _mapping(value: Any) -> dict[str, Any]:
    return _expect(isinstance(value, dict) and all(isinstance(key, str) for key in value), value)


@form("an object of keys with plain values")
def _keys(value: Any) -> dict[str, Any]:
    """Values of configuration keys: plain ones, and lists of them."""
    return {key: _plain(item) for key, item in _mapping(value, "").items()}


def _plain(value: Any, depth: int = 3) -> Any:
    if isinstance(value, list | tuple):
        _expect(depth > 0, value)
        return [_plain(item, depth - 1) for item in value]
    if type(value) is float:
        return number(value, "")
    return _expect(value is None or type(value) in (bool, int, str), value)


@form("a calibration with temperatures above 0")
def _calibration(value: Any) -> dict[str, Any]:
    """See :meth:`ctmasknet.evaluation.validation_fit.ValidationFit.to_json`."""
    calibration = _mapping(value, "")
    _names(calibration.get("class_names", ["any"]), "")
    pooling = {"name": text, "top_k": _some, "normal_class": maybe(text)}
    maybe(record({}, pooling))(calibration.get("pooling") or None, "")
    for temperature in _mapping(calibration.get("temperatures") or {}, "").values():
        record({"value": _positive})(temperature, "")
    return dict(calibration)


@form("a list of data sets with their patients")
def _record(value: Any) -> list[dict[str, Any]]:
    """See :data:`ctmasknet.engine.trained_on.Record`."""
    of = {"dataset": text, "task": text, "patient_ids": anything, "patients": anything}
    for entry in _expect(isinstance(value, list), value):
        found = record(of)(entry, "")
        maybe(text)(found["patient_ids"], "")
        for patient in _expect(isinstance(found["patients"], list | tuple), entry)["patients"]:
            text(patient, "")
    return value


#: Entry of a file -> its form.
_ENTRIES: dict[str, Form] = {SPEC: _mapping, TRAINED_ON: _record, "iteration": _count}
_SPEC_ENTRIES: dict[str, Form] = {
    **{"task": text, "mask_type": text, "config_file": text},
    **{"lesion_classes": _names, "image_classes": _names, "row_features": _names},
    **{"anchors_rounded": _flag, "num_boxes": _some},
    **{"window_center_hu": number, "window_width_hu": _positive},
    **{CONFIGURATION: _keys, CALIBRATION: _calibration},
}
