"""Which values of a configuration's numbers and lists a run can work with, told at its start.

Without these a wrong value is an assertion of Detectron2's or torch's in a step or evaluation that
may be hours away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode

from ctmasknet.errors import CTMaskNetError

#: What a number has to be: in words, as a condition, for the keys of these names. Of a list, every
#: number.
_NUMBERS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "1 or more",
        lambda value: value >= 1,
        """INPUT.MAX_SIZE_TEST MODEL.FPN.OUT_CHANNELS MODEL.IMAGE_HEAD.FC_DIM
        MODEL.IMAGE_HEAD.NUM_QUERIES MODEL.RANKED_BOXES.NUM MODEL.RESNETS.DEFORM_NUM_GROUPS
        MODEL.RESNETS.NUM_GROUPS MODEL.RESNETS.RES2_OUT_CHANNELS MODEL.RESNETS.STEM_OUT_CHANNELS
        MODEL.RESNETS.WIDTH_PER_GROUP MODEL.ROI_BOX_HEAD.CONV_DIM MODEL.ROI_BOX_HEAD.FC_DIM
        MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
        MODEL.ROI_HEADS.NUM_CLASSES MODEL.ROI_MASK_HEAD.CONV_DIM
        MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION MODEL.RPN.BATCH_SIZE_PER_IMAGE
        MODEL.RPN.POST_NMS_TOPK_TEST MODEL.RPN.POST_NMS_TOPK_TRAIN MODEL.RPN.PRE_NMS_TOPK_TEST
        MODEL.RPN.PRE_NMS_TOPK_TRAIN SOLVER.IMS_PER_BATCH SOLVER.LOG_PERIOD SOLVER.MAX_ITER
        DATALOADER.SLICES_PER_SCAN MODEL.LESION_HEAD.DEPTH MODEL.LESION_HEAD.FC_DIM
        SOLVER.NUM_DECAYS SOLVER.STEPS TEST.AUG.MAX_SIZE TEST.AUG.MIN_SIZES
        TEST.DETECTIONS_PER_IMAGE TEST.IMS_PER_BATCH""",
    ),
    (
        "0 or more",
        lambda value: value >= 0,
        """DATALOADER.NUM_WORKERS DATALOADER.REPEAT_THRESHOLD DATASETS.TRAIN_PATIENTS
        INPUT.AUGMENTATION.ELASTIC_PX INPUT.MAX_SIZE_TRAIN
        INPUT.MIN_SIZE_TEST INPUT.MIN_SIZE_TRAIN MODEL.INFERENCE.RECHECK_MARGIN
        MODEL.SLICE_NETWORK.CROP MODEL.SLICE_NETWORK.NUM_OUTPUTS MODEL.SLICE_NETWORK.SIZE
        MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT MODEL.ROI_BOX_HEAD.NUM_CONV
        MODEL.ROI_BOX_HEAD.NUM_FC MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO
        MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA MODEL.ROI_MASK_HEAD.NUM_CONV
        MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO MODEL.RPN.BBOX_REG_LOSS_WEIGHT
        MODEL.RPN.LOSS_WEIGHT MODEL.RPN.SMOOTH_L1_BETA SOLVER.BASE_LR_END SOLVER.BIAS_LR_FACTOR
        SOLVER.CHECKPOINT_PERIOD SOLVER.DETECTOR_LR_FACTOR SOLVER.EARLY_STOPPING_PATIENCE
        SOLVER.MOMENTUM SOLVER.WARMUP_FACTOR SOLVER.WARMUP_ITERS SOLVER.WEIGHT_DECAY
        SOLVER.WEIGHT_DECAY_BIAS SOLVER.WEIGHT_DECAY_NORM TEST.EVAL_PERIOD TEST.PICTURES
        VIS_PERIOD""",
    ),
    (
        "a number above 0",
        lambda value: value > 0,
        """INPUT.AUGMENTATION.ELASTIC_SMOOTH_PX INPUT.AUGMENTATION.GREY_SCALE
        INPUT.AUGMENTATION.SCALE INPUT.CROP.SIZE INPUT.WINDOW_WIDTH_HU
        MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS MODEL.ANCHOR_GENERATOR.SIZES
        MODEL.PIXEL_STD MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS MODEL.RPN.BBOX_REG_WEIGHTS
        SOLVER.BASE_LR SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.CLIP_GRADIENTS.NORM_TYPE
        SOLVER.GAMMA""",
    ),
    ("a probability above 0, at most 1", lambda value: 0 < value <= 1, "INPUT.AUGMENTATION.PROB"),
    ("0 to 180 degrees", lambda value: 0 <= value <= 180, "INPUT.AUGMENTATION.ROTATION_DEG"),
    (
        "0 to 255 grey levels",
        lambda value: 0 <= value <= 255,
        "INPUT.AUGMENTATION.GREY_SHIFT INPUT.AUGMENTATION.NOISE_STD",
    ),
    ("0 to less than 0.5", lambda value: 0 <= value < 0.5, "INPUT.AUGMENTATION.BOX_JITTER"),
    (
        "a share of 0 to 1",
        lambda value: 0 <= value <= 1,
        """DATALOADER.MAX_BAD_SHARE INPUT.AUGMENTATION.SHEAR INPUT.AUGMENTATION.SHIFT
        MODEL.SEMANTIC.THRESHOLD MODEL.LESION_HEAD.THRESHOLD
        MODEL.ANCHOR_GENERATOR.OFFSET MODEL.RANKED_BOXES.NMS_THRESH
        MODEL.ROI_HEADS.IOU_THRESHOLDS MODEL.ROI_HEADS.NMS_THRESH_TEST
        MODEL.ROI_HEADS.POSITIVE_FRACTION MODEL.RPN.IOU_THRESHOLDS MODEL.RPN.NMS_THRESH
        MODEL.RPN.POSITIVE_FRACTION""",
    ),
    ("a share of 0 to below 1", lambda value: 0 <= value < 1, "MODEL.IMAGE_HEAD.DROPOUT"),
    (
        "a score of at most 1",
        lambda value: value <= 1,
        "MODEL.RANKED_BOXES.SCORE_THRESH MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    ),
    (
        "a finite number",
        lambda value: True,
        "INPUT.WINDOW_CENTER_HU MODEL.PIXEL_MEAN MODEL.PROPOSAL_GENERATOR.MIN_SIZE",
    ),
    (
        "-1, 0 or 1",
        lambda value: value in (-1, 0, 1),
        "MODEL.ROI_HEADS.IOU_LABELS MODEL.RPN.IOU_LABELS",
    ),
    (
        "0 (nothing) to 5 (the whole ResNet)",
        lambda value: 0 <= value <= 5,
        "MODEL.BACKBONE.FREEZE_AT",
    ),
    ("32 px to 512 px", lambda value: 32 <= value <= 512, "MODEL.LESION_HEAD.SIZE"),
    ("33 px to 512 px", lambda value: 33 <= value <= 512, "MODEL.PATCHES.SIZE"),
    ("a number below 2^32", lambda value: value < 2**32, "SEED"),
    (
        "18, 34, 50, 101 or 152",
        lambda value: value in (18, 34, 50, 101, 152),
        "MODEL.RESNETS.DEPTH",
    ),
    ("1 or 2", lambda value: value in (1, 2), "MODEL.RESNETS.RES5_DILATION"),
    ("-1 or a number of channels", lambda value: value == -1 or value >= 1, "MODEL.RPN.CONV_DIMS"),
)
_FLOAT32_MAX = 3.4e38
_BOUND_OF = {key: (words, holds) for words, holds, keys in _NUMBERS for key in keys.split()}
#: How many numbers a list has to have; None: at least one.
_LENGTHS = {
    "INPUT.CROP.SIZE": 2,
    "MODEL.PIXEL_MEAN": 3,
    "MODEL.PIXEL_STD": 3,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": 4,
    "MODEL.RPN.BBOX_REG_WEIGHTS": 4,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": 4,
    **dict.fromkeys(
        (
            *("MODEL.IMAGE_HEAD.CLASSES", "MODEL.LESION_CLASSES", "MODEL.RPN.CONV_DIMS"),
            *("MODEL.RPN.IOU_THRESHOLDS", "MODEL.ROI_HEADS.IOU_THRESHOLDS"),
            *("MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES", "MODEL.FPN.IN_FEATURES"),
            *("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
        )
    ),
}


def check_value(key: str, value: Any) -> None:
    """Refuse a number or list that no run can work with.

    Raises:
        CTMaskNetError: names the key, its value and what it has to be.
    """
    if key in _LENGTHS:
        count = _LENGTHS[key]
        if not value or (count and len(value) != count):
            wanted = f"{count} of them" if count else "at least one"
            raise CTMaskNetError(f"{key} is {value}; give {wanted}")
    if key in _BOUND_OF:
        words, holds = _BOUND_OF[key]
        for number in _flat(value):
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if number is not None and not (
                is_number and abs(number) < _FLOAT32_MAX and holds(number)
            ):
                raise CTMaskNetError(f"{key} is {value}; give {words}")


def check_together(cfg: CfgNode) -> None:
    """Refuse values that contradict each other.

    Raises:
        CTMaskNetError: names the keys, their values and what to do.
    """
    if not cfg.OUTPUT_DIR:
        raise CTMaskNetError("OUTPUT_DIR is empty; name a folder")
    for problem in (
        *(_classes(cfg), _augmentation(cfg.INPUT), _sampler(cfg), _solver(cfg)),
        *(_matching(cfg.MODEL), _backbone(cfg.MODEL), _anchors(cfg.MODEL), _heads(cfg.MODEL)),
    ):
        if problem:
            raise CTMaskNetError(problem)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _classes(cfg: CfgNode) -> str | None:
    for key in ("LESION_CLASSES", "IMAGE_HEAD.CLASSES"):
        names = (
            cfg.MODEL.LESION_CLASSES if key == "LESION_CLASSES" else cfg.MODEL.IMAGE_HEAD.CLASSES
        )
        if len(set(names)) < len(names) or not all(isinstance(n, str) and n for n in names):
            return f"MODEL.{key} is {list(names)}; give names that differ"
    lesions, count = cfg.MODEL.LESION_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if len(lesions) != count:
        return (
            f"MODEL.ROI_HEADS.NUM_CLASSES is {count}, but MODEL.LESION_CLASSES names "
            f"{len(lesions)} ({', '.join(lesions)}); let them agree"
        )
    return None


def _solver(cfg: CfgNode) -> str | None:
    solver = cfg.SOLVER
    if list(solver.STEPS) != sorted({int(step) for step in solver.STEPS}):
        return f"SOLVER.STEPS is {solver.STEPS}; give iterations that rise"
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and solver.BASE_LR_END > solver.BASE_LR:
        return (
            f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}, above SOLVER.BASE_LR {solver.BASE_LR}, "
            "from which the rate falls to it; give a lower one"
        )
    if solver.OPTIMIZER == "SGD" and solver.NESTEROV and not solver.MOMENTUM:
        return "SOLVER.NESTEROV is True, which needs SOLVER.MOMENTUM above 0; set it False"
    if solver.EARLY_STOPPING_PATIENCE and not (solver.BEST_METRIC and cfg.DATASETS.VAL):
        return (
            f"SOLVER.EARLY_STOPPING_PATIENCE is {solver.EARLY_STOPPING_PATIENCE}, but there is "
            "nothing to wait for: name SOLVER.BEST_METRIC and DATASETS.VAL, or set it to 0"
        )
    return None


def _augmentation(inputs: CfgNode) -> str | None:
    for name in ("SCALE", "GREY_SCALE"):
        pair = inputs.AUGMENTATION[name]
        if len(pair) and (len(pair) != 2 or pair[0] > pair[1]):
            return (
                f"INPUT.AUGMENTATION.{name} is {pair}; give the least and the largest factor, or ()"
            )
    if inputs.CROP.ENABLED:
        kind, size = inputs.CROP.TYPE, inputs.CROP.SIZE
        if kind.startswith("relative") and max(size) > 1:
            return f"INPUT.CROP.SIZE is {size}; INPUT.CROP.TYPE {kind} takes shares of 0 to 1"
        if kind.startswith("absolute") and any(side != int(side) for side in size):
            return f"INPUT.CROP.SIZE is {size}; INPUT.CROP.TYPE {kind} takes whole px"
        if kind == "absolute_range" and size[0] > size[1]:
            return f"INPUT.CROP.SIZE is {size}; give the least and the largest side, px"
    return None


def _sampler(cfg: CfgNode) -> str | None:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name in ("RepeatFactorTrainingSampler", "LesionBalancedSampler") and _is_classifier(cfg):
        return (
            f"DATALOADER.SAMPLER_TRAIN is {name!r}, which counts the lesions of a slice, and a "
            "classifier's have none; set it to TrainingSampler or ClassBalancedSampler"
        )
    if name == "ClassBalancedSampler" and not _is_classifier(cfg):
        return (
            f"DATALOADER.SAMPLER_TRAIN is {name!r}, which counts the classes of slices, and a "
            "detector's have none; set it to TrainingSampler or LesionBalancedSampler"
        )
    if name == "LesionBalancedSampler" and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return (
            f"DATALOADER.SAMPLER_TRAIN is {name!r}, but DATALOADER.FILTER_EMPTY_ANNOTATIONS leaves "
            "slices without lesions out; set it False"
        )
    return None


def _matching(model: CfgNode) -> str | None:
    for part in ("RPN", "ROI_HEADS"):
        thresholds, labels = model[part].IOU_THRESHOLDS, model[part].IOU_LABELS
        if list(thresholds) != sorted(thresholds) or thresholds[0] == 0:
            return f"MODEL.{part}.IOU_THRESHOLDS is {thresholds}; let them rise from above 0"
        if len(labels) != len(thresholds) + 1:
            return (
                f"MODEL.{part}.IOU_LABELS is {labels}; give {len(thresholds) + 1}, one more than "
                f"MODEL.{part}.IOU_THRESHOLDS {thresholds}"
            )
    return None


def _backbone(model: CfgNode) -> str | None:
    """Stages of a ResNet with feature pyramid, and the levels that are looked at."""
    stages = ["res2", "res3", "res4", "res5"]
    levels = [name.replace("res", "p") for name in model.FPN.IN_FEATURES]
    if model.BACKBONE.NAME == "build_timm_fpn_backbone":
        return _levels(model, stages, levels)
    if not model.BACKBONE.NAME.startswith("build_resnet_fpn"):
        return None
    small = model.RESNETS.DEPTH < 50
    for key, only in (("RES2_OUT_CHANNELS", 64), ("NUM_GROUPS", 1), ("RES5_DILATION", 1)):
        if small and model.RESNETS[key] != only:
            return (
                f"MODEL.RESNETS.{key} is {model.RESNETS[key]}; for MODEL.RESNETS.DEPTH "
                f"{model.RESNETS.DEPTH} set it to {only}"
            )
    if any(model.RESNETS.DEFORM_ON_PER_STAGE) and (small or model.DEVICE == "cpu"):
        return (
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE: deformable convolutions need MODEL.RESNETS.DEPTH "
            "50 or more and a GPU; set all of it False"
        )
    if model.BACKBONE.NAME == "build_resnet_fpn_backbone":
        levels.append("p6")
        if "p5" not in levels:
            return (
                "MODEL.BACKBONE.NAME is 'build_resnet_fpn_backbone', which adds a level p6 to p5, "
                f"but MODEL.FPN.IN_FEATURES is {list(model.FPN.IN_FEATURES)}; set it to "
                "build_resnet_fpn_without_p6_backbone"
            )
    found = model.RESNETS.OUT_FEATURES
    if not set(found) <= set(stages):
        return f"MODEL.RESNETS.OUT_FEATURES is {list(found)}; choose among {', '.join(stages)}"
    return _levels(model, list(found), levels)


def _levels(model: CfgNode, stages: list[str], levels: list[str]) -> str | None:
    """Stages that the pyramid stands on, and its levels that are looked at."""
    for key, names, known in (
        ("FPN.IN_FEATURES", model.FPN.IN_FEATURES, stages),
        ("RPN.IN_FEATURES", model.RPN.IN_FEATURES, levels),
        ("ROI_HEADS.IN_FEATURES", model.ROI_HEADS.IN_FEATURES, levels),
    ):
        if not set(names) <= set(known):
            return f"MODEL.{key} is {list(names)}; choose among {', '.join(known)}"
        numbers = [int(name[-1]) for name in names]
        if key in ("FPN.IN_FEATURES", "ROI_HEADS.IN_FEATURES") and numbers != list(
            range(numbers[0], numbers[0] + len(numbers))
        ):
            return f"MODEL.{key} is {list(names)}; give neighbours, the finest first"
    return None


def _anchors(model: CfgNode) -> str | None:
    levels, counts = len(model.RPN.IN_FEATURES), [1]
    for key in ("SIZES", "ASPECT_RATIOS"):
        value = model.ANCHOR_GENERATOR[key]
        lists = [item for item in value if isinstance(item, list | tuple)]
        if lists and (len(lists) != len(value) or len(value) not in (1, levels) or not all(lists)):
            return (
                f"MODEL.ANCHOR_GENERATOR.{key} is {value}; give one list of numbers, or one for "
                f"each of the {levels} levels of MODEL.RPN.IN_FEATURES"
            )
        own = [len(item) for item in lists] or [len(value)]
        counts = [a * b for a, b in zip(_spread(counts, levels), _spread(own, levels), strict=True)]
    if len(set(counts)) > 1:
        return (
            f"MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS make {counts} anchors a place; let "
            "all levels have as many"
        )
    return None


def _spread(counts: Sequence[int], levels: int) -> list[int]:
    return list(counts) * levels if len(counts) == 1 else list(counts)


def _heads(model: CfgNode) -> str | None:
    box = model.ROI_BOX_HEAD
    if box.NAME == "FastRCNNConvFCHead" and not box.NUM_FC + box.NUM_CONV:
        return "MODEL.ROI_BOX_HEAD.NUM_FC and NUM_CONV are both 0; give the box head a layer"
    return None


def _is_classifier(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE not in ("GeneralizedRCNN", "SemanticLesionNet")
