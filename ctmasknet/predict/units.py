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

from ctmasknet.errors import CTMaskNetError

#: A folder with more files is cut. Their headers are held at once: a few MB.
UNIT_FILES = 4096
#: A volume in one file counts as so many, for it has as many slices.
_VOLUME_FILES = 512
_VOLUME_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Unit:
    """Paths that are read together, and how many files (volumes counted by slices) they hold."""

    paths: tuple[str, ...]
    weight: int


def list_units(inputs: Sequence[str | os.PathLike]) -> tuple[list[Unit], str]:
    """Cut files and folders into units, in the order given, folders sorted by name.

    Returns:
        the units, and a SHA-256 over every file's path as given, size and time of change.

    Raises:
        CTMaskNetError: no input, one that does not exist or cannot be listed, or one that lies in
            another.
    """
    if not inputs:
        raise CTMaskNetError("no input: give files or folders of CT slices")
    _check_apart(inputs)
    digest = hashlib.sha256()
    units: list[Unit] = []
    loose: list[str] = []
    for given in map(os.fspath, inputs):
        if os.path.isdir(given):
            weight = _walk(given, digest)
            units += _cut(given, weight)
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


def _cut(folder: str, weight: int) -> list[Unit]:
    if weight <= UNIT_FILES:
        return [Unit((folder,), weight)] if weight else []
    files, folders = _listed(folder)
    volumes = [path for path in files if _is_volume(path)]
    others = [path for path in files if not _is_volume(path)]
    units = [Unit((path,), _VOLUME_FILES) for path in volumes]
    if others:
        whole = not volumes and not folders
        units.append(Unit((folder,) if whole else tuple(others), len(others)))
    for path in folders:
        units += _cut(path, _walk(path))
    return units


def _walk(folder: str, digest=None) -> int:
    """The weight of everything below a folder; its files go into ``digest``."""
    files, folders = _listed(folder)
    weight = 0
    for path in files:
        weight += _VOLUME_FILES if _is_volume(path) else 1
        if digest is not None:
            _add(digest, path)
    return weight + sum(_walk(path, digest) for path in folders)


def _listed(folder: str) -> tuple[list[str], list[str]]:
    """Paths of the files and of the folders in a folder, each sorted."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise CTMaskNetError(
            f"{folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from error
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
