"""Inputs of any number cut into units: what is listed, read and shared out at one time.

A unit is a folder with everything below it, as long as that is not too much to hold in memory;
larger folders are cut into their files and their folders. Only names, sizes and times of change are
looked at here, no file is opened.

Units to scans: the headers of one unit are held, those of the next are read meanwhile.

Slices on their way to the model: read by threads a little ahead of it, then put into batches.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ctmasknet.ct.find import natural_key
from ctmasknet.ct.read import CTScan, CTSlice, read_scans
from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.errors import CTMaskNetError

#: A folder with more files is cut. Their headers are held at once: a few MB.
UNIT_FILES = 4096
#: A volume in one file counts as so many, for it has as many slices.
_VOLUME_FILES = 512
_VOLUME_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Unit:
    """Paths that are read together.

    Attributes:
        paths: files and folders.
        weight: how many files they hold, volumes counted by slices.
        named: given as inputs, not cut out of one: it is an error when nothing is in them.
    """

    paths: tuple[str, ...]
    weight: int
    named: bool = True


def list_units(
    inputs: Sequence[str | os.PathLike], *, skip_bad: bool = False
) -> tuple[list[Unit], str]:
    """Cut files and folders into units, in the order given, folders in natural order. Files that
    are inputs themselves come first and are one unit, since they may be of one series; volumes do
    not.

    As in :func:`ctmasknet.ct.read.read_scans`, names that begin with a dot are passed over in
    folders.

    Args:
        inputs: files and folders.
        skip_bad: what lies in a folder and cannot be looked at stays in its unit, for reading it
            tells why.

    Returns:
        the units, and a SHA-256 over every file's path as given, size and time of change.

    Raises:
        CTMaskNetError: no input, one that does not exist, one that lies in another, a link that
            leads to a folder of another unit, a name that is no UTF-8; without ``skip_bad`` a file
            or folder that cannot be looked at.
    """
    if not inputs:
        raise CTMaskNetError("no input: give files or folders of CT slices")
    _check_apart(inputs)
    listing = _Listing(skip_bad)
    units: list[Unit] = []
    loose: list[str] = []
    for given in map(os.fspath, inputs):
        if os.path.isdir(given):
            units += _units_of(listing.tree(given), named=True)
        elif os.path.isfile(given):
            listing.add(given)
            if _is_volume(given):
                units.append(Unit((given,), _VOLUME_FILES))
            else:
                loose.append(given)
        else:
            raise CTMaskNetError(f"{given}: no such file or folder; correct the input")
    listing.check_links()
    if loose:
        units.insert(0, Unit(tuple(loose), len(loose)))
    return units, listing.digest.hexdigest()


@dataclass
class _Folder:
    """A folder as listed. ``files`` is None where it need not be cut: a name costs memory."""

    path: str
    weight: int
    files: list[str] | None
    folders: list[_Folder]


def _units_of(folder: _Folder, named: bool) -> list[Unit]:
    if folder.files is None:
        return [Unit((folder.path,), folder.weight, named)] if folder.weight or named else []
    volumes = [path for path in folder.files if _is_volume(path)]
    others = [path for path in folder.files if not _is_volume(path)]
    if not volumes and not folder.folders:
        return [Unit((folder.path,), folder.weight, named)]
    units = [Unit((path,), _VOLUME_FILES, False) for path in volumes]
    if others:
        units.append(Unit(tuple(others), len(others), False))
    for inner in folder.folders:
        units += _units_of(inner, False)
    return units


class _Listing:
    """One call's state: the hash, folders seen so far and links."""

    def __init__(self, skip_bad: bool):
        self.digest = hashlib.sha256()
        self._skip_bad = skip_bad
        #: (device, inode) of a folder -> number of the input it was first seen in.
        self._visited: dict[tuple[int, int], int] = {}
        #: Link, the folder it leads to (or into), and the number of its input.
        self._links: list[tuple[str, tuple[int, int], int]] = []
        self._cut: list[bool] = []

    def tree(self, path: str) -> _Folder:
        """List an input that is a folder to its depth."""
        self._cut.append(False)
        folder = self._listed(path)
        self._cut[-1] = folder.files is not None
        return folder

    def add(self, path: str) -> None:
        """Let a file count for the hash."""
        try:
            status = os.stat(path)
            told = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError as error:
            told = self._unseen(f"{path}: cannot be read ({error.strerror}); restore or remove it")
        try:
            self.digest.update(f"{path}\0{told}\n".encode())
        except UnicodeEncodeError:
            raise CTMaskNetError(
                f"{path!a}: its name is no UTF-8, which predictions.csv has to be; rename it"
            ) from None

    def check_links(self) -> None:
        """Within one unit a slice is read once, however often links lead to it; else refuse.

        Raises:
            CTMaskNetError: names a link into a folder of another unit.
        """
        for link, place, number in self._links:
            owner = self._visited.get(place)
            if owner is not None and (owner != number or self._cut[number]):
                raise CTMaskNetError(
                    f"{link}: leads to what is among the inputs already; remove the link, so that "
                    "no slice is predicted twice"
                )

    def _listed(self, path: str) -> _Folder:
        number = len(self._cut) - 1
        try:
            place = _place(path)
            if place in self._visited:
                self._links.append((path, place, number))
                return _Folder(path, 0, None, [])
            self._visited[place] = number
            with os.scandir(path) as entries:
                found = [
                    (entry.name, entry.is_dir(), entry.is_symlink())
                    for entry in entries
                    if not entry.name.startswith(".")
                ]
        except OSError as error:
            self._unseen(f"{path}: cannot be listed ({error.strerror}); check its permissions")
            return _Folder(path, 1, None, [])
        files, folders = [], []
        for name, is_folder, is_link in sorted(found, key=lambda item: natural_key(item[0])):
            inner = os.path.join(path, name)
            (folders if is_folder else files).append(inner)
            if is_link and not is_folder and os.path.exists(inner):
                target = Path(inner).resolve()
                if target.name[0] != ".":  # those are no inputs
                    self._links.append((inner, _place(target.parent), number))
        for file in files:
            self.add(file)
        inner_folders = [self._listed(folder) for folder in folders]
        weight = sum(_VOLUME_FILES if _is_volume(file) else 1 for file in files)
        weight += sum(folder.weight for folder in inner_folders)
        if weight <= UNIT_FILES:
            return _Folder(path, weight, None, [])
        return _Folder(path, weight, files, inner_folders)

    def _unseen(self, problem: str) -> str:
        """What counts for the hash of what cannot be looked at."""
        if not self._skip_bad:
            raise CTMaskNetError(problem)
        return "unseen"


