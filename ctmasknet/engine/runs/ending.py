"""A training that is asked to end, by Ctrl-C or a scheduler, ends with a checkpoint."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from types import FrameType

from detectron2.engine import HookBase
from detectron2.utils import comm

from ctmasknet.engine.checkpoint import PeriodicCheckpoint
from ctmasknet.errors import Ended, ending_by, second_ends_at_once


class EndAtSignal(HookBase):
    """Writes a checkpoint at the end of the iteration in which SIGINT or SIGTERM came, and ends the
    training; a second signal ends the process at once.

    Belongs behind the hook that writes checkpoints, whose order it keeps. The processes of a
    training ask each other, so that all end when one of them is signalled.
    """

    def __init__(self, checkpoints: PeriodicCheckpoint):
        self._checkpoints = checkpoints
        self._asked: int = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """For the training loop."""
        with ending_by(self._take):
            yield

    def _take(self, number: int, frame: FrameType | None) -> None:
        second_ends_at_once()
        self._asked = number
        if comm.is_main_process():
            name = signal.Signals(number).name
            # Not by a writer that the signal may have come in the midst of
            os.write(2, f"{name}: a checkpoint is written at the end of this iteration\n".encode())

    def after_step(self) -> None:
        """
        Raises:
            Ended: a signal came; tells how to go on.
        """
        trainer = self.trainer
        asked = max(comm.all_gather(self._asked))
        if not asked or trainer.iter + 1 == trainer.max_iter:
            return
        if trainer.bad_slices.skip:
            trainer.bad_slices.gather(comm.all_gather)
        name = f"model_{trainer.iter:07d}"
        self._checkpoints.save(name)
        comm.synchronize()  # nobody ends before it is written
        raise Ended(
            asked,
            f"{trainer.cfg.OUTPUT_DIR}: {name}.pth is written, after {trainer.iter + 1} of "
            f"{trainer.max_iter} iterations; the same command with `resume` goes on from there",
        )


@contextlib.contextmanager
def without_tracebacks() -> Iterator[None]:
    """Detectron2 logs the traceback of what ends a training; who called it tells what failed."""
    logger = logging.getLogger("detectron2.engine.train_loop")

    def has_none(record: logging.LogRecord) -> bool:
        return not record.exc_info

    logger.addFilter(has_none)
    try:
        yield
    finally:
        logger.removeFilter(has_none)
