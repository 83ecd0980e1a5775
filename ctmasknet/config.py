"""Every configuration key that ctmasknet adds to Detectron2's, with its meaning and unit, and which
of Detectron2's it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
)

from ctmasknet.bounds import check_together, check_value
from ctmasknet.classes import IMAGE_CLASSES, MASK_TYPES
from ctmasknet.ct.scan import Window
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.image_heads import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.masks import WAYS
from ctmasknet.modeling.trainable import TRAINABLE_MODES


def add_ctmasknet_config(cfg: CfgNode) -> None:
    """Add ctmasknet's keys to ``cfg`` (in place); call it before ``cfg.merge_from_file``.

    Some of Detectron2's defaults change as well: the device is CUDA only where there is one,
    weights are decayed in every layer alike, as the paper's optimiser does, pictures are RGB and
    masks bitmaps, and training sees slices in the size of testing.
    """
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MASK_FORMAT = "bitmask"

    # --- data ---
    # Shorter sides that training draws from (MIN_SIZE_TRAIN_SAMPLING: one of them, or from the
    # range of two), px; () for INPUT.MIN_SIZE_TEST.
    cfg.INPUT.MIN_SIZE_TRAIN = ()
    # The longest side in training, px; 0 for INPUT.MAX_SIZE_TEST.
    cfg.INPUT.MAX_SIZE_TRAIN = 0
    # Registered data sets evaluated while training runs; the best checkpoint is chosen on them.
    # DATASETS.TEST is only looked at when a trained model is evaluated.
    cfg.DATASETS.VAL = ()
    # What happens when a patient is in two of a run's sets, or is evaluated after the weights were
    # trained on him (a classifier's: its detector's too): refuse | warn | strict (patients spelled
    # otherwise are refused too). Only ids of one numbering can be compared (datasets/README.md,
    # "Leaks").
    cfg.DATASETS.SHARED_PATIENTS = "refuse"
    # Cut every slice to the body box of its list before resizing (classification only).
    cfg.INPUT.CROP_TO_BODY = False
    # The window through which HU become grey levels 0..255, for files that state HU (DICOM, NIfTI);
    # 8-bit images pass unchanged (see ctmasknet.ct.scan). In HU.
    cfg.INPUT.WINDOW_CENTER_HU = Window.center_hu
    cfg.INPUT.WINDOW_WIDTH_HU = Window.width_hu
    # A slice that cannot be read: error (the run ends and names it) | skip (it is left out; in
    # training a slice drawn by seed and position stands in for it). Skipped ones are listed in
    # OUTPUT_DIR/bad_slices.json (training) or OUTPUT_DIR/inference/bad_slices.json (evaluation).
    cfg.DATALOADER.BAD_SLICES = "error"
    # With skip: the run ends with an error when more than this share (0..1) of a data set was bad.
    cfg.DATALOADER.MAX_BAD_SHARE = 0.01
    # Images a batch in evaluation. Images of unlike size are padded to the largest of their batch,
    # which changes features near the padded border; 1 makes every result independent of its
    # neighbours.
    cfg.TEST.IMS_PER_BATCH = 1
    # COCO's figures by faster-coco-eval, which agree with pycocotools': auto (where it is
    # installed) | always | never.
    cfg.TEST.COCO_FAST = "auto"

    # --- detector ---
    # Names of the detector's classes, in category order. The tools take them from the training set;
    # MODEL.ROI_HEADS.NUM_CLASSES has to be their number.
    cfg.MODEL.LESION_CLASSES = list(MASK_TYPES["both"])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(cfg.MODEL.LESION_CLASSES)
    cfg.MODEL.TIMM = CfgNode()
    # The backbone in timm's list of networks, with MODEL.BACKBONE.NAME build_timm_fpn_backbone.
    # MODEL.FPN.IN_FEATURES names its maps by their strides: res2 (4 px) to res5 (32 px).
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Round cell anchors to whole px as the published weights expect. Some then have no height.
    cfg.MODEL.ANCHOR_GENERATOR.ROUND = True

    # How a predicted mask is pasted into the image, and how a lesion's mask is cut to a box in
    # training: detectron2 | published (as the authors' torchvision 0.3 did, see
    # ctmasknet.modeling.masks).
    cfg.MODEL.ROI_MASK_HEAD.PASTE = "detectron2"
    cfg.MODEL.ROI_MASK_HEAD.TARGETS = "detectron2"

    # --- ranked boxes: what the detector hands to the image head ---
    cfg.MODEL.RANKED_BOXES = CfgNode()
    # N: rows [score, dx, dy, dw, dh] an image.
    cfg.MODEL.RANKED_BOXES.NUM = 256
    # IoU above which the lower-scoring of two boxes of one class is dropped (paper section 3.2).
    cfg.MODEL.RANKED_BOXES.NMS_THRESH = 0.75
    # Lowest score that counts; below zero keeps every box (paper section 3.2).
    cfg.MODEL.RANKED_BOXES.SCORE_THRESH = -0.01

    # With only the image head trained, rows are computed once and cached: auto (where no
    # augmentation changes them and all slices have one size) | always | never.
    cfg.MODEL.RANKED_BOXES.CACHE = "auto"
    # Folder of the cached rows; "" for ranked_boxes in OUTPUT_DIR. Runs may share one.
    cfg.MODEL.RANKED_BOXES.CACHE_DIR = ""

    # --- image head S ---
    cfg.MODEL.IMAGE_HEAD = CfgNode()
    cfg.MODEL.IMAGE_HEAD.NAME = "RankedBoxImageHead"
    # Names of the slice classes, in the order of the logits. The tools take them from the training
    # set.
    cfg.MODEL.IMAGE_HEAD.CLASSES = list(IMAGE_CLASSES)
    # Width of the two hidden layers.
    cfg.MODEL.IMAGE_HEAD.FC_DIM = 1024

    # Columns of the affinity head's matrix, and stages of the sieve of both heads on mask features
    # (see ctmasknet.modeling.peers.mask_feature_heads).
    cfg.MODEL.IMAGE_HEAD.AFFINITIES = 64
    cfg.MODEL.IMAGE_HEAD.SIEVE_STAGES = 3

    # --- the author's later models (see ctmasknet.modeling.peers.two_branch) ---
    cfg.MODEL.TWO_BRANCH = CfgNode()
    # The image head reads mask features of the ranked boxes, not their rows.
    cfg.MODEL.TWO_BRANCH.MASK_FEATURES = False
    # Parts (backbone, image_head) whose batch normalisation evaluates with the batch's statistics,
    # as the author's scripts do.
    cfg.MODEL.TWO_BRANCH.BATCH_STATISTICS = ()
    # Every channel of a slice by its own mean and standard deviation, not MODEL.PIXEL_MEAN, _STD.
    cfg.MODEL.TWO_BRANCH.OWN_PIXELS = False

    # --- what the classifier trains: heads | heads_bn | heads_bn_no_shortcut | full ---
    # (see ctmasknet.modeling.trainable)
    cfg.MODEL.TRAINABLE = "heads"

    # --- evaluation and prediction (see ctmasknet.modeling.fast.inference) ---
    # What happens when a model is used with another value than its checkpoint states (input size,
    # thresholds, anchors, ...), which only an override can ask for: refuse | warn.
    cfg.MODEL.UNLIKE_CHECKPOINT = "refuse"
    cfg.MODEL.INFERENCE = CfgNode()
    # Use a copy with batch normalisation folded into the convolutions: the same results but for
    # rounding, in less time.
    cfg.MODEL.INFERENCE.FUSED = True
    # What that copy computes in: "" for float32 | bfloat16, where the CPU or GPU has it, which
    # moves logits by some tenths.
    cfg.MODEL.INFERENCE.DTYPE = ""
    # In bfloat16, a slice whose two best logits are less than this apart is named again in float32;
    # 0: never.
    cfg.MODEL.INFERENCE.RECHECK_MARGIN = 1.0

    # --- solver ---
    # ADAM | SGD
    cfg.SOLVER.OPTIMIZER = "ADAM"
    cfg.SOLVER.WEIGHT_DECAY_NORM = None
    # Learning rate of a classifier's detector as a share of SOLVER.BASE_LR, which the image head
    # has. Below 1, a head that starts from random weights learns before the boxes it reads change.
    cfg.SOLVER.DETECTOR_LR_FACTOR = 1.0
    # Metric on DATASETS.VAL that chooses model_best.pth, as in metrics.json, such as "segm/AP50".
    cfg.SOLVER.BEST_METRIC = ""
    # Evaluations without a better value of it after which training ends; 0: never.
    cfg.SOLVER.EARLY_STOPPING_PATIENCE = 0
    # Iterations from one line in metrics.json, TensorBoard and terminal to the next.
    cfg.SOLVER.LOG_PERIOD = 20
    # Training, checkpoints and evaluation in epochs, passes over the slices trained on; above 0
    # they decide over MAX_ITER, CHECKPOINT_PERIOD and EVAL_PERIOD (see ctmasknet.engine.setup).
    cfg.SOLVER.MAX_EPOCHS = 0
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0
    cfg.TEST.EVAL_EPOCHS = 0
    # With SOLVER.AMP.ENABLED, what layers compute in: float16 | bfloat16; "" for float16 on CUDA
    # and bfloat16 on a CPU (see ctmasknet.engine.solver).
    cfg.SOLVER.AMP.DTYPE = ""
    # Evaluation while training also gives the losses on DATASETS.VAL, as validation/<loss>.
    cfg.TEST.VALIDATION_LOSS = True


def is_classifier(cfg: CfgNode) -> bool:
    """Whether ``cfg`` describes the slice classifier and not the lesion detector."""
    return cfg.MODEL.META_ARCHITECTURE in ("CTMaskNet", "TwoBranchNet")


def leaves(node: CfgNode, above: str = "") -> Iterator[tuple[str, object]]:
    """Every key of a configuration with its value: ``("MODEL.MASK_ON", True)``, ..."""
    for name, value in node.items():
        key = f"{above}{name}"
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


def check_keys(cfg: CfgNode) -> None:
    """Refuse keys that are set without having an effect, and values that no code knows.

    Raises:
        CTMaskNetError: names the key, its value, why it is refused and what to do instead.
    """
    usual = get_cfg()
    add_ctmasknet_config(usual)
    default = dict(leaves(usual))
    for key, value in leaves(cfg):
        if key in CHOICES and value not in CHOICES[key]:
            known = ", ".join(word or '""' for word in CHOICES[key])
            raise CTMaskNetError(f"{key} is {value!r}; choose one of {known}")
        if key in _REGISTRIES and (value not in _REGISTRIES[key] or value in _ROTATED):
            known = ", ".join(sorted({name for name, _ in _REGISTRIES[key]} - set(_ROTATED)))
            raise CTMaskNetError(f"{key} is {value!r}; choose one of those registered: {known}")
        check_value(key, value)
        changed = key in default and _tuples(value) != _tuples(default[key])
        reason = _without_effect(key, cfg) if changed else None
        if reason:
            raise CTMaskNetError(
                f"{key} is {value!r}, which has no effect: {reason}; leave it at {default[key]!r}"
            )
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise CTMaskNetError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}, but INPUT.MIN_SIZE_TRAIN_SAMPLING range draws "
            "between two; give the least and the largest shorter side, px"
        )
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        raise CTMaskNetError(
            "MODEL.BACKBONE.NAME is 'build_resnet_backbone', which has no feature pyramid for the "
            "RPN to look at; set it to build_resnet_fpn_without_p6_backbone"
        )
    check_together(cfg)


def idle_keys(cfg: CfgNode) -> Iterator[str]:
    """Keys of a training that its other keys leave without effect, each as a line that says why.

    They are not refused, for configurations inherit them.
    """
    usual = get_cfg()
    add_ctmasknet_config(usual)
    default = dict(leaves(usual))
    for key, value in leaves(cfg):
        if key not in default or _tuples(value) == _tuples(default[key]):
            continue
        for starts, condition, reason in _IDLE_WHERE:
            if key.startswith(starts) and condition(cfg):
                yield f"{key} {value!r} has no effect: {reason}"
                break


def _tuples(value: object) -> object:
    """A sequence as tuples all through, for a file that was dumped has lists in their place."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _without_effect(key: str, cfg: CfgNode) -> str | None:
    for start, reason in _WITHOUT_EFFECT.items():
        if key.startswith(start):
            return reason
    for starts, condition, reason in _WITHOUT_EFFECT_WHERE:
        if key.startswith(starts) and condition(cfg):
            return reason
    return None


