"""Slices whose class is stated for a folder, a volume or a picture: class folders
(``normal=ct0 covid=ct1,ct2``), or a CSV list ``path,class[,patient,scan,split]``.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.csv_tables import read_csv_rows
from ctmasknet.ct.arrays import Axes
from ctmasknet.ct.find import check_name, find_files, natural_key
from ctmasknet.ct.scan import Rescale
from ctmasknet.data.prepared import SliceRecord, part_below
from ctmasknet.data.splits import check_disjoint, check_split_name, split_named
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import IMAGE_SUFFIXES, PatientRule
from ctmasknet.prepare.lists import PictureFolder
from ctmasknet.prepare.volumes import (
    Volume,
    every_kth,
    find_volumes,
    log_others,
    volume_files,
    without_extension,
)

#: Letters of any language; "," parts names on command lines, "=" and ":" a name from its files.
_CLASS_NAME = re.compile(r"[^\W_](?:[\w .()+&-]*[\w.()+&-])?")
_LONGEST_NAME = 64


class ClassifiedSlices:
    """Slices as they are found, and where those come from that are not pictures.

    Attributes:
        records: of all slices; those of volumes name the copy to write.
        volumes: copy -> (volume, index of the slice from the feet).
        split_of: split of each record, "" where none is stated.
        unknown: of a CSV list: file or key, path of its row and class of each picture or volume
            whose patient nothing tells.
    """

    def __init__(self, patient_pattern: str | None = None, every: int = 1):
        """
        Args:
            patient_pattern: finds the patient in a path below the folder of the images (see
                :class:`~ctmasknet.names.PatientRule`). Without it each picture is a patient of its
                own, and so is a volume that states none; folders that look like patients are
                refused then.
            every: of a volume every so many slices is taken.
        """
        self.records: list[SliceRecord] = []
        self.volumes: dict[str, tuple[Volume, int]] = {}
        self.split_of: list[str] = []
        self.unknown: list[tuple[str, str, str]] = []
        self._of_pictures = PatientRule(patient_pattern, each_file=patient_pattern is None)
        self._of_volumes = PatientRule(patient_pattern)
        self._every = every

    def add_volume(
        self, volume: Volume, label: int, patient: str = "", scan: str = "", split: str = ""
    ) -> None:
        """Take a volume; a patient and scan given go before what it states itself."""
        stated = volume.scan.patient or volume.key
        name = self._of_volumes.read_volume(volume.key, stated, volume.scan.scan)
        for index in every_kth(len(volume.scan.slices), self._every):
            copy = volume.copy_name(index)
            if copy in self.volumes:
                raise CTMaskNetError(
                    f"{volume.scan.slices[0].file}: the volume {volume.key} is in two classes or "
                    "rows; a volume belongs to one"
                )
            self.volumes[copy] = volume, index
            names = patient or name.patient, scan or name.scan, f"{index:04d}"
            self.records.append(SliceRecord(copy, label, *names))
            self.split_of.append(split)

    def add_picture(
        self, file: str, label: int, patient: str = "", scan: str = "", split: str = ""
    ) -> None:
        """Take a picture; a patient and scan given go before what its path says."""
        name = self._of_pictures.read(file)
        names = patient or name.patient, scan or patient or name.scan, name.slice
        self.records.append(SliceRecord(file, label, *names))
        self.split_of.append(split)

    def splits(self) -> dict[str, list[SliceRecord]]:
        """The records by the split that is stated; no patient is in two of them."""
        splits: dict[str, list[SliceRecord]] = {name: [] for name in dict.fromkeys(self.split_of)}
        for record, split in zip(self.records, self.split_of, strict=True):
            splits[split].append(record)
        check_disjoint({name: {r.patient for r in records} for name, records in splits.items()})
        return splits


def read_class_folders(
    images: str | os.PathLike,
    class_folders: Mapping[str, Sequence[str]],
    patient_pattern: str | None = None,
    every: int = 1,
    on_bad: Callable[[str, str], None] | None = None,
    rescale: Rescale | None = None,
    one_series: bool = True,
    axes: Axes | None = None,
) -> ClassifiedSlices:
    """The slices of every class: pictures, or volumes where any folder holds DICOM or NIfTI.

    Args:
        images: the folder above the class folders.
        class_folders: class name -> its folders below ``images``, searched with their subfolders;
            the order of the classes is that of the mapping. A class may have no folder (a set to
            test on may lack a class of the model).
        patient_pattern, every: see :class:`ClassifiedSlices`.
        on_bad, rescale, axes: see :func:`ctmasknet.ct.read.read_scans`; for volumes.
        one_series: see :func:`~ctmasknet.prepare.volumes.find_volumes`.

    Returns:
        pictures by class, sorted by path within a folder; volumes in natural order.

    Raises:
        CTMaskNetError: fewer than two classes; a class name unfit for a table's column; a folder
            that is missing, without pictures or not below ``images``; a picture or volume in two
            classes; pictures among volumes; a damaged volume; a name the pattern does not match;
            without a pattern, folders below a class folder with several pictures or volumes that
            state no patient.
    """
    root = Path(images)
    if not root.is_dir():
        raise CTMaskNetError(
            f"{root}: no such folder; give the folder above the class folders with `images`"
        )
    if len(class_folders) < 2 or not any(class_folders.values()):
        raise CTMaskNetError(
            "class folders: a classifier needs at least two classes; name them as CLASS=FOLDER"
        )
    folders = [root / part_below(root, part) for parts in class_folders.values() for part in parts]
    of_volumes = any(any(volume_files(folder)) for folder in folders if folder.is_dir())
    found = ClassifiedSlices(patient_pattern, every)
    class_of: dict[str, str] = {}
    for label, (class_name, parts) in enumerate(class_folders.items()):
        check_class_name(class_name)
        for part in parts:
            if not os.path.isdir(root / part):
                raise CTMaskNetError(
                    f"{root / part}: no such class folder; check `class_folder` and `images`"
                )
            if of_volumes:
                how = {"rescale": rescale, "one_series": one_series, "axes": axes}
                volumes = find_volumes(root, part_below(root, part), on_bad, **how)
                if patient_pattern is None:
                    unknown = [volume.key for volume in volumes if not volume.scan.patient]
                    _check_no_patient_folders(root, part, unknown, class_folders)
                for volume in volumes:
                    found.add_volume(volume, label)
                continue
            files = sorted(_pictures_below(root, part))
            if not files:
                raise CTMaskNetError(
                    f"{root / part}: holds no picture ({', '.join(IMAGE_SUFFIXES)})"
                )
            if patient_pattern is None:
                _check_no_patient_folders(root, part, files, class_folders)
            for file in files:
                if file in class_of:
                    raise CTMaskNetError(
                        f"{root / file}: is in class {class_of[file]} and again in {class_name} "
                        f"(folder {part}); a picture belongs to one class and one folder"
                    )
                class_of[file] = class_name
                found.add_picture(file, label)
    return found


def _check_no_patient_folders(
    root: Path, part: str, files: Iterable[str], class_folders: Mapping[str, Sequence[str]]
) -> None:
    """Refuse folders of several files below a class folder: they may be patients, and dealing their
    files to splits one by one would put a patient on both sides.

    Args:
        root: the folder above the class folders.
        part: the class folder.
        files: its pictures and volumes, relative to ``root``.
        class_folders: all of them, for the pattern that is proposed.
    """
    above = PurePosixPath(part_below(root, part))
    below = [PurePosixPath(file) for file in files]
    inside = [path.relative_to(above).parts for path in below if path.is_relative_to(above)]
    count = Counter(parts[0] for parts in inside if len(parts) > 1)
    if not count or max(count.values()) == 1:
        return
    (folder, number), *_ = count.most_common(1)
    folders = [
        PurePosixPath(part_below(root, each)) for of in class_folders.values() for each in of
    ]
    depths = {len(each.parts) for each in folders}
    if len(depths) == 1:
        start = "[^/]+/" * depths.pop()
    else:
        start = "(?:" + "|".join(re.escape(f"{each}/") if each.parts else "" for each in folders)
        start += ")"
    raise CTMaskNetError(
        f"{root / part}: its folder {folder} holds {number} files, and without a patient rule each "
        "would be a patient of its own; give `patient_pattern` "
        f"'^{start}(?P<patient>[^/]+)' where such a folder is a patient, or '(?P<patient>.+)' "
        "where each file is"
    )


def check_rows_tell_patients(
    path: str | os.PathLike, unknown: Sequence[tuple[str, str, str]]
) -> None:
    """Refuse rows without a patient that name folders of several files, or files in folders of
    several: dealing them one by one would put a patient on both sides. Folders that are the
    classes, one of each, pass.

    Args:
        path: the CSV list.
        unknown: see :class:`ClassifiedSlices`.

    Raises:
        CTMaskNetError: such a folder, with the pattern to give.
    """
    in_row = Counter(row for file, row, _ in unknown if file != row)
    crowded, count = next(((row, n) for row, n in in_row.items() if n > 1), ("", 0))
    if not count:
        above = os.path.commonpath([os.path.dirname(file) or "." for file, *_ in unknown] or ["."])
        start = len(PurePosixPath(above).parts)
        parts = [(PurePosixPath(file).parts, name) for file, _, name in unknown]
        for depth in range(start + 1, max((len(each) for each, _ in parts), default=0)):
            folders = Counter("/".join(each[:depth]) for each, _ in parts if len(each) > depth)
            classes = {("/".join(each[:depth]), name) for each, name in parts if len(each) > depth}
            one_each = len(classes) == len(folders) == len({name for _, name in classes})
            if folders.most_common(1)[0][1] > 1 and not one_each:
                crowded, count = folders.most_common(1)[0]
                break
    if count:
        pattern = "[^/]+/" * (len(PurePosixPath(crowded).parts) - 1) + "[^/]+"
        raise CTMaskNetError(
            f"{path}: the folder {crowded} holds {count} files, and without a patient rule each "
            "would be a patient of its own; fill a column patient, or give `patient_pattern` "
            f"'^(?P<patient>{pattern})' where such a folder is a patient, or '(?P<patient>.+)' "
            "where each file is"
        )


def read_volume_list(
    path: str | os.PathLike,
    root: str | os.PathLike,
    classes: Sequence[str] | None = None,
    patient_pattern: str | None = None,
    every: int = 1,
    on_bad: Callable[[str, str], None] | None = None,
    rescale: Rescale | None = None,
    one_series: bool = True,
    axes: Axes | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[list[str], ClassifiedSlices]:
    """Read a CSV list with the columns ``path,class`` and, where known, ``patient,scan,split``.

    Args:
        path: the list. A row's path is a NIfTI volume, a DICOM file, a folder with DICOM series, a
            picture or a folder of pictures, with its subfolders. Patient and scan go before what
            the file states; a volume or picture without either is a patient of its own.
        root: paths are relative to it.
        classes: their names in the order of the labels; default: those of the paper, if any row
            is of one of these, else those of the rows in natural order.
        patient_pattern, every, on_bad, rescale, one_series, axes: as for
            :func:`read_class_folders`.
        columns: column -> what the list calls it.

    Returns:
        the classes; the slices.

    Raises:
        CTMaskNetError: a missing list or column, an unknown class or split, a path that is not
            there, is not below ``root`` or is listed twice, pictures and volumes in one list, a
            patient in two splits; the message names file and line.
    """
    known = ("path", "class"), ("patient", "scan", "split")
    rows = list(read_csv_rows(path, *known, names=columns or {}))
    if not rows:
        raise CTMaskNetError(f"{path}: lists no volume")
    # One letter may be written in two ways, which look alike
    classes = classes and [unicodedata.normalize("NFC", name) for name in classes]
    for _, row in rows:
        row["class"] = unicodedata.normalize("NFC", row["class"])
    classes = list(_classes(path, rows, classes))
    stated = [(f"{path}:{number}", row) for number, row in rows]
    return classes, take_rows(
        str(path), stated, root, classes, patient_pattern, every, on_bad, rescale, one_series, axes
    )


def take_rows(
    name: str,
    rows: Iterable[tuple[str, Mapping[str, str]]],
    root: str | os.PathLike,
    classes: Sequence[str],
    patient_pattern: str | None = None,
    every: int = 1,
    on_bad: Callable[[str, str], None] | None = None,
    rescale: Rescale | None = None,
    one_series: bool = True,
    axes: Axes | None = None,
) -> ClassifiedSlices:
    """The slices of (where it is said, row of :func:`read_volume_list`); ``name``: what holds the
    rows, for errors."""
    found = ClassifiedSlices(patient_pattern, every)
    seen: dict[str, str] = {}
    pictures: set[str] = set()
    folders: dict[str, PictureFolder] = {}
    for where, row in rows:
        try:
            part = part_below(root, row["path"].replace("\\", "/"))
        except CTMaskNetError as error:
            raise CTMaskNetError(f"{where}: {error}") from None
        if not os.path.exists(os.path.join(root, part)):
            # As lists of names do: another ending, or another word for the class
            parent, _, base = part.rpartition("/")
            if parent not in folders:
                folders[parent] = PictureFolder(Path(root, parent))
            part = "/".join(filter(None, (parent, folders[parent].find(base) or base)))
        if part in seen:
            file, _, line = seen[part].rpartition(":")
            first = f"on line {line}" if where.startswith(f"{file}:") else f"at {seen[part]}"
            raise CTMaskNetError(f"{where}: {part} is listed twice, first {first}")
        seen[part] = where
        if split := split_named(row["split"]):
            check_split_name(split)
        given = classes.index(row["class"]), row["patient"], row["scan"], split
        target = Path(root, part)
        if not os.path.exists(target):  # Path.exists raises at names that are too long
            if on_bad is None:
                raise CTMaskNetError(f"{where}: {target}: no such file or folder; correct the list")
            on_bad(str(target), "no such file or folder")
            continue
        files = sorted(_pictures_below(root, part), key=natural_key)
        if files and os.path.isdir(target) and any(volume_files(target)):
            raise CTMaskNetError(
                f"{where}: {target} holds pictures and DICOM or NIfTI volumes; list the one or the "
                "other, in a folder of its own"
            )
        told = bool(row["patient"]) or patient_pattern is not None
        if not told:
            found.unknown += [(file, part, row["class"]) for file in files]
        for file in files:
            if file in pictures:
                raise CTMaskNetError(
                    f"{file}: the picture is in two rows, itself or by a folder above it; a "
                    "picture belongs to one"
                )
            pictures.add(file)
            found.add_picture(file, *given)
        if not files:
            given_how = {"rescale": rescale, "one_series": one_series, "axes": axes}
            for volume in find_volumes(root, part, on_bad, **given_how):
                found.add_volume(volume, *given)
                if not told and not volume.scan.patient:
                    found.unknown.append((volume.key, without_extension(part), row["class"]))
    if pictures and found.volumes:
        raise CTMaskNetError(
            f"{name}: lists pictures and volumes; prepare them as two sets, for pictures stay "
            "where they are"
        )
    if 0 < sum(map(bool, found.split_of)) < len(found.split_of):
        raise CTMaskNetError(f"{name}: some rows state a split and some none; state all or none")
    return found


def _pictures_below(root: str | os.PathLike, part: str) -> list[str]:
    """Paths relative to ``root`` of the picture ``part``, or of the pictures in this folder and its
    subfolders; linked folders count, hidden ones do not. Where there are pictures, other files are
    counted in the log."""
    folder = os.path.join(root, part_below(root, part))
    files = [found.path for found in find_files([folder])]
    pictures = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)]
    if pictures:
        log_others(folder, files, IMAGE_SUFFIXES)
    for file in pictures:
        check_name(file)
    return [part_below(root, os.path.abspath(file)) for file in pictures]


def check_class_name(name: str) -> None:
    """Refuse a class name unfit for a table's column."""
    if not _CLASS_NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise CTMaskNetError(
            f"class name {name[:80]!r}: use letters, digits, blanks and any of _ . ( ) + & - only, "
            f"at most {_LONGEST_NAME} and a letter or digit first"
        )


