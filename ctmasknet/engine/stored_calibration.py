"""Temperature, thresholds and pooling inside the checkpoint of the classifier they belong to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from ctmasknet.engine.checkpoint import SPEC, read_checkpoint
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write

#: Key inside a checkpoint's specification.
CALIBRATION = "calibration"


def store_calibration(path: str | os.PathLike, calibration: Mapping[str, Any]) -> None:
    """Put a calibration into a checkpoint, in place of an earlier one; the file is written whole.

    Training on from the checkpoint drops it, because it fits these weights alone.

    Args:
        path: a classifier's checkpoint written by ctmasknet.
        calibration: :meth:`ctmasknet.evaluation.validation_fit.ValidationFit.to_json`.

    Raises:
        CTMaskNetError: no such checkpoint, or one of other classes.
    """
    checkpoint = read_checkpoint(path)
    classes = _spec(path, checkpoint).get("image_classes")
    if classes != list(calibration["class_names"]):
        raise CTMaskNetError(
            f"{path}: classifies {classes}, but the predictions have "
            f"{list(calibration['class_names'])}; give the checkpoint that made the predictions"
        )
    checkpoint[SPEC][CALIBRATION] = dict(calibration)
    with atomic_write(path, "wb") as stream:
        torch.save(checkpoint, stream)


def stored_calibration(path: str | os.PathLike) -> dict[str, Any] | None:
    """What :func:`store_calibration` put into a checkpoint, None where nothing was.

    Raises:
        CTMaskNetError: no classifier's checkpoint written by ctmasknet.
    """
    return _spec(path, read_checkpoint(path)).get(CALIBRATION)


def _spec(path: str | os.PathLike, checkpoint: Any) -> dict[str, Any]:
    spec = checkpoint.get(SPEC) if isinstance(checkpoint, dict) else None
    if not isinstance(spec, dict) or spec.get("task") != "classification":
        raise CTMaskNetError(
            f"{path}: no classifier's checkpoint written by ctmasknet; give model_best.pth of the "
            "classifier that made the predictions"
        )
    return spec
