"""From a command line to a configuration that is complete, and to a model that is loaded.

Epochs as a unit beside iterations (the paper trains 100 and 50 epochs, section 4).

The configuration of a prediction: the file's, completed by what the checkpoint states.
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch import nn

from ctmasknet.config import add_ctmasknet_config
from ctmasknet.data.patients import REFUSE, WARN, check_held_out
from ctmasknet.data.registry import dataset_dicts, known_sets, register_prepared
from ctmasknet.engine.checkpoint import (
    BEST,
    SPEC,
    SPEC_KEYS,
    CTMaskNetCheckpointer,
    is_classifier,
    read_checkpoint,
    spec_of,
)
from ctmasknet.engine.train_data import training_dicts
from ctmasknet.engine.trained_on import check_trained_on
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.image_heads import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.trainable import TRAINABLE_MODES

#: Key in epochs -> key in iterations that it sets.
_UNITS = {
    "SOLVER.MAX_EPOCHS": "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_EPOCHS": "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_EPOCHS": "TEST.EVAL_PERIOD",
}
_LOGGER = logging.getLogger(__name__)


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
                in_epochs,
                epochs,
                num_slices,
                batch,
                in_iterations,
                iterations,
            )
    if not cfg.SOLVER.MAX_EPOCHS:
        _LOGGER.info(
            "SOLVER.MAX_ITER %d in batches of %d: %.2f epochs of %d slices",
            cfg.SOLVER.MAX_ITER,
            batch,
            cfg.SOLVER.MAX_ITER * batch / num_slices,
            num_slices,
        )


BEST_CHECKPOINT = f"{BEST}.pth"


def read_cfg(config_file: str, overrides: list[str] | None = None) -> CfgNode:
    """Detectron2's defaults, ctmasknet's keys, the file, then ``KEY VALUE`` overrides.

    Raises:
        CTMaskNetError: missing or malformed file, unknown key, value of another type.
    """
    cfg = get_cfg()
    add_ctmasknet_config(cfg)
    if not config_file:
        raise CTMaskNetError(
            "no configuration: add --config-file configs/seg.yaml or configs/cls.yaml"
        )
    if not os.path.isfile(config_file):
        raise CTMaskNetError(
            f"{config_file}: no such configuration; see configs/ for those there are"
        )
    try:
        cfg.merge_from_file(config_file)
    except (AssertionError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CTMaskNetError(
            f"{config_file}: {_one_line(error)}; correct the key or its value"
        ) from error
    try:
        cfg.merge_from_list(list(overrides or []))
    except (AssertionError, KeyError, ValueError) as error:
        raise CTMaskNetError(
            f"override: {_one_line(error)}; overrides are pairs KEY VALUE of known keys"
        ) from error
    if cfg.MODEL.TRAINABLE not in TRAINABLE_MODES:
        known = ", ".join(TRAINABLE_MODES)
        raise CTMaskNetError(f"MODEL.TRAINABLE is {cfg.MODEL.TRAINABLE!r}; choose one of {known}")
    if cfg.DATASETS.SHARED_PATIENTS not in (REFUSE, WARN):
        raise CTMaskNetError(
            f"DATASETS.SHARED_PATIENTS is {cfg.DATASETS.SHARED_PATIENTS!r}; choose {REFUSE} or "
            f"{WARN}"
        )
    if cfg.MODEL.IMAGE_HEAD.NAME not in IMAGE_HEAD_REGISTRY:
        raise CTMaskNetError(
            f"MODEL.IMAGE_HEAD.NAME is {cfg.MODEL.IMAGE_HEAD.NAME!r}; no such head is registered"
        )
    return cfg


def setup_cfg(args: argparse.Namespace, *, training: bool = False) -> CfgNode:
    """The frozen configuration of a tool's run.

    Prepared data sets are registered, class names are taken from the data set in use, and weights
    are resolved: training starts from ``MODEL.WEIGHTS``; everything else uses ``MODEL.WEIGHTS``
    only when it is given as an override, and the best checkpoint of ``OUTPUT_DIR`` otherwise.

    Args:
        args: has ``config_file`` and ``opts`` as from Detectron2's ``default_argument_parser``.
        training: the run trains; its data sets have to exist and to share no patient.

    Raises:
        CTMaskNetError: see :func:`read_cfg`; unknown data sets, shared patients, missing weights.
    """
    cfg = read_cfg(args.config_file, args.opts)
    register_prepared()
    if training:
        names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL)
        if not cfg.DATASETS.TRAIN:
            raise CTMaskNetError("DATASETS.TRAIN is empty; name a registered data set")
        for name in names:
            dataset_dicts(name)
        check_held_out(
            *(
                cfg.DATASETS.TRAIN,
                cfg.DATASETS.VAL,
                known_sets(cfg.DATASETS.TEST),
                cfg.DATASETS.SHARED_PATIENTS,
            )
        )
    else:
        names = tuple(known_sets(cfg.DATASETS.TEST))
        if "MODEL.WEIGHTS" not in args.opts:
            cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, BEST_CHECKPOINT)
    _take_classes(cfg, names)
    _check_windows(cfg, names)
    if training:
        resolve_epochs(cfg, len(training_dicts(cfg)), args.opts)
    _require_weights(cfg, args.config_file, training)
    cfg.freeze()
    return cfg


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
    model = build_model(cfg)
    check = functools.partial(
        check_trained_on, names=held_out, on_shared=cfg.DATASETS.SHARED_PATIENTS
    )
    checkpointer = CTMaskNetCheckpointer(
        model, spec=spec_of(cfg), check_trained_on=check, complete=True
    )
    checkpointer.load(cfg.MODEL.WEIGHTS)
    return model.eval()


def _take_classes(cfg: CfgNode, names: tuple[str, ...]) -> None:
    """Set the configuration's class names and count to those of the data sets."""
    attribute = "image_classes" if is_classifier(cfg) else "thing_classes"
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
    else:
        before, cfg.MODEL.LESION_CLASSES = cfg.MODEL.LESION_CLASSES, found
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(found)
    if list(before) != found:
        logging.getLogger(__name__).info("Classes taken from %s: %s", first, ", ".join(found))


