"""Sets whose folders are the classes (``normal=ct0 covid=ct1,ct2``), split by whole patients."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ctmasknet.data.ct_files import find_files
from ctmasknet.data.images import IMAGE_SUFFIXES
from ctmasknet.data.slice_records import SliceRecord, match_patient, part_below
from ctmasknet.data.splits import split_patients
from ctmasknet.errors import CTMaskNetError

_CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def read_class_folders(
    images: str | os.PathLike,
    class_folders: Mapping[str, Sequence[str]],
    patient_pattern: re.Pattern | None = None,
) -> list[SliceRecord]:
    """List the pictures of every class.

    Args:
        images: the folder above the class folders.
        class_folders: class name -> its folders below ``images``, searched with their subfolders;
            the order of the classes is that of the mapping. A class may have no folder (a set to
            test on may lack a class of the model).
        patient_pattern: finds the patient in a file's path below ``images``
            (:func:`~ctmasknet.data.slice_records.match_patient`); without it each file is its own
            patient.

    Returns:
        the records, by class, sorted by path within a folder.

    Raises:
        CTMaskNetError: fewer than two classes; a class name unfit for a table's column; a folder
            that is missing, without pictures or not below ``images``; a picture in two classes; a
            name the pattern does not match.
    """
    root = Path(images)
    if not root.is_dir():
        raise CTMaskNetError(
            f"{root}: no such folder; give the folder above the class folders with --images"
        )
    if len(class_folders) < 2 or not any(class_folders.values()):
        raise CTMaskNetError(
            "class folders: a classifier needs at least two classes; name them as CLASS=FOLDER"
        )
    records: list[SliceRecord] = []
    class_of: dict[str, str] = {}
    for label, (class_name, folders) in enumerate(class_folders.items()):
        check_class_name(class_name)
        for folder in folders:
            for file in _pictures_of_class(root, folder):
                if file in class_of:
                    raise CTMaskNetError(
                        f"{root / file}: is in class {class_of[file]} and again in {class_name} "
                        f"(folder {folder}); a picture belongs to one class and one folder"
                    )
                class_of[file] = class_name
                records.append(SliceRecord(file, label, *_patient_of(file, patient_pattern)))
    return records


def check_class_name(name: str) -> None:
    """Refuse a class name unfit for a table's column."""
    if not _CLASS_NAME.fullmatch(name):
        raise CTMaskNetError(f"class name {name!r}: use letters, digits, '_', '-' and '.' only")


def split_records(
    records: Sequence[SliceRecord],
    shares: Mapping[str, float],
    seed: int,
    placed: Mapping[str, str] | None = None,
) -> dict[str, list[SliceRecord]]:
    """Split by whole patients, with every class in the same shares.

    Args:
        records: the slices.
        shares: split -> share of the patients, in 0..1, as
            :func:`~ctmasknet.data.splits.split_patients` takes.
        seed: of the random order of the patients.
        placed: split of some patients, who stay there.
    """
    split = split_patients(
        {item: record.patient for item, record in enumerate(records)},
        shares,
        seed,
        strata={item: record.label for item, record in enumerate(records)},
        placed=placed,
    )
    return {name: [records[item] for item in members] for name, members in split.items()}


def pictures_below(root: str | os.PathLike, part: str) -> list[str]:
    """Paths relative to ``root`` of the picture ``part``, or of the pictures in this folder and its
    subfolders; linked folders count, hidden ones do not."""
    return [
        part_below(root, found.path)
        for found in find_files([os.path.join(root, part_below(root, part))])
        if found.path.lower().endswith(IMAGE_SUFFIXES)
    ]


def _pictures_of_class(root: Path, folder: str) -> list[str]:
    start = root / folder
    if not start.is_dir():
        raise CTMaskNetError(f"{start}: no such class folder; check --class-folder and --images")
    files = pictures_below(root, folder)
    if not files:
        raise CTMaskNetError(f"{start}: holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(files)


def _patient_of(file: str, pattern: re.Pattern | None) -> tuple[str, str, str]:
    if pattern is not None:
        return match_patient(file, pattern)
    own = str(PurePosixPath(file).with_suffix(""))
    return own, own, PurePosixPath(file).stem