_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_POOLERS = ("ROIAlign", "ROIAlignV2", "ROIPool")
#: Enumerations and their words.
CHOICES: dict[str, Sequence[str]] = {
    "DATASETS.SHARED_PATIENTS": ("refuse", "warn", "strict"),
    "DATALOADER.BAD_SLICES": ("error", "skip"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
    "INPUT.RANDOM_FLIP": ("none", "horizontal"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.FPN.NORM": _NORMS,
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "CTMaskNet", "TwoBranchNet"),
    "MODEL.RESNETS.NORM": _NORMS,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.NORM": _NORMS,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_HEADS.NAME": ("RankedBoxROIHeads", "TwoBranchROIHeads"),
    "MODEL.ROI_MASK_HEAD.NORM": _NORMS,
    "MODEL.ROI_MASK_HEAD.PASTE": WAYS,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_MASK_HEAD.TARGETS": WAYS,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RANKED_BOXES.CACHE": ("auto", "always", "never"),
    "MODEL.TRAINABLE": TRAINABLE_MODES,
    "MODEL.INFERENCE.DTYPE": ("", "bfloat16"),
    "MODEL.UNLIKE_CHECKPOINT": ("refuse", "warn"),
    "SOLVER.OPTIMIZER": ("ADAM", "SGD"),
    "SOLVER.AMP.DTYPE": ("", "float16", "bfloat16"),
    "SOLVER.LR_SCHEDULER_NAME": (
        *("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "TEST.COCO_FAST": ("auto", "always", "never"),
}
#: Parts of a model that are chosen by their registered name.
_REGISTRIES = {
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.IMAGE_HEAD.NAME": IMAGE_HEAD_REGISTRY,
}
#: Registered parts for boxes that are not upright, as all here are.
_ROTATED = ("RotatedAnchorGenerator", "RRPN", "RROIHeads")
_NO_PART = "neither the detector nor the classifier has such a part"
#: Beginnings of Detectron2's keys that nothing reads here, with the reason and what to use instead.
_WITHOUT_EFFECT = {
    "VERSION": "configurations are of this version",
    "MODEL.LOAD_PROPOSALS": "proposals come from the RPN",
    "DATASETS.PROPOSAL_FILES_": "proposals come from the RPN",
    "DATASETS.PRECOMPUTED_PROPOSAL_": "proposals come from the RPN (MODEL.RPN.POST_NMS_TOPK_*)",
    "MODEL.KEYPOINT_ON": "lesions have boxes and masks (MODEL.MASK_ON) but no keypoints",
    "MODEL.ROI_KEYPOINT_HEAD.": _NO_PART,
    "TEST.KEYPOINT_OKS_SIGMAS": "lesions have no keypoints",
    "MODEL.SEM_SEG_HEAD.": _NO_PART,
    "MODEL.PANOPTIC_FPN.": _NO_PART,
    "MODEL.RETINANET.": f"{_NO_PART} (see MODEL.RPN and MODEL.ROI_HEADS)",
    "MODEL.ROI_BOX_CASCADE_HEAD.": f"{_NO_PART} (see MODEL.ROI_BOX_HEAD)",
    "MODEL.ANCHOR_GENERATOR.ANGLES": "boxes are upright",
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": "data sets state no frequencies of classes",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_": "data sets state no frequencies of classes",
    "INPUT.FORMAT": "models read RGB, the order of MODEL.PIXEL_MEAN and MODEL.PIXEL_STD",
    "INPUT.MASK_FORMAT": "ground truth is read from label masks",
    "INPUT.CROP.": "random crops are not made (INPUT.CROP_TO_BODY crops slices to the body)",
    "TEST.AUG.": "a slice is tested once, as it is (INPUT.RANDOM_FLIP augments in training)",
    "TEST.PRECISE_BN.": "batch normalisation tests with the statistics of training",
    "TEST.EXPECTED_RESULTS": "results are not compared (they are in results.json)",
    "SOLVER.REFERENCE_WORLD_SIZE": (
        "SOLVER.IMS_PER_BATCH and SOLVER.BASE_LR are those of all processes together"
    ),
    "GLOBAL.HACK": "nothing reads it",
}
#: The same under a condition.
_WITHOUT_EFFECT_WHERE: tuple[tuple[tuple[str, ...], Callable[[CfgNode], bool], str], ...] = (
    (("VIS_PERIOD",), is_classifier, "only a detector's training draws pictures"),
    (
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",),
        is_classifier,
        "the image head reads every class's own box outputs",
    ),
    (
        ("INPUT.CROP_TO_BODY", "MODEL.TRAINABLE", "SOLVER.DETECTOR_LR_FACTOR"),
        lambda cfg: not is_classifier(cfg),
        "it is a classifier's (MODEL.META_ARCHITECTURE CTMaskNet)",
    ),
    (
        ("MODEL.TIMM.NAME",),
        lambda cfg: cfg.MODEL.BACKBONE.NAME != "build_timm_fpn_backbone",
        "it is build_timm_fpn_backbone's (MODEL.BACKBONE.NAME)",
    ),
    (
        ("SOLVER.MOMENTUM", "SOLVER.NESTEROV"),
        lambda cfg: cfg.SOLVER.OPTIMIZER != "SGD",
        "it is SGD's (SOLVER.OPTIMIZER)",
    ),
    (
        ("SOLVER.BASE_LR_END",),
        lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupCosineLR",
        "it is WarmupCosineLR's (SOLVER.LR_SCHEDULER_NAME)",
    ),
    (
        ("SOLVER.NUM_DECAYS",),
        lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupStepWithFixedGammaLR",
        "it is WarmupStepWithFixedGammaLR's (SOLVER.LR_SCHEDULER_NAME)",
    ),
    (
        ("SOLVER.CLIP_GRADIENTS.",),
        lambda cfg: not cfg.SOLVER.CLIP_GRADIENTS.ENABLED,
        "no gradient is clipped (SOLVER.CLIP_GRADIENTS.ENABLED)",
    ),
    (
        ("SOLVER.AMP.DTYPE",),
        lambda cfg: not cfg.SOLVER.AMP.ENABLED,
        "training is in float32 (SOLVER.AMP.ENABLED)",
    ),
    (
        ("DATALOADER.REPEAT_",),
        lambda cfg: cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler",
        "it is RepeatFactorTrainingSampler's (DATALOADER.SAMPLER_TRAIN)",
    ),
    (
        ("MODEL.RESNETS.DEFORM_MODULATED", "MODEL.RESNETS.DEFORM_NUM_GROUPS"),
        lambda cfg: not any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE),
        "no stage is deformable (MODEL.RESNETS.DEFORM_ON_PER_STAGE)",
    ),
)
#: The same for keys that configurations inherit, about which a training warns.
_IDLE_WHERE: tuple[tuple[tuple[str, ...], Callable[[CfgNode], bool], str], ...] = (
    (
        ("MODEL.IMAGE_HEAD.", "MODEL.RANKED_BOXES."),
        lambda cfg: not is_classifier(cfg),
        "it is a classifier's (MODEL.META_ARCHITECTURE CTMaskNet)",
    ),
    (
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "TEST.COCO_FAST"),
        is_classifier,
        "it is a detector's (MODEL.META_ARCHITECTURE GeneralizedRCNN)",
    ),
    (
        ("SOLVER.DETECTOR_LR_FACTOR",),
        lambda cfg: cfg.MODEL.TRAINABLE == "heads",
        "the image head alone is trained (MODEL.TRAINABLE heads)",
    ),
    (
        ("MODEL.RANKED_BOXES.CACHE_DIR",),
        lambda cfg: cfg.MODEL.TRAINABLE != "heads" or cfg.MODEL.RANKED_BOXES.CACHE == "never",
        "no rows are cached (MODEL.TRAINABLE, MODEL.RANKED_BOXES.CACHE)",
    ),
    (
        ("MODEL.INFERENCE.RECHECK_MARGIN",),
        lambda cfg: not cfg.MODEL.INFERENCE.DTYPE,
        "everything is named in float32 (MODEL.INFERENCE.DTYPE)",
    ),
    (
        ("MODEL.ROI_BOX_HEAD.CONV_DIM", "MODEL.ROI_BOX_HEAD.NORM"),
        lambda cfg: not cfg.MODEL.ROI_BOX_HEAD.NUM_CONV,
        "the box head has no convolution (MODEL.ROI_BOX_HEAD.NUM_CONV)",
    ),
    (
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING",),
        lambda cfg: not cfg.INPUT.MIN_SIZE_TRAIN,
        "training sees slices in the size of testing (INPUT.MIN_SIZE_TRAIN)",
    ),
    (
        ("DATALOADER.MAX_BAD_SHARE",),
        lambda cfg: cfg.DATALOADER.BAD_SLICES == "error",
        "the first bad slice ends the run (DATALOADER.BAD_SLICES)",
    ),
    (
        ("SOLVER.WARMUP_FACTOR", "SOLVER.WARMUP_METHOD"),
        lambda cfg: not cfg.SOLVER.WARMUP_ITERS,
        "there is no warm-up (SOLVER.WARMUP_ITERS)",
    ),
    (
        ("SOLVER.GAMMA",),
        lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR",
        "WarmupCosineLR has no steps (SOLVER.LR_SCHEDULER_NAME)",
    ),
    (
        ("SOLVER.STEPS",),
        lambda cfg: cfg.SOLVER.STEPS and cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupMultiStepLR",
        "they are WarmupMultiStepLR's (SOLVER.LR_SCHEDULER_NAME)",
    ),
)
