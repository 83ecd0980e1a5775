"""DICOM series and NIfTI volumes in a folder, and 8-bit PNG copies of their slices.

A prepared set points to 8-bit pictures, so the slices of volumes are written through one window
into it.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ctmasknet.ct.archive import UnpackedSource
from ctmasknet.ct.arrays import ArrayVolume, Axes
from ctmasknet.ct.dicom.reconstruction import choose_reconstructions, series_facts
from ctmasknet.ct.find import find_files, kind_of
from ctmasknet.ct.itk import ITK_SUFFIXES
from ctmasknet.ct.picture_slices import read_picture_file
from ctmasknet.ct.pictures import raise_problems
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import GREY, CTScan, Rescale, UnsuitableFile, Window
from ctmasknet.ct.sidecar import stated_rescale
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import ARRAY_SUFFIXES, IMAGE_SUFFIXES
from ctmasknet.workers import map_in_processes

_LOGGER = logging.getLogger(__name__)
#: Why :func:`read_scans` leaves files out that lie beside CT in any export. Other reasons are those
#: of a volume that would be missed.
_BESIDE_CT = re.compile(
    "a localizer|a dose page|a screen shot|not CT|not axial|holds no image|in colour|no PNG, JPEG"
)
_EXTENSIONS = (".nii.gz", ".nii", ".dcm", ".dicom", ".ima", *ITK_SUFFIXES, *ARRAY_SUFFIXES)


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

    @property
    def is_grey(self) -> bool:
        """Whether it holds grey levels, which no window is for."""
        return getattr(self.scan.slices[0].source, "rescale", None) == GREY

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
    """The files below ``folder`` that are DICOM or another kind of volume, or ought to be by their
    names."""
    for found in find_files([folder]):
        if found.path.lower().endswith(IMAGE_SUFFIXES):
            continue
        try:
            if kind_of(found.path) in ("dicom", "nifti", "itk", "array", "zip"):
                yield found.path
        except UnsuitableFile:
            continue
        except CTMaskNetError:
            # Damaged; whoever reads it says so.
            if found.path.lower().endswith(_EXTENSIONS):
                yield found.path


def holds_volumes(folder: str | os.PathLike) -> bool:
    """Whether slices of a folder are not pictures; NumPy's arrays beside pictures are masks."""
    found_array = False
    for file in volume_files(folder):
        if not file.lower().endswith(ARRAY_SUFFIXES):
            return True
        found_array = True
    pictures = (found.path.lower().endswith(IMAGE_SUFFIXES) for found in find_files([folder]))
    return found_array and not any(pictures)


def find_volumes(
    root: str | os.PathLike,
    below: str = ".",
    on_bad: Callable[[str, str], None] | None = None,
    on_lost: Callable[[str, str], None] | None = None,
    rescale: Rescale | None = None,
    one_series: bool = False,
    axes: Axes | None = None,
) -> list[Volume]:
    """The volumes in a folder or file below ``root``, in natural order.

    What usually lies beside CT (localizers, reports, texts, ...) and what is wrong with a volume
    that is taken all the same is logged, as a count and an example.

    Args:
        root: keys are relative to it.
        below: path relative to ``root``.
        on_bad: called with (file, reason) for each damaged file, which is then left out; None: the
            first raises.
        on_lost: the same for each sound file that ought to be CT and cannot be used, such as a
            volume that is not in HU; default: ``on_bad``.
        rescale, axes: see :func:`ctmasknet.ct.read.read_scans`.
        one_series: of a study with several DICOM series, the one that counts
            (:func:`~ctmasknet.ct.dicom.reconstruction.choose_reconstructions`); the others are
            named in the log.

    Raises:
        CTMaskNetError: a damaged or unusable file; nothing found; pictures among the volumes; two
            of them that cannot be told apart by name.
    """
    path = os.path.normpath(os.path.join(root, below))
    left_out: dict[str, str] = {}
    bad: dict[str, str] = {}
    scans = read_scans(
        path,
        on_bad=on_bad and bad.setdefault,
        on_left_out=lambda *found: left_out.update([found]),
        rescale=rescale,
        axes=axes,
    )
    lost = {file: why for file, why in left_out.items() if not _BESIDE_CT.match(why)}
    if on_lost is None:
        bad |= lost
    else:
        for file, reason in lost.items():
            on_lost(file, reason)
    if not scans and not bad:
        bad[path] = "holds no DICOM and no NIfTI that is CT"
        if left_out:
            file, reason = next(iter(left_out.items()))
            bad[path] += f"; the first of {len(left_out)} files, {file}: {reason}"
    for file, reason in bad.items():
        if on_bad is None:
            more = f" (and {len(bad) - 1} more files cannot be used)" if len(bad) > 1 else ""
            raise CTMaskNetError(f"{file}: {reason}{more}")
        on_bad(file, reason)
    _log_left_out(path, {file: why for file, why in left_out.items() if file not in lost}, scans)
    if one_series:
        scans = chosen_series(scans)
    # Arrays of one slice each may be of many patients, as pictures are
    scans = [each for scan in scans for each in _apart(scan)]
    for scan in scans:
        zipped = isinstance(scan.slices[0].source, UnpackedSource)
        if scan.kind == "image" and not zipped and not _is_array(scan):
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


