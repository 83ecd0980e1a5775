"""Work that is done a little ahead of the one who asks for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, limit: int
) -> Iterator[Result]:
    """``map(function, items)`` by threads, in order, never more than ``limit`` results ahead.

    ``items`` is read lazily and by the caller's thread. What ``function`` raises is raised where
    its result would have come. Decoding pixels and reading files let other threads run meanwhile.

    Args:
        function: called in a thread.
        items: may be endless.
        threads: 0 calls ``function`` where it stands.
        limit: results kept waiting at most, 1 or more.
    """
    if threads < 1:
        yield from map(function, items)
        return
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
