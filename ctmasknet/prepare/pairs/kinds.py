"""An image and its mask; the folders they lie in; the split that lists say."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctmasknet.ct.find import natural_key
from ctmasknet.ct.scan import decoding
from ctmasknet.data.splits import FoldList, check_disjoint, check_split_name, read_list
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.masks.planes import ClassMasks
from ctmasknet.prepare.pairs.zips import zip_of
from ctmasknet.prepare.volumes import Volume

#: A mask of all classes, or the masks of each.
MaskFile = Path | ClassMasks


@dataclass(frozen=True)
class LesionPair:
    """An image, its mask and its patient.

    ``key`` names the slice; ``file`` is the image's path relative to its folder; ``mask`` is a
    picture, or one a class; None where there is no lesion.
    """

    key: str
    file: str
    image: Path
    mask: MaskFile | None
    patient: str


@dataclass(frozen=True)
class VolumePair:
    """A volume, its mask and its patient.

    Attributes:
        volume: of the scan.
        mask: a NIfTI or DICOM-SEG file, or a folder with one picture a slice (see
            :func:`find_volume_pairs`), or one of these a class; None: it has no lesion.
        patient: whose it is.
    """

    volume: Volume
    mask: MaskFile | None
    patient: str

    @property
    def key(self) -> str:
        return self.volume.key


def source_folders(
    source: str | os.PathLike | None,
    images: str | os.PathLike | None = None,
    masks: str | os.PathLike | None = None,
) -> tuple[Path, Path]:
    """The image and the mask folder: as given, else ``image`` or ``images``, ``mask`` or ``masks``
    in ``source``. Each may be a zip or lie in one (:mod:`ctmasknet.prepare.pairs.zips`).

    Raises:
        CTMaskNetError: a folder is missing.
    """
    if source is not None and not _is_there(Path(source)):
        raise CTMaskNetError(
            f"{source}: no such folder; `source` names the folder with image/ and mask/"
        )
    found = []
    for given, name in ((images, "image"), (masks, "mask")):
        if given is not None:
            folder = Path(given)
        elif source is None:
            raise CTMaskNetError(f"{name}s: give `source`, or both `images` and `masks`")
        else:
            folder = Path(source) / name
            if not _is_there(folder):
                folder = Path(source) / f"{name}s"
        if not _is_there(folder):
            wanted = given if given is not None else f"{source}/{name} (or {name}s)"
            raise CTMaskNetError(f"{wanted}: no such folder of {name}s; check the path")
        found.append(folder)
    return found[0], found[1]


def _is_there(folder: Path) -> bool:
    """Whether there is such a folder, zip, or folder in a zip."""
    if folder.is_dir() or (archive := zip_of(folder)) is None:
        return folder.is_dir()
    inner = folder.relative_to(archive).as_posix()
    with decoding(archive), zipfile.ZipFile(archive) as opened:
        names = [name.replace("\\", "/") for name in opened.namelist()]
    return inner == "." or any(name.startswith(f"{inner}/") for name in names)


def split_by_lists(
    pairs: Sequence[LesionPair | VolumePair],
    lists: Mapping[str, str | os.PathLike],
    key: Callable[[str], str],
    left_out: Collection[str] = (),
) -> dict[str, list[str]]:
    """The keys of each split as list files say. Pairs on no list are left out.

    Args:
        pairs: of the data set.
        lists: split -> list file, or what a table of folds has in its place.
        key: of the slice or volume that a line names, such as :meth:`PatientRule.key`.
        left_out: keys that lists may name too, which are of no pair.

    Raises:
        CTMaskNetError: a line that does not parse or names a file that is not there, a slice or
            volume named twice, a patient in two splits; the message says file and line.
    """
    pair_of = {pair.key: pair for pair in pairs}
    of_volumes = any(isinstance(pair, VolumePair) for pair in pairs)
    what, one = ("volume", "volume") if of_volumes else ("image", "slice")
    line_of: dict[str, str] = {}
    result: dict[str, list[str]] = {}
    for split, path in lists.items():
        check_split_name(split)
        result[split] = []
        lines = path.lines if isinstance(path, FoldList) else read_list(path)
        for number, line in lines:
            where = f"{os.fspath(path)}:{number}"
            try:
                name = key(line)
            except CTMaskNetError as error:
                raise CTMaskNetError(f"{where}: {error}") from None
            if name not in pair_of and name in left_out:
                continue
            if name not in pair_of:
                raise CTMaskNetError(
                    f"{where}: {line} names no {what} of the data set; remove it or add the file "
                    f"({what}s are named such as {next(iter(pair_of), '110_104')})"
                )
            if name in line_of:
                raise CTMaskNetError(
                    f"{where}: the {one} {line} was already named at {line_of[name]}; remove one"
                )
            line_of[name] = where
            result[split].append(name)
        result[split].sort(key=natural_key)
    try:
        check_disjoint(
            {split: [pair_of[name].patient for name in names] for split, names in result.items()}
        )
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{', '.join(map(str, lists.values()))}: {error}") from None
    return result
