"""Inputs of any number cut into units: what is listed, read and shared out at one time.

A unit is a folder with everything below it, as long as that is not too much to hold in memory;
larger folders are cut into their files and their folders. Only names, sizes and times of change are
looked at here, no file is opened.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctmasknet.data.natural import natural_key
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


def list_units(inputs: Sequence[str | os.PathLike]) -> tuple[list[Unit], str]:
    """Cut files and folders into units, in the order given, folders in natural order.

    As in :func:`ctmasknet.data.ct_io.read_scans`, names that begin with a dot are passed over in
    folders.

    Returns:
        the units, and a SHA-256 over every file's path as given, size and time of change.

    Raises:
        CTMaskNetError: no input, one that does not exist or cannot be listed, one that lies in
            another, or a link that leads to a folder of another unit.
    """
    if not inputs:
        raise CTMaskNetError("no input: give files or folders of CT slices")
    _check_apart(inputs)
    digest = hashlib.sha256()
    visited: set[tuple[int, int]] = set()
    units: list[Unit] = []
    loose: list[str] = []
    for given in map(os.fspath, inputs):
        if os.path.isdir(given):
            before, links = set(visited), {}
            folder = _listed(given, digest, visited, links)
            for link, place in links.items():
                # Within one unit a folder is read once, however often links lead to it
                if folder.files is not None or place in before:
                    raise CTMaskNetError(
                        f"{link}: leads to a folder that is among the inputs already; remove the "
                        "link, so that no slice is predicted twice"
                    )
            units += _units_of(folder, named=True)
        elif os.path.isfile(given):
            _add(digest, given)
            if _is_volume(given):
                units.append(Unit((given,), _VOLUME_FILES))
            else:
                loose.append(given)
        else:
            raise CTMaskNetError(f"{given}: no such file or folder; correct --input")
    if loose:
        # Files that were named one by one may be of one series
        units.insert(0, Unit(tuple(loose), len(loose)))
    return units, digest.hexdigest()


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


def _listed(
    path: str, digest, visited: set[tuple[int, int]], links: dict[str, tuple[int, int]]
) -> _Folder:
    """List a folder to its depth; every file goes into ``digest``, paths of folders that were
    visited before into ``links``."""
    files, folders = _entries(path, visited, links)
    for file in files:
        _add(digest, file)
    inner = [_listed(folder, digest, visited, links) for folder in folders]
    weight = sum(_VOLUME_FILES if _is_volume(file) else 1 for file in files)
    weight += sum(folder.weight for folder in inner)
    if weight <= UNIT_FILES:
        return _Folder(path, weight, None, [])
    return _Folder(path, weight, files, inner)


def _entries(
    folder: str, visited: set[tuple[int, int]], links: dict[str, tuple[int, int]]
) -> tuple[list[str], list[str]]:
    """Paths of the files and of the folders in a folder, each in natural order; none of a folder
    that was visited before."""
    try:
        status = os.stat(folder)
        place = (status.st_dev, status.st_ino)
        if place in visited:
            links[folder] = place
            return [], []
        visited.add(place)
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError as error:
        raise CTMaskNetError(
            f"{folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from error
    found = sorted((item for item in found if item[0][0] != "."), key=lambda x: natural_key(x[0]))
    paths = [(os.path.join(folder, name), is_folder) for name, is_folder in found]
    files = [path for path, is_folder in paths if not is_folder]
    return files, [path for path, is_folder in paths if is_folder]


def _add(digest, path: str) -> None:
    try:
        status = os.stat(path)
    except OSError as error:
        raise CTMaskNetError(
            f"{path}: cannot be read ({error.strerror}); restore or remove it"
        ) from error
    digest.update(
        f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape")
    )


def _is_volume(path: str) -> bool:
    return path.lower().endswith(_VOLUME_SUFFIXES)


def _check_apart(inputs: Sequence[str | os.PathLike]) -> None:
    """No slice may be predicted twice."""
    resolved: dict[Path, str] = {}
    for given in map(os.fspath, inputs):
        path = Path(given).resolve()
        if path in resolved:
            raise CTMaskNetError(f"{given}: given twice as --input; give it once")
        resolved[path] = given
    for path, given in resolved.items():
        for folder in path.parents:
            if folder in resolved:
                raise CTMaskNetError(
                    f"{given}: lies in {resolved[folder]}, which is an --input too; give one of "
                    "them"
                )