def _classes_of(
    path: str | os.PathLike, rows: Sequence[tuple[int, dict[str, str]]]
) -> list[str] | None:
    """The classes that a list names, in natural order; None where any is one of the paper's, for
    then another may be a slip.

    Raises:
        CTMaskNetError: there is only one, one is unfit for a table's column, or two differ in their
            case alone.
    """
    names = sorted({row["class"] for _, row in rows}, key=natural_key)
    if any(name.lower() in IMAGE_CLASSES for name in names):
        return None
    for name in names:
        check_class_name(name)
    if len({name.casefold() for name in names}) < len(names):
        raise CTMaskNetError(
            f"{path}: classes {', '.join(names)} differ in their case alone; write them alike"
        )
    if len(names) < 2:
        raise CTMaskNetError(
            f"{path}: all rows are of class {names[0]}, and a classifier needs two; add those of "
            "another, or name the classes with `classes` A,B"
        )
    return names


def _classes(
    path: str | os.PathLike,
    rows: Sequence[tuple[int, dict[str, str]]],
    classes: Sequence[str] | None,
) -> Sequence[str]:
    for name in classes or ():
        check_class_name(name)
    known = classes or _classes_of(path, rows) or IMAGE_CLASSES
    if len(set(known)) < len(known):
        raise CTMaskNetError(f"`classes` {','.join(known)}: a class is named twice")
    for number, row in rows:
        if not row["path"]:
            raise CTMaskNetError(f"{path}:{number}: states no path")
        if row["class"] not in known:
            fix = "correct it" if classes else "correct it, or name the classes with `classes` A,B"
            raise CTMaskNetError(
                f"{path}:{number}: class {row['class']!r} is none of {', '.join(known)}; {fix}"
            )
    return list(known)
