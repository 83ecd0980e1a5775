"""The walks: which raw tree, which lines of the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.walks import pictures, real, volumes
from tests.walks.chests import Made
from tests.walks.page import Part

_DETECTOR = Part("From raw data to a trained model", "CNCB's lesion set")
_LESIONS, _CLASSES = "Sets with lesion masks", "Sets with classes"
_LESION_SET, _CLASS_SET = Part(_LESIONS, "A lesion set"), Part(_CLASSES, "A set with classes")
#: What makes a training one of seconds.
_SHORT = [
    *("SOLVER.MAX_ITER", 3, "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", 96),
    *("DATALOADER.NUM_WORKERS", 0, "TEST.PICTURES", 0),
]
#: The detector of the light configurations in those of the paper.
_TINY = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 100),
    *("MODEL.RANKED_BOXES.NUM", 32, "MODEL.IMAGE_HEAD.FC_DIM", 64),
]


@dataclass(frozen=True)
class Walk:
    """From a raw tree to a prediction.

    Attributes:
        make: makes the raw tree in a folder; returns what it holds.
        parts: the lines, in the order in which they are typed.
        detector: whether they start from the detector of the page's first lines.
        needs: folders of public data that it reads as they are, below ``../shared/data/real``.
    """

    make: Callable[[Path], Made]
    parts: tuple[Part, ...]
    detector: bool = False
    needs: tuple[str, ...] = ()

    def absent(self) -> str:
        """Why it cannot be walked here, or ""."""
        missing = [name for name in self.needs if not (real.FOLDER / name).is_dir()]
        return f"not here: {', '.join(missing)} below ../shared/data/real" if missing else ""


def _of(make, heading: str, comment: str, needs: tuple[str, ...] = ()) -> Walk:
    then = _LESION_SET if heading == _LESIONS else _CLASS_SET
    return Walk(make, (Part(heading, comment), then), heading == _CLASSES, needs)


#: The one whose detector the others start from.
FIRST = "cncb_lesions"
WALKS = {
    FIRST: Walk(pictures.cncb_lesions, (_DETECTOR, _LESION_SET)),
    "covid1920": _of(volumes.covid1920, _LESIONS, "COVID-19-20"),
    "mosmed": _of(volumes.mosmed, _LESIONS, "MosMed"),
    "ma": _of(volumes.ma, _LESIONS, "Ma's 20 cases"),
    "medseg512": _of(real.medseg512, _LESIONS, "medicalsegmentation.com", ("medseg512",)),
    "covidx_ct3a": Walk(pictures.covidx_ct3a, (Part("COVIDx-CT-2 and -3"),), detector=True),
    "cncb": Walk(pictures.cncb, (Part("CNCB"), _CLASS_SET), detector=True),
    "ctset": _of(volumes.ctset, _CLASSES, "COVID-CTset"),
    "stoic": _of(volumes.stoic, _CLASSES, "STOIC"),
    "archive": _of(volumes.archive, _CLASSES, "A DICOM archive"),
    "zips": _of(volumes.zips, _CLASSES, "Studies as .zip"),
    "few": Walk(*(real.few, (Part("Few scans"),), True), needs=("covid_ct_md", "mixed_series")),
    "own": Walk(pictures.own, (Part("Your own classes"),)),
}


def behind(words: Sequence[str]) -> list:
    """What is put behind the words of a call to make it short."""
    if words[0] != "tools/train_net.py":
        return []
    short = [*_SHORT]
    if "configs/seg.yaml" in words or "configs/cls.yaml" in words:
        short += _TINY
    # Detectron2 would download these
    if "configs/seg.yaml" in words and "--eval-only" not in words:
        short += ["MODEL.WEIGHTS", ""]
    return short


def link_detector(folder: Path, of: Path) -> None:
    """Give a folder the detector that another one has trained."""
    (folder / "output").mkdir()
    os.symlink(of / "output/seg_light", folder / "output/seg_light")
