"""A rescale stated beside the files that it is for.

``<file>.json`` (``scan.nii.gz.json``) is for that file alone and goes before ``rescale.json``,
which is for all files of its own folder, not of those below. It holds ``{"slope": 1,
"intercept": -1024}`` or ``{"values": "grey"}``, of NumPy's files ``"axes": "zyx"``,
``"spacing_mm": [5, 0.7, 0.7]`` and ``"array": "ct"`` too, and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ctmasknet.ct.scan import GREY, Rescale
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import read_json

FOLDER_SIDECAR = "rescale.json"
#: Larger files are none of these; other programs put theirs beside volumes too.
_MAX_BYTES = 2**16


def is_sidecar(file: str) -> bool:
    """Whether a file is a ``rescale.json``, or lies beside the file that it is named after."""
    if os.path.basename(file) == FOLDER_SIDECAR:
        return True
    return file.endswith(".json") and os.path.isfile(file.removesuffix(".json"))


@dataclass(frozen=True)
class Layout:
    """What is stated of an array's axes.

    Attributes:
        path: of the sidecar; "" where nothing is stated.
        axes: as :func:`ctmasknet.ct.arrays.parse_axes` reads them.
        spacing_mm: of each axis, in their order.
        array: name in an ``.npz``; "" for the only one.
    """

    path: str = ""
    axes: str | None = None
    spacing_mm: tuple[float, ...] | None = None
    array: str = ""


def stated_rescale(file: str | os.PathLike) -> Rescale | None:
    """What lies beside a file about its values; None where nothing does.

    Raises:
        CTMaskNetError: names the sidecar; it cannot be read, or holds anything else.
    """
    return _stated(os.fspath(file), _RESCALE)[0]


def stated_layout(file: str | os.PathLike) -> Layout:
    """What lies beside a file about its axes.

    Raises:
        CTMaskNetError: as of :func:`stated_rescale`.
    """
    return _stated(os.fspath(file), _LAYOUT)[1]


#: Keys that say what values are, and how an array lies.
_RESCALE, _LAYOUT = {"slope", "intercept", "values"}, {"axes", "spacing_mm", "array"}


def _stated(file: str, keys: set[str]) -> tuple[Rescale | None, Layout]:
    """Of the sidecars beside a file the first that states one of ``keys``."""
    for path in (f"{file}.json", os.path.join(os.path.dirname(file), FOLDER_SIDECAR)):
        if os.path.isfile(path):
            stated = _read(path)
            if keys & stated.keys():
                return _rescale(path, stated), _layout(path, stated)
    return None, Layout()


def any_stated_rescale(files: Iterable[str | os.PathLike]) -> bool:
    """Whether :func:`stated_rescale` has something to say of any file. Folders are listed once."""
    folders: dict[str, list[str]] = {}
    for file in map(os.fspath, files):
        folders.setdefault(os.path.dirname(file), []).append(os.path.basename(file))
    for folder, names in folders.items():
        try:
            beside = {name for name in os.listdir(folder or ".") if name.endswith(".json")}
        except OSError:  # told when a picture of it is read
            continue
        named = names[:1] if FOLDER_SIDECAR in beside else []
        named += [name for name in names if f"{name}.json" in beside] if beside else []
        if any(stated_rescale(os.path.join(folder, name)) is not None for name in named):
            return True
    return False


_REMEDY = (
    f'expected {{"slope": 1, "intercept": -1024}}, or {{"values": "{GREY}"}}, and of .npy and .npz '
    '"axes": "zyx", "spacing_mm": [5, 0.7, 0.7], "array": NAME; correct it, rename it or remove it'
)


def _read(path: str) -> dict[str, Any]:
    try:
        if os.path.getsize(path) > _MAX_BYTES:
            raise ValueError("larger than any such file")
        stated: Any = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise CTMaskNetError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
    if not isinstance(stated, dict) or not stated or set(stated) - _RESCALE - _LAYOUT:
        raise CTMaskNetError(f"{path}: states no rescale; {_REMEDY}")
    if set(stated) & _RESCALE not in (set(), {"values"}, {"slope", "intercept"}):
        raise CTMaskNetError(f"{path}: states no rescale; {_REMEDY}")
    return stated


def _rescale(path: str, stated: dict[str, Any]) -> Rescale | None:
    if not stated.keys() & _RESCALE:
        return None
    if "values" in stated:
        if stated["values"] != GREY:
            raise CTMaskNetError(f"{path}: states no rescale; {_REMEDY}")
        return GREY
    for key in ("slope", "intercept"):
        if not _is_number(stated[key]) or (key == "slope" and stated[key] == 0):
            raise CTMaskNetError(
                f"{path}: {key} is {str(stated[key])[:40]!a}, no usable number; {_REMEDY}"
            )
    return float(stated["slope"]), float(stated["intercept"])


def _layout(path: str, stated: dict[str, Any]) -> Layout:
    for key in ("axes", "array"):
        if not isinstance(stated.get(key, ""), str):
            raise CTMaskNetError(f"{path}: {key} is {str(stated[key])[:40]!a}, no text; {_REMEDY}")
    spacing = stated.get("spacing_mm")
    if spacing is not None:
        sound = isinstance(spacing, list) and len(spacing) in (2, 3)
        if not sound or not all(_is_number(mm) and 1e-3 <= mm <= 1e3 for mm in spacing):
            raise CTMaskNetError(
                f"{path}: spacing_mm is {str(spacing)[:40]!a}, no two or three lengths; {_REMEDY}"
            )
        spacing = tuple(map(float, spacing))
    return Layout(path, stated.get("axes"), spacing, stated.get("array", ""))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
