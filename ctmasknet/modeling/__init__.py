"""The paper's model, as parts registered with Detectron2.

The door is :class:`ctmasknet.modeling.meta_arch.CTMaskNet`; :mod:`.fast` has the same models,
quicker, for engine and above.
"""

from ctmasknet.modeling.detector import (
    FlatAnchorRPN,
    RoundedAnchorGenerator,
    build_resnet_fpn_without_p6_backbone,
)
from ctmasknet.modeling.image_heads import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.image_heads.s import RankedBoxImageHead
from ctmasknet.modeling.meta_arch import CTMaskNet
from ctmasknet.modeling.peers import two_branch as _two_branch  # noqa: F401
from ctmasknet.modeling.roi_heads import RankedBoxROIHeads
from ctmasknet.modeling.timm_backbone import build_timm_fpn_backbone

__all__ = [
    "IMAGE_HEAD_REGISTRY",
    "CTMaskNet",
    "FlatAnchorRPN",
    "RankedBoxImageHead",
    "RankedBoxROIHeads",
    "RoundedAnchorGenerator",
    "build_resnet_fpn_without_p6_backbone",
    "build_timm_fpn_backbone",
]
