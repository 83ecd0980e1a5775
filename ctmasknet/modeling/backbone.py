"""ResNet with a feature pyramid that ends where the ResNet does (reference)."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone import build_resnet_backbone


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
