"""Slices on their way to the model: read by threads a little ahead of it, then put into batches."""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.data.ct_io import CTSlice
from ctmasknet.errors import CTMaskNetError

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


@dataclass(frozen=True)
class Loaded:
    """A slice, the model's input and the grey pixels it is made of; or why there are none."""

    source: CTSlice
    item: dict[str, Any] | None
    pixels: np.ndarray | None
    bad: BadSlice | None = None


def load_groups(
    groups: Iterable[tuple[Any, Sequence[CTSlice]]],
    read: Callable[[CTSlice], tuple[dict[str, Any], np.ndarray]],
    *,
    threads: int,
    limit: int,
    skip_bad: bool,
) -> Iterator[tuple[Any, Iterator[Loaded]]]:
    """Read the slices of groups, in order and across their borders ahead.

    Args:
        groups: (anything, slices); read lazily.
        read: a slice to the model's input and its pixels.
        threads: see :func:`ahead`.
        limit: likewise.
        skip_bad: give the reason with the slice and do not raise.

    Yields:
        a group's first part, and an iterator over its slices that has to be used up first.
    """
    tagged = ((_Tag(group), slices) for group, slices in groups)
    entries = ((tag, source) for tag, slices in tagged for source in slices)

    def load(entry: tuple[_Tag, CTSlice]) -> tuple[_Tag, Loaded]:
        tag, source = entry
        try:
            return tag, Loaded(source, *read(source))
        except CTMaskNetError as error:
            if not skip_bad:
                raise
            return tag, Loaded(source, None, None, BadSlice.from_error(source.name, error))

    loaded = ahead(load, entries, threads=threads, limit=limit)
    for tag, members in itertools.groupby(loaded, key=operator.itemgetter(0)):
        yield tag.group, map(operator.itemgetter(1), members)


@dataclass(frozen=True, eq=False)
class _Tag:
    """Groups are told apart by their place, whatever they are."""

    group: Any


def batches(members: Iterable[Loaded], size: int) -> Iterator[list[Loaded] | BadSlice]:
    """Up to ``size`` slices of one shape that follow each other; a bad one comes by itself.

    Nothing is padded, and what is in a batch depends on the members alone.
    """
    batch: list[Loaded] = []
    for one in members:
        full = len(batch) == size
        if batch and (full or one.bad or batch[0].item["image"].shape != one.item["image"].shape):
            yield batch
            batch = []
        if one.bad:
            yield one.bad
        else:
            batch.append(one)
    if batch:
        yield batch
