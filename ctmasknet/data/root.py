"""Where prepared data sets stand. Imports nothing heavy, so that the converters start at once."""

from __future__ import annotations

import os
from pathlib import Path

#: Environment variable that names the root, as in Detectron2.
ROOT_VARIABLE = "DETECTRON2_DATASETS"


def datasets_root(root: str | os.PathLike | None = None) -> Path:
    """The folder of all data sets: ``root``, else $DETECTRON2_DATASETS, else ``./datasets``."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or "datasets").expanduser()
