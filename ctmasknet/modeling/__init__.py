"""Parts registered with Detectron2."""

from ctmasknet.modeling.detector import (
    FlatAnchorRPN,
    RoundedAnchorGenerator,
    build_resnet_fpn_without_p6_backbone,
)
from ctmasknet.modeling.image_heads.s import IMAGE_HEAD_REGISTRY, RankedBoxImageHead
from ctmasknet.modeling.meta_arch import CTMaskNet
from ctmasknet.modeling.roi_heads import RankedBoxROIHeads

__all__ = [
    "IMAGE_HEAD_REGISTRY",
    "CTMaskNet",
    "FlatAnchorRPN",
    "RankedBoxImageHead",
    "RankedBoxROIHeads",
    "RoundedAnchorGenerator",
    "build_resnet_fpn_without_p6_backbone",
]
