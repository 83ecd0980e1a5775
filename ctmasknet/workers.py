"""One function over many items, in this process or in several.

Not joblib's: its worker processes outlive a parent that is killed (the loky backend's were still at
work 25 s later), and its other backends cannot hand out results as they come.
"""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2

from ctmasknet.console.progress import tracked
from ctmasknet.errors import CTMaskNetError, end_with_parent

#: Most items that a process takes at a time.
_MAX_CHUNK = 64


def map_in_processes(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    workers: int = 1,
    *,
    title: str = "",
    unit: str = "image",
    chunksize: int | None = None,
    start_method: str | None = None,
) -> Iterator[Any]:
    """``function`` over ``items``, in their order; results do not depend on ``workers``.

    Exhaust the iterator, or let go of it, to end the processes. An error in one is raised here.

    Args:
        function: importable by name.
        items: what it is called with.
        workers: number of processes; 1 stays in this one.
        title, unit: of its progress (:class:`~ctmasknet.console.progress.Progress`); no title,
            none.
        chunksize: items a process takes at a time; default: by their number.
        start_method: ``fork`` or ``spawn``; None: the system's own.

    Raises:
        CTMaskNetError: a process died.
    """
    if workers <= 1 or len(items) < 2:
        results = map(function, items)
    else:
        results = _in_processes(function, items, workers, chunksize, start_method)
    return tracked(results, title, len(items), unit) if title else results


def _in_processes(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    workers: int,
    chunksize: int | None,
    start_method: str | None,
) -> Iterator[Any]:
    chunk = chunksize or max(1, min(_MAX_CHUNK, len(items) // (4 * workers)))
    # A fork copies OpenCV's idea of its threads but not the threads, and waits for them for ever.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    others = set(multiprocessing.active_children())
    try:
        with ProcessPoolExecutor(
            min(workers, len(items)),
            mp_context=multiprocessing.get_context(start_method),
            initializer=_begin,
            initargs=(os.getpid(),),
        ) as pool:
            try:
                yield from _results(pool, function, list(items), chunk)
            except KeyboardInterrupt:  # nobody waits for what they are at
                for process in set(multiprocessing.active_children()) - others:
                    process.kill()
                raise
    except BrokenProcessPool:
        raise CTMaskNetError(
            f"`workers` {workers}: a process died, killed or out of memory; use fewer workers"
        ) from None
    finally:
        cv2.setNumThreads(threads)


def _results(pool: ProcessPoolExecutor, function: Callable, items: list, chunk: int) -> Iterator:
    """Not by the pool's ``map``: at Ctrl-C that cancels what is left, and the pool's thread does
    not expect that of a pool whose processes are killed."""
    starts = range(0, len(items), chunk)
    left = collections.deque(
        pool.submit(_all_of, function, items[at : at + chunk]) for at in starts
    )
    try:
        while left:
            yield from left.popleft().result()
    except (Exception, GeneratorExit):
        for future in left:
            future.cancel()
        raise


def _all_of(function: Callable[[Any], Any], items: list) -> list:
    return list(map(function, items))


def _begin(parent: int) -> None:
    """What each process does first."""
    # A process started afresh; OpenCV's own threads would fight with the other processes.
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that handed out the work
    end_with_parent(parent)
