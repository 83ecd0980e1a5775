"""DICOM series and NIfTI volumes in a folder, and 8-bit PNG copies of their slices.

A prepared set points to 8-bit pictures, so the slices of volumes are written through one window
into it.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ctmasknet.ct.find import find_files, kind_of
from ctmasknet.ct.pictures import raise_problems
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import CTScan, UnsuitableFile, Window
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import IMAGE_SUFFIXES
from ctmasknet.workers import map_in_processes

_EXTENSIONS = (".nii.gz", ".nii", ".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Volume:
    """A scan with several slices.

    Attributes:
        key: names it and its copies: path below the folder it was found in, without extension; for
            a DICOM series the folder of its files.
        scan: feet to head.
    """

    key: str
    scan: CTScan

    def copy_name(self, index: int) -> str:
        """Of the slice ``index``, counted from the feet: ``<key>/0012.png``."""
        return f"{self.key}/{index:04d}.png"

    def write_copy(self, index: int, folder: Path, window: Window) -> None:
        """Write one slice through ``window`` as 8-bit PNG below ``folder``.

        Raises:
            CTMaskNetError: the slice is damaged.
        """
        pixels = self.scan.slices[index].pixels(window)
        target = folder / self.copy_name(index)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target, format="PNG")


def volume_files(folder: str | os.PathLike) -> Iterator[str]:
    """The files below ``folder`` that are DICOM or NIfTI, or ought to be by their names."""
    for found in find_files([folder]):
        if found.path.lower().endswith(IMAGE_SUFFIXES):
            continue
        try:
            if kind_of(found.path) in ("dicom", "nifti"):
                yield found.path
        except UnsuitableFile:
            continue
        except CTMaskNetError:
            # Damaged; whoever reads it says so.
            if found.path.lower().endswith(_EXTENSIONS):
                yield found.path


def find_volumes(
    root: str | os.PathLike,
    below: Sequence[str] = (".",),
    on_bad: Callable[[str, str], None] | None = None,
) -> list[Volume]:
    """The volumes in folders or files below ``root``, in natural order.

    Args:
        root: keys are relative to it.
        below: paths relative to ``root``.
        on_bad: see :func:`ctmasknet.ct.read.read_scans`.

    Raises:
        CTMaskNetError: a damaged file; pictures among the volumes; two of them that cannot be told
            apart by name.
    """
    scans = read_scans(
        [os.path.normpath(os.path.join(root, part)) for part in below], on_bad=on_bad
    )
    for scan in scans:
        if scan.kind == "image":
            raise CTMaskNetError(
                f"{scan.slices[0].file}: a picture among DICOM or NIfTI volumes; move the pictures "
                "to a folder of their own and prepare them as another set"
            )
    keys = [_key(scan, root) for scan in scans]
    count = Counter(keys)
    volumes: dict[str, Volume] = {}
    for key, scan in zip(keys, scans, strict=True):
        key = f"{key}/{_plain(scan.scan)}" if count[key] > 1 else key
        if key in volumes:
            raise CTMaskNetError(
                f"{scan.slices[0].file} and {volumes[key].scan.slices[0].file}: the copies of both "
                f"would be called {key}; rename one of them"
            )
        volumes[key] = Volume(key, scan)
    return list(volumes.values())


def write_copies(
    copies: Mapping[str, tuple[Volume, int]],
    folder: Path,
    window: Window,
    workers: int = 1,
    *,
    skip_bad: bool = False,
) -> dict[str, str]:
    """Write slices of volumes as 8-bit PNG files below ``folder``, a volume a process at a time.

    Args:
        copies: name of each copy (:meth:`Volume.copy_name`) -> volume and index of its slice.
        folder: see :meth:`Volume.write_copy`.
        window: HU to grey levels.
        workers: number of processes; 1 stays in this one.
        skip_bad: slices that cannot be read are no error.

    Returns:
        copy -> what is wrong with its slice, for those.

    Raises:
        CTMaskNetError: a slice cannot be read.
    """
    tasks: dict[str, tuple[Volume, list[int]]] = {}
    for volume, index in copies.values():
        tasks.setdefault(volume.key, (volume, []))[1].append(index)
    write = functools.partial(_write_volume, folder=folder, window=window)
    problems: dict[str, str] = {}
    for found in map_in_processes(
        write, list(tasks.values()), workers, title="volumes", unit="volume", chunksize=1
    ):
        problems |= found
    if not skip_bad:
        raise_problems(list(problems.values()), len(copies))
    return problems


def _write_volume(
    task: tuple[Volume, Sequence[int]], folder: Path, window: Window
) -> dict[str, str]:
    volume, indices = task
    problems = {}
    for index in indices:
        try:
            volume.write_copy(index, folder, window)
        except CTMaskNetError as error:
            problems[volume.copy_name(index)] = str(error)
    return problems


def without_extension(file: str) -> str:
    """``a/b.nii.gz`` -> ``a/b``."""
    for extension in _EXTENSIONS:
        if file.lower().endswith(extension):
            return file[: -len(extension)]
    return file


def every_kth(count: int, step: int) -> list[int]:
    """Every ``step``-th of ``count`` slices, the middle of the first ``step`` first.

    Raises:
        CTMaskNetError: a step below 1.
    """
    if step < 1:
        raise CTMaskNetError(f"`every` {step}: give a step of 1 or more slices")
    return list(range(min((step - 1) // 2, count - 1), count, step))


def _key(scan: CTScan, root: str | os.PathLike) -> str:
    files = {one.file for one in scan.slices}
    if len(files) == 1:
        key = without_extension(os.path.relpath(next(iter(files)), root))
    else:
        key = os.path.relpath(os.path.commonpath([os.path.dirname(file) for file in files]), root)
    return _plain(scan.scan) if key == "." else Path(key).as_posix()


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)
