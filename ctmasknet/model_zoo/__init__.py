"""Configurations by name, wherever the package is installed (Detectron2's ``model_zoo``)."""

from __future__ import annotations

import os
from pathlib import Path

from ctmasknet.errors import CTMaskNetError

_HERE = Path(__file__).resolve().parent
#: Beside the package in a clone, inside it where it was installed from a wheel.
_FOLDERS = (_HERE / "configs", _HERE.parent.parent / "configs")


def get_config_file(config_path: str | os.PathLike) -> str:
    """The file of a configuration that comes with the package.

    Args:
        config_path: relative to ``configs/``, such as ``cls.yaml`` or ``demo/seg.yaml``; with
            ``configs/`` in front it is the same.

    Raises:
        CTMaskNetError: there is none of that name.
    """
    name = Path(config_path)
    parts = name.parts[1:] if name.parts[:1] == ("configs",) else name.parts
    for folder in _FOLDERS:
        path = folder.joinpath(*parts)
        if ".." not in parts and not name.is_absolute() and os.path.isfile(path):
            return str(path)
    raise CTMaskNetError(f"{config_path}: no such configuration; see configs/ for those there are")
