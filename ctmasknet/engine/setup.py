"""How a configuration comes about, and how its model is loaded.

The one rule: Detectron2's defaults, ctmasknet's keys, the file, what the checkpoint states, then
overrides. A run that trains (:func:`training_cfg`) takes class names from its data sets and a
classifier's lesion classes from the checkpoint that it starts from, nothing else of that. Every
other run (:func:`inference_cfg`) says where file and checkpoint differ, refuses an override that
differs from the checkpoint when it is loaded, and needs no file where the checkpoint states all; a
data set it reads has to agree.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from ctmasknet.config import finds_body, has_jcs, is_classifier, names_scans
from ctmasknet.config_file import from_file, one_line, override, read_cfg
from ctmasknet.data.patients import check_held_out
from ctmasknet.data.registry import dataset_dicts, known_sets, register_prepared
from ctmasknet.data.training.scan_batches import scans_of
from ctmasknet.engine.checkpoint import (
    BEST,
    LAST,
    CTMaskNetCheckpointer,
    local_file,
    read_spec,
    spec_of,
)
from ctmasknet.engine.runs.epochs import resolve_epochs
from ctmasknet.engine.train_data import TRAINING, training_dicts
from ctmasknet.engine.trained_on import Record, check_trained_on
from ctmasknet.engine.validation import check_validation
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import plain_file
from ctmasknet.key_checks import check_averages, check_keys
from ctmasknet.model_zoo import get_config_file
from ctmasknet.modeling.fast.inference import check_int8, has_bfloat16, inference_engine
from ctmasknet.modeling.peers.mask_feature_heads import FEATURES
from ctmasknet.weights.entries import CONFIGURATION
from ctmasknet.weights.reader import UnreadableCheckpoint
from ctmasknet.weights.spec import FREE_KEYS, put_stated, stated
from ctmasknet.weights.timm_files import LITE0

BEST_CHECKPOINT = f"{BEST}.pth"
#: Whether it is a classifier -> ``task`` in a checkpoint's specification, what a data set calls its
#: classes, the configurations to start from.
_TASKS = {
    True: ("classification", "image_classes", "configs/cls.yaml"),
    False: ("segmentation", "thing_classes", "configs/seg.yaml"),
}
#: What Detectron2 and torch raise where parts of a model do not fit together.
_MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)
_MISFITS += (ValueError,)
_LOGGER = logging.getLogger(__name__)


def training_cfg(
    config_file: str | os.PathLike, overrides: Sequence[Any] = (), *, resume: bool = False
) -> CfgNode:
    """The frozen configuration of a training.

    Prepared data sets are registered, class names are taken from ``DATASETS.TRAIN`` and ``VAL``,
    and epochs become iterations. ``MODEL.WEIGHTS`` is what the training starts from, and is not
    asked for where it goes on from a checkpoint of its own (``resume``). Other arguments as
    :func:`read_cfg`.

    Raises:
        CTMaskNetError: see :func:`read_cfg`; no such device, unknown data sets, shared patients,
            missing weights.
    """
    cfg = read_cfg(config_file, overrides)
    _check_device(cfg)
    if cfg.MODEL.INFERENCE.DTYPE == "int8":
        raise CTMaskNetError(
            "MODEL.INFERENCE.DTYPE is int8, a form of weights that are trained already; leave it "
            "out of a training"
        )
    register_prepared()
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL)
    if cfg.MODEL.META_ARCHITECTURE == "TwoBranchNet":
        _check_alternating(cfg)
    if not cfg.DATASETS.TRAIN:
        raise CTMaskNetError("DATASETS.TRAIN is empty; name a registered data set")
    for name in names:
        dataset_dicts(name)
    lesions = tuple(cfg.DATASETS.LESIONS)
    check_held_out(
        *((*cfg.DATASETS.TRAIN, *lesions), cfg.DATASETS.VAL, known_sets(cfg.DATASETS.TEST)),
        cfg.DATASETS.SHARED_PATIENTS,
    )
    given = [str(key) for key in overrides[::2]]
    _take_classes(cfg, names, given)
    goes_on = resume and os.path.exists(os.path.join(cfg.OUTPUT_DIR, LAST))
    if lesions:
        _take_classes(cfg, lesions, given, of_slices=False)
    elif is_classifier(cfg):
        _take_from_start(cfg, goes_on, given)
    _check_windows(cfg, (*names, *lesions))
    resolve_epochs(cfg, _drawn_in_an_epoch(cfg, names), overrides)
    check_validation(cfg)
    if not goes_on:
        _require_weights(cfg.MODEL.WEIGHTS, config_file, training=True)
    warn_of_start(cfg)
    cfg.freeze()
    return cfg


def inference_cfg(
    config_file: str | os.PathLike = "",
    overrides: Sequence[Any] = (),
    weights: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    *,
    test_sets: bool = False,
    averages: bool = False,
) -> tuple[CfgNode, dict[str, Any]]:
    """The frozen configuration of whatever uses a trained model, and its checkpoint's
    specification.

    What the checkpoint states (:func:`ctmasknet.weights.spec.stated`: classes, HU window,
    input size, thresholds, anchors, ...) comes before what the file says, and where the two differ
    a warning names the keys. No data set has to be there.

    Args:
        config_file: such as ``configs/cls.yaml``; "" where the checkpoint states its
            configuration, as those of a training do, or names one, as imported ones do.
        overrides: ``KEY VALUE`` pairs. One that differs from what the checkpoint states is refused
            by :func:`load_model`, see ``MODEL.UNLIKE_CHECKPOINT``.
        weights: the checkpoint; default ``MODEL.WEIGHTS`` where it is an override, else
            ``model_best.pth`` of ``OUTPUT_DIR``. More than one are the first of an ensemble and
            its others (``TEST.ENSEMBLE``).
        averages: the run may look more than once at a slice (``TEST.AUG``, ``TEST.ENSEMBLE``),
            which is refused otherwise.
        test_sets: the run reads ``DATASETS.TEST``, whose classes and window have to be the model's;
            a checkpoint that states no classes has those of the sets.

    Raises:
        CTMaskNetError: see :func:`read_cfg`; no such device, no such weights, unreadable ones,
            those of the other task, or data sets that do not agree with them; neither a file nor a
            checkpoint that states its configuration.
    """
    given = dict(zip(map(str, overrides[::2]), overrides[1::2], strict=False))
    one = weights is None or isinstance(weights, str | os.PathLike)
    weights, *others = [weights] if one else weights
    if not (config_file or weights or {"MODEL.WEIGHTS", "OUTPUT_DIR"} & given.keys()):
        raise CTMaskNetError(
            "no configuration and no weights: add `config_file` configs/seg.yaml or "
            "configs/cls.yaml, or name a model file: `weights` model_best.pth, or MODEL.WEIGHTS "
            "model_best.pth among the overrides"
        )
    named = {os.fspath(path) for path in (weights, given.get("MODEL.WEIGHTS")) if path}
    if len(named) > 1:
        raise CTMaskNetError(
            f"`weights` is {weights} but MODEL.WEIGHTS {given['MODEL.WEIGHTS']}; give one of them"
        )
    file = None
    if config_file:
        file = read_cfg(config_file, overrides)
        _check_device(file)
    folder = file.OUTPUT_DIR if file else given.get("OUTPUT_DIR", "")
    path = weights or given.get("MODEL.WEIGHTS", os.path.join(str(folder), BEST_CHECKPOINT))
    path, spec = os.fspath(path), {}
    if path:
        _require_weights(path, config_file, training=False)
        spec = read_spec(local_file(path))
    if not config_file and CONFIGURATION not in spec:
        # Imported weights name one of the repository's
        try:
            config_file = get_config_file(spec.get("config_file", ""))
        except CTMaskNetError:
            raise CTMaskNetError(
                f"{path}: does not state its configuration, as checkpoints of a training here do; "
                f"add `config_file` {spec.get('config_file', 'configs/...')}, the one it was "
                "trained or imported for"
            ) from None
        file = read_cfg(config_file, overrides)
    if file is not None:
        task, _, _ = _TASKS[is_classifier(file)]
        if spec.get("task", task) != task:
            raise CTMaskNetError(
                f"{path}: a checkpoint for {spec['task']}, but {config_file} is for {task}; give "
                f"{_TASKS[not is_classifier(file)][2]} or the configuration it was trained with"
            )
    cfg = from_file(config_file)
    put_stated(cfg, path, stated(spec), os.fspath(config_file), given)
    override(cfg, overrides)
    cfg.TEST.ENSEMBLE = [*cfg.TEST.ENSEMBLE, *map(os.fspath, others)]
    if "MODEL.ROI_HEADS.NUM_CLASSES" not in given:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(cfg.MODEL.LESION_CLASSES)
    try:
        check_keys(cfg)
    except CTMaskNetError as error:  # the file with the overrides is known to be right
        raise CTMaskNetError(f"{path}: {error}") from None
    _check_device(cfg)
    cfg.MODEL.WEIGHTS = path
    check_int8(cfg)
    own = [key for key in given if key in stated(spec) and key not in FREE_KEYS]
    check_averages(cfg, own, averages)
    if test_sets:
        attribute = _TASKS[is_classifier(cfg)][1]
        if not cfg.DATASETS.TEST:
            raise CTMaskNetError("DATASETS.TEST is empty; name a registered data set to evaluate")
        register_prepared()
        names = tuple(known_sets(cfg.DATASETS.TEST))
        classes = spec.get("image_classes" if is_classifier(cfg) else "lesion_classes")
        _take_classes(cfg, names)
        found = cfg.MODEL.IMAGE_HEAD.CLASSES if is_classifier(cfg) else cfg.MODEL.LESION_CLASSES
        if names and classes and list(classes) != list(found):
            raise CTMaskNetError(
                f"{names[0]}: its {attribute} are {list(found)} but those of {path} are "
                f"{list(classes)}; name a data set of the same classes in DATASETS.TEST, or give "
                "weights that were trained on these"
            )
        _check_windows(cfg, names)
    if not path:
        raise CTMaskNetError(
            "MODEL.WEIGHTS is empty, and random weights tell nothing; name a file, or leave the "
            f"key out for {os.path.join(cfg.OUTPUT_DIR, BEST_CHECKPOINT)}"
        )
    cfg.freeze()
    return cfg, spec


def _drawn_in_an_epoch(cfg: CfgNode, names: Sequence[str]) -> int:
    """Slices of a training, or its scans where it draws those, which ``names`` have to tell."""
    dicts = training_dicts(cfg)
    if not names_scans(cfg):
        return len(dicts)
    for name in names:
        scans_of(dataset_dicts(name), name)
    return len(scans_of(dicts, TRAINING, one_label=True))


def built_model(cfg: CfgNode) -> nn.Module:
    """The model of ``cfg``, with random weights.

    Raises:
        CTMaskNetError: its parts do not fit together.
    """
    try:
        return build_model(cfg)
    except _MISFITS as error:
        raise CTMaskNetError(
            f"MODEL: no model can be built as the configuration says ({type(error).__name__}: "
            f"{one_line(error)[:300]}); correct the keys below MODEL that differ from configs/"
        ) from error


def load_model(cfg: CfgNode, held_out: Sequence[str] = ()) -> nn.Module:
    """Build the model of ``cfg``, load ``MODEL.WEIGHTS`` whole, and put it into evaluation mode;
    its ``trained_on`` is the file's record, empty without one.

    Args:
        cfg: the configuration.
        held_out: registered sets that the weights must not have been trained on, see
            :func:`~ctmasknet.engine.trained_on.check_trained_on`.

    Raises:
        CTMaskNetError: the file is unreadable, was made for another configuration, or was trained
            on a patient of ``held_out``.
    """
    try:
        model = built_model(cfg)
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{cfg.MODEL.WEIGHTS}: {error}") from error
    model.trained_on = []

    def check(path: str, record: Record | None) -> None:
        model.trained_on = record or []
        check_trained_on(path, record, held_out, cfg.DATASETS.SHARED_PATIENTS)

    options = {"spec": spec_of(cfg), "check_trained_on": check, "complete": True}
    options["on_unlike"] = cfg.MODEL.UNLIKE_CHECKPOINT
    CTMaskNetCheckpointer(model, **options).load(cfg.MODEL.WEIGHTS)
    return model.eval()


def _check_alternating(cfg: CfgNode) -> None:
    """Refuse what a training of two branches cannot do."""
    if not cfg.DATASETS.LESIONS:
        raise CTMaskNetError(
            "DATASETS.LESIONS is empty, but a TwoBranchNet learns lesions in the first half of "
            "every step; name a registered lesion set, such as cncb_lesions_merge_train"
        )
    if cfg.MODEL.TRAINABLE != "full":
        raise CTMaskNetError(
            f"MODEL.TRAINABLE is {cfg.MODEL.TRAINABLE!r}, but a TwoBranchNet is trained whole; set "
            "it to full"
        )
    for key, value in (
        ("SOLVER.AMP.ENABLED", cfg.SOLVER.AMP.ENABLED),
        ("INPUT.CROP_TO_BODY", cfg.INPUT.CROP_TO_BODY),
        ("INPUT.LUNGS_ONLY", cfg.INPUT.LUNGS_ONLY),
    ):
        if value:
            raise CTMaskNetError(
                f"{key} is True, which a training of TwoBranchNet does not know (lesion slices are "
                "seen whole, steps are made in float32); set it to False"
            )
    if comm.get_world_size() > 1:
        raise CTMaskNetError(
            "MODEL.META_ARCHITECTURE TwoBranchNet is trained by one process, for its half steps "
            "reach unlike weights; leave `num_gpus` and `num_machines` at 1"
        )


def _take_classes(
    cfg: CfgNode, names: tuple[str, ...], given: Sequence[str] = (), of_slices: bool | None = None
) -> None:
    """Set the configuration's class names and count to those of the data sets, from which keys that
    are ``given`` on the command line may not differ.

    Args:
        of_slices: classes of slices or of lesions; default those of the task.
    """
    of_slices = is_classifier(cfg) if of_slices is None else of_slices
    _, attribute, _ = _TASKS[of_slices]
    classes: dict[str, list[str]] = {}
    for name in names:
        found = MetadataCatalog.get(name).get(attribute)
        if found is None:
            raise CTMaskNetError(
                f"{name}: has no {attribute}, so it is not a data set for MODEL.META_ARCHITECTURE "
                f"{cfg.MODEL.META_ARCHITECTURE}; name one made by the other preparation tool"
            )
        classes[name] = list(found)
    if not classes:
        return
    (first, found), *others = classes.items()
    for other, its in others:
        if its != found:
            raise CTMaskNetError(
                f"{other} has classes {its} but {first} has {found}; prepare them as one set"
            )
    if of_slices:
        before, cfg.MODEL.IMAGE_HEAD.CLASSES = cfg.MODEL.IMAGE_HEAD.CLASSES, found
        keys = ["MODEL.IMAGE_HEAD.CLASSES"]
    else:
        before, cfg.MODEL.LESION_CLASSES = cfg.MODEL.LESION_CLASSES, found
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(found)
        keys = ["MODEL.LESION_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES"]
    stated = [key for key in keys if key in given]
    if stated and list(before) != found:
        raise CTMaskNetError(
            f"{stated[0]} is given for the classes {', '.join(before)}, but {first} has "
            f"{', '.join(found)}; leave the key out, or name another data set"
        )
    if list(before) != found:
        _LOGGER.info("Classes taken from %s: %s", first, ", ".join(found))


def _take_from_start(cfg: CfgNode, goes_on: bool, given: Sequence[str]) -> None:
    """Set a classifier's lesion classes, and an imported graph, to those of the file that it starts
    from, or of the checkpoints in ``OUTPUT_DIR`` that it goes on from."""
    path = cfg.MODEL.WEIGHTS
    if goes_on:
        try:
            last = plain_file(Path(cfg.OUTPUT_DIR, LAST)).read_text("utf-8", "replace").strip()
        except OSError:  # told when it is loaded
            return
        path = os.path.join(cfg.OUTPUT_DIR, os.path.basename(last))
    if not path.endswith(".pth") or not os.path.isfile(path):
        return
    try:
        spec = read_spec(path)
    except UnreadableCheckpoint:  # an earlier checkpoint may be taken; or it is told when loaded
        return
    graph = stated(spec).get("MODEL.COVIDNET_CT.GRAPH")
    if finds_body(cfg) and isinstance(graph, str):
        cfg.MODEL.COVIDNET_CT.GRAPH = graph
    lesions = None if "MODEL.LESION_CLASSES" in given else spec.get("lesion_classes")
    if lesions and list(lesions) != list(cfg.MODEL.LESION_CLASSES):
        cfg.MODEL.LESION_CLASSES = list(lesions)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(lesions)
        _LOGGER.info("Lesion classes taken from %s: %s", path, ", ".join(lesions))


def _check_windows(cfg: CfgNode, names: tuple[str, ...]) -> None:
    """Slices of volumes have to be written through the window of the configuration."""
    our_center, our_width = float(cfg.INPUT.WINDOW_CENTER_HU), float(cfg.INPUT.WINDOW_WIDTH_HU)
    for name in names:
        found = MetadataCatalog.get(name).get("window_hu") or (our_center, our_width)
        center, width = map(float, found)
        if (center, width) != (our_center, our_width):
            raise CTMaskNetError(
                f"{name}: its slices were written through the window {center:g},{width:g} (center, "
                f"width in HU) but INPUT.WINDOW_CENTER_HU is {our_center:g} and "
                f"INPUT.WINDOW_WIDTH_HU {our_width:g}; prepare the set again with "
                f"`window`={our_center:g},{our_width:g}, or set INPUT.WINDOW_CENTER_HU {center} "
                f"INPUT.WINDOW_WIDTH_HU {width}"
            )


def warn_of_start(cfg: CfgNode) -> None:
    """Tell of a training that begins where it can hardly learn."""
    if has_jcs(cfg) and cfg.MODEL.JCS.NORM == "FrozenBN" and not cfg.MODEL.WEIGHTS:
        _LOGGER.warning(
            "MODEL.JCS.NORM is FrozenBN, which learns next to nothing from random weights "
            "(MODEL.WEIGHTS is empty); set it to BN, or start from pretrained weights"
        )
    two_branches = cfg.MODEL.META_ARCHITECTURE == "TwoBranchNet"
    if two_branches and cfg.MODEL.TWO_BRANCH.MASK_FEATURES:
        width = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM
        if width != FEATURES or not cfg.MODEL.ROI_MASK_HEAD.NUM_CONV:
            _LOGGER.warning(
                "MODEL.ROI_MASK_HEAD.CONV_DIM is %d, NUM_CONV %d: mask features have %d channels "
                "of one convolution or more, so no layer of the mask head is copied to theirs, "
                "which stay as they start; set them to %d and 1",
                *(width, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, FEATURES, FEATURES),
            )


def _require_weights(weights: str, config_file: str | os.PathLike, training: bool) -> None:
    path = Path(weights)
    if not weights or "://" in weights or os.path.isfile(path):
        return
    # By convention a configuration and its output folder have one name.
    maker = Path(config_file).with_name(f"{path.parent.name}.yaml") if config_file else None
    final = path.with_name("model_final.pth")
    if path.name == BEST_CHECKPOINT and final.is_file():
        fix = f"{final} is there, the last of a training that chose no best: name that, or "
    elif not training and config_file:
        fix = f"train it with tools/train_net.py (`config_file` {config_file}), or "
    elif training and path.name == BEST_CHECKPOINT and maker.is_file():
        fix = f"make it with tools/train_net.py (`config_file` {maker}), or "
    elif path.stem.startswith("resnet"):
        fix = (
            f"make it from torchvision's {path.stem} file with tools/import_weights.py "
            f'(`output` {path}), start from random weights with MODEL.WEIGHTS "", or '
        )
    elif training and path.stem == LITE0:
        fix = (
            f"make it with tools/import_weights.py {LITE0} (`output` {path}), start from random "
            'weights with MODEL.WEIGHTS "", or '
        )
    else:
        fix = ""
    what = "a folder, device or pipe, no weights file" if path.exists() else "no such weights file"
    raise CTMaskNetError(
        f"{path}: {what}; {fix}correct the path, or set MODEL.WEIGHTS to another file"
    )


def _check_device(cfg: CfgNode) -> None:
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise CTMaskNetError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; set it to cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CTMaskNetError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but torch finds {torch.cuda.device_count()} "
            "GPUs; set it to cpu"
        )
    inference_engine(cfg)
    if cfg.MODEL.INFERENCE.DTYPE == "bfloat16" and not has_bfloat16(device):
        raise CTMaskNetError(
            f"MODEL.INFERENCE.DTYPE is bfloat16, which device {device} does not compute in; set it "
            'to ""'
        )
