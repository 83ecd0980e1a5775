"""How long a training is, told in passes over its slices."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from detectron2.config import CfgNode

from ctmasknet.errors import CTMaskNetError

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
                *(in_epochs, epochs, num_slices, batch, in_iterations, iterations),
            )
    if not cfg.SOLVER.MAX_EPOCHS:
        iterations = cfg.SOLVER.MAX_ITER
        _LOGGER.info(
            "SOLVER.MAX_ITER %d in batches of %d: %.2f epochs of %d slices",
            *(iterations, batch, iterations * batch / num_slices, num_slices),
        )
