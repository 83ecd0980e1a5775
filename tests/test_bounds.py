"""Values that no run can work with are refused when the configuration is read, by their key."""

import re

import pytest

from ctmasknet.bounds import _BOUND_OF, _LENGTHS
from ctmasknet.config import leaves
from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from tests.test_config import usual


def test_bounds_are_those_of_keys():
    assert {*_BOUND_OF, *_LENGTHS} <= dict(leaves(usual())).keys()


def test_every_configuration_of_the_repository_is_taken(repository):
    files = [
        path
        for path in (repository / "configs").rglob("*.yaml")
        if path.parent.name not in ("parts", "experiments")
    ]
    assert len(files) > 20
    for path in files:
        read_cfg(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.IMS_PER_BATCH", 0, "give 1 or more"),
        ("TEST.EVAL_PERIOD", -1, "give 0 or more"),
        ("TEST.DETECTIONS_PER_IMAGE", 0, "give 1 or more"),
        ("SOLVER.BASE_LR", 0.0, "give a number above 0"),
        ("SOLVER.BASE_LR", float("nan"), "give a number above 0"),
        ("SOLVER.BASE_LR", float("inf"), "give a number above 0"),
        ("SOLVER.BASE_LR", 1e39, "give a number above 0"),
        ("SOLVER.WEIGHT_DECAY", -0.1, "give 0 or more"),
        ("SOLVER.STEPS", (20, 10), "give iterations that rise"),
        ("SOLVER.STEPS", (0, 10), "give 1 or more"),
        ("SOLVER.STEPS", ("ten",), "give 1 or more"),
        ("SEED", 2**32, r"give a number below 2\^32"),
        ("INPUT.MAX_SIZE_TEST", 0, "give 1 or more"),
        ("INPUT.MIN_SIZE_TRAIN", (64, -1), "give 0 or more"),
        ("INPUT.WINDOW_WIDTH_HU", 0.0, "give a number above 0"),
        ("DATALOADER.MAX_BAD_SHARE", 1.5, "give a share of 0 to 1"),
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], "give a number above 0"),
        ("MODEL.PIXEL_MEAN", [1.0], "give 3 of them"),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", (1.0, 1.0), "give 4 of them"),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 0, "give 1 or more"),
        ("MODEL.RPN.NMS_THRESH", 1.5, "give a share of 0 to 1"),
        ("MODEL.RPN.IOU_THRESHOLDS", [0.7, 0.3], "let them rise from above 0"),
        ("MODEL.RPN.IOU_LABELS", [0, 1], "give 3, one more than MODEL.RPN.IOU_THRESHOLDS"),
        ("MODEL.ROI_HEADS.IOU_LABELS", [0, 2, 1], "give -1, 0 or 1"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 3, r"names 2 \(ggo, consolidation\); let them agree"),
        ("MODEL.LESION_CLASSES", [], "give at least one"),
        ("MODEL.LESION_CLASSES", ["ggo", "ggo"], "give names that differ"),
        ("MODEL.RESNETS.DEPTH", 20, "give 18, 34, 50, 101 or 152"),
        ("MODEL.BACKBONE.FREEZE_AT", 6, r"give 0 \(nothing\) to 5"),
        ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res9"], "choose among res2, res3, res4, res5"),
        ("MODEL.FPN.IN_FEATURES", ["res2", "res4"], "give neighbours, the finest first"),
        ("MODEL.RPN.IN_FEATURES", ["p2", "p6"], "choose among p2, p3, p4, p5"),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["res4"], "choose among p2, p3, p4, p5"),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["p5", "p4"], "give neighbours, the finest first"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[8], 16], "give one list of numbers, or one for each"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]], "one for each of the 4 levels"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[]], "give one list of numbers"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 0.0]], "give a number above 0"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator", "choose one of those registered"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated", "choose one of ROIAlign, "),
        ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "", "choose one of ROIAlign, "),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "l3", "choose one of smooth_l1, "),
        ("MODEL.RESNETS.NORM", "SyncBatchNorm", "choose one of"),
        ("MODEL.FPN.FUSE_TYPE", "max", "choose one of sum, avg"),
    ],
)
def test_a_value_that_no_run_can_work_with(repository, key, value, message):
    with pytest.raises(CTMaskNetError, match=rf"^{re.escape(key)} is .*{message}"):
        read_cfg(repository / "configs" / "seg.yaml", [key, value])


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("cls", ["MODEL.RANKED_BOXES.NUM", 0], r"RANKED_BOXES\.NUM is 0; give 1 or more"),
        ("cls", ["MODEL.IMAGE_HEAD.CLASSES", ["a", "a"]], "give names that differ"),
        ("cls", ["MODEL.INFERENCE.RECHECK_MARGIN", -1.0], "RECHECK_MARGIN is -1.0; give 0 or more"),
        (
            *("cls", ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"]),
            "SAMPLER_TRAIN is 'RepeatFactorTrainingSampler', which counts the lesions",
        ),
        ("seg", ["SOLVER.EARLY_STOPPING_PATIENCE", 2, "SOLVER.BEST_METRIC", ""], "nothing to wait"),
        ("seg", ["SOLVER.EARLY_STOPPING_PATIENCE", 2, "DATASETS.VAL", "()"], "nothing to wait for"),
        (
            *("seg", ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 1.0]),
            r"SOLVER\.BASE_LR_END is 1\.0, above SOLVER\.BASE_LR 1e-05",
        ),
        (*("seg", ["SOLVER.OPTIMIZER", "SGD", "SOLVER.NESTEROV", "True"]), None),
        (
            "seg",
            ["SOLVER.OPTIMIZER", "SGD", "SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", 0.0],
            r"SOLVER\.NESTEROV is True, which needs SOLVER\.MOMENTUM",
        ),
        ("seg", ["MODEL.RESNETS.DEPTH", 18], r"RES2_OUT_CHANNELS is 256; .* 18 set it to 64"),
        (*("seg", ["MODEL.DEVICE", "cpu"]), None),
        (
            "seg",
            ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [True] * 4],
            "DEFORM_ON_PER_STAGE: deformable convolutions need .* a GPU",
        ),
        ("seg", ["MODEL.ROI_BOX_HEAD.NUM_FC", 0], "NUM_FC and NUM_CONV are both 0"),
        ("seg", ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"], None),
        ("seg", ["OUTPUT_DIR", ""], "OUTPUT_DIR is empty"),
        (
            *("seg_light", ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]),
            r"'build_resnet_fpn_backbone', which adds a level p6 to p5, but .*\['res3'\]",
        ),
        (
            "seg",
            [
                *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16, 20], [32], [64]]),
                *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
            ],
            r"make \[1, 2, 1, 1\] anchors a place",
        ),
        ("seg", ["MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64]]], None),
        ("seg", ["MODEL.ANCHOR_GENERATOR.SIZES", [8, 16]], None),
        ("seg", ["MODEL.LESION_CLASSES", ["ggo"]], None),
        ("seg", ["MODEL.LESION_CLASSES", ["ggo"], "MODEL.ROI_HEADS.NUM_CLASSES", 2], "let them"),
    ],
)
def test_values_that_depend_on_others(repository, config, overrides, message):
    path = repository / "configs" / f"{config}.yaml"
    if message is None:
        read_cfg(path, overrides)
    else:
        with pytest.raises(CTMaskNetError, match=message):
            read_cfg(path, overrides)
