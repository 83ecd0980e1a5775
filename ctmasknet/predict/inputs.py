"""Inputs of any number cut into units, and units read into scans.

A unit is what is read and shared out at one time: a folder with everything below it, as long as
that is not too much to hold in memory; larger folders are cut into their files and their folders.
Only names, sizes and times of change are looked at for that, no file is opened. Later the headers
of one unit are held, while those of the next are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctmasknet.ct.arrays import Axes
from ctmasknet.ct.dicom.disc import is_disc_list
from ctmasknet.ct.find import find_files, list_folder
from ctmasknet.ct.itk import ITK_SUFFIXES
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import CTScan, Rescale
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import ARRAY_SUFFIXES
from ctmasknet.predict.loading import ahead

#: A folder with more files is cut. Their headers are held at once: a few MB.
UNIT_FILES = 4096
#: A volume in one file counts as so many, for it has as many slices.
_VOLUME_FILES = 512
#: An array of NumPy's that is larger holds more than one slice.
_SLICE_BYTES = 2**23
_VOLUME_SUFFIXES = (".nii", ".nii.gz", ".zip", *ITK_SUFFIXES)


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

    Folders are walked as by :func:`ctmasknet.ct.find.find_files`, so that a unit's files are those
    that :func:`ctmasknet.ct.read.read_scans` finds in it.

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
            if is_disc_list(given):
                named = [found.path for found in find_files([given])]
                for path in named:
                    listing.add(path)
                units.append(Unit((given,), len(named)))
            elif _is_volume(given):
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
    """A folder as listed. ``files`` is None where it need not be cut: a name costs memory.
    ``inner`` are the paths of those below it until they are listed."""

    path: str
    weight: int
    files: list[str] | None
    folders: list[_Folder]
    inner: list[str] = field(default_factory=list)


def _units_of(top: _Folder, named: bool) -> list[Unit]:
    units: list[Unit] = []
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        is_named = named and folder is top
        if folder.files is None:
            if folder.weight or is_named:
                units.append(Unit((folder.path,), folder.weight, is_named))
            continue
        volumes = [Unit((path,), _VOLUME_FILES, False) for path in folder.files if _is_volume(path)]
        if not volumes and not folder.folders:
            units.append(Unit((folder.path,), folder.weight, is_named))
            continue
        units += volumes
        if others := tuple(path for path in folder.files if not _is_volume(path)):
            units.append(Unit(others, len(others), False))
        waiting += reversed(folder.folders)
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
        for link, identity, number in self._links:
            owner = self._visited.get(identity)
            if owner is not None and (owner != number or self._cut[number]):
                raise CTMaskNetError(
                    f"{link}: leads to what is among the inputs already; remove the link, so that "
                    "no slice is predicted twice"
                )

    def _listed(self, path: str) -> _Folder:
        """A folder and those below it, listed in the order of a walk and weighed from the ends; no
        recursion, for folders may be nested deeper than Python's calls."""
        top = self._opened(path)
        open_folders = [(top, iter(top.inner))]
        while open_folders:
            folder, inner = open_folders[-1]
            if (below := next(inner, None)) is not None:
                folder.folders.append(self._opened(below))
                open_folders.append((folder.folders[-1], iter(folder.folders[-1].inner)))
                continue
            open_folders.pop()
            folder.weight += sum(one.weight for one in folder.folders)
            if folder.weight <= UNIT_FILES:
                folder.files, folder.folders = None, []
            folder.inner = []
        return top

    def _opened(self, path: str) -> _Folder:
        """A folder with its own files counted and those below it still to be listed."""
        number = len(self._cut) - 1
        try:
            identity = _identity(path)
            if identity in self._visited:
                self._links.append((path, identity, number))
                return _Folder(path, 0, None, [])
            self._visited[identity] = number
            files, folders = list_folder(path)
        except OSError as error:
            self._unseen(f"{path}: cannot be listed ({error.strerror}); check its permissions")
            return _Folder(path, 1, None, [])
        for file in files:
            self.add(file)
            if os.path.islink(file) and os.path.exists(file):
                target = Path(file).resolve()
                if target.name[0] != ".":  # those are no inputs
                    self._links.append((file, _identity(target.parent), number))
        weight = sum(_VOLUME_FILES if _is_volume(file) else 1 for file in files)
        return _Folder(path, weight, files, [], folders)

    def _unseen(self, problem: str) -> str:
        """What counts for the hash of what cannot be looked at."""
        if not self._skip_bad:
            raise CTMaskNetError(problem)
        return "unseen"


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_volume(path: str) -> bool:
    if path.lower().endswith(ARRAY_SUFFIXES):
        with contextlib.suppress(OSError):  # whoever reads it says so
            return os.path.getsize(path) > _SLICE_BYTES
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
    bad: list[tuple[str, str]]
    left_out: list[tuple[str, str]]


def read_unit(
    unit: Unit, *, skip_bad: bool, rescale: Rescale | None = None, axes: Axes | None = None
) -> ReadUnit:
    """Read the headers of a unit's files; ``rescale`` and ``axes`` as for
    :func:`ctmasknet.ct.read.read_scans`.

    Raises:
        CTMaskNetError: without ``skip_bad``, the first bad file.
    """
    bad: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []

    def note(file: str, reason: str) -> None:
        if not skip_bad:
            raise CTMaskNetError(f"{file}: {reason}")
        bad.append((file, reason))

    leave_out = None if unit.named else lambda file, reason: left_out.append((file, reason))
    how = {"rescale": rescale, "axes": axes}
    scans = read_scans(unit.paths, on_bad=note, on_left_out=leave_out, **how)
    return ReadUnit(scans, bad, left_out)


def read_ahead(
    units: Iterable[tuple[int, Unit]],
    *,
    skip_bad: bool,
    rescale: Rescale | None = None,
    axes: Axes | None = None,
    threads: int = 1,
) -> Iterator[tuple[int, ReadUnit]]:
    """Read units in order, each while the one before it is used.

    Args:
        units: (number, unit); read lazily.
        skip_bad, rescale, axes: see :func:`read_unit`.
        threads: 0 reads a unit when it is asked for.
    """

    def read(numbered: tuple[int, Unit]) -> tuple[int, ReadUnit]:
        return numbered[0], read_unit(numbered[1], skip_bad=skip_bad, rescale=rescale, axes=axes)

    for number, found in ahead(read, units, threads=min(1, threads), limit=1):
        for file, reason in found.left_out:
            logging.getLogger(__name__).warning("Left out: %s: %s", file, reason)
        yield number, found
