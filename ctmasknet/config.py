"""Every configuration key that ctmasknet adds to Detectron2's, with its meaning and unit, and which
of Detectron2's it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

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
    # trained on him (a classifier's: its detector's too): refuse | warn. Only ids of one numbering
    # can be compared (datasets/README.md, "Leaks").
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
    # MODEL.ROI_HEADS.NUM_CLASSES follows.
    cfg.MODEL.LESION_CLASSES = list(MASK_TYPES["both"])
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

    # --- what the classifier trains: heads | heads_bn | heads_bn_no_shortcut | full ---
    # (see ctmasknet.modeling.trainable)
    cfg.MODEL.TRAINABLE = "heads"

    # --- evaluation and prediction (see ctmasknet.modeling.fast.inference) ---
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
    return cfg.MODEL.META_ARCHITECTURE == "CTMaskNet"


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
        if key in _REGISTRIES and value not in _REGISTRIES[key]:
            known = ", ".join(sorted(name for name, _ in _REGISTRIES[key]))
            raise CTMaskNetError(f"{key} is {value!r}; choose one of those registered: {known}")
        if value < _LEAST[key] if key in _LEAST else False:
            raise CTMaskNetError(f"{key} is {value}; give {_LEAST[key]} or more")
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


def _tuples(value: object) -> object:
    """A sequence as tuples all through, for a file that was dumped has lists in their place."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _without_effect(key: str, cfg: CfgNode) -> str | None:
    for start, reason in _CHECKS["without_effect"].items():
        if key.startswith(start):
            return reason
    values = dict(leaves(cfg))
    for rule in _CHECKS["without_effect_where"]:
        other, stated = rule.get("needs") or rule["useless_with"]
        found = values[other]
        holds = (any(found) if isinstance(found, list | tuple) else found) == stated
        if key.startswith(tuple(rule["keys"])) and holds != ("needs" in rule):
            return rule["reason"]
    return None


#: ``choices`` and ``least``: see below; ``without_effect``: beginnings of Detectron2's keys that
#: nothing reads here, with the reason and what to use instead; ``without_effect_where``: the same,
#: where the key that it needs has another value, or the one that it is useless with has this.
_CHECKS = json.loads(Path(__file__).with_name("config_checks.json").read_text(encoding="utf-8"))
#: Enumerations and their words.
CHOICES: dict[str, Sequence[str]] = {
    **_CHECKS["choices"],
    "MODEL.ROI_MASK_HEAD.PASTE": WAYS,
    "MODEL.ROI_MASK_HEAD.TARGETS": WAYS,
    "MODEL.TRAINABLE": TRAINABLE_MODES,
}
#: The least value of a number.
_LEAST: dict[str, int] = _CHECKS["least"]
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
