"""Slices on their way to the model: read by threads a little ahead of it, then put into batches."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ctmasknet.ct.appearance import Appearance
from ctmasknet.ct.scan import CTSlice, Window
from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.averaged import MEMBER_INPUTS

#: In a slice's input, that of the model that finds its lesions, where it is another one.
LESION_INPUT = "lesion_input"
#: A slice through a window.
SeenThrough = Callable[[Window], np.ndarray]
Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, limit: int
) -> Iterator[Result]:
    """``map(function, items)`` by threads, in order, never more than ``limit`` results ahead.

    ``items`` is read lazily and by the caller's thread. What it or ``function`` raises is raised
    where the result would have come, after those before it. Decoding pixels and reading files let
    other threads run meanwhile.

    Args:
        function: called in a thread.
        items: may be endless.
        threads: 0 calls ``function`` where it stands.
        limit: results kept waiting at most, 1 or more.
    """
    if threads < 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads)

    def submitted() -> Iterator[Future]:
        try:
            for item in items:
                yield pool.submit(function, item)
        except Exception as error:  # raised again where it is waited for
            failed: Future = Future()
            failed.set_exception(error)
            yield failed

    waiting: deque[Future] = deque()
    try:
        for future in submitted():
            waiting.append(future)
            if len(waiting) > limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Loaded:
    """A slice, the model's input, the grey pixels it is made of and what they show; or why there
    are none."""

    source: CTSlice
    item: dict[str, Any] | None
    pixels: np.ndarray | None
    bad: BadSlice | None = None
    seen: Appearance | None = None


def load_groups(
    groups: Iterable[tuple[Any, Sequence[CTSlice]]],
    read: Callable[[CTSlice], tuple[dict[str, Any], np.ndarray, Appearance]],
    *,
    threads: int,
    limit: int,
    skip_bad: bool,
) -> Iterator[tuple[Any, Iterator[Loaded]]]:
    """Read the slices of groups, in order and across their borders ahead.

    Args:
        groups: (anything, slices); read lazily.
        read: a slice to the model's input, its pixels and what they show.
        threads, limit: see :func:`ahead`.
        skip_bad: give the reason with the slice and do not raise.

    Yields:
        a group's first part, and an iterator over its slices that has to be used up first.
    """
    started: deque[tuple[Any, int]] = deque()

    def entries() -> Iterator[CTSlice]:
        for group, slices in groups:
            if slices:
                started.append((group, len(slices)))
                yield from slices

    def load(source: CTSlice) -> Loaded:
        try:
            item, pixels, seen = read(source)
            return Loaded(source, item, pixels, seen=seen)
        except CTMaskNetError as error:
            if not skip_bad:
                raise
            return Loaded(source, None, None, BadSlice.from_error(source.name, error))

    loaded = ahead(load, entries(), threads=threads, limit=limit)
    # Counted, so that a group ends with its last slice and not when the next group's first is there
    for first in loaded:
        group, count = started.popleft()
        yield group, itertools.chain([first], itertools.islice(loaded, count - 1))


def unseen(window: Window) -> np.ndarray:
    """Refuse a picture, made through one window, for a model of an ensemble that has another."""
    raise CTMaskNetError(
        f"a model of the ensemble sees HU through the window {window.center_hu:g},"
        f"{window.width_hu:g}, the first through another; give models of one, or files of HU"
    )


def _sides(one: Loaded) -> list[Any]:
    """The size of a slice's input, and of other models': for its lesions, of an ensemble."""
    items = (one.item, one.item.get(LESION_INPUT), *one.item.get(MEMBER_INPUTS, ()))
    return [item["image"].shape for item in items if item is not None]


def batches(members: Iterable[Loaded], size: int) -> Iterator[list[Loaded] | BadSlice]:
    """Up to ``size`` slices of one shape that follow each other; a bad one comes by itself.

    Nothing is padded, and what is in a batch depends on the members alone.
    """
    batch: list[Loaded] = []
    for one in members:
        full = len(batch) == size
        if batch and (full or one.bad or _sides(batch[0]) != _sides(one)):
            yield batch
            batch = []
        if one.bad:
            yield one.bad
        else:
            batch.append(one)
    if batch:
        yield batch


def whole_scan(members: Iterable[Loaded]) -> Iterator[list[Loaded] | BadSlice]:
    """All slices in one batch, of whatever sides; bad ones come by themselves before it."""
    batch = []
    for one in members:
        if one.bad:
            yield one.bad
        else:
            batch.append(one)
    if batch:
        yield batch
