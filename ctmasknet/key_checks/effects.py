"""Keys that have no effect, always or where other keys leave them without one, and why."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode, get_cfg

from ctmasknet.config import has_jcs, is_classifier, names_scans, reads_lesions
from ctmasknet.modeling.peers.lesion_maps.heads import SCAN_HEAD

_NO_PART = "neither the detector nor the classifier has such a part"
#: Beginnings of Detectron2's keys that nothing reads here, with the reason and what to use instead.
WITHOUT_EFFECT = {
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
WITHOUT_EFFECT_WHERE: tuple[tuple[tuple[str, ...], Callable[[CfgNode], bool], str], ...] = (
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
        ("MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO",),
        lambda cfg: "boxes" not in cfg.MODEL.IMAGE_HEAD.READS,
        "the image head reads no boxes (MODEL.IMAGE_HEAD.READS)",
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
IDLE_WHERE: tuple[tuple[tuple[str, ...], Callable[[CfgNode], bool], str], ...] = (
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
        lambda cfg: cfg.MODEL.INFERENCE.DTYPE != "bfloat16",
        "it is of bfloat16; a file in int8 states its own (MODEL.INFERENCE.DTYPE)",
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
