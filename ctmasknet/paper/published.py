"""Published numbers, as printed, each with its source. Percent unless a name says otherwise.

They are kept in ``published.json``. Sources: the paper is "COVID-CT-Mask-Net: Prediction of
COVID-19 from CT Scans Using Regional Features" (Ter-Sarkisov, preprint of 11 November 2020, doi
10.21203/rs.3.rs-104621/v1); later results are those its code repository states.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

_FOUND = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Size:
    """A row of Table 1, as printed ('' where the paper has no entry)."""

    model: str
    parameters: str
    trainable: str
    training: str
    validation: str
    test: str
    ratio: str
    #: Config of this project, where there is one.
    variant: str | None = None
    #: What that config is, where it is not the model itself.
    ours: str = ""


@dataclass(frozen=True)
class SliceResult:
    """Sensitivity a class, precision where it is published, and overall accuracy."""

    model: str
    source: str
    accuracy: float
    sensitivity: dict[str, float]
    measured_on: str
    precision: dict[str, float] = field(default_factory=dict)
    variant: str | None = None
    #: COVID slices, share of the test set.
    prevalence: float | None = None


@dataclass(frozen=True)
class LesionResult:
    """The authors' per-image AP at IoU 0.5, 0.75 and the mean over .50:.05:.95."""

    model: str
    source: str
    measured_on: str
    variant: str
    ap50: float
    ap75: float
    ap: float


@dataclass(frozen=True)
class DiceResult:
    """Two of the three figures called Dice (:mod:`ctmasknet.evaluation.lesions.dice`), 0..1; the
    third, Dice at 0.5, is not published."""

    model: str
    source: str
    measured_on: str
    mean: float
    maximum: float


@dataclass(frozen=True)
class LaterModel:
    """A row of the tables of the author's later works; what is not published is None."""

    model: str
    source: str
    measured_on: str
    covid: float | None
    pneumonia: float | None
    normal: float | None
    #: Of the classes, weighed 0.45 normal, 0.35 pneumonia, 0.20 COVID.
    f1: float | None
    accuracy: float | None
    #: At IoU 0.5, 0.75, and the mean over .50:.05:.95.
    ap: list[float | None] | None
    variant: str | None


#: Fingerprints (ctmasknet.engine.record.fingerprint) of the published lists -> what they list.
LISTS: dict[str, str] = _FOUND["fingerprints"]
#: The paper prints some cells once for the three modes; they are repeated here. 528 of the last row
#: stands in the validation column although the ratio, 90/528, takes it for the training set.
SIZES = [Size(**row) for row in _FOUND["sizes"]]
MODE_RESULTS = [SliceResult(**row) for row in _FOUND["modes"]]
LATER_RESULTS = [SliceResult(**row) for row in _FOUND["later"]]
#: Table 3. Its "Ours" is the heads+BN model.
COMPARED_RESULTS = [SliceResult(**row) for row in _FOUND["compared"]]
LESION_RESULTS = [LesionResult(**row) for row in _FOUND["lesions"]]
DICE_RESULTS = [DiceResult(**row) for row in _FOUND["dice"]]
LATER_MODELS = [LaterModel(**row) for row in _FOUND["later_models"]]
#: [what, as the paper has it, as its code, its lists or another place of the paper has it]
DISAGREEMENTS: list[list[str]] = _FOUND["disagreements"]
