"""The words that a key can be, and the registries that a model's parts are chosen of."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
)

from ctmasknet.modeling.image_heads import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.masks import WAYS
from ctmasknet.modeling.peers.jcs import JCS_NORMS
from ctmasknet.modeling.peers.lesion_maps.heads import SCAN_HEAD, SLICE_HEADS
from ctmasknet.modeling.peers.semantic_lesions import SEMANTIC_NETWORKS
from ctmasknet.modeling.ranked_boxes import FRAMES
from ctmasknet.modeling.trainable import TRAINABLE_MODES

_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_POOLERS = ("ROIAlign", "ROIAlignV2", "ROIPool")
#: Enumerations and their words.
CHOICES: dict[str, Sequence[str]] = {
    "DATASETS.SHARED_PATIENTS": ("refuse", "warn", "strict"),
    "DATALOADER.BAD_SLICES": ("error", "skip"),
    "DATALOADER.SAMPLER_TRAIN": (
        *("TrainingSampler", "RepeatFactorTrainingSampler"),
        *("ClassBalancedSampler", "LesionBalancedSampler"),
    ),
    "INPUT.AUGMENTATION.PRESET": ("none", "covidnet_ct"),
    "INPUT.CROP.TYPE": ("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.RANDOM_FLIP": ("none", "horizontal"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.FPN.NORM": _NORMS,
    "MODEL.META_ARCHITECTURE": (
        *("GeneralizedRCNN", "CTMaskNet", "TwoBranchNet", "SliceClassifier", "ScanClassifier"),
        *("SemanticLesionNet", "COVIDNetCT", "PatchNet"),
        *("DetectedLesionClassifier", "SemanticLesionClassifier"),
    ),
    "MODEL.RESNETS.NORM": _NORMS,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.NORM": _NORMS,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO": FRAMES,
    "MODEL.JCS.NORM": tuple(JCS_NORMS),
    "MODEL.LESION_HEAD.NAME": (*SLICE_HEADS, SCAN_HEAD),
    "MODEL.SEMANTIC.NAME": SEMANTIC_NETWORKS,
    "MODEL.ROI_HEADS.NAME": ("RankedBoxROIHeads", "TwoBranchROIHeads"),
    "MODEL.TWO_BRANCH.COPY_WHEN": ("best", "previous"),
    "MODEL.ROI_MASK_HEAD.NORM": _NORMS,
    "MODEL.ROI_MASK_HEAD.PASTE": WAYS,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_MASK_HEAD.TARGETS": WAYS,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RANKED_BOXES.CACHE": ("auto", "always", "never"),
    "MODEL.TRAINABLE": TRAINABLE_MODES,
    "MODEL.INFERENCE.DTYPE": ("", "bfloat16", "int8"),
    "MODEL.INFERENCE.ENGINE": ("auto", "torch", "openvino"),
    "MODEL.UNLIKE_CHECKPOINT": ("refuse", "warn"),
    "SOLVER.OPTIMIZER": ("ADAM", "ADAMW", "SGD"),
    "SOLVER.AMP.DTYPE": ("", "float16", "bfloat16"),
    "SOLVER.LR_SCHEDULER_NAME": (
        *("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "TEST.COCO_FAST": ("auto", "always", "never"),
}
#: Parts of a model that are chosen by their registered name.
REGISTRIES = {
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.IMAGE_HEAD.NAME": IMAGE_HEAD_REGISTRY,
}
#: Registered parts for boxes that are not upright, as all here are.
ROTATED = ("RotatedAnchorGenerator", "RRPN", "RROIHeads")
