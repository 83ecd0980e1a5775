"""Public data as they are, where they lie beside the project: read, never copied."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from tests.walks.chests import Made, lesions_in
from tests.walks.page import REPOSITORY

FOLDER = REPOSITORY.parent / "shared/data/real"


def medseg512(folder: Path) -> Made:
    """medicalsegmentation.com's slices, PNG."""
    made = Made()
    _link(folder, "medseg512")
    for path in sorted((FOLDER / "medseg512/mask").iterdir()):
        mask = np.asarray(Image.open(path))
        made.count("medseg/both", slices=1, patients=1)
        both = sum(lesions_in(mask == label) for label in (1, 2))
        made.count("medseg/both", lesions=both)
        lesions = lesions_in((mask == 1) | (mask == 2))
        made.count("medseg/merge", slices=1, patients=1, lesions=lesions)
    made.given = {"SET": "medseg", "SCAN": "raw/medseg512/image/0.png"}
    made.predicted = [1]
    return made


def few(folder: Path) -> Made:
    """Three scans of COVID-CT-MD as pictures; a study with everything in one folder."""
    made = Made()
    _link(folder, "covid_ct_md")
    _link(folder, "mixed_series")
    with open(FOLDER / "covid_ct_md/index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        made.count("covid_ct_md", **{row["class"]: 1})
    made.count("covid_ct_md", patients=len({row["patient"] for row in rows}))
    # Of four series the one with a lung kernel counts: seven slices of 5 mm
    made.count("study", covid=7, patients=1)
    made.predicted = [16]
    return made


def _link(folder: Path, name: str) -> None:
    (folder / "raw").mkdir(exist_ok=True)
    (folder / "raw" / name).symlink_to(FOLDER / name)
