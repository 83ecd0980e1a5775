"""Files of the author's later models (single shot, affinity, LSTM with attention) as Detectron2
checkpoints; sizes are read off the tensors' shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor

from ctmasknet.classes import IMAGE_CLASSES, MASK_TYPES
from ctmasknet.config_file import read_cfg
from ctmasknet.ct.scan import Window
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.ranked_boxes import ROW_FEATURES
from ctmasknet.weights.layout import (
    background_last,
    sizes_outermost,
    without_background,
    without_background_boxes,
)

_REPOSITORY = Path(__file__).resolve().parents[2]
_MARK = "roi_heads.box_head_s2.fc6.weight"
#: Lesion classes by their number, in the order of mask values.
_LESIONS = {**{len(names): names for names in MASK_TYPES.values()}, 1: ("lesion",)}
_LESIONS[3] = ("lung", "ggo", "consolidation")
#: (depth, bottleneck) by blocks a stage.
_DEPTHS = {
    **{(False, (2, 2, 2, 2)): 18, (False, (3, 4, 6, 3)): 34, (True, (3, 4, 6, 3)): 50},
    **{(True, (3, 4, 23, 3)): 101, (True, (3, 8, 36, 3)): 152},
}
_BODY, _RPN, _ROI = "backbone.bottom_up", "proposal_generator.rpn_head", "roi_heads"
_RULES: tuple[tuple[str, str, Any], ...] = (
    (r"backbone\.body\.conv1\.", f"{_BODY}.stem.conv1.", None),
    (r"backbone\.body\.bn1\.", f"{_BODY}.stem.conv1.norm.", None),
    (r"backbone\.body\.layer(\d)\.(\d+)\.conv(\d)\.", rf"{_BODY}.res\1.\2.conv\3.", None),
    (r"backbone\.body\.layer(\d)\.(\d+)\.bn(\d)\.", rf"{_BODY}.res\1.\2.conv\3.norm.", None),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.0\.", rf"{_BODY}.res\1.\2.shortcut.", None),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.1\.",
     rf"{_BODY}.res\1.\2.shortcut.norm.", None),
    (r"backbone\.fpn\.inner_blocks\.0\.(0\.)?", "backbone.fpn_lateral0.", None),
    (r"backbone\.fpn\.layer_blocks\.0\.(0\.)?", "backbone.fpn_output0.", None),
    (r"rpn\.head\.conv\.(0\.0\.)?", f"{_RPN}.conv.", None),
    (r"rpn\.head\.cls_logits\.", f"{_RPN}.objectness_logits.", sizes_outermost),
    (r"rpn\.head\.bbox_pred\.", f"{_RPN}.anchor_deltas.", sizes_outermost),
    (r"roi_heads\.box_head(_s2)?\.fc6\.", rf"{_ROI}\1.box_head.fc1.", None),
    (r"roi_heads\.box_head(_s2)?\.fc7\.", rf"{_ROI}\1.box_head.fc2.", None),
    (r"roi_heads\.box_predictor(_s2)?\.cls_score\.", rf"{_ROI}\1.box_predictor.cls_score.",
     background_last),
    (r"roi_heads\.box_predictor(_s2)?\.bbox_pred\.", rf"{_ROI}\1.box_predictor.bbox_pred.",
     without_background_boxes),
    (r"roi_heads\.mask_head(_s2)?\.mask_fcn1\.", rf"{_ROI}\1.mask_head.mask_fcn1.", None),
    (r"roi_heads\.mask_predictor(_s2)?\.conv5?_mask\.", rf"{_ROI}\1.mask_head.deconv.", None),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", f"{_ROI}.mask_head.predictor.",
     without_background),
    (r"roi_heads\.mask_predictor(_s2)\.conv_reduce\.", rf"{_ROI}\1.mask_head.reduce.", None),
    (r"s2new\.fc_scores\.", "image_head.fc1.", None),
    (r"s2new\.fc_scores_2\.", "image_head.fc2.", None),
    (r"s2new\.fc_scores_img\.", "image_head.logits.", None),
    (r"(?:affinity|attn)_layer\.sieve\.0\.", "image_head.vectors.sieve.", None),
    (r"(?:affinity|attn)_layer\.(conv_d\w+|bn\d)\.", r"image_head.vectors.\1.", None),
    (r"affinity_layer\.batch_to_feat_mat$", "image_head.matrix", None),
    (r"affinity_layer\.batch_to_feat_vec$", "image_head.vector", None),
    (r"s2new\.fc_l(\d)\.", r"image_head.classifier.fc\1.", None),
    (r"s2new\.class_predict_logits\.", "image_head.classifier.logits.", None),
    (r"attn_layer\.lstm_(pos|neg)\.", r"image_head.\1.lstm.", None),
    (r"attn_layer\.final_linear_(pos|neg)\.", r"image_head.\1.query.", None),
    (r"(pos|neg)_classifier_attn\.fc_l(\d)\.", r"image_head.\1.classifier.fc\2.", None),
    (r"(pos|neg)_classifier_attn\.class_predict_logits\.", r"image_head.\1.classifier.logits.",
     None),
)  # fmt: skip


@dataclass(frozen=True)
class ImportedTwoBranch:
    """What a file turned out to hold: its configuration and the pairs ``KEY VALUE`` it needs."""

    config: str
    overrides: list[str]
    lesions: tuple[str, ...]
    num_boxes: int

    @property
    def spec(self) -> dict[str, Any]:
        """What the checkpoint carries so that a config that disagrees is noticed."""
        types = [name for name, classes in MASK_TYPES.items() if classes == self.lesions]
        return {
            "task": "classification",
            "mask_type": types[0] if types else "custom",
            "lesion_classes": list(self.lesions),
            "anchors_rounded": True,
            "window_center_hu": Window.center_hu,
            "window_width_hu": Window.width_hu,
            "num_boxes": self.num_boxes,
            "image_classes": list(IMAGE_CLASSES),
            "row_features": list(ROW_FEATURES),
        }

    def __str__(self) -> str:
        name = self.config.rsplit("/", 1)[1].removesuffix(".yaml")
        return f"classifier of two branches ({name}), lesion classes {', '.join(self.lesions)}"


def is_two_branch(state: Mapping[str, Any]) -> bool:
    """Whether a state dict is one of these models'."""
    return _MARK in state


