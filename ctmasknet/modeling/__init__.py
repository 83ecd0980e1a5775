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
from ctmasknet.modeling.peers import (
    COVIDNetCT,
    DetectedLesionClassifier,
    PatchNet,
    ScanClassifier,
    SemanticLesionClassifier,
    SemanticLesionNet,
    SliceClassifier,
)
from ctmasknet.modeling.peers.mask_feature_heads import AffinityImageHead, LSTMAttentionImageHead
from ctmasknet.modeling.peers.two_branch import TwoBranchNet
from ctmasknet.modeling.roi_heads import RankedBoxROIHeads
from ctmasknet.modeling.timm_backbone import build_timm_fpn_backbone

__all__ = [
    "IMAGE_HEAD_REGISTRY",
    "AffinityImageHead",
    "COVIDNetCT",
    "CTMaskNet",
    "DetectedLesionClassifier",
    "FlatAnchorRPN",
    "LSTMAttentionImageHead",
    "PatchNet",
    "RankedBoxImageHead",
    "RankedBoxROIHeads",
    "RoundedAnchorGenerator",
    "ScanClassifier",
    "SemanticLesionClassifier",
    "SemanticLesionNet",
    "SliceClassifier",
    "TwoBranchNet",
    "build_resnet_fpn_without_p6_backbone",
    "build_timm_fpn_backbone",
]
