"""When checkpoints are written."""

from __future__ import annotations

from detectron2.engine import HookBase

from ctmasknet.engine.checkpoint import FINAL, CTMaskNetCheckpointer
from ctmasknet.engine.random_states import RandomStates


class PeriodicCheckpoint(HookBase):
    """Writes ``model_<iteration>`` every ``period`` iterations, and ``model_final`` after the last.

    Other than Detectron2's it runs in every process, because a checkpoint holds all of their random
    states. It belongs behind everything whose state a checkpoint has to hold.
    """

    def __init__(
        self, checkpointer: CTMaskNetCheckpointer, period: int, random_states: RandomStates
    ):
        """
        Args:
            checkpointer: writes in the main process.
            period: iterations from one checkpoint to the next; 0: only after the last.
            random_states: asked to collect them first.
        """
        self._checkpointer = checkpointer
        self._period = period
        self._random_states = random_states

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        final = done == self.trainer.max_iter or self.trainer.is_stopping
        if not final and (self._period <= 0 or done % self._period):
            return
        self.trainer.share_buffers()
        self._random_states.collect()
        name = FINAL if final else f"model_{self.trainer.iter:07d}"
        self._checkpointer.save(name, iteration=self.trainer.iter)
