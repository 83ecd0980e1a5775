"""The configuration of a prediction: the file's, completed by what the checkpoint states."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ctmasknet.engine.checkpoint import SPEC, SPEC_KEYS, is_classifier, read_checkpoint
from ctmasknet.engine.setup import BEST_CHECKPOINT, read_cfg
from ctmasknet.errors import CTMaskNetError

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
