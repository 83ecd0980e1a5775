"""Classified volumes: in class folders, or in a CSV list ``path,class[,patient,scan,split]``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.ct.find import natural_key
from ctmasknet.data.prepared import SliceRecord, part_below
from ctmasknet.data.splits import check_disjoint, check_split_name
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import read_csv_rows
from ctmasknet.names import match_patient
from ctmasknet.prepare.lists import check_class_name, pictures_below
from ctmasknet.prepare.volumes import Volume, every_kth, find_volumes, volume_files

Report = Callable[[str, str], None]


@dataclass(frozen=True)
class Source:
    """Slices found, and where those come from that are not pictures.

    Attributes:
        records: of all slices; those of volumes name the copy to write.
        slices: copy -> (volume, index of the slice from the feet).
        split_of: split of each record, where a list states it; else empty.
    """

    records: list[SliceRecord]
    slices: dict[str, tuple[Volume, int]]
    split_of: tuple[str, ...] = ()

    def splits(self) -> dict[str, list[SliceRecord]]:
        """The records by the split that the list states; no patient is in two of them."""
        splits: dict[str, list[SliceRecord]] = {name: [] for name in dict.fromkeys(self.split_of)}
        for record, split in zip(self.records, self.split_of, strict=True):
            splits[split].append(record)
        check_disjoint({name: {r.patient for r in records} for name, records in splits.items()})
        return splits


def class_folders_hold_volumes(
    images: str | os.PathLike, class_folders: Mapping[str, Sequence[str]]
) -> bool:
    """Whether any class folder holds DICOM or NIfTI."""
    folders = [Path(images, part) for parts in class_folders.values() for part in parts]
    return any(any(volume_files(folder)) for folder in folders if folder.is_dir())


def read_class_volumes(
    images: str | os.PathLike,
    class_folders: Mapping[str, Sequence[str]],
    patient_pattern: re.Pattern | None = None,
    every: int = 1,
    on_bad: Report | None = None,
) -> Source:
    """The volumes of every class.

    Args:
        images: the folder above the class folders.
        class_folders: class name -> its folders below ``images``.
        patient_pattern: finds the patient in a volume's path below ``images``
            (:func:`~ctmasknet.names.match_patient`); without it the patient is the one
            that the file states, and a volume that states none is a patient of its own.
        every: every so many slices is taken.
        on_bad: see :func:`ctmasknet.ct.read.read_scans`.

    Raises:
        CTMaskNetError: fewer than two classes, a missing folder, pictures among the volumes, a
            damaged file.
    """
    if len(class_folders) < 2 or not any(class_folders.values()):
        raise CTMaskNetError(
            "class folders: a classifier needs at least two classes; name them as CLASS=FOLDER"
        )
    found = _Found(every)
    for label, (class_name, folders) in enumerate(class_folders.items()):
        check_class_name(class_name)
        for folder in folders:
            if not Path(images, folder).is_dir():
                raise CTMaskNetError(
                    f"{Path(images, folder)}: no such class folder; check --class-folder and "
                    "--images"
                )
            for volume in find_volumes(images, [part_below(images, folder)], on_bad):
                found.add_volume(volume, label, _named(volume, patient_pattern))
    return found.source()


def read_volume_list(
    path: str | os.PathLike,
    root: str | os.PathLike,
    classes: Sequence[str] | None = None,
    patient_pattern: re.Pattern | None = None,
    every: int = 1,
    on_bad: Report | None = None,
) -> tuple[list[str], Source]:
    """Read a CSV list with the columns ``path,class`` and, where known, ``patient,scan,split``.

    Args:
        path: the list. A row's path is a NIfTI volume, a DICOM file, a folder with DICOM series, a
            picture or a folder of pictures, with its subfolders. Patient and scan go before what
            the file states; a volume or picture without either is a patient of its own.
        root: paths are relative to it.
        classes: their names in the order of the labels; default: those of the paper, if they are
            these.
        patient_pattern, every, on_bad: as for :func:`read_class_volumes`.

    Returns:
        the classes; the slices.

    Raises:
        CTMaskNetError: a missing list or column, an unknown class or split, a path that is not
            there, is not below ``root`` or is listed twice, pictures and volumes in one list, a
            patient in two splits; the message names file and line.
    """
    rows = read_csv_rows(path, ("path", "class"), ("patient", "scan", "split"))
    if not rows:
        raise CTMaskNetError(f"{path}: lists no volume")
    classes = _classes(path, rows, classes)
    found = _Found(every)
    seen: dict[str, int] = {}
    for number, row in rows:
        where = f"{path}:{number}"
        try:
            part = part_below(root, row["path"])
        except CTMaskNetError as error:
            raise CTMaskNetError(f"{where}: {error}") from None
        if part in seen:
            raise CTMaskNetError(f"{where}: {part} is listed twice, first on line {seen[part]}")
        seen[part] = number
        if row["split"]:
            check_split_name(row["split"])
        given = row["patient"], row["scan"]
        target = Path(root, part)
        if not target.exists():
            if on_bad is None:
                raise CTMaskNetError(f"{where}: {target}: no such file or folder; correct the list")
            on_bad(str(target), "no such file or folder")
            continue
        label = classes.index(row["class"])
        pictures = sorted(pictures_below(root, part), key=natural_key)
        if pictures and target.is_dir() and any(volume_files(target)):
            raise CTMaskNetError(
                f"{where}: {target} holds pictures and DICOM or NIfTI volumes; list the one or the "
                "other, in a folder of its own"
            )
        for file in pictures:
            names = _picture_names(file, patient_pattern)
            found.add_picture(file, label, names, given, row["split"])
        if not pictures:
            for volume in find_volumes(root, [part], on_bad):
                names = _named(volume, patient_pattern)
                found.add_volume(volume, label, names, given, row["split"])
    source = found.source()
    if source.slices and len(source.slices) < len(source.records):
        raise CTMaskNetError(
            f"{path}: lists pictures and volumes; prepare them as two sets, for pictures stay "
            "where they are"
        )
    if 0 < sum(map(bool, source.split_of)) < len(source.split_of):
        raise CTMaskNetError(f"{path}: some rows state a split and some none; state all or none")
    return list(classes), source


class _Found:
    """Records as they are found."""

    def __init__(self, every: int):
        self._every = every
        self._records: list[SliceRecord] = []
        self._slices: dict[str, tuple[Volume, int]] = {}
        self._split_of: list[str] = []
        self._pictures: set[str] = set()

    def add_volume(
        self,
        volume: Volume,
        label: int,
        names: tuple[str, str],
        given: tuple[str, str] = ("", ""),
        split: str = "",
    ) -> None:
        patient, scan = (ours or theirs for ours, theirs in zip(given, names, strict=True))
        for index in every_kth(len(volume.scan.slices), self._every):
            copy = volume.copy_name(index)
            if copy in self._slices:
                raise CTMaskNetError(
                    f"{volume.scan.slices[0].file}: the volume {volume.key} is in two classes or "
                    "rows; a volume belongs to one"
                )
            self._slices[copy] = volume, index
            self._records.append(SliceRecord(copy, label, patient, scan, f"{index:04d}"))
            self._split_of.append(split)

    def add_picture(
        self,
        file: str,
        label: int,
        names: tuple[str, str, str],
        given: tuple[str, str],
        split: str,
    ) -> None:
        if file in self._pictures:
            raise CTMaskNetError(
                f"{file}: the picture is in two rows, itself or by a folder above it; a picture "
                "belongs to one"
            )
        self._pictures.add(file)
        patient = given[0] or names[0]
        scan = given[1] or (patient if given[0] else names[1])
        self._records.append(SliceRecord(file, label, patient, scan, names[2]))
        self._split_of.append(split)

    def source(self) -> Source:
        stated = tuple(self._split_of) if any(self._split_of) else ()
        return Source(self._records, self._slices, stated)


def _named(volume: Volume, pattern: re.Pattern | None) -> tuple[str, str]:
    """Patient and scan of a volume."""
    scan = volume.scan.scan
    if pattern is None:
        return volume.scan.patient or volume.key, scan
    patient, named, _ = match_patient(volume.key, pattern)
    return patient, named if "scan" in pattern.groupindex else scan


def _picture_names(file: str, pattern: re.Pattern | None) -> tuple[str, str, str]:
    if pattern is not None:
        return match_patient(file, pattern)
    own = str(PurePosixPath(file).with_suffix(""))
    return own, own, PurePosixPath(file).stem


def _classes(
    path: str | os.PathLike,
    rows: Sequence[tuple[int, dict[str, str]]],
    classes: Sequence[str] | None,
) -> Sequence[str]:
    for name in classes or ():
        check_class_name(name)
    known = classes or IMAGE_CLASSES
    if len(set(known)) < len(known):
        raise CTMaskNetError(f"--classes {','.join(known)}: a class is named twice")
    for number, row in rows:
        if not row["path"]:
            raise CTMaskNetError(f"{path}:{number}: states no path")
        if row["class"] not in known:
            fix = "correct it" if classes else "correct it, or name the classes with --classes A,B"
            raise CTMaskNetError(
                f"{path}:{number}: class {row['class']!r} is none of {', '.join(known)}; {fix}"
            )
    return list(known)
