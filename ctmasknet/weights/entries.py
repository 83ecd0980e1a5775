"""What a checkpoint holds beside its weights, read through one schema.

Files written by others may hold anything under a known name. What means the same is taken (a whole
number for a number); the rest is refused in one line that names the entry.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from ctmasknet.errors import CTMaskNetError
from ctmasknet.weights.pickle import shown

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
    result = dict(content)
    for name, (read, expected) in _ENTRIES.items():
        if name in content:
            result[name] = _read(path, name, content[name], read, expected)
    if isinstance(result.get(SPEC), dict):
        for name, (read, expected) in _SPEC_ENTRIES.items():
            if name in result[SPEC]:
                value = _read(path, f"{SPEC}.{name}", result[SPEC][name], read, expected)
                result[SPEC][name] = value
    return result


def _read(path: Any, name: str, value: Any, read: Callable[[Any], Any], expected: str) -> Any:
    try:
        return read(value)
    except (TypeError, ValueError, KeyError, OverflowError):
        raise CTMaskNetError(
            f"{os.fspath(path)}: its entry {name} is {shown(value)}, but {expected} is expected; "
            "get the file anew"
        ) from None


def _expect(good: bool, value: Any) -> Any:
    if not good:
        raise ValueError
    return value


def _text(value: Any) -> str:
    return _expect(isinstance(value, str), value)


def _names(value: Any) -> list[str]:
    names = [_text(name) for name in _expect(isinstance(value, list | tuple), value)]
    return _expect(bool(names) and len(set(names)) == len(names), names)


def _flag(value: Any) -> bool:
    return _expect(isinstance(value, bool), value)


def _number(value: Any) -> float:
    number = float(_expect(type(value) in (int, float), value))
    return _expect(math.isfinite(number), number)


def _positive(value: Any) -> float:
    number = _number(value)
    return _expect(number > 0, number)


def _count(value: Any) -> int:
    return _expect(type(value) is int and value >= 0, value)


def _some(value: Any) -> int:
    return _expect(0 < _count(value) <= 10_000, value)


def _mapping(value: Any) -> dict[str, Any]:
    _expect(isinstance(value, dict) and all(isinstance(key, str) for key in value), value)
    return dict(value)


def _keys(value: Any) -> dict[str, Any]:
    """Values of configuration keys: plain ones, and lists of them."""
    return {key: _plain(item) for key, item in _mapping(value).items()}


def _plain(value: Any, depth: int = 3) -> Any:
    if isinstance(value, list | tuple):
        _expect(depth > 0, value)
        return [_plain(item, depth - 1) for item in value]
    if type(value) is float:
        return _number(value)
    return _expect(value is None or type(value) in (bool, int, str), value)


def _calibration(value: Any) -> dict[str, Any]:
    """See :meth:`ctmasknet.evaluation.validation_fit.ValidationFit.to_json`."""
    calibration = _mapping(value)
    _names(calibration.get("class_names", ["any"]))
    pooling = _mapping(calibration.get("pooling") or {})
    _text(pooling.get("name", "")), _some(pooling.get("top_k", 1))
    _expect(pooling.get("normal_class") is None or _text(pooling["normal_class"]), pooling)
    for temperature in _mapping(calibration.get("temperatures") or {}).values():
        _positive(_mapping(temperature)["value"])
    return calibration


def _record(value: Any) -> list[dict[str, Any]]:
    """See :data:`ctmasknet.engine.trained_on.Record`."""
    for entry in _expect(isinstance(value, list), value):
        _text(entry["dataset"]), _text(entry["task"])
        _expect(entry["patient_ids"] is None or isinstance(entry["patient_ids"], str), entry)
        _expect(isinstance(entry["patients"], list | tuple), entry)
        for patient in entry["patients"]:
            _text(patient)
    return value


#: Entry of a file -> what reads it, what it is.
_ENTRIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    SPEC: (_mapping, "a dictionary of names"),
    TRAINED_ON: (_record, "a list of data sets with their patients"),
    "iteration": (_count, "a number of iterations"),
}
_SPEC_ENTRIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "task": (_text, "a text"),
    "mask_type": (_text, "a text"),
    "config_file": (_text, "a text"),
    "lesion_classes": (_names, "a list of names, each once,"),
    "image_classes": (_names, "a list of names, each once,"),
    "row_features": (_names, "a list of names"),
    "anchors_rounded": (_flag, "True or False"),
    "window_center_hu": (_number, "a number in HU"),
    "window_width_hu": (_positive, "a number above 0 in HU"),
    "num_boxes": (_some, "a whole number within 1..10000"),
    CONFIGURATION: (_keys, "a dictionary of keys with plain values"),
    CALIBRATION: (_calibration, "a calibration with temperatures above 0"),
}
