"""How far a long work is: a bar on a terminal, lines in logs and files, nothing of short work."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from ctmasknet.console.verbosity import verbosity

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")
#: Work that is done by then has no bar, s.
_SHORT_SECONDS = 2.0
#: When the first line says how long all of it will take, and time between lines, s.
_FIRST_SECONDS, _LINE_SECONDS = 10.0, 60.0
#: Seconds from one line to the next, where the environment asks for others.
_VARIABLE = "CTMASKNET_LOG_SECONDS"


class Progress:
    """Counts a work's items for whoever waits.

    On a terminal a bar shows count, total, pace and time left. Elsewhere, and in a run's
    ``log.txt``, a line tells the same after ten seconds and then every minute. Quiet tools show
    neither, but keep the log.

    Args:
        title: what is done, or to what.
        total: how many items there are; None where that is not known.
        unit: what an item is; its plural has an s.
        initial: how many of them were done before.
        shown: False in processes that leave it to another.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "slice",
        *,
        initial: int = 0,
        shown: bool = True,
    ):
        self._title, self._unit, self._total = title, unit, total
        self._about = ""
        self._initial = self._done = initial
        self._shown = shown
        asked = os.environ.get(_VARIABLE, "")
        self._every = float(asked) if asked.isdigit() else _LINE_SECONDS
        self._start = self._last = time.monotonic()
        self._next = self._start + min(_FIRST_SECONDS, self._every)
        self._bar = tqdm(
            desc=title,
            total=total,
            initial=initial,
            unit=unit,
            delay=_SHORT_SECONDS,
            disable=not (shown and verbosity() != "quiet" and sys.stderr.isatty()),
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Items a second, from the start to the last of them."""
        return (self._done - self._initial) / max(self._last - self._start, 1e-9)

    def expect(self, total: int, *, about: bool = False) -> None:
        """There are so many items, as is known by now; ``about``: it may still change."""
        self._total = self._bar.total = total
        self._about = "about " * about

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        self._last = time.monotonic()
        self._bar.update(count)
        if self._shown and self._last >= self._next:
            self._next = self._last + self._every
            _tell(self.line(), has_bar=not self._bar.disable)

    def line(self) -> str:
        """Title, count, pace, time left."""
        units, rate = f"{self._unit}s", self.rate
        of = f" of {self._about}{self._total}" if self._total is not None else ""
        pace = f"{rate:.1f} {units}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s/{self._unit}"
        left = ""
        if self._total is not None and rate > 0:
            left = f", {duration(max(0, self._total - self._done) / rate)} left"
        return f"{self._title}: {self._done}{of} {units}, {pace}{left}"


def tracked(
    items: Iterable[_T],
    title: str,
    total: int | None = None,
    unit: str = "slice",
    *,
    shown: bool = True,
) -> Iterator[_T]:
    """The items, counted as they are taken, see :class:`Progress`; ``total`` is their number where
    they have one."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with Progress(title, total, unit, shown=shown) as progress:
        for item in items:
            yield item
            progress.update()


def duration(seconds: float) -> str:
    """``40 s``, ``3 min 20 s``, ``2 h 5 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


#: Attribute of a log's record that a terminal with a bar leaves out.
BESIDE_A_BAR = "beside_a_bar"


def _tell(line: str, *, has_bar: bool) -> None:
    if logging.getLogger("ctmasknet").handlers:
        _LOGGER.info(line, extra={BESIDE_A_BAR: has_bar})
    elif not has_bar and verbosity() != "quiet":
        print(line, file=sys.stderr, flush=True)