def import_two_branch(
    state: Mapping[str, Tensor], mask_type: str | None = None
) -> tuple[dict[str, Tensor], ImportedTwoBranch]:
    """Rename and reorder a state dict of the author's layout.

    Args:
        state: tensors by name.
        mask_type: names the lesion class where the file has one; by default it is the merged one.

    Raises:
        CTMaskNetError: a tensor is missing, of a wrong shape, or not of such a model.
    """
    found = _sizes(state, mask_type)
    level = sum(f"backbone.body.layer{n}.0.conv1.weight" in state for n in range(1, 5)) + 1
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        same = re.sub(r"^(affinity_layer\.sieve\.)\d+", r"\g<1>0", name)
        same = {"pars.0": "batch_to_feat_mat", "pars.1": "batch_to_feat_vec"}.get(
            same.removeprefix("affinity_layer."), same.removeprefix("affinity_layer.")
        )
        same = f"affinity_layer.{same}" if name.startswith("affinity_layer.") else same
        if same != name:
            if same not in state or not torch.equal(state[same], tensor):
                raise CTMaskNetError(
                    f"tensor {name} differs from {same}, with which it is shared; the file is of "
                    "another model"
                )
            continue
        target, convert = _target(name, level)
        tensor = convert(tensor) if convert else tensor
        counts = name.endswith("num_batches_tracked")
        converted[target] = tensor.to(torch.int64 if counts else torch.float32).contiguous()
    with torch.device("meta"):
        cfg = read_cfg(str(_REPOSITORY / found.config), ["MODEL.DEVICE", "meta", *found.overrides])
        expected = build_model(cfg).state_dict()
    for name, value in expected.items():
        if name not in converted or converted[name].shape != value.shape:
            has = "is missing" if name not in converted else f"has {tuple(converted[name].shape)}"
            raise CTMaskNetError(
                f"the tensor for {name} of shape {tuple(value.shape)} {has} for {found}; the file "
                "is incomplete or of another model"
            )
    for name in sorted(converted.keys() - expected.keys()):
        raise CTMaskNetError(f"the tensor for {name} has no place in {found}; give another file")
    return converted, found


