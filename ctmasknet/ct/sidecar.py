"""A rescale stated beside the files that it is for.

``<file>.json`` (``scan.nii.gz.json``) is for that file alone and goes before ``rescale.json``,
which is for all files of its own folder, not of those below. It holds ``{"slope": 1,
"intercept": -1024}`` or ``{"values": "grey"}`` and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
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


def stated_rescale(file: str | os.PathLike) -> Rescale | None:
    """What lies beside a file about its values; None where nothing does.

    Raises:
        CTMaskNetError: names the sidecar; it cannot be read, or holds anything else.
    """
    file = os.fspath(file)
    for path in (f"{file}.json", os.path.join(os.path.dirname(file), FOLDER_SIDECAR)):
        if os.path.isfile(path):
            return _checked(path)
    return None


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
        if FOLDER_SIDECAR in beside or (beside and any(f"{name}.json" in beside for name in names)):
            return True
    return False


def _checked(path: str) -> Rescale:
    remedy = (
        f'expected {{"slope": 1, "intercept": -1024}}, or {{"values": "{GREY}"}}; correct it, '
        "rename it or remove it"
    )
    try:
        if os.path.getsize(path) > _MAX_BYTES:
            raise ValueError("larger than any such file")
        stated: Any = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise CTMaskNetError(f"{path}: cannot be read ({error}); {remedy}") from None
    if stated == {"values": GREY}:
        return GREY
    if not isinstance(stated, dict) or set(stated) != {"slope", "intercept"}:
        raise CTMaskNetError(f"{path}: states no rescale; {remedy}")
    for key, value in stated.items():
        sound = isinstance(value, int | float) and not isinstance(value, bool)
        if not sound or not abs(value) < 1e9 or (key == "slope" and value == 0):
            raise CTMaskNetError(
                f"{path}: {key} is {str(value)[:40]!a}, no usable number; {remedy}"
            )
    return float(stated["slope"]), float(stated["intercept"])
