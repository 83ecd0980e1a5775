"""Metrics to files, so that a resumed training leaves the files of an unbroken one.

``metrics.json`` holds what a repeated run repeats: losses, learning rate, evaluation. What clock
or machine say (seconds, memory) goes to ``timings.json``. Both have one JSON object a line, as
Detectron2 writes them, numbers smoothed by the median of the last 20 iterations.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

METRICS = "metrics.json"
TIMINGS = "timings.json"
#: Scalars that no two runs share, beside those named for their unit.
_OF_THE_MACHINE = ("time", "data_time", "rank_data_time")
#: Iterations over which the writers smooth.
WINDOW = 20


def is_timing(name: str) -> bool:
    """Whether a scalar depends on clock or machine and not on the run's configuration."""
    return name in _OF_THE_MACHINE or name.endswith(("_seconds", "_mb"))


class JSONLinesWriter(EventWriter):
    """Appends the scalars of its choice to a file, one line an iteration."""

    def __init__(self, path: str | os.PathLike, choose: Callable[[str], bool]):
        """
        Args:
            path: the file; made when the first line is written.
            choose: name of a scalar -> whether it belongs here.
        """
        self._path = Path(path)
        self._choose = choose
        self._last_write = -1

    def write(self) -> None:
        lines: dict[int, dict[str, float | None]] = defaultdict(dict)
        for name, (value, iteration) in (
            get_event_storage().latest_with_smoothing_hint(WINDOW).items()
        ):
            if iteration > self._last_write and self._choose(name):
                # JSON has no NaN: an undefined figure becomes null.
                lines[iteration][name] = value if math.isfinite(value) else None
        if not lines:
            return
        self._last_write = max(lines)
        with self._path.open("a", encoding="utf-8") as stream:
            for iteration in sorted(lines):
                line = {**lines[iteration], "iteration": iteration}
                stream.write(json.dumps(line, sort_keys=True) + "\n")

    def state_dict(self) -> dict[str, int]:
        """How far the file has been written: last iteration, and bytes."""
        size = self._path.stat().st_size if self._path.is_file() else 0
        return {"last_write": self._last_write, "bytes": size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Cut off what was written after ``state`` was taken; the training will write it again."""
        self._last_write = state["last_write"]
        size = self._path.stat().st_size if self._path.is_file() else 0
        if size < state["bytes"]:
            logging.getLogger(__name__).warning(
                "%s is shorter than when the checkpoint was written; its earlier lines are missing",
                self._path,
            )
        elif size > state["bytes"]:
            os.truncate(self._path, state["bytes"])

    def start_anew(self) -> None:
        """Remove what an earlier training wrote."""
        self._path.unlink(missing_ok=True)


class MetricWriters(hooks.PeriodicWriter):
    """Writes every ``period`` iterations, and carries the scalars seen so far through a resume.

    Writers that depend on the first iteration are built when training starts.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        build_others: Callable[[], list[EventWriter]],
        period: int,
    ):
        """
        Args:
            folder: of ``metrics.json`` and ``timings.json``.
            build_others: further writers (terminal, TensorBoard), called when training starts.
            period: iterations from one writing to the next.
        """
        self._files = {
            METRICS: JSONLinesWriter(Path(folder) / METRICS, lambda name: not is_timing(name)),
            TIMINGS: JSONLinesWriter(Path(folder) / TIMINGS, is_timing),
        }
        super().__init__(list(self._files.values()), period)
        self._build_others = build_others
        self._resumed: dict[str, Any] | None = None

    def before_train(self) -> None:
        self._writers = [*self._build_others(), *self._files.values()]
        if self._resumed is None:
            for writer in self._files.values():
                writer.start_anew()
            return
        _restore_scalars(self.trainer.storage, self._resumed["scalars"])
        for name, writer in self._files.items():
            writer.load_state_dict(self._resumed["files"][name])

    def state_dict(self) -> dict[str, Any]:
        return {
            "scalars": _scalars(self.trainer.storage),
            "files": {name: writer.state_dict() for name, writer in self._files.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resumed = state


def _scalars(storage: EventStorage) -> dict[str, Any]:
    """The latest scalars, and of each as many earlier values as smoothing looks at."""
    return {
        name: {
            "smooth": storage.smoothing_hints()[name],
            "values": [list(pair) for pair in history.values()[-WINDOW:]],
        }
        for name, history in storage.histories().items()
    }


def _restore_scalars(storage: EventStorage, scalars: dict[str, Any]) -> None:
    for name, entry in scalars.items():
        for value, iteration in entry["values"]:
            storage.put_scalar(name, value, smoothing_hint=entry["smooth"], cur_iter=iteration)
