"""How a configuration comes about, and how its model is loaded.

The one rule: Detectron2's defaults, ctmasknet's keys, the file, then overrides. A run that trains
(:func:`training_cfg`) takes class names from its data sets. Every other run (:func:`inference_cfg`)
takes what the checkpoint states before what the file says; a data set it reads has to agree.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch import nn

from ctmasknet.config import CHOICES, add_ctmasknet_config, check_keys, is_classifier
from ctmasknet.data.patients import check_held_out
from ctmasknet.data.registry import dataset_dicts, known_sets, register_prepared
from ctmasknet.engine.checkpoint import (
    BEST,
    SPEC,
    SPEC_KEYS,
    CTMaskNetCheckpointer,
    read_checkpoint,
    spec_of,
)
from ctmasknet.engine.train_data import training_dicts
from ctmasknet.engine.trained_on import check_trained_on
from ctmasknet.engine.validation import check_validation
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast.layers import has_bfloat16

BEST_CHECKPOINT = f"{BEST}.pth"
#: Key in epochs -> key in iterations that it sets.
_UNITS = {
    "SOLVER.MAX_EPOCHS": "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_EPOCHS": "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_EPOCHS": "TEST.EVAL_PERIOD",
}
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


def read_cfg(config_file: str | os.PathLike, overrides: Sequence[Any] = ()) -> CfgNode:
    """Detectron2's defaults, ctmasknet's keys, the file, then ``KEY VALUE`` overrides.

    Raises:
        CTMaskNetError: missing or malformed file, unknown key, value of another type, or one that
            :func:`ctmasknet.config.check_keys` refuses.
    """
    config_file = os.fspath(config_file)
    if not config_file:
        raise CTMaskNetError(
            "no configuration: add `config_file` configs/seg.yaml or configs/cls.yaml"
        )
    if not os.path.isfile(config_file):
        raise CTMaskNetError(
            f"{config_file}: no such configuration; see configs/ for those there are"
        )
    cfg = get_cfg()
    add_ctmasknet_config(cfg)
    try:
        loaded = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
        cfg.merge_from_other_cfg(CfgNode(_typed(loaded, cfg)))
    except (AssertionError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CTMaskNetError(
            f"{config_file}: {_one_line(error)}; correct the key or its value"
        ) from error
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{config_file}: {error}") from None
    try:
        words = list(overrides)
        words[1::2] = [
            _float(value, _at(cfg, key))
            for key, value in zip(words[::2], words[1::2], strict=False)
        ]
        cfg.merge_from_list(words)
    except (AssertionError, KeyError, ValueError) as error:
        raise CTMaskNetError(
            f"override: {_one_line(error)}; overrides are pairs KEY VALUE of known keys"
        ) from error
    given = {str(key) for key in words[::2]}
    if "MODEL.LESION_CLASSES" in given and "MODEL.ROI_HEADS.NUM_CLASSES" not in given:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(cfg.MODEL.LESION_CLASSES) or 1
    check_keys(cfg)
    return cfg


def training_cfg(config_file: str | os.PathLike, overrides: Sequence[Any] = ()) -> CfgNode:
    """The frozen configuration of a training.

    Prepared data sets are registered, class names are taken from ``DATASETS.TRAIN`` and ``VAL``,
    and epochs become iterations. ``MODEL.WEIGHTS`` is what the training starts from. Arguments as
    :func:`read_cfg`.

    Raises:
        CTMaskNetError: see :func:`read_cfg`; no such device, unknown data sets, shared patients,
            missing weights.
    """
    cfg = read_cfg(config_file, overrides)
    _check_device(cfg)
    register_prepared()
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL)
    if not cfg.DATASETS.TRAIN:
        raise CTMaskNetError("DATASETS.TRAIN is empty; name a registered data set")
    for name in names:
        dataset_dicts(name)
    check_held_out(
        *(cfg.DATASETS.TRAIN, cfg.DATASETS.VAL, known_sets(cfg.DATASETS.TEST)),
        cfg.DATASETS.SHARED_PATIENTS,
    )
    _take_classes(cfg, names, [str(key) for key in overrides[::2]])
    _check_windows(cfg, names)
    resolve_epochs(cfg, len(training_dicts(cfg)), overrides)
    check_validation(cfg)
    _require_weights(cfg, config_file, training=True)
    cfg.freeze()
    return cfg


def inference_cfg(
    config_file: str | os.PathLike,
    overrides: Sequence[Any] = (),
    weights: str | os.PathLike | None = None,
    *,
    test_sets: bool = False,
) -> tuple[CfgNode, dict[str, Any]]:
    """The frozen configuration of whatever uses a trained model, and its checkpoint's
    specification.

    Classes, HU window, number of boxes and rounding of anchors are the checkpoint's unless an
    override names the key, and the file's where the checkpoint does not state them. No data set
    has to be there.

    Args:
        config_file: such as ``configs/cls.yaml``.
        overrides: ``KEY VALUE`` pairs.
        weights: the checkpoint; default ``MODEL.WEIGHTS`` where it is an override, else
            ``model_best.pth`` of ``OUTPUT_DIR``.
        test_sets: the run reads ``DATASETS.TEST``, whose classes and window have to be the model's;
            a checkpoint that states no classes has those of the sets.

    Raises:
        CTMaskNetError: see :func:`read_cfg`; no such device, no such weights, unreadable ones,
            those of the other task, or data sets that do not agree with them.
    """
    given = [str(word) for word in overrides[::2]]
    cfg = read_cfg(config_file, overrides)
    _check_device(cfg)
    if weights or "MODEL.WEIGHTS" not in given:
        cfg.MODEL.WEIGHTS = os.fspath(weights or os.path.join(cfg.OUTPUT_DIR, BEST_CHECKPOINT))
    path, spec = cfg.MODEL.WEIGHTS, {}
    if path:
        _require_weights(cfg, config_file, training=False)
        found = read_checkpoint(PathManager.get_local_path(path)).get(SPEC)
        spec = found if isinstance(found, dict) else {}
    task, attribute, _ = _TASKS[is_classifier(cfg)]
    if spec.get("task", task) != task:
        raise CTMaskNetError(
            f"{path}: a checkpoint for {spec['task']}, but {config_file} is for {task}; give "
            f"{_TASKS[not is_classifier(cfg)][2]} or the configuration it was trained with"
        )
    for name, key in SPEC_KEYS.items():
        if name in spec and key not in given:
            cfg.merge_from_list([key, spec[name]])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(cfg.MODEL.LESION_CLASSES)
    if test_sets:
        if not cfg.DATASETS.TEST:
            raise CTMaskNetError("DATASETS.TEST is empty; name a registered data set to evaluate")
        register_prepared()
        names = tuple(known_sets(cfg.DATASETS.TEST))
        stated = spec.get("image_classes" if is_classifier(cfg) else "lesion_classes")
        _take_classes(cfg, names)
        found = cfg.MODEL.IMAGE_HEAD.CLASSES if is_classifier(cfg) else cfg.MODEL.LESION_CLASSES
        if names and stated and list(stated) != list(found):
            raise CTMaskNetError(
                f"{names[0]}: its {attribute} are {list(found)} but those of {path} are "
                f"{list(stated)}; name a data set of the same classes in DATASETS.TEST, or give "
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


def resolve_epochs(cfg: CfgNode, num_slices: int, overrides: Sequence[str] = ()) -> None:
    """Turn what ``cfg`` (in place) states in epochs into iterations, rounded up.

    A key in epochs above 0 decides over the key in iterations of the configuration files. Given on
    the command line, the key in iterations decides.

    Args:
        cfg: not frozen.
        num_slices: slices that one epoch draws.
        overrides: ``KEY VALUE`` pairs of the command line.

    Raises:
        CTMaskNetError: negative epochs, or both units of one key on the command line.
    """
    given = {str(key) for key in overrides[::2]}
    batch = cfg.SOLVER.IMS_PER_BATCH
    for in_epochs, in_iterations in _UNITS.items():
        section, name = in_epochs.split(".")
        epochs = cfg[section][name]
        if epochs < 0:
            raise CTMaskNetError(f"{in_epochs} is {epochs}; set a number of epochs, or 0 for none")
        if in_iterations in given:
            if in_epochs in given and epochs:
                raise CTMaskNetError(
                    f"{in_epochs} and {in_iterations} are both given; leave one of them out"
                )
            cfg[section][name] = 0
            continue
        if epochs:
            iterations = math.ceil(epochs * num_slices / batch)
            cfg[section][in_iterations.split(".")[1]] = iterations
            _LOGGER.info(
                "%s: %d epochs of %d slices in batches of %d: %s %d",
                *(in_epochs, epochs, num_slices, batch, in_iterations, iterations),
            )
    if not cfg.SOLVER.MAX_EPOCHS:
        iterations = cfg.SOLVER.MAX_ITER
        _LOGGER.info(
            "SOLVER.MAX_ITER %d in batches of %d: %.2f epochs of %d slices",
            *(iterations, batch, iterations * batch / num_slices, num_slices),
        )


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
            f"{_one_line(error)[:300]}); correct the keys below MODEL that differ from configs/"
        ) from error


def load_model(cfg: CfgNode, held_out: Sequence[str] = ()) -> nn.Module:
    """Build the model of ``cfg``, load ``MODEL.WEIGHTS`` whole, and put it into evaluation mode.

    Args:
        cfg: the configuration.
        held_out: registered sets that the weights must not have been trained on, see
            :func:`~ctmasknet.engine.trained_on.check_trained_on`.

    Raises:
        CTMaskNetError: the file is unreadable, was made for another configuration, or was trained
            on a patient of ``held_out``.
    """
    model, shared = built_model(cfg), cfg.DATASETS.SHARED_PATIENTS
    check = functools.partial(check_trained_on, names=held_out, on_shared=shared)
    options = {"spec": spec_of(cfg), "check_trained_on": check, "complete": True}
    CTMaskNetCheckpointer(model, **options).load(cfg.MODEL.WEIGHTS)
    return model.eval()


def _take_classes(cfg: CfgNode, names: tuple[str, ...], given: Sequence[str] = ()) -> None:
    """Set the configuration's class names and count to those of the data sets, from which keys that
    are ``given`` on the command line may not differ."""
    _, attribute, _ = _TASKS[is_classifier(cfg)]
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
    if is_classifier(cfg):
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


def _require_weights(cfg: CfgNode, config_file: str | os.PathLike, training: bool) -> None:
    path = Path(cfg.MODEL.WEIGHTS)
    if not cfg.MODEL.WEIGHTS or "://" in cfg.MODEL.WEIGHTS or path.is_file():
        return
    # By convention a configuration and its output folder have one name.
    maker = Path(config_file).with_name(f"{path.parent.name}.yaml")
    if not training:
        fix = f"train it with tools/train_net.py (`config_file` {config_file}), or "
    elif path.name == BEST_CHECKPOINT and maker.is_file():
        fix = f"make it with tools/train_net.py (`config_file` {maker}), or "
    elif path.stem.startswith("resnet"):
        fix = (
            f"make it from torchvision's {path.stem} file with tools/import_weights.py "
            f'(`output` {path}), start from random weights with MODEL.WEIGHTS "", or '
        )
    else:
        fix = ""
    raise CTMaskNetError(f"{path}: no such weights file; {fix}set MODEL.WEIGHTS to another file")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
    if cfg.MODEL.INFERENCE.DTYPE == "bfloat16" and not has_bfloat16(device):
        raise CTMaskNetError(
            f"MODEL.INFERENCE.DTYPE is bfloat16, which device {device} does not compute in; set it "
            'to ""'
        )


def _typed(loaded: Mapping[str, Any], cfg: Any, above: str = "") -> dict[str, Any]:
    """What a file holds, with whole numbers as float where the key is one.

    Raises:
        CTMaskNetError: a boolean where the key takes a word.
    """
    result = {}
    for name, value in loaded.items():
        key, usual = f"{above}{name}", cfg.get(name) if isinstance(cfg, CfgNode) else None
        if isinstance(value, bool) and isinstance(usual, str):
            raise CTMaskNetError(
                f"{key} is {value}, as YAML reads on, off, yes and no; choose one of "
                f"{', '.join(CHOICES.get(key, ('a word in quotes',)))}"
            )
        nested = isinstance(value, Mapping)
        result[name] = _typed(value, usual, f"{key}.") if nested else _float(value, usual)
    return result


def _float(value: Any, usual: Any) -> Any:
    if isinstance(usual, float) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            return value
    return value


def _at(cfg: CfgNode, key: Any) -> Any:
    """The value of a key; None for an unknown one."""
    return functools.reduce(
        lambda node, name: node.get(name) if isinstance(node, CfgNode) else None,
        str(key).split("."),
        cfg,
    )
