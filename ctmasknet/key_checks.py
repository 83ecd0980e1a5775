"""Which configuration keys are refused, because nothing reads them or no code knows their value,
and which a training's other keys leave without effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
from ctmasknet.config import (
    add_ctmasknet_config,
    has_jcs,
    is_classifier,
    leaves,
    names_scans,
    reads_lesions,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.image_heads import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.image_heads.registry import check_reads
from ctmasknet.modeling.masks import WAYS
from ctmasknet.modeling.peers.jcs import JCS_NORMS
from ctmasknet.modeling.peers.lesion_maps.heads import SCAN_HEAD, SLICE_HEADS
from ctmasknet.modeling.peers.semantic_lesions import SEMANTIC_NETWORKS
from ctmasknet.modeling.ranked_boxes import RowLayout
from ctmasknet.modeling.trainable import TRAINABLE_MODES


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
            raise CTMaskNetError(
                f"{key} is {value!r}; choose one of those registered: {known}; a module of yours "
                "that registers more is named on the command line, as DATASETS.IMPORT"
            )
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
    _check_reads(cfg)


def _check_reads(cfg: CfgNode) -> None:
    """Refuse a ``MODEL.IMAGE_HEAD.READS`` that the head or the detector has no use for."""
    reads = RowLayout.from_config(cfg).reads
    check_reads(IMAGE_HEAD_REGISTRY.get(cfg.MODEL.IMAGE_HEAD.NAME), reads)
    if not is_classifier(cfg):
        return
    for name, key, without in (
        ("features", "MODEL.ROI_BOX_HEAD.NUM_FC", not cfg.MODEL.ROI_BOX_HEAD.NUM_FC),
        ("masks", "MODEL.MASK_ON", not cfg.MODEL.MASK_ON),
    ):
        if name in reads and without:
            raise CTMaskNetError(
                f"MODEL.IMAGE_HEAD.READS names {name}, but {key} is "
                f"{'0' if name == 'features' else 'False'}; leave {name} out"
            )


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


def check_averages(cfg: CfgNode, given: Sequence[str], averages: bool) -> None:
    """Refuse more than one look (``TEST.AUG``, ``TEST.ENSEMBLE``) of a run that takes none.

    Args:
        given: keys of the command line that the model's file states too.
        averages: whether the run takes more looks.

    Raises:
        CTMaskNetError: it does not; or ``given`` would hold for one model of an ensemble alone.
    """
    for key, asked in (
        ("TEST.AUG.ENABLED", cfg.TEST.AUG.ENABLED),
        ("TEST.ENSEMBLE", cfg.TEST.ENSEMBLE),
    ):
        if asked and not averages:
            raise CTMaskNetError(
                f"{key} is {asked}, but only evaluation (tools/train_net.py) and tools/predict.py "
                "look at a slice more than once; leave it out"
            )
    if cfg.TEST.ENSEMBLE and given:
        raise CTMaskNetError(
            f"{given[0]}: an ensemble's models are used as their files state it; leave it out, or "
            "give one model"
        )


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
    "MODEL.INFERENCE.DTYPE": ("", "bfloat16"),
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
    "TEST.PRECISE_BN.": "batch normalisation tests with the statistics of training",
    "TEST.EXPECTED_RESULTS": "results are not compared (they are in results.json)",
    "SOLVER.REFERENCE_WORLD_SIZE": (
        "SOLVER.IMS_PER_BATCH and SOLVER.BASE_LR are those of all processes together"
    ),
    "GLOBAL.HACK": "nothing reads it",
}
_DETECTRON2_SIZES = tuple(get_cfg().TEST.AUG.MIN_SIZES)
_AUGMENTATION = "INPUT.AUGMENTATION."
#: What a preset decides; the first two alone change nothing.
_RECIPE = (
    *("PROB", "ELASTIC_SMOOTH_PX", "HIDE_OUTSIDE", "ROTATION_DEG", "SHEAR", "SCALE", "SHIFT"),
    *("ELASTIC_PX", "BOX_JITTER", "GREY_SCALE", "GREY_SHIFT", "NOISE_STD"),
)
#: The same under a condition.
_WITHOUT_EFFECT_WHERE: tuple[tuple[tuple[str, ...], Callable[[CfgNode], bool], str], ...] = (
    (
        ("TEST.AUG.MIN_SIZES",),
        # Configurations that were saved before have Detectron2's, which nobody chose
        lambda cfg: (
            tuple(cfg.TEST.AUG.MIN_SIZES) != _DETECTRON2_SIZES
            and (is_classifier(cfg) or not cfg.TEST.AUG.ENABLED)
        ),
        "a detector alone looks at other sizes, with TEST.AUG.ENABLED",
    ),
    (
        ("TEST.AUG.MAX_SIZE",),
        lambda cfg: not (cfg.TEST.AUG.ENABLED and cfg.TEST.AUG.MIN_SIZES) or is_classifier(cfg),
        "no other size is looked at (TEST.AUG.MIN_SIZES)",
    ),
    (
        ("TEST.AUG.FLIP",),
        lambda cfg: not cfg.TEST.AUG.ENABLED,
        "a slice is looked at once (TEST.AUG.ENABLED)",
    ),
    (
        ("TEST.AUG.ENABLED",),
        lambda cfg: not (cfg.TEST.AUG.FLIP or (cfg.TEST.AUG.MIN_SIZES and not is_classifier(cfg))),
        "it would be looked at as it is alone (TEST.AUG.FLIP)",
    ),
    (
        ("TEST.AUG.ENABLED",),
        lambda cfg: cfg.MODEL.META_ARCHITECTURE == "SemanticLesionNet",
        "lesions of several looks are merged by their boxes, which such a network does not give",
    ),
    (
        ("TEST.ENSEMBLE",),
        lambda cfg: not is_classifier(cfg),
        "classifiers' scores are averaged, but detectors' lesions are not",
    ),
    (("VIS_PERIOD",), is_classifier, "only a detector's training draws pictures"),
    (
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",),
        is_classifier,
        "the image head reads every class's own box outputs",
    ),
    (
        (
            *("INPUT.CROP_TO_BODY", "INPUT.LUNGS_ONLY"),
            *("MODEL.TRAINABLE", "SOLVER.DETECTOR_LR_FACTOR"),
        ),
        lambda cfg: not is_classifier(cfg),
        "it is a classifier's (MODEL.META_ARCHITECTURE CTMaskNet)",
    ),
    (
        ("INPUT.CROP.TYPE", "INPUT.CROP.SIZE"),
        lambda cfg: not cfg.INPUT.CROP.ENABLED,
        "no random crops are made (INPUT.CROP.ENABLED)",
    ),
    (
        tuple(f"{_AUGMENTATION}{name}" for name in _RECIPE),
        lambda cfg: cfg.INPUT.AUGMENTATION.PRESET != "none",
        "the preset says it (INPUT.AUGMENTATION.PRESET)",
    ),
    (
        (f"{_AUGMENTATION}PROB",),
        lambda cfg: not any(cfg.INPUT.AUGMENTATION[name] for name in _RECIPE[2:]),
        "nothing is drawn with it (INPUT.AUGMENTATION)",
    ),
    (
        (f"{_AUGMENTATION}ELASTIC_SMOOTH_PX",),
        lambda cfg: not cfg.INPUT.AUGMENTATION.ELASTIC_PX,
        "no px is moved (INPUT.AUGMENTATION.ELASTIC_PX)",
    ),
    (
        ("DATASETS.TRAIN_PATIENTS",),
        lambda cfg: not is_classifier(cfg),
        "it is a classifier's (MODEL.META_ARCHITECTURE CTMaskNet)",
    ),
    (
        ("MODEL.SLICE_NETWORK.",),
        lambda cfg: cfg.MODEL.META_ARCHITECTURE not in ("SliceClassifier", "ScanClassifier"),
        "there is no network on whole slices (MODEL.META_ARCHITECTURE SliceClassifier)",
    ),
    (
        ("MODEL.COVIDNET_CT.",),
        lambda cfg: cfg.MODEL.META_ARCHITECTURE != "COVIDNetCT",
        "there is no imported graph (MODEL.META_ARCHITECTURE COVIDNetCT)",
    ),
    (
        ("MODEL.PATCHES.",),
        lambda cfg: cfg.MODEL.META_ARCHITECTURE != "PatchNet",
        "there is no network on patches (MODEL.META_ARCHITECTURE PatchNet)",
    ),
    (
        ("MODEL.TWO_BRANCH.", "DATASETS.LESIONS"),
        lambda cfg: cfg.MODEL.META_ARCHITECTURE != "TwoBranchNet",
        "there are no two branches (MODEL.META_ARCHITECTURE TwoBranchNet)",
    ),
    (
        ("MODEL.SEMANTIC.",),
        lambda cfg: not cfg.MODEL.META_ARCHITECTURE.startswith("SemanticLesion"),
        "there is no semantic network (MODEL.META_ARCHITECTURE SemanticLesionNet)",
    ),
    (
        ("MODEL.SEMANTIC.ENCODER",),
        lambda cfg: cfg.MODEL.SEMANTIC.NAME.startswith(("infnet", "jcs")),
        "this network has its own (MODEL.SEMANTIC.NAME)",
    ),
    (
        ("MODEL.JCS.",),
        lambda cfg: not has_jcs(cfg),
        "there is no network of JCS (MODEL.SEMANTIC.NAME, MODEL.SLICE_NETWORK.NAME)",
    ),
    (
        ("MODEL.LESION_HEAD.",),
        lambda cfg: not reads_lesions(cfg),
        "no head reads lesions (MODEL.META_ARCHITECTURE SemanticLesionClassifier)",
    ),
    (
        ("MODEL.LESION_HEAD.FC_DIM",),
        lambda cfg: cfg.MODEL.LESION_HEAD.NAME != "mlp",
        "it is of mlp (MODEL.LESION_HEAD.NAME)",
    ),
    (
        ("MODEL.LESION_HEAD.DEPTH", "MODEL.LESION_HEAD.SIZE"),
        lambda cfg: cfg.MODEL.LESION_HEAD.NAME != SCAN_HEAD,
        f"it is of {SCAN_HEAD} (MODEL.LESION_HEAD.NAME)",
    ),
    (
        ("MODEL.LESION_HEAD.THRESHOLD",),
        lambda cfg: cfg.MODEL.LESION_HEAD.NAME == SCAN_HEAD,
        f"{SCAN_HEAD} reads the maps as they are (MODEL.LESION_HEAD.NAME)",
    ),
    (
        ("MODEL.LESION_HEAD.THRESHOLD",),
        lambda cfg: cfg.MODEL.META_ARCHITECTURE == "SemanticLesionClassifier",
        "px of a semantic network are lesion by MODEL.SEMANTIC.THRESHOLD",
    ),
    (
        ("MODEL.SCAN_NETWORK.",),
        lambda cfg: cfg.MODEL.META_ARCHITECTURE != "ScanClassifier",
        "there is no network on whole scans (MODEL.META_ARCHITECTURE ScanClassifier)",
    ),
    (
        ("DATALOADER.SLICES_PER_SCAN",),
        lambda cfg: not names_scans(cfg),
        "there is no network on whole scans (MODEL.META_ARCHITECTURE ScanClassifier)",
    ),
    (
        ("MODEL.SLICE_NETWORK.TEN_CROPS",),
        lambda cfg: not cfg.MODEL.SLICE_NETWORK.CROP or names_scans(cfg),
        "it is of slices that are cut (MODEL.SLICE_NETWORK.CROP, MODEL.META_ARCHITECTURE)",
    ),
    (
        ("TEST.PICTURES",),
        lambda cfg: cfg.TEST.PICTURES > 0 and names_scans(cfg),
        "a slice of a scan alone has no class",
    ),
    (("MODEL.SLICE_NETWORK.NUM_OUTPUTS",), names_scans, "a scan has as many outputs as classes"),
    (("TEST.IMS_PER_BATCH",), names_scans, "a batch is a scan (MODEL.META_ARCHITECTURE)"),
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
_WITH_DROPOUT = ("SetAttentionImageHead", "BoxLSTMImageHead", "BoxAffinityImageHead")
#: The same for keys that configurations inherit, about which a training warns.
_IDLE_WHERE: tuple[tuple[tuple[str, ...], Callable[[CfgNode], bool], str], ...] = (
    (
        ("TEST.AUG.ENABLED", "TEST.ENSEMBLE"),
        lambda cfg: True,
        "a training validates one model, which looks at a slice once",
    ),
    (
        ("MODEL.IMAGE_HEAD.", "MODEL.RANKED_BOXES."),
        lambda cfg: not is_classifier(cfg),
        "it is a classifier's (MODEL.META_ARCHITECTURE CTMaskNet)",
    ),
    (
        ("MODEL.IMAGE_HEAD.NUM_QUERIES",),
        lambda cfg: cfg.MODEL.IMAGE_HEAD.NAME != "SetAttentionImageHead",
        "it is SetAttentionImageHead's (MODEL.IMAGE_HEAD.NAME)",
    ),
    (
        ("MODEL.IMAGE_HEAD.DROPOUT",),
        lambda cfg: cfg.MODEL.IMAGE_HEAD.NAME not in _WITH_DROPOUT,
        f"it is for {', '.join(_WITH_DROPOUT)} (MODEL.IMAGE_HEAD.NAME)",
    ),
    (
        ("TEST.COCO_FAST",),
        is_classifier,
        "it is a detector's (MODEL.META_ARCHITECTURE GeneralizedRCNN)",
    ),
    (
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS",),
        lambda cfg: is_classifier(cfg) and not cfg.DATASETS.LESIONS,
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
