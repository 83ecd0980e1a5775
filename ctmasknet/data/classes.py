"""Names, order and colours of the classes, and what a file name says of its slice.

This is the only place that knows them; everything else asks here (or, for a registered data set,
its metadata).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePath

from ctmasknet.errors import CTMaskNetError

#: Slice classes in the order of the logits (reference: ``0_``, ``1_``, ``2_`` of the authors' file
#: names).
IMAGE_CLASSES = ("normal", "pneumonia", "covid")

#: Values of a CNCB label mask (paper section 2.1). Lung is part of the background for the detector.
MASK_LABELS = {0: "background", 1: "lung", 2: "ggo", 3: "consolidation"}

#: Lesion classes, in category order, that each mask type yields.
MASK_TYPES = {
    "both": ("ggo", "consolidation"),
    "ggo": ("ggo",),
    "merge": ("lesion",),
}

#: RGB colours of the lesion classes in every picture the project draws.
LESION_COLORS = {
    "ggo": (64, 176, 255),
    "consolidation": (255, 128, 32),
    "lesion": (96, 208, 96),
}

_CLASS_TOKENS = {"normal": 0, "cp": 1, "ncp": 2, "0": 0, "1": 1, "2": 2}
_SLICE_NAME = re.compile(
    r"(?P<label>[A-Za-z]+|[012])_(?P<patient>\d+)_(?P<scan>\d+)_(?P<slice>\d+)$"
)
_LESION_NAME = re.compile(r"(?P<patient>[^_]+)_(?P<slice>\d+)$")


@dataclass(frozen=True)
class SliceName:
    """What a slice's file name states. ``label`` indexes :data:`IMAGE_CLASSES`; it is None for
    lesion slices."""

    patient: str
    scan: str
    slice: str
    label: int | None = None


def parse_slice_name(file_name: str) -> SliceName:
    """Read a COVIDx-CT name (``NCP_341_1834_0022.png``) or the authors' form of it
    (``2_341_1834_0022.png``).

    Patient numbers are unique across the three classes in COVIDx-CT, so the patient is the number
    alone.

    Raises:
        CTMaskNetError: the name has another form.
    """
    # Not pathlib: a list has 100,000 names.
    match = _SLICE_NAME.match(os.path.splitext(os.path.basename(file_name))[0])
    label = _CLASS_TOKENS.get(match["label"].lower()) if match else None
    if label is None:
        raise CTMaskNetError(
            f"{file_name}: not a COVIDx-CT slice name; expected CLASS_PATIENT_SCAN_SLICE with "
            "the class "
            "Normal, CP or NCP (or 0, 1, 2), such as NCP_341_1834_0022.png"
        )
    return SliceName(match["patient"], match["scan"], match["slice"], label)


def parse_lesion_name(file_name: str) -> SliceName:
    """Read a lesion slice's name: ``P/S.jpg`` (the archive's tree) or ``P_S.jpg`` (the authors'
    flat names).

    One scan a patient in that set, so the scan repeats the patient.

    Raises:
        CTMaskNetError: the name has neither form.
    """
    path = PurePath(file_name)
    match = _LESION_NAME.match(path.stem)
    if match:
        return SliceName(match["patient"], match["patient"], match["slice"])
    if path.stem.isdigit() and path.parent.name:
        return SliceName(path.parent.name, path.parent.name, path.stem)
    raise CTMaskNetError(
        f"{file_name}: not a lesion slice name; expected PATIENT/SLICE.jpg or "
        "PATIENT_SLICE.jpg, such as 110_104.jpg"
    )
