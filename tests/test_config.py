"""Every key of a configuration: it works, or it is refused; and what the paper's configs set."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from ctmasknet.config import add_ctmasknet_config, leaves
from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.key_checks import check_keys, idle_keys
from ctmasknet.key_checks.choices import CHOICES

#: Module -> keys that it reads and that so have an effect.
READ_IN = {
    "ctmasknet.data.bad_slices": "DATALOADER.BAD_SLICES DATALOADER.MAX_BAD_SHARE",
    "ctmasknet.data.mapper": "INPUT.CROP_TO_BODY INPUT.LUNGS_ONLY INPUT.MAPPER_TRAIN",
    "ctmasknet.data.training.recipe": """INPUT.AUGMENTATION.BOX_JITTER INPUT.AUGMENTATION.ELASTIC_PX
        INPUT.AUGMENTATION.ELASTIC_SMOOTH_PX INPUT.AUGMENTATION.GREY_SCALE
        INPUT.AUGMENTATION.GREY_SHIFT INPUT.AUGMENTATION.HIDE_OUTSIDE INPUT.AUGMENTATION.NOISE_STD
        INPUT.AUGMENTATION.PRESET INPUT.AUGMENTATION.PROB INPUT.AUGMENTATION.ROTATION_DEG
        INPUT.AUGMENTATION.SCALE INPUT.AUGMENTATION.SHEAR INPUT.AUGMENTATION.SHIFT
        INPUT.CROP.ENABLED INPUT.CROP.SIZE INPUT.CROP.TYPE INPUT.MAX_SIZE_TEST
        INPUT.MAX_SIZE_TRAIN INPUT.MIN_SIZE_TEST INPUT.MIN_SIZE_TRAIN
        INPUT.MIN_SIZE_TRAIN_SAMPLING INPUT.RANDOM_FLIP""",
    "ctmasknet.config_file": "DATASETS.IMPORT",
    "ctmasknet.engine.checkpoint": "SOLVER.CHECKPOINT_PERIOD",
    "ctmasknet.engine.runs.tensorboard": "TEST.PICTURES",
    "ctmasknet.engine.ranked_box_cache": "MODEL.RANKED_BOXES.CACHE MODEL.RANKED_BOXES.CACHE_DIR",
    "ctmasknet.engine.setup": """DATASETS.LESIONS DATASETS.SHARED_PATIENTS DATASETS.TEST
        DATASETS.TRAIN DATASETS.VAL
        MODEL.DEVICE MODEL.IMAGE_HEAD.CLASSES MODEL.LESION_CLASSES
        MODEL.UNLIKE_CHECKPOINT MODEL.WEIGHTS OUTPUT_DIR""",
    "ctmasknet.engine.runs.epochs": "SOLVER.CHECKPOINT_EPOCHS SOLVER.MAX_EPOCHS TEST.EVAL_EPOCHS",
    "ctmasknet.config": "MODEL.META_ARCHITECTURE",
    "ctmasknet.engine.solver": """SOLVER.AMP.DTYPE SOLVER.AMP.ENABLED SOLVER.BASE_LR
        SOLVER.BIAS_LR_FACTOR SOLVER.DETECTOR_LR_FACTOR SOLVER.MOMENTUM SOLVER.NESTEROV
        SOLVER.OPTIMIZER SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_BIAS SOLVER.WEIGHT_DECAY_NORM
        MODEL.TWO_BRANCH.COPY_WHEN""",
    "ctmasknet.engine.testing": """MODEL.MASK_ON TEST.COCO_FAST TEST.DETECTIONS_PER_IMAGE
        TEST.ENSEMBLE""",
    "ctmasknet.engine.train_data": """DATALOADER.ASPECT_RATIO_GROUPING
        DATALOADER.FILTER_EMPTY_ANNOTATIONS DATALOADER.NUM_WORKERS DATALOADER.REPEAT_SQRT
        DATALOADER.REPEAT_THRESHOLD DATALOADER.SAMPLER_TRAIN
        DATALOADER.SLICES_PER_SCAN DATASETS.TRAIN_PATIENTS SEED SOLVER.IMS_PER_BATCH""",
    "ctmasknet.engine.trainer": """MODEL.TRANSFER SOLVER.BEST_METRIC
        SOLVER.EARLY_STOPPING_PATIENCE SOLVER.LOG_PERIOD SOLVER.MAX_ITER TEST.EVAL_PERIOD
        TEST.IMS_PER_BATCH TEST.VALIDATION_LOSS""",
    "ctmasknet.modeling.averaged": "TEST.AUG.ENABLED TEST.AUG.FLIP TEST.AUG.MIN_SIZES",
    "ctmasknet.modeling.detector": """MODEL.ANCHOR_GENERATOR.ROUND MODEL.FPN.FUSE_TYPE
        MODEL.FPN.IN_FEATURES MODEL.FPN.NORM MODEL.FPN.OUT_CHANNELS""",
    "ctmasknet.modeling.fast.inference": """MODEL.INFERENCE.DTYPE MODEL.INFERENCE.ENGINE
        MODEL.INFERENCE.RECHECK_MARGIN""",
    "ctmasknet.modeling.image_heads.s": "MODEL.IMAGE_HEAD.FC_DIM",
    "ctmasknet.modeling.image_heads.registry": "MODEL.IMAGE_HEAD.NAME",
    "ctmasknet.modeling.image_heads.set_attention": """MODEL.IMAGE_HEAD.DROPOUT
        MODEL.IMAGE_HEAD.NUM_QUERIES""",
    "ctmasknet.modeling.ranked_boxes": "MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO MODEL.IMAGE_HEAD.READS",
    "ctmasknet.modeling.meta_arch": "MODEL.TRAINABLE",
    "ctmasknet.modeling.roi_heads": """MODEL.RANKED_BOXES.NMS_THRESH MODEL.RANKED_BOXES.NUM
        MODEL.RANKED_BOXES.SCORE_THRESH MODEL.ROI_MASK_HEAD.PASTE MODEL.ROI_MASK_HEAD.TARGETS""",
    "ctmasknet.modeling.peers.slice_classifier": """MODEL.JCS.NORM MODEL.SLICE_NETWORK.NAME
        MODEL.SLICE_NETWORK.NUM_OUTPUTS""",
    "ctmasknet.modeling.peers.semantic_lesions": """MODEL.SEMANTIC.ENCODER MODEL.SEMANTIC.NAME
        MODEL.SEMANTIC.THRESHOLD""",
    "ctmasknet.modeling.peers.slice_pixels": """MODEL.SLICE_NETWORK.CROP MODEL.SLICE_NETWORK.SIZE
        MODEL.SLICE_NETWORK.SQUASH MODEL.SLICE_NETWORK.TEN_CROPS""",
    "ctmasknet.modeling.peers.lesion_maps.classifiers": """MODEL.LESION_HEAD.DEPTH
        MODEL.LESION_HEAD.FC_DIM MODEL.LESION_HEAD.NAME MODEL.LESION_HEAD.SIZE
        MODEL.LESION_HEAD.THRESHOLD""",
    "ctmasknet.modeling.peers.patches": "MODEL.PATCHES.PLACE MODEL.PATCHES.SIZE",
    "ctmasknet.modeling.peers.covidnet_ct": "MODEL.COVIDNET_CT.GRAPH",
    "ctmasknet.modeling.peers.scan_classifier": "MODEL.SCAN_NETWORK.BATCH_STATISTICS",
    "ctmasknet.modeling.peers.mask_feature_heads": """MODEL.IMAGE_HEAD.AFFINITIES
        MODEL.IMAGE_HEAD.SIEVE_STAGES""",
    "ctmasknet.modeling.peers.two_branch": """MODEL.TWO_BRANCH.MASK_FEATURES
        MODEL.TWO_BRANCH.BATCH_STATISTICS MODEL.TWO_BRANCH.OWN_PIXELS""",
    "ctmasknet.modeling.timm_backbone": "MODEL.TIMM.NAME",
    "ctmasknet.weights.spec": "INPUT.WINDOW_CENTER_HU INPUT.WINDOW_WIDTH_HU",
    "detectron2.engine.defaults": "CUDNN_BENCHMARK",
    "detectron2.modeling.anchor_generator": """MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
        MODEL.ANCHOR_GENERATOR.NAME MODEL.ANCHOR_GENERATOR.OFFSET MODEL.ANCHOR_GENERATOR.SIZES""",
    "detectron2.modeling.backbone.build": "MODEL.BACKBONE.NAME",
    "detectron2.modeling.backbone.resnet": """MODEL.BACKBONE.FREEZE_AT
        MODEL.RESNETS.DEFORM_MODULATED MODEL.RESNETS.DEFORM_NUM_GROUPS
        MODEL.RESNETS.DEFORM_ON_PER_STAGE MODEL.RESNETS.DEPTH MODEL.RESNETS.NORM
        MODEL.RESNETS.NUM_GROUPS MODEL.RESNETS.OUT_FEATURES MODEL.RESNETS.RES2_OUT_CHANNELS
        MODEL.RESNETS.RES5_DILATION MODEL.RESNETS.STEM_OUT_CHANNELS MODEL.RESNETS.STRIDE_IN_1X1
        MODEL.RESNETS.WIDTH_PER_GROUP""",
    "detectron2.modeling.meta_arch.rcnn": "MODEL.PIXEL_MEAN MODEL.PIXEL_STD VIS_PERIOD",
    "detectron2.modeling.proposal_generator.build": "MODEL.PROPOSAL_GENERATOR.NAME",
    "detectron2.modeling.proposal_generator.rpn": """MODEL.PROPOSAL_GENERATOR.MIN_SIZE
        MODEL.RPN.BATCH_SIZE_PER_IMAGE MODEL.RPN.BBOX_REG_LOSS_TYPE
        MODEL.RPN.BBOX_REG_LOSS_WEIGHT MODEL.RPN.BBOX_REG_WEIGHTS MODEL.RPN.BOUNDARY_THRESH
        MODEL.RPN.CONV_DIMS MODEL.RPN.HEAD_NAME MODEL.RPN.IN_FEATURES MODEL.RPN.IOU_LABELS
        MODEL.RPN.IOU_THRESHOLDS MODEL.RPN.LOSS_WEIGHT MODEL.RPN.NMS_THRESH
        MODEL.RPN.POSITIVE_FRACTION MODEL.RPN.POST_NMS_TOPK_TEST MODEL.RPN.POST_NMS_TOPK_TRAIN
        MODEL.RPN.PRE_NMS_TOPK_TEST MODEL.RPN.PRE_NMS_TOPK_TRAIN MODEL.RPN.SMOOTH_L1_BETA""",
    "detectron2.modeling.roi_heads.box_head": """MODEL.ROI_BOX_HEAD.CONV_DIM
        MODEL.ROI_BOX_HEAD.FC_DIM MODEL.ROI_BOX_HEAD.NAME MODEL.ROI_BOX_HEAD.NORM
        MODEL.ROI_BOX_HEAD.NUM_CONV MODEL.ROI_BOX_HEAD.NUM_FC""",
    "detectron2.modeling.roi_heads.fast_rcnn": """MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE
        MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA
        MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE MODEL.ROI_HEADS.NMS_THRESH_TEST
        MODEL.ROI_HEADS.SCORE_THRESH_TEST""",
    "detectron2.modeling.roi_heads.mask_head": """MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
        MODEL.ROI_MASK_HEAD.CONV_DIM MODEL.ROI_MASK_HEAD.NAME MODEL.ROI_MASK_HEAD.NORM
        MODEL.ROI_MASK_HEAD.NUM_CONV""",
    "detectron2.modeling.roi_heads.roi_heads": """MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO MODEL.ROI_BOX_HEAD.POOLER_TYPE
        MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
        MODEL.ROI_HEADS.IN_FEATURES MODEL.ROI_HEADS.IOU_LABELS MODEL.ROI_HEADS.IOU_THRESHOLDS
        MODEL.ROI_HEADS.NAME MODEL.ROI_HEADS.NUM_CLASSES MODEL.ROI_HEADS.POSITIVE_FRACTION
        MODEL.ROI_HEADS.PROPOSAL_APPEND_GT MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO MODEL.ROI_MASK_HEAD.POOLER_TYPE""",
    "detectron2.modeling.test_time_augmentation": "TEST.AUG.MAX_SIZE",
    "detectron2.solver.build": """SOLVER.BASE_LR_END SOLVER.CLIP_GRADIENTS.CLIP_TYPE
        SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.CLIP_GRADIENTS.ENABLED
        SOLVER.CLIP_GRADIENTS.NORM_TYPE SOLVER.GAMMA SOLVER.LR_SCHEDULER_NAME SOLVER.NUM_DECAYS
        SOLVER.RESCALE_INTERVAL SOLVER.STEPS SOLVER.WARMUP_FACTOR SOLVER.WARMUP_ITERS
        SOLVER.WARMUP_METHOD""",
}
WORKS = {key: module for module, keys in READ_IN.items() for key in keys.split()}


def usual() -> CfgNode:
    cfg = get_cfg()
    add_ctmasknet_config(cfg)
    return cfg


def changed(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return f"{value}_other"
    return type(value)() if value else type(value)(["other"])


def with_key(cfg: CfgNode, key: str, value) -> CfgNode:
    *above, name = key.split(".")
    node = cfg
    for part in above:
        node = node[part]
    node[name] = value
    return cfg


@pytest.mark.parametrize(("key", "value"), leaves(usual()), ids=lambda item: str(item)[:60])
def test_every_key_works_or_is_refused_when_it_is_changed(repository, key, value):
    if key in WORKS:
        text = Path(find_spec(WORKS[key]).origin).read_text(encoding="utf-8")
        assert key in text or f"cfg.{key.split('.')[-1]}" in text
        return
    for config in ("seg", "cls"):
        cfg = read_cfg(repository / "configs" / f"{config}.yaml")
        with pytest.raises(CTMaskNetError, match=f"^{key} is .*, which has no effect: .*; leave"):
            check_keys(with_key(cfg, key, changed(value)))


def test_the_keys_said_to_work_are_there():
    assert set(WORKS) <= dict(leaves(usual())).keys()


@pytest.mark.parametrize("key", CHOICES)
def test_an_enumeration_takes_its_words_alone(repository, tmp_path, key):
    cfg = read_cfg(repository / "configs" / "cls.yaml")
    check_keys(cfg)
    with pytest.raises(CTMaskNetError, match=f"^{key} is 'on'; choose one of "):
        check_keys(with_key(cfg, key, "on"))
    for word in CHOICES[key]:
        assert not isinstance(yaml.safe_load(word), bool)
    document = True
    for part in reversed(key.split(".")):
        document = {part: document}
    path = tmp_path / "on.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(CTMaskNetError, match=rf"on\.yaml: {key} is True, as YAML reads on, off"):
        read_cfg(path)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("seg", ["VIS_PERIOD", 1], None),
        ("cls", ["VIS_PERIOD", 1], "only a detector's training"),
        ("cls", ["TEST.AUG.MIN_SIZES", (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)], None),
        ("seg", ["TEST.AUG.MIN_SIZES", (400, 500)], "a detector alone looks at other sizes, with"),
        ("seg", ["TEST.AUG.MIN_SIZES", (0,), "TEST.AUG.ENABLED", "True"], "give 1 or more"),
        ("seg", ["TEST.AUG.MAX_SIZE", 900, "TEST.AUG.ENABLED", "True"], "no other size is looked"),
        ("cls", ["INPUT.CROP_TO_BODY", "True"], None),
        ("seg", ["INPUT.CROP_TO_BODY", "True"], "it is a classifier's"),
        ("seg", ["SOLVER.DETECTOR_LR_FACTOR", 0.5], "it is a classifier's"),
        ("seg", ["MODEL.TRAINABLE", "full"], "it is a classifier's"),
        ("cls", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"], "every class's own"),
        ("seg", ["INPUT.CROP.TYPE", "relative"], "no random crops are made"),
        ("seg", ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", [2.0, 2.0]], "takes shares"),
        ("seg", ["INPUT.AUGMENTATION.PROB", 1.0], "nothing is drawn with it"),
        ("seg", ["INPUT.AUGMENTATION.PROB", 1.0, "INPUT.AUGMENTATION.SHEAR", 0.1], None),
        ("cls", ["INPUT.AUGMENTATION.ELASTIC_SMOOTH_PX", 4.0], "no px is moved"),
        ("cls", ["INPUT.AUGMENTATION.PRESET", "covidnet_ct"], None),
        (
            *("cls", ["INPUT.AUGMENTATION.PRESET", "covidnet_ct", "INPUT.AUGMENTATION.SHEAR", 0.1]),
            "the preset says it",
        ),
        ("cls", ["INPUT.AUGMENTATION.GREY_SCALE", (1.2, 0.8)], "the least and the largest factor"),
        ("seg", ["INPUT.AUGMENTATION.ROTATION_DEG", 190.0], "give 0 to 180 degrees"),
        ("cls", ["DATALOADER.SAMPLER_TRAIN", "LesionBalancedSampler"], "counts the lesions"),
        ("seg", ["DATALOADER.SAMPLER_TRAIN", "ClassBalancedSampler"], "counts the classes"),
        ("seg", ["DATALOADER.SAMPLER_TRAIN", "LesionBalancedSampler"], "FILTER_EMPTY_ANNOTATIONS"),
        ("cls", ["DATALOADER.SAMPLER_TRAIN", "ClassBalancedSampler"], None),
        ("seg", ["SOLVER.MOMENTUM", 0.8], "it is SGD's"),
        ("seg", ["SOLVER.MOMENTUM", 0.8, "SOLVER.OPTIMIZER", "SGD"], None),
        ("seg", ["SOLVER.BASE_LR_END", 1e-6], "it is WarmupCosineLR's"),
        ("seg", ["SOLVER.NUM_DECAYS", 2], "it is WarmupStepWithFixedGammaLR's"),
        ("seg", ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 2], "no gradient is clipped"),
        ("seg", ["SOLVER.CLIP_GRADIENTS.ENABLED", "True"], None),
        ("seg", ["SOLVER.AMP.DTYPE", "bfloat16"], "training is in float32"),
        ("seg", ["DATALOADER.REPEAT_THRESHOLD", 0.5], "it is RepeatFactorTrainingSampler's"),
        ("seg", ["MODEL.RESNETS.DEFORM_NUM_GROUPS", 2], "no stage is deformable"),
        ("seg", ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "give the least and the largest"),
        ("seg", ["MODEL.BACKBONE.NAME", "build_resnet_backbone"], "no feature pyramid"),
        ("seg", ["MODEL.BACKBONE.NAME", "build_swin"], "'build_swin'; choose one of those"),
        ("seg", ["SOLVER.LOG_PERIOD", 0], "SOLVER.LOG_PERIOD is 0; give 1 or more"),
        ("seg", ["DATALOADER.NUM_WORKERS", -1], "NUM_WORKERS is -1; give 0 or more"),
    ],
)
def test_keys_that_depend_on_others(repository, config, overrides, message):
    path = repository / "configs" / f"{config}.yaml"
    if message is None:
        read_cfg(path, overrides)
    else:
        with pytest.raises(CTMaskNetError, match=message):
            read_cfg(path, overrides)


def test_no_configuration_of_the_repository_has_idle_keys(repository):
    files = [
        path
        for path in (repository / "configs").rglob("*.yaml")
        if path.parent.name not in ("parts", "experiments")
    ]
    assert len(files) > 20
    assert [idle for path in files for idle in idle_keys(read_cfg(path))] == []


@pytest.mark.parametrize(
    ("config", "overrides", "key"),
    [
        ("seg", ["MODEL.RANKED_BOXES.NUM", 8], "MODEL.RANKED_BOXES.NUM 8"),
        ("seg", ["MODEL.IMAGE_HEAD.FC_DIM", 8], "MODEL.IMAGE_HEAD.FC_DIM 8"),
        ("cls", ["SOLVER.DETECTOR_LR_FACTOR", 0.5], "SOLVER.DETECTOR_LR_FACTOR 0.5"),
        ("cls_full", ["SOLVER.DETECTOR_LR_FACTOR", 0.5], None),
        ("cls_full", ["MODEL.RANKED_BOXES.CACHE_DIR", "x"], "MODEL.RANKED_BOXES.CACHE_DIR 'x'"),
        ("cls", ["MODEL.RANKED_BOXES.CACHE_DIR", "x"], None),
        ("cls", ["MODEL.INFERENCE.RECHECK_MARGIN", 2.0], "MODEL.INFERENCE.RECHECK_MARGIN 2.0"),
        ("cls", ["TEST.COCO_FAST", "never"], "TEST.COCO_FAST 'never'"),
        ("seg", ["TEST.COCO_FAST", "never"], None),
        ("seg", ["SOLVER.GAMMA", 0.5], None),
        ("seg_light", ["SOLVER.GAMMA", 0.5], "SOLVER.GAMMA 0.5"),
        ("seg_light", ["SOLVER.STEPS", (5,)], "SOLVER.STEPS (5,)"),
        ("seg", ["SOLVER.WARMUP_FACTOR", 0.5], "SOLVER.WARMUP_FACTOR 0.5"),
        ("seg", ["DATALOADER.MAX_BAD_SHARE", 0.5], "DATALOADER.MAX_BAD_SHARE 0.5"),
        ("seg", ["MODEL.ROI_BOX_HEAD.NORM", "GN"], "MODEL.ROI_BOX_HEAD.NORM 'GN'"),
    ],
)
def test_idle_keys(repository, config, overrides, key):
    found = list(idle_keys(read_cfg(repository / "configs" / f"{config}.yaml", overrides)))
    assert [line.split(" has no effect: ")[0] for line in found] == ([key] if key else [])


@pytest.mark.parametrize("config", ["seg", "cls", "seg_light", "cls_light"])
def test_a_configuration_that_a_run_has_dumped_is_taken(repository, tmp_path, config):
    cfg = read_cfg(repository / "configs" / f"{config}.yaml")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = read_cfg(tmp_path / "config.yaml")
    assert json.dumps(dict(leaves(again))) == json.dumps(dict(leaves(cfg)))


def test_a_whole_number_is_taken_where_a_float_is_meant(repository, tmp_path):
    path = tmp_path / "whole.yaml"
    path.write_text(f"_BASE_: {repository}/configs/seg.yaml\nINPUT: {{WINDOW_WIDTH_HU: 400}}\n")
    cfg = read_cfg(path, ["INPUT.WINDOW_CENTER_HU", "40"])
    assert (cfg.INPUT.WINDOW_CENTER_HU, cfg.INPUT.WINDOW_WIDTH_HU) == (40.0, 400.0)
    with pytest.raises(CTMaskNetError, match="WINDOW_WIDTH_HU"):
        read_cfg(path, ["INPUT.WINDOW_WIDTH_HU", "wide"])


#: The table "Segmentation model" of the reference, and what the paper says of its training.
SEG = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    "MODEL.PIXEL_MEAN": [0.485 * 255, 0.456 * 255, 0.406 * 255],
    "MODEL.PIXEL_STD": [0.229 * 255, 0.224 * 255, 0.225 * 255],
    "MODEL.MASK_ON": True,
    "MODEL.LESION_CLASSES": ["ggo", "consolidation"],
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_without_p6_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.ANCHOR_GENERATOR.NAME": "RoundedAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.ROUND": True,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[2, 4, 8, 16, 32]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.1, 0.25, 0.5, 1.0, 1.5, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.PROPOSAL_GENERATOR.NAME": "FlatAnchorRPN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": -1,
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.RPN.NMS_THRESH": 0.75,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.IOU_LABELS": [0, -1, 1],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.75,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": "smooth_l1",
    "MODEL.ROI_HEADS.NAME": "RankedBoxROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5, 0.75],
    "MODEL.ROI_HEADS.IOU_LABELS": [0, -1, 1],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.75,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.75,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 128,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 2,
    "INPUT.MIN_SIZE_TRAIN": (),
    "INPUT.MAX_SIZE_TRAIN": 0,
    "INPUT.MIN_SIZE_TEST": 512,
    "INPUT.MAX_SIZE_TEST": 1024,
    "INPUT.RANDOM_FLIP": "none",
    "INPUT.FORMAT": "RGB",
    "INPUT.WINDOW_CENTER_HU": -700.0,
    "INPUT.WINDOW_WIDTH_HU": 1000.0,
    "DATASETS.TRAIN": ("cncb_lesions_both_train",),
    "DATASETS.VAL": ("cncb_lesions_both_val",),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "SOLVER.OPTIMIZER": "ADAM",
    "SOLVER.BASE_LR": 1e-5,
    "SOLVER.WEIGHT_DECAY": 1e-3,
    "SOLVER.WEIGHT_DECAY_NORM": None,
    "SOLVER.WEIGHT_DECAY_BIAS": None,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.MAX_EPOCHS": 100,
    "SOLVER.STEPS": (),
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.BEST_METRIC": "segm/AP50",
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
#: "Classifier": everything but the head is the detector's.
CLS = SEG | {
    "MODEL.META_ARCHITECTURE": "CTMaskNet",
    "MODEL.WEIGHTS": "output/seg/model_best.pth",
    "MODEL.TRAINABLE": "heads",
    "MODEL.RANKED_BOXES.NUM": 256,
    "MODEL.RANKED_BOXES.NMS_THRESH": 0.75,
    "MODEL.RANKED_BOXES.SCORE_THRESH": -0.01,
    "MODEL.IMAGE_HEAD.NAME": "RankedBoxImageHead",
    "MODEL.IMAGE_HEAD.CLASSES": ["normal", "pneumonia", "covid"],
    "MODEL.IMAGE_HEAD.FC_DIM": 1024,
    "MODEL.IMAGE_HEAD.READS": [],
    "INPUT.CROP_TO_BODY": False,
    "DATASETS.TRAIN": ("covidx_ct_train",),
    "DATASETS.VAL": ("covidx_ct_val",),
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.MAX_EPOCHS": 50,
    "SOLVER.DETECTOR_LR_FACTOR": 1.0,
    "SOLVER.BEST_METRIC": "slices/accuracy",
}


@pytest.mark.parametrize(("config", "expected"), [("seg", SEG), ("cls", CLS)])
def test_the_papers_settings(repository, config, expected):
    found = dict(leaves(read_cfg(repository / "configs" / f"{config}.yaml")))
    for key, value in expected.items():
        if key.startswith("MODEL.PIXEL_"):
            assert found[key] == pytest.approx(value, abs=1e-9), key
        else:
            assert found[key] == value, key


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("truncation", [0, 1, 2])
def test_the_lightweight_settings(repository, depth, truncation):
    last = 5 - truncation
    expected = CLS | {
        "MODEL.WEIGHTS": f"output/seg_r{depth}_t{truncation}_merge/model_best.pth",
        "MODEL.LESION_CLASSES": ["lesion"],
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.OUT_FEATURES": [f"res{last}"],
        "MODEL.FPN.IN_FEATURES": [f"res{last}"],
        "MODEL.RPN.IN_FEATURES": [f"p{last}"],
        "MODEL.ROI_HEADS.IN_FEATURES": [f"p{last}"],
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 128,
        "MODEL.RANKED_BOXES.NUM": 128,
        "MODEL.IMAGE_HEAD.FC_DIM": 512,
    }
    name = f"cls_r{depth}_t{truncation}_merge"
    found = dict(leaves(read_cfg(repository / "configs" / f"{name}.yaml")))
    del expected["MODEL.PIXEL_MEAN"], expected["MODEL.PIXEL_STD"]
    assert {key: found[key] for key in expected} == expected
