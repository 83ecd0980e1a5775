"""Every configuration key that ctmasknet adds to Detectron2's, with its meaning and unit."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode

from ctmasknet.classes import IMAGE_CLASSES, MASK_TYPES
from ctmasknet.ct.scan import Window


def add_ctmasknet_config(cfg: CfgNode) -> None:
    """Add ctmasknet's keys to ``cfg`` (in place); call it before ``cfg.merge_from_file``.

    Two of Detectron2's defaults change as well: the device is CUDA only where there is one, and
    weights are decayed in every layer alike, as the paper's optimiser does.
    """
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

    # --- data ---
    # Registered data sets evaluated while training runs; the best checkpoint is chosen on them.
    # DATASETS.TEST is only looked at with --eval-only.
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
    # OUTPUT_DIR/bad_slices.json (training) or OUTPUT_DIR/inference/bad_slices.json (--eval-only).
    cfg.DATALOADER.BAD_SLICES = "error"
    # With skip: the run ends with an error when more than this share (0..1) of a data set was bad.
    cfg.DATALOADER.MAX_BAD_SHARE = 0.01
    # Images a batch in evaluation. Images of unlike size are padded to the largest of their batch,
    # which changes features near the padded border; 1 makes every result independent of its
    # neighbours.
    cfg.TEST.IMS_PER_BATCH = 1
    # COCO's figures by faster-coco-eval, which agree with pycocotools': auto (where it is
    # installed) | on | off (in a file, with quotes).
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

    # With only the image head trained, rows are computed once and kept: auto (where no augmentation
    # changes them and all slices have one size) | on | off (in a file, with quotes).
    cfg.MODEL.RANKED_BOXES.CACHE = "auto"
    # Folder of the kept rows; "" for ranked_boxes in OUTPUT_DIR. Runs may share one.
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
