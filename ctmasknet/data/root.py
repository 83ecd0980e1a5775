"""Where prepared data sets stand. Imports nothing heavy, so that the converters start at once."""

from __future__ import annotations

import os
from pathlib import Path

from ctmasknet.errors import CTMaskNetError

#: Environment variable that names the root, as in Detectron2.
ROOT_VARIABLE = "DETECTRON2_DATASETS"


def datasets_root(root: str | os.PathLike | None = None) -> Path:
    """The folder of all data sets: ``root``, else $DETECTRON2_DATASETS, else ``./datasets``."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or "datasets").expanduser()


def set_folder(root: Path, name: str) -> Path:
    """The folder of the prepared set ``name``.

    Raises:
        CTMaskNetError: ``name`` is no name of one folder; such a set would not be registered.
    """
    if name in ("", ".", "..") or "/" in name or os.sep in name:
        raise CTMaskNetError(f"set name {name!r}: give the name of one folder below {root}")
    return root / name
