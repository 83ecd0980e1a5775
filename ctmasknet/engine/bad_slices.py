"""What the processes of a run know of bad slices, put together.

See :mod:`ctmasknet.data.bad_slices`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from ctmasknet.data.bad_slices import REPORT, BadSlices
from ctmasknet.engine.validation import EarlyStop
from ctmasknet.errors import CTMaskNetError

_TIMED_AFTER = 3


def finish_bad_slices(bad: BadSlices, folder: str | os.PathLike) -> None:
    """Write ``<folder>/bad_slices.json``; every process has to call this.

    Raises:
        CTMaskNetError: in every process, when a data set has more bad slices than allowed.
    """
    bad.gather(comm.all_gather)
    report = Path(folder) / REPORT
    if comm.is_main_process():
        bad.finish(report, check=False)
    if bad.skip and (problem := bad.exceeded()):
        raise CTMaskNetError(f"{problem}; all are listed in {report}")


class GatherBadSlices(HookBase):
    """Gives every process what the others met, and keeps it in the checkpoint.

    Belongs before the hook that writes checkpoints."""

    def __init__(self, bad: BadSlices, periods: Sequence[int]):
        """
        Args:
            bad: of this process.
            periods: iterations after which it is due: every multiple of one of these.
        """
        self.bad = bad
        self._periods = [period for period in periods if period > 0]
        #: Whether more slices than allowed are known to be bad, the same in every process.
        self.too_many = False

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        due = done == self.trainer.max_iter or any(done % period == 0 for period in self._periods)
        if self.bad.skip and due:
            self.bad.gather(comm.all_gather)
            self.too_many = self.bad.exceeded() is not None

    def state_dict(self) -> dict[str, Any]:
        return self.bad.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bad.load_state_dict(state)


class EndIfTooManyBad(HookBase):
    """Ends the training early once too many slices are known to be bad; after the checkpoint."""

    def __init__(self, gathered: GatherBadSlices):
        self._gathered = gathered

    def after_step(self) -> None:
        # Detectron2's terminal writer cannot end a training whose time it has not taken yet.
        timed = self.trainer.iter - self.trainer.start_iter >= _TIMED_AFTER
        if self._gathered.too_many and timed:
            raise EarlyStop
