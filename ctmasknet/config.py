"""Every configuration key that ctmasknet adds to Detectron2's, with its meaning and unit; which of
Detectron2's are refused is in :mod:`ctmasknet.key_checks`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode

from ctmasknet.classes import IMAGE_CLASSES, MASK_TYPES
from ctmasknet.ct.scan import Window


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
    # So many patients of each class are trained on, drawn by SEED; 0 for all (classification only).
    cfg.DATASETS.TRAIN_PATIENTS = 0
    # Registered lesion sets that a training of MODEL.META_ARCHITECTURE TwoBranchNet draws the first
    # half of every step from; DATASETS.TRAIN are its labelled sets.
    cfg.DATASETS.LESIONS = ()
    # What happens when a patient is in two of a run's sets, or is evaluated after the weights were
    # trained on him (a classifier's: its detector's too): refuse | warn | strict (patients spelled
    # otherwise are refused too). Only ids of one numbering can be compared (datasets/README.md,
    # "Leaks").
    cfg.DATASETS.SHARED_PATIENTS = "refuse"
    # A user's Python file (.py) or module that registers data sets, mappers, heads or backbones. It
    # runs, so it counts on the command line alone (or as CTMASKNET_IMPORT in the environment): a
    # file that names one is refused, and no saved configuration does.
    cfg.DATASETS.IMPORT = ""
    # Cut every slice to the body box of its list before resizing (classification only).
    cfg.INPUT.CROP_TO_BODY = False
    # Make everything outside of the lungs black (classification only). They are looked for in each
    # slice alone, by the threshold rule of ctmasknet.ct.lungs, in HU that INPUT.WINDOW_CENTER_HU
    # and INPUT.WINDOW_WIDTH_HU make of grey levels.
    cfg.INPUT.LUNGS_ONLY = False
    # What training does to its slices: each of these is made with the probability PROB, drawn by
    # seed and position (see ctmasknet.data.training.recipe). "By a" is up to a either way. Those
    # about the middle are about that of the body box where slices are cropped to it.
    cfg.INPUT.AUGMENTATION = CfgNode()
    # none | covidnet_ct: COVIDNet-CT's recipe; then the keys below stay as they are.
    cfg.INPUT.AUGMENTATION.PRESET = "none"
    cfg.INPUT.AUGMENTATION.PROB = 0.5
    # Outside of the body becomes the mean of what is dark there.
    cfg.INPUT.AUGMENTATION.HIDE_OUTSIDE = False
    # Turn about the middle by so much, degrees.
    cfg.INPUT.AUGMENTATION.ROTATION_DEG = 0.0
    # Shear in x or y by so many px a px.
    cfg.INPUT.AUGMENTATION.SHEAR = 0.0
    # Least and largest factor by which a slice is scaled about the middle, its sides staying; ()
    # for none.
    cfg.INPUT.AUGMENTATION.SCALE = ()
    # Shift in x and y by this share of the sides, 0..1.
    cfg.INPUT.AUGMENTATION.SHIFT = 0.0
    # Elastic: the largest move is at most so many px of the file; the field is smoothed by a
    # Gaussian of so many px.
    cfg.INPUT.AUGMENTATION.ELASTIC_PX = 0.0
    cfg.INPUT.AUGMENTATION.ELASTIC_SMOOTH_PX = 10.0
    # Every side of what is cut out (body box, or slice) moves by this share of its sides, within
    # the file; 0..0.5.
    cfg.INPUT.AUGMENTATION.BOX_JITTER = 0.0
    # Least and largest factor of grey levels; () for none. Then a shift by so many of 0..255.
    cfg.INPUT.AUGMENTATION.GREY_SCALE = ()
    cfg.INPUT.AUGMENTATION.GREY_SHIFT = 0.0
    # Normal noise of at most this standard deviation, grey levels.
    cfg.INPUT.AUGMENTATION.NOISE_STD = 0.0
    # Registered mapper of training data (ctmasknet.data.mapper.MAPPER_REGISTRY); "" for the task's.
    # Evaluation and prediction see slices as ever.
    cfg.INPUT.MAPPER_TRAIN = ""
    # The window through which HU become grey levels 0..255, for files that state HU (DICOM, NIfTI);
    # 8-bit images pass unchanged (see ctmasknet.ct.scan). In HU.
    cfg.INPUT.WINDOW_CENTER_HU = Window.center_hu
    cfg.INPUT.WINDOW_WIDTH_HU = Window.width_hu
    # A slice that cannot be read: error (the run ends and names it) | skip (it is left out; in
    # training a slice drawn by seed and position stands in for it). Skipped ones are listed in
    # OUTPUT_DIR/bad_slices.json (training) or OUTPUT_DIR/inference/bad_slices.json (evaluation).
    cfg.DATALOADER.BAD_SLICES = "error"
    # With skip: the run ends with an error as soon as more than this share (0..1) of a data set is
    # known to be bad, by the headers of its files before the start.
    cfg.DATALOADER.MAX_BAD_SHARE = 0.01
    # Images a batch in evaluation. Images of unlike size are padded to the largest of their batch,
    # which changes features near the padded border; 1 makes every result independent of its
    # neighbours.
    cfg.TEST.IMS_PER_BATCH = 1
    # COCO's figures by faster-coco-eval, which agree with pycocotools': auto (where it is
    # installed) | always | never.
    cfg.TEST.COCO_FAST = "auto"
    # Detectron2's TEST.AUG: evaluation and prediction, not training's validation, look at a slice
    # as it is and, with FLIP, mirrored (see ctmasknet.modeling.averaged). Of a detector, shorter
    # sides that it is looked at in instead of its own, px; () for its own.
    cfg.TEST.AUG.MIN_SIZES = ()
    # Checkpoints of more classifiers of the same classes, whose scores evaluation and prediction
    # average with those of MODEL.WEIGHTS; each is used as its file states it.
    cfg.TEST.ENSEMBLE = ()
    # Slices of every set of DATASETS.VAL, drawn by SEED, that a training's evaluations show with
    # their predictions in TensorBoard; 0: none.
    cfg.TEST.PICTURES = 2

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
    # Folder of the cached rows; "" for ranked_boxes in OUTPUT_DIR. Runs may share one, also with
    # heads that read less. Where it is named, evaluation takes rows from it too.
    cfg.MODEL.RANKED_BOXES.CACHE_DIR = ""

    # --- image head ---
    cfg.MODEL.IMAGE_HEAD = CfgNode()
    cfg.MODEL.IMAGE_HEAD.NAME = "RankedBoxImageHead"
    # Names of the slice classes, in the order of the logits. The tools take them from the training
    # set.
    cfg.MODEL.IMAGE_HEAD.CLASSES = list(IMAGE_CLASSES)
    # Width of its hidden layers.
    cfg.MODEL.IMAGE_HEAD.FC_DIM = 1024
    # What it reads of a ranked box beside score and deltas: names of boxes, features, masks, in
    # this order (see ctmasknet.modeling.ranked_boxes). The paper's head reads none of them.
    cfg.MODEL.IMAGE_HEAD.READS = []
    # What `boxes` are relative to: image | lungs (the box around the lungs of the slice, found by
    # the rule of ctmasknet.ct.lungs.threshold; the image where there are none).
    cfg.MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO = "image"
    # Of SetAttentionImageHead: how many poolings it makes. Of it, BoxLSTMImageHead and
    # BoxAffinityImageHead: which share of hidden numbers is set to zero in training.
    cfg.MODEL.IMAGE_HEAD.NUM_QUERIES = 4
    cfg.MODEL.IMAGE_HEAD.DROPOUT = 0.2

    # --- a network on whole slices (MODEL.META_ARCHITECTURE SliceClassifier) ---
    cfg.MODEL.SLICE_NETWORK = CfgNode()
    # torchvision's name, else timm's; "timm/..." for timm's of a name that both have; networks of
    # this package: covidnet_ct_lookalike, jcs_classifier.
    cfg.MODEL.SLICE_NETWORK.NAME = "resnet18"
    # Outputs that share the softmax, the classes the first of them; 0: as many as classes.
    cfg.MODEL.SLICE_NETWORK.NUM_OUTPUTS = 0
    # Shorter side that the network's input is resized to, px; 0: the slice as the mapper gives it
    # (whole where INPUT.MIN_SIZE_TEST is 0).
    cfg.MODEL.SLICE_NETWORK.SIZE = 224
    # Side of the square cut from its middle, px; 0: none.
    cfg.MODEL.SLICE_NETWORK.CROP = 224
    # Resize to SIZE x SIZE whatever the slice's shape.
    cfg.MODEL.SLICE_NETWORK.SQUASH = False
    # In evaluation, the mean of the probabilities of ten cuts of CROP px: corners, middle, and
    # their mirror images.
    cfg.MODEL.SLICE_NETWORK.TEN_CROPS = False

    # The graph of MODEL.META_ARCHITECTURE COVIDNetCT as a list of operations; the checkpoint that
    # tools/import_weights.py makes of COVIDNet-CT's files states it.
    cfg.MODEL.COVIDNET_CT = CfgNode()
    cfg.MODEL.COVIDNET_CT.GRAPH = ""

    # --- a network on whole scans (MODEL.META_ARCHITECTURE ScanClassifier), on slices made as
    # MODEL.SLICE_NETWORK says ---
    cfg.MODEL.SCAN_NETWORK = CfgNode()
    # In evaluation, normalise every scan by the statistics of its own slices, as COVNet's authors
    # do.
    cfg.MODEL.SCAN_NETWORK.BATCH_STATISTICS = False
    # Slices of a scan that training draws at most; evaluation sees all. A batch
    # (SOLVER.IMS_PER_BATCH) then counts scans.
    cfg.DATALOADER.SLICES_PER_SCAN = 32

    # --- patches in a detector's ranked boxes (MODEL.META_ARCHITECTURE PatchNet) ---
    cfg.MODEL.PATCHES = CfgNode()
    # Side that a box is resized to, px.
    cfg.MODEL.PATCHES.SIZE = 64
    # Whether their network is told where they lie and how large they are, as shares of the slice.
    cfg.MODEL.PATCHES.PLACE = True

    # --- lesions by a semantic network (MODEL.META_ARCHITECTURE SemanticLesionNet) ---
    cfg.MODEL.SEMANTIC = CfgNode()
    # infnet | jcs | jcs_joint (one lesion class) | unet | unetplusplus | deeplabv3plus.
    cfg.MODEL.SEMANTIC.NAME = "unet"
    # Encoder of the last three, by its name in segmentation-models-pytorch.
    cfg.MODEL.SEMANTIC.ENCODER = "resnet34"
    # A px is lesion from this probability on, 0..1.
    cfg.MODEL.SEMANTIC.THRESHOLD = 0.5

    # Batch normalisation of JCS's encoders, of its classifier (MODEL.SLICE_NETWORK.NAME
    # jcs_classifier) too: FrozenBN, as published, for a start from pretrained weights | BN, which
    # learns, for one from random weights.
    cfg.MODEL.JCS = CfgNode()
    cfg.MODEL.JCS.NORM = "FrozenBN"

    # --- classes by the lesions of such a network, or of a detector (MODEL.META_ARCHITECTURE
    # SemanticLesionClassifier, DetectedLesionClassifier) ---
    cfg.MODEL.LESION_HEAD = CfgNode()
    # On the areas and places of a slice's lesions: area_rule (the larger, the later the class) |
    # logistic | mlp; on a scan's lesion maps: volume.
    cfg.MODEL.LESION_HEAD.NAME = "logistic"
    # Of the first three, a detector's lesions count from this score on, 0..1; a semantic network's
    # are those of MODEL.SEMANTIC.THRESHOLD.
    cfg.MODEL.LESION_HEAD.THRESHOLD = 0.5
    # Width of the hidden layer of mlp.
    cfg.MODEL.LESION_HEAD.FC_DIM = 32
    # What volume resizes a scan to: slices, and side of a slice, px.
    cfg.MODEL.LESION_HEAD.DEPTH = 32
    cfg.MODEL.LESION_HEAD.SIZE = 64

    # Columns of the matrix of affinity heads, and stages of the sieve of heads on mask features
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
    # After which steps of training the image head's branch takes over the segmentation branch:
    # where the sum of lesion losses is below that of every step before (best) | of the step before
    # (previous).
    cfg.MODEL.TWO_BRANCH.COPY_WHEN = "best"

    # --- what the classifier trains: heads | heads_bn | heads_bn_no_shortcut | full ---
    # (see ctmasknet.modeling.trainable)
    cfg.MODEL.TRAINABLE = "heads"

    # Whether a training starts from weights of other classes or of another shape: what fits is
    # taken, all else starts anew and is named in the log (see ctmasknet.engine.checkpoint).
    cfg.MODEL.TRANSFER = False

    # --- evaluation and prediction (see ctmasknet.modeling.fast.inference) ---
    # What happens when a model is used with another value than its checkpoint states (input size,
    # thresholds, anchors, ...), which only an override can ask for: refuse | warn.
    cfg.MODEL.UNLIKE_CHECKPOINT = "refuse"
    cfg.MODEL.INFERENCE = CfgNode()
    # Files that earlier versions wrote name it; ENGINE has taken its place.
    cfg.register_deprecated_key("MODEL.INFERENCE.FUSED")
    # What computes a detector there: torch | openvino (CPU; `pip install openvino`), the same
    # results but for rounding in less time | auto: openvino on the CPU where it is installed.
    cfg.MODEL.INFERENCE.ENGINE = "auto"
    # What it computes in: "" for float32 | bfloat16, where the CPU or GPU has it, which moves
    # logits by some tenths | int8 (classifiers, OpenVINO), from the file that tools/export.py
    # wrote beside the weights, which states how far it moves them.
    cfg.MODEL.INFERENCE.DTYPE = ""
    # In bfloat16, a slice whose two best logits are less than this apart is named again in float32;
    # 0: never.
    cfg.MODEL.INFERENCE.RECHECK_MARGIN = 1.0

    # --- solver ---
    # ADAM | ADAMW (weight decay apart from the gradient) | SGD
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
    """Whether ``cfg`` describes a slice classifier and not the lesion detector."""
    return (
        ranks_boxes(cfg)
        or reads_lesions(cfg)
        or cfg.MODEL.META_ARCHITECTURE in ("SliceClassifier", "ScanClassifier", "COVIDNetCT")
    )


def reads_lesions(cfg: CfgNode) -> bool:
    """Whether ``cfg`` describes a classifier by areas and places, or maps, of lesions."""
    return cfg.MODEL.META_ARCHITECTURE in ("DetectedLesionClassifier", "SemanticLesionClassifier")


def has_jcs(cfg: CfgNode) -> bool:
    """Whether a network of JCS is in the model."""
    of_slices = cfg.MODEL.SLICE_NETWORK.NAME == "jcs_classifier"
    return (of_slices and cfg.MODEL.META_ARCHITECTURE == "SliceClassifier") or (
        cfg.MODEL.SEMANTIC.NAME.startswith("jcs")
        and cfg.MODEL.META_ARCHITECTURE.startswith("SemanticLesion")
    )


def finds_lesions(cfg: CfgNode) -> bool:
    """Whether the model tells lesions."""
    return not is_classifier(cfg) or ranks_boxes(cfg) or reads_lesions(cfg)


def finds_body(cfg: CfgNode) -> bool:
    """Whether the model itself crops to the body slices that come without a body box."""
    return cfg.MODEL.META_ARCHITECTURE == "COVIDNetCT"


def names_scans(cfg: CfgNode) -> bool:
    """Whether ``cfg`` describes a classifier that sees a scan's slices together."""
    by_maps = reads_lesions(cfg) and cfg.MODEL.LESION_HEAD.NAME == "volume"
    return by_maps or cfg.MODEL.META_ARCHITECTURE == "ScanClassifier"


def ranks_boxes(cfg: CfgNode) -> bool:
    """Whether ``cfg`` describes a classifier that names slices by a detector's boxes."""
    return cfg.MODEL.META_ARCHITECTURE in ("CTMaskNet", "TwoBranchNet", "PatchNet")


def reads_rows(cfg: CfgNode) -> bool:
    """Whether its image head reads ranked rows alone, in which a box can be hidden."""
    pixels = cfg.MODEL.META_ARCHITECTURE == "PatchNet"
    return ranks_boxes(cfg) and not (pixels or cfg.MODEL.TWO_BRANCH.MASK_FEATURES)


def leaves(node: CfgNode, above: str = "") -> Iterator[tuple[str, object]]:
    """Every key of a configuration with its value: ``("MODEL.MASK_ON", True)``, ..."""
    for name, value in node.items():
        key = f"{above}{name}"
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value
