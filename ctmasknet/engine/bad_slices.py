"""What the processes of a run know of bad slices, put together.

See :mod:`ctmasknet.data.bad_slices`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from ctmasknet.data.bad_slices import REPORT, BadSlices
from ctmasknet.engine.validation import EarlyStop
from ctmasknet.errors import CTMaskNetError

#: Iterations after which Detectron2's timer has a first value.
_TIMED_AFTER = 3


@contextlib.contextmanager
def listed_bad_slices(bad: BadSlices, folder: str | os.PathLike) -> Iterator[None]:
    """Write ``<folder>/bad_slices.json`` when the block ends; every process has to come here.

    Raises:
        CTMaskNetError: in every process, when a data set has more bad slices than allowed: before
            the block if they are known by then, else after it.
    """
    report = Path(folder) / REPORT
    if bad.skip and bad.exceeded():
        _finish(bad, report)
    try:
        yield
    except CTMaskNetError:
        # Other processes end too, but not here: what this one knows has to do.
        if bad.skip and comm.is_main_process():
            bad.finish(report)
        raise
    _finish(bad, report)


def _finish(bad: BadSlices, report: Path) -> None:
    bad.gather(comm.all_gather)
    if comm.is_main_process():
        bad.finish(report, check=False)
    if bad.skip and (problem := bad.exceeded()):
        raise CTMaskNetError(f"{problem}; all are listed in {report}")


class GatherBadSlices(HookBase):
    """Gives every process what the others met, and keeps it in the checkpoint.

    Belongs before the hook that writes checkpoints.
    """

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