def _target(name: str, level: int) -> tuple[str, Any]:
    for pattern, target, convert in _RULES:
        match = re.match(pattern, name)
        if match:
            found = match.expand(target) + name[match.end() :]
            found = re.sub(r"\.res(\d)\.", lambda m: f".res{int(m[1]) + 1}.", found)
            found = found.replace("roi_heads_s2.", "roi_heads.ranked.")
            found = re.sub(r"(fpn_lateral|fpn_output)0", rf"\g<1>{level}", found)
            found = found.replace("head.pos.", "head.positive.").replace(
                "head.neg.", "head.negative."
            )
            return found, convert
    raise CTMaskNetError(f"tensor {name} has no place in a two-branch model; give another file")


def _sizes(state: Mapping[str, Tensor], mask_type: str | None) -> ImportedTwoBranch:
    """The configuration of a file's shapes."""

    def shape(name: str, axis: int) -> int:
        if name not in state or state[name].ndim <= axis:
            raise CTMaskNetError(f"tensor {name} is missing; the file is of another model")
        return state[name].shape[axis]

    lesions = _LESIONS.get(shape("roi_heads.box_predictor.cls_score.weight", 0) - 1)
    if mask_type is not None and lesions and len(MASK_TYPES[mask_type]) == len(lesions):
        lesions = tuple(MASK_TYPES[mask_type])
    if lesions is None:
        raise CTMaskNetError("tensor roi_heads.box_predictor.cls_score.weight: 2 to 4 classes")
    blocks = [
        len({n.split(".")[3] for n in state if n.startswith(f"backbone.body.layer{stage}.")})
        for stage in range(1, 5)
    ]
    stages = sum(count > 0 for count in blocks)
    bottleneck = "backbone.body.layer1.0.conv3.weight" in state
    depths = [d for (kind, b), d in _DEPTHS.items()
              if kind == bottleneck and b[:stages] == tuple(blocks[:stages])]  # fmt: skip
    if not depths or stages < 2:
        raise CTMaskNetError(f"a backbone of {blocks} blocks is no ResNet; give another file")
    values: dict[str, Any] = {
        "RESNETS.DEPTH": depths[0],
        "RESNETS.RES2_OUT_CHANNELS": 256 if bottleneck else 64,
        "RESNETS.OUT_FEATURES": [f"res{stages + 1}"],
        "FPN.IN_FEATURES": [f"res{stages + 1}"],
        "FPN.OUT_CHANNELS": shape("backbone.fpn.layer_blocks.0.weight", 0),
        "RPN.IN_FEATURES": [f"p{stages + 1}"],
        "ROI_HEADS.IN_FEATURES": [f"p{stages + 1}"],
        "ROI_HEADS.NUM_CLASSES": len(lesions),
        "ROI_BOX_HEAD.FC_DIM": shape(_MARK, 0),
        "ROI_MASK_HEAD.CONV_DIM": shape("roi_heads.mask_head.mask_fcn1.weight", 0),
    }
    if bottleneck:
        width = shape("backbone.body.layer1.0.conv2.weight", 1)
        values["RESNETS.NUM_GROUPS"] = shape("backbone.body.layer1.0.conv2.weight", 0) // width
        values["RESNETS.WIDTH_PER_GROUP"] = width
    if "s2new.fc_scores.weight" in state:
        config, last = "ssm", "s2new.fc_scores_img.weight"
        num = shape("s2new.fc_scores.weight", 1) // len(ROW_FEATURES)
    elif "affinity_layer.batch_to_feat_mat" in state:
        config, last = "affinity", "s2new.class_predict_logits.weight"
        num = shape("affinity_layer.batch_to_feat_mat", 0)
        values["IMAGE_HEAD.AFFINITIES"] = shape("affinity_layer.batch_to_feat_mat", 1)
        sieves = {n.split(".")[2] for n in state if n.startswith("affinity_layer.sieve.")}
        values["IMAGE_HEAD.SIEVE_STAGES"] = len(sieves)
    else:
        config, last, num = "lstm", "pos_classifier_attn.class_predict_logits.weight", 16
    values["RANKED_BOXES.NUM"] = num
    values["IMAGE_HEAD.FC_DIM"] = shape(last, 1)
    classes = shape(last, 0)
    if classes != len(IMAGE_CLASSES):
        values["IMAGE_HEAD.CLASSES"] = [f"class{number}" for number in range(classes)]
    pairs = [("LESION_CLASSES", list(lesions)), *values.items()]
    words = [w for k, v in pairs for w in (f"MODEL.{k}", json.dumps(v))]
    return ImportedTwoBranch(f"configs/peers/{config}.yaml", words, tuple(lesions), num)
