"""Backbone, anchors and RPN as the published weights expect them.

The pyramid ends where the ResNet does (reference). The authors round cell anchors to whole pixels:
of their 30 anchors a location, the ones of size 2 with ratio 0.1 or 0.25 then have no height: they
can be scored and even proposed, but never match a lesion.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    FPN,
    PROPOSAL_GENERATOR_REGISTRY,
)
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances

from ctmasknet.modeling.finite import check_images


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors; corners in whole px when ``round_px`` is set (halves to even)."""

    @configurable
    def __init__(self, *, round_px: bool, **kwargs):
        self._round_px = round_px
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        return {
            **super().from_config(cfg, input_shape),
            "round_px": cfg.MODEL.ANCHOR_GENERATOR.ROUND,
        }

    def generate_cell_anchors(self, sizes, aspect_ratios) -> torch.Tensor:
        """Anchors around (0, 0), sizes outermost: (sizes * ratios, 4) xyxy px."""
        anchors = super().generate_cell_anchors(sizes, aspect_ratios)
        return anchors.round() if self._round_px else anchors


class FlatAnchorTransform(Box2BoxTransform):
    """Box coding that accepts source boxes without height or width.

    Such an anchor overlaps nothing, so its target is never used; Detectron2 computes the target of
    every anchor all the same and refuses flat ones. They are coded as if they had a side of 1 px.
    """

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """(R, 4) and (R, 4) xyxy px -> (R, 4) deltas."""
        flat = (src_boxes[:, 2:] <= src_boxes[:, :2]).any(dim=1, keepdim=True)
        unit = torch.cat([src_boxes[:, :2], src_boxes[:, :2] + 1], dim=1)
        return super().get_deltas(torch.where(flat, unit, src_boxes), target_boxes)


@PROPOSAL_GENERATOR_REGISTRY.register()
class FlatAnchorRPN(RPN):
    """Detectron2's RPN, trainable with anchors that rounding left flat."""

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        return {
            **super().from_config(cfg, input_shape),
            "box2box_transform": FlatAnchorTransform(weights=cfg.MODEL.RPN.BBOX_REG_WEIGHTS),
        }

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """See Detectron2's.

        Raises:
            NotFiniteError: a logit or delta is no finite number.
        """
        check_images("region proposal network", [*pred_objectness_logits, *pred_anchor_deltas])
        return super().predict_proposals(
            anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
        )


class PaddedFPN(FPN):
    """FPN whose input is padded to multiples of 32 px at any truncation, as in the published
    models."""

    @property
    def size_divisibility(self) -> int:
        return 32


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_without_p6_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """FPN over ``MODEL.FPN.IN_FEATURES`` with no level above the last.

    A truncated model names only the last stage that is left, ``["res4"]`` or ``["res3"]``, in
    ``MODEL.RESNETS.OUT_FEATURES`` and ``MODEL.FPN.IN_FEATURES``: later stages are not built and
    one level ``p4`` or ``p3`` remains.
    """
    return PaddedFPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
