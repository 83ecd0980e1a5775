"""``tools/predict.py`` with one configuration of ``configs/peers`` of each kind, at tiny sizes.

With ``CTMASKNET_EVERY_PEER=1`` with every one of them.
"""

import csv
import json
import os

import nibabel
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from ctmasknet.config import is_classifier, names_scans
from ctmasknet.config_file import read_cfg
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.modeling.peers import semantic_lesions
from tests.helpers.golden_state import REPOSITORY
from tests.helpers.running import run_tool
from tests.helpers.small_world import hu_volume, write_pictures

CONFIGS = REPOSITORY / "configs" / "peers"
_RCNN = (
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.NUM_GROUPS", 1, "MODEL.RESNETS.WIDTH_PER_GROUP", 64),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
    *("MODEL.RANKED_BOXES.NUM", 4, "MODEL.IMAGE_HEAD.FC_DIM", 16, "INPUT.MIN_SIZE_TEST", 32),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    *("TEST.DETECTIONS_PER_IMAGE", 4),
)
#: What makes a configuration small, by meta-architecture.
_SMALL = {
    "SliceClassifier": ("MODEL.SLICE_NETWORK.SIZE", 40, "MODEL.SLICE_NETWORK.CROP", 32),
    "ScanClassifier": ("MODEL.SLICE_NETWORK.NAME", "resnet18"),
    "SemanticLesionNet": ("INPUT.MIN_SIZE_TEST", 32),
    "SemanticLesionClassifier": ("INPUT.MIN_SIZE_TEST", 32),
    "PatchNet": (*_RCNN, "MODEL.RANKED_BOXES.SCORE_THRESH", -1),
    "TwoBranchNet": _RCNN,
    "DetectedLesionClassifier": _RCNN,
    "GeneralizedRCNN": _RCNN,
}


#: One configuration of each way that slices go through a model.
_OF_EACH_KIND = (
    *("affinity", "ark20_r50", "ark20_seg_r101", "covid_ct_lungs", "covnet", "xu_resnet18"),
    "zhang",
)


def _names():
    every = os.environ.get("CTMASKNET_EVERY_PEER")
    return sorted(path.stem for path in CONFIGS.glob("*.yaml")) if every else _OF_EACH_KIND


class _Maps(nn.Conv2d):
    """Stands for a network of tens of millions of weights, which the golden vectors test."""

    def __init__(self, name, encoder, classes, norm):
        super().__init__(3, classes, 15, padding=7)
        self.name = name

    def forward(self, x):
        maps = super().forward(x)
        return {"map_2": maps} if self.name == "infnet" else maps


def _small(name):
    words = ["MODEL.DEVICE", "cpu"]
    cfg = read_cfg(CONFIGS / f"{name}.yaml", words)
    model = cfg.MODEL
    words += map(str, _SMALL[model.META_ARCHITECTURE])
    if model.META_ARCHITECTURE == "SliceClassifier" and name != "covidnet_ct_lookalike":
        words += ["MODEL.SLICE_NETWORK.NAME", "timm/test_resnet"]
    if name == "unet":
        words += ["MODEL.SEMANTIC.ENCODER", "mobilenet_v2"]
    return read_cfg(CONFIGS / f"{name}.yaml", words)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A volume of three slices, and a picture alone."""
    root = tmp_path_factory.mktemp("scans")
    write_pictures(root / "picture", 3, ["slice.png"])
    volume = nibabel.Nifti1Image(hu_volume(2, 3).transpose(2, 1, 0), np.diag([0.7, 0.8, 3.0, 1.0]))
    nibabel.save(volume, root / "ct.nii.gz")
    return root


@pytest.mark.parametrize("name", _names())
def test_scans_are_predicted(name, scans, request, tmp_path, capsys, monkeypatch):
    if name != "unet":
        monkeypatch.setattr(semantic_lesions, "_network", _Maps)
    weights = tmp_path / "w.pth"
    if name == "covidnet_ct":
        graph = request.getfixturevalue("shared") / "peers" / "covidnet_ct_standin" / "model.meta"
        words = [graph, "--output", weights]
        assert run_tool(REPOSITORY, "tools/import_weights.py", *words) == 0
        cfg = read_cfg(CONFIGS / f"{name}.yaml", ["MODEL.DEVICE", "cpu"])
    else:
        cfg = _small(name)
        torch.manual_seed(0)
        CTMaskNetCheckpointer(build_model(cfg), str(tmp_path), spec=spec_of(cfg)).save("w")
    answer = tmp_path / "answer"
    words = ["--weights", weights, "--input", scans, "--output", answer, "MODEL.DEVICE", "cpu"]
    assert run_tool(REPOSITORY, "tools/predict.py", *words) == 0
    said = capsys.readouterr().out
    assert "4 slices of 2 scans" in said
    assert ("is one slice alone, where the model names whole scans" in said) == names_scans(cfg)
    if not is_classifier(cfg):
        found = json.loads((answer / "lesions.json").read_text())
        assert len(found["images"]) == 4
        assert [one["name"] for one in found["categories"]] == list(cfg.MODEL.LESION_CLASSES)
        return
    assert not (answer / "lesions.json").exists()
    with open(answer / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["pred"] for row in rows} <= set(cfg.MODEL.IMAGE_HEAD.CLASSES) and len(rows) == 4
    if names_scans(cfg):
        assert len({tuple(v for k, v in row.items() if k.startswith("logit")) for row in rows}) == 2
