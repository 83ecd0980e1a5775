"""Which data sets mean the same person by the same patient id.

An id such as ``17`` says who somebody is only within one numbering. A prepared set names its
numbering in ``info.patient_ids``; ids of two sets are compared where these names agree, and nowhere
else (``datasets/README.md``, "Leaks").
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ctmasknet.errors import CTMaskNetError

#: Numbering of the CNCB lesion set, which is not that of the CNCB scans in COVIDx-CT: the lists say
#: so (``tests/data/test_leaks.py``).
CNCB_LESIONS = "cncb_lesions"
COVIDX_CT = "covidx_ct"

#: Beside phantoms stands the recipe they were made by (see datasets/README.md).
PHANTOM_RECIPE = "phantom.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def numbering_of(
    images: str | os.PathLike, given: str | None = None, published: str | None = None
) -> str | None:
    """The name of the numbering that the patients of a set belong to.

    Args:
        images: folder of the images. Phantoms are known by the recipe in or above it: those of one
            seed are numbered together, and no number is in both of their sets.
        given: the user's word, which goes before everything else.
        published: the numbering that the file names are of, when they have a published set's form.

    Returns:
        None when nothing states it: such ids are comparable within the prepared set alone.

    Raises:
        CTMaskNetError: ``given`` is no name.
    """
    if given is not None:
        if not _NAME.fullmatch(given):
            raise CTMaskNetError(
                f"--patient-ids {given!r}: use letters, digits, '_', '-' and '.' only"
            )
        return given
    recipe = phantom_recipe(images)
    if recipe is not None:
        return f"phantom-v{recipe.get('version')}-seed{recipe.get('seed')}"
    return published


def phantom_recipe(images: str | os.PathLike) -> dict | None:
    """The recipe of the phantoms in a folder, or in the folder that holds it; None for others."""
    for folder in (Path(images), Path(images).parent):
        try:
            recipe = json.loads((folder / PHANTOM_RECIPE).read_text(encoding="utf-8"))["recipe"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(recipe, dict):
            return recipe
    return None