def _check_windows(cfg: CfgNode, names: tuple[str, ...]) -> None:
    """Slices of volumes have to be written through the window of the configuration."""
    wanted = [float(cfg.INPUT.WINDOW_CENTER_HU), float(cfg.INPUT.WINDOW_WIDTH_HU)]
    for name in names:
        found = MetadataCatalog.get(name).get("window_hu")
        if found is not None and list(map(float, found)) != wanted:
            (center, width), (our_center, our_width) = map(float, found), wanted
            raise CTMaskNetError(
                f"{name}: its slices were written through the window {center:g},{width:g} (center, "
                f"width in HU) but INPUT.WINDOW_CENTER_HU is {our_center:g} and "
                f"INPUT.WINDOW_WIDTH_HU {our_width:g}; prepare the set again with "
                f"--window={our_center:g},{our_width:g}, or set INPUT.WINDOW_CENTER_HU {center} "
                f"INPUT.WINDOW_WIDTH_HU {width}"
            )


def _require_weights(cfg: CfgNode, config_file: str, training: bool) -> None:
    path = Path(cfg.MODEL.WEIGHTS)
    if not cfg.MODEL.WEIGHTS or "://" in cfg.MODEL.WEIGHTS or path.is_file():
        return
    # By convention a configuration and its output folder have one name.
    maker = Path(config_file).with_name(f"{path.parent.name}.yaml")
    if not training:
        fix = f"train it with `python tools/train_net.py --config-file {config_file}`, or "
    elif path.name == BEST_CHECKPOINT and maker.is_file():
        fix = f"make it with `python tools/train_net.py --config-file {maker}`, or "
    elif path.stem.startswith("resnet"):
        fix = (
            f"make it from torchvision's {path.stem} file with `python tools/import_weights.py "
            f'FILE --output {path}`, start from random weights with MODEL.WEIGHTS "", or '
        )
    else:
        fix = ""
    raise CTMaskNetError(f"{path}: no such weights file; {fix}set MODEL.WEIGHTS to another file")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_TASKS = {True: "classification", False: "segmentation"}


def prediction_cfg(
    config_file: str | os.PathLike, overrides: Sequence[str] = (), weights: str | None = None
) -> tuple[CfgNode, dict]:
    """The frozen configuration and the specification inside the checkpoint.

    Classes, HU window, number of boxes and rounding of anchors are the checkpoint's, unless an
    override names the key: no data set has to be there to predict.

    Args:
        config_file: such as ``configs/cls.yaml``.
        overrides: ``KEY VALUE`` pairs.
        weights: the checkpoint; default ``MODEL.WEIGHTS`` where it is an override, else
            ``model_best.pth`` of ``OUTPUT_DIR``.

    Raises:
        CTMaskNetError: see :func:`ctmasknet.engine.setup.read_cfg`; no such weights, unreadable
            ones, or those of the other task.
    """
    overrides = [str(word) for word in overrides]
    cfg = read_cfg(os.fspath(config_file), overrides)
    given = weights or (cfg.MODEL.WEIGHTS if "MODEL.WEIGHTS" in overrides[::2] else None)
    path = os.fspath(given or os.path.join(cfg.OUTPUT_DIR, BEST_CHECKPOINT))
    if "://" not in path and not os.path.isfile(path):
        raise CTMaskNetError(
            f"{path}: no such weights file; train it with `python tools/train_net.py --config-file "
            f"{config_file}`, or set MODEL.WEIGHTS to another file"
        )
    cfg.MODEL.WEIGHTS = path
    found = read_checkpoint(PathManager.get_local_path(path)).get(SPEC)
    spec = found if isinstance(found, dict) else {}
    task = _TASKS[is_classifier(cfg)]
    if spec.get("task", task) != task:
        raise CTMaskNetError(
            f"{path}: a checkpoint for {spec['task']}, but {config_file} is for {task}; give "
            f"{'configs/seg.yaml' if task == 'classification' else 'configs/cls.yaml'} or the "
            "configuration it was trained with"
        )
    for name, key in SPEC_KEYS.items():
        if name in spec and key not in overrides[::2]:
            cfg.merge_from_list([key, spec[name]])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(cfg.MODEL.LESION_CLASSES)
    cfg.freeze()
    return cfg, spec