def _place(folder: str | os.PathLike) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_volume(path: str) -> bool:
    return path.lower().endswith(_VOLUME_SUFFIXES)


def _check_apart(inputs: Sequence[str | os.PathLike]) -> None:
    """No slice may be predicted twice."""
    resolved: dict[Path, str] = {}
    for given in map(os.fspath, inputs):
        path = Path(given).resolve()
        if path in resolved:
            raise CTMaskNetError(f"{given}: given twice; give it once")
        resolved[path] = given
    for path, given in resolved.items():
        for folder in path.parents:
            if folder in resolved:
                raise CTMaskNetError(
                    f"{given}: lies in {resolved[folder]}, which is an input too; give one of them"
                )


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
    started: deque[tuple[Any, int]] = deque()

    def entries() -> Iterator[CTSlice]:
        for group, slices in groups:
            if slices:
                started.append((group, len(slices)))
                yield from slices

    def load(source: CTSlice) -> Loaded:
        try:
            return Loaded(source, *read(source))
        except CTMaskNetError as error:
            if not skip_bad:
                raise
            return Loaded(source, None, None, BadSlice.from_error(source.name, error))

    loaded = ahead(load, entries(), threads=threads, limit=limit)
    # Counted, so that a group ends with its last slice and not when the next group's first is there
    for first in loaded:
        group, count = started.popleft()
        yield group, itertools.chain([first], itertools.islice(loaded, count - 1))


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


@dataclass(frozen=True)
class ReadUnit:
    """What was found in a unit.

    Attributes:
        scans: in the order in which their files were found.
        bad: (file, reason) of what cannot be read.
        left_out: (file, reason) of sound files that are no axial CT, of a folder that was cut; in a
            folder that was not, its scans name them among their problems.
    """

    scans: list[CTScan]
    bad: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def read_unit(unit: Unit, *, skip_bad: bool) -> ReadUnit:
    """Read the headers of a unit's files.

    Raises:
        CTMaskNetError: without ``skip_bad``, the first bad file.
    """
    bad: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []

    def note(file: str, reason: str) -> None:
        if not skip_bad:
            raise CTMaskNetError(f"{file}: {reason}")
        bad.append((file, reason))

    def leave_out(file: str, reason: str) -> None:
        left_out.append((file, reason))

    scans = read_scans(unit.paths, on_bad=note, on_left_out=None if unit.named else leave_out)
    return ReadUnit(scans, bad, left_out)


def read_ahead(
    units: Iterable[tuple[int, Unit]], *, skip_bad: bool, threads: int = 1
) -> Iterator[tuple[int, ReadUnit]]:
    """Read units in order, each while the one before it is used.

    Args:
        units: (number, unit); read lazily.
        skip_bad: see :func:`read_unit`.
        threads: 0 reads a unit when it is asked for.
    """

    def read(numbered: tuple[int, Unit]) -> tuple[int, ReadUnit]:
        number, unit = numbered
        return number, read_unit(unit, skip_bad=skip_bad)

    for number, found in ahead(read, units, threads=min(1, threads), limit=1):
        for file, reason in found.left_out:
            logging.getLogger(__name__).warning("Left out: %s: %s", file, reason)
        yield number, found