def _is_array(scan: CTScan) -> bool:
    return isinstance(scan.slices[0].source, ArrayVolume)


def _apart(scan: CTScan) -> list[CTScan]:
    if scan.kind == "image" and _is_array(scan):
        return [replace(scan, slices=(one,)) for one in scan.slices]
    return [scan]


def chosen_series(scans: Sequence[CTScan]) -> list[CTScan]:
    """Without the series of studies that do not count
    (:func:`~ctmasknet.ct.dicom.reconstruction.choose_reconstructions`), which are logged. Series
    that are made alike are scans of their own, as of two breaths: all are taken."""
    facts = list(map(series_facts, scans))
    choices = choose_reconstructions(facts)
    made = {
        (one.study, one.kind, one.is_projection, one.thickness_mm)
        for one, (counts, _) in zip(facts, choices, strict=True)
        if one is not None and counts
    }
    taken = []
    for scan, one, (counts, reason) in zip(scans, facts, choices, strict=True):
        if counts or (one.study, one.kind, one.is_projection, one.thickness_mm) in made:
            taken.append(scan)
            continue
        reason = reason.replace("does not count for the patient", "is not taken")
        _LOGGER.warning("%s: series %s %s", scan.slices[0].file, scan.scan, reason)
    return taken


def log_others(folder: str | os.PathLike, files: Iterable[str], suffixes: Sequence[str]) -> None:
    """Say how many of the files of a folder do not end in one of the suffixes."""
    others = [file for file in files if not file.lower().endswith(tuple(suffixes))]
    if others:
        _LOGGER.warning(
            "%s: %d files left out, such as %s: their names end in none of %s",
            *(folder, len(others), others[0], ", ".join(suffixes)),
        )


def _log_left_out(path: str, left_out: Mapping[str, str], scans: Sequence[CTScan]) -> None:
    files: dict[str, list[str]] = {}
    for file, reason in left_out.items():
        files.setdefault(reason, []).append(file)
    for reason, found in files.items():
        _LOGGER.warning("%s: %d files left out, such as %s: %s", path, len(found), found[0], reason)
    problems: dict[str, list[str]] = {}
    for scan in scans:
        for problem in scan.problems:
            if " left out, such as " not in problem:  # said above
                problems.setdefault(problem, []).append(scan.slices[0].file)
    for problem, found in problems.items():
        _LOGGER.warning("%s (%d volumes alike): %s", found[0], len(found), problem)


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


def read_deep_picture(
    file: str | os.PathLike, window: Window, rescale: Rescale | None = None
) -> np.ndarray:
    """(H, W) uint8 grey levels of a picture of more than 8 bits a channel, upright as it lies.

    Without ``rescale`` the one stated beside the file counts.

    Raises:
        CTMaskNetError: damaged, several pages, in colour, or 8 bits, which no rescale is for.
    """
    file = os.fspath(file)
    rescale = stated_rescale(file) if rescale is None else rescale
    slices = read_picture_file(file, file, rescale)
    if len(slices) > 1:
        raise CTMaskNetError(
            f"{file}: holds {len(slices)} pages; save each slice as a picture of its own"
        )
    if not slices[0].source.page.deep:
        raise CTMaskNetError(
            f"{file}: an 8-bit picture, whose grey levels stay as they are; leave `rescale` out, "
            "or prepare these pictures as another set"
        )
    return slices[0].pixels(window)


def write_deep_copies(
    copies: Mapping[str, str],
    window: Window,
    rescale: Rescale | None,
    workers: int = 1,
    *,
    skip_bad: bool = False,
) -> dict[str, str]:
    """Write pictures of more than 8 bits a channel as 8-bit PNG files.

    Args:
        copies: source file -> PNG file to write; missing folders are made.
        window, rescale: as for :func:`read_deep_picture`.
        workers, skip_bad: as for :func:`write_copies`.

    Returns:
        source -> what is wrong with it, for those.

    Raises:
        CTMaskNetError: a source that cannot be read.
    """
    write = functools.partial(_write_deep, window=window, rescale=rescale)
    found = map_in_processes(write, list(copies.items()), workers, title="pictures")
    problems = {file: why for file, why in zip(copies, found, strict=True) if why}
    if not skip_bad:
        raise_problems(list(problems.values()), len(copies))
    return problems


def _write_deep(copy: tuple[str, str], window: Window, rescale: Rescale | None) -> str | None:
    source, target = copy
    try:
        pixels = read_deep_picture(source, window, rescale)
    except CTMaskNetError as error:
        return str(error)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(target, format="PNG")
    return None


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


def stem_of_file(file: str) -> str:
    """The path of a picture or volume without its extension."""
    base, ending = os.path.splitext(file)
    return base if ending.lower() in IMAGE_SUFFIXES else without_extension(file)


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
