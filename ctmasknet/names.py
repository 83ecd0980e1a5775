"""What the name of a lesion slice's file says of slice and patient.

What is known of one classified slice, and how a file's name tells its patient.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath, PurePosixPath

from ctmasknet.ct.pictures import IMAGE_SUFFIXES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import read_csv_rows

_CLASS_TOKENS = {"normal": 0, "cp": 1, "ncp": 2, "0": 0, "1": 1, "2": 2}
_SLICE_NAME = re.compile(
    r"(?P<label>[A-Za-z]+|[012])_(?P<patient>\d+)_(?P<scan>\d+)_(?P<slice>\d+)$"
)
_LESION_NAME = re.compile(r"(?P<patient>[^_]+)_(?P<slice>\d+)$")


@dataclass(frozen=True)
class SliceName:
    """What a slice's file name states. ``label`` indexes :data:`IMAGE_CLASSES`; it is None for
    lesion slices."""

    patient: str
    scan: str
    slice: str
    label: int | None = None


def parse_slice_name(file_name: str) -> SliceName:
    """Read a COVIDx-CT name (``NCP_341_1834_0022.png``) or the authors' form of it
    (``2_341_1834_0022.png``).

    Patient numbers are unique across the three classes in COVIDx-CT, so the patient is the number
    alone.

    Raises:
        CTMaskNetError: the name has another form.
    """
    # Not pathlib: a list has 100,000 names.
    match = _SLICE_NAME.match(os.path.splitext(os.path.basename(file_name))[0])
    label = _CLASS_TOKENS.get(match["label"].lower()) if match else None
    if label is None:
        raise CTMaskNetError(
            f"{file_name}: not a COVIDx-CT slice name; expected CLASS_PATIENT_SCAN_SLICE with "
            "the class "
            "Normal, CP or NCP (or 0, 1, 2), such as NCP_341_1834_0022.png"
        )
    return SliceName(match["patient"], match["scan"], match["slice"], label)


def parse_lesion_name(file_name: str) -> SliceName:
    """Read a lesion slice's name: ``P/S.jpg`` (the archive's tree) or ``P_S.jpg`` (the authors'
    flat names).

    One scan a patient in that set, so the scan repeats the patient.

    Raises:
        CTMaskNetError: the name has neither form.
    """
    path = PurePath(file_name)
    match = _LESION_NAME.match(path.stem)
    if match:
        return SliceName(match["patient"], match["patient"], match["slice"])
    if path.stem.isdigit() and path.parent.name:
        return SliceName(path.parent.name, path.parent.name, path.stem)
    raise CTMaskNetError(
        f"{file_name}: not a lesion slice name; expected PATIENT/SLICE.jpg or "
        "PATIENT_SLICE.jpg, such as 110_104.jpg"
    )


@dataclass(frozen=True)
class PatientRule:
    """What a file name says of the patient.

    Without arguments: the names of the CNCB set (``P/S.jpg`` or ``P_S.jpg``).

    Args:
        pattern: regular expression with a group ``patient``, searched for in the relative path.
        each_file: each file is a patient of its own.
        groups: patient of some slices, by relative path without extension; goes before the other
            rules. If it is the only rule, it must list every slice.
    """

    pattern: str | None = None
    each_file: bool = False
    groups: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pattern is not None:
            try:
                names = re.compile(self.pattern).groupindex
            except re.error as error:
                raise CTMaskNetError(
                    f"patient pattern {self.pattern!r}: not a regular expression ({error})"
                ) from None
            if "patient" not in names:
                raise CTMaskNetError(
                    f"patient pattern {self.pattern!r}: needs a group (?P<patient>...)"
                )
            if self.each_file:
                raise CTMaskNetError(
                    "patients: give either a pattern or one patient a file, not both"
                )

    @property
    def by_cncb_name(self) -> bool:
        """True when keys and patients come from the CNCB names."""
        return self.pattern is None and not self.each_file and not self.groups

    def key(self, file: str) -> str:
        """The slice that the relative path ``file`` names.

        ``110/104.jpg``, ``110_104.jpg`` and ``110_104.png`` are the slice ``110_104`` under the
        CNCB rule; under the others the key is the path without its extension.
        """
        path = PurePosixPath(file.replace("\\", "/"))
        known = path.suffix.lower() in IMAGE_SUFFIXES
        if not self.by_cncb_name:
            return str(path.with_suffix("") if known else path)
        if path.suffix and not known:
            raise CTMaskNetError(
                f"{file}: not the name of an image file; expected a name such as 110_104.jpg"
            )
        name = parse_lesion_name(str(path))
        return f"{name.patient}_{name.slice}"

    def patient(self, file: str) -> str:
        """The patient of the image with the relative path ``file``."""
        key = self.key(file)
        if key in self.groups:
            return self.groups[key]
        if self.pattern is not None:
            match = re.search(self.pattern, file)
            if not match or not match["patient"]:
                raise CTMaskNetError(
                    f"{file}: the patient pattern {self.pattern!r} finds no patient in this name"
                )
            return match["patient"]
        if self.each_file:
            if key in self.groups.values():
                raise CTMaskNetError(
                    f"{file}: the groups name a patient {key!r} that this slice is not of; rename "
                    "that group"
                )
            return key
        if self.groups:
            raise CTMaskNetError(
                f"{file}: the groups do not list it; add it, or make unlisted slices patients of "
                "their own "
                "(--patients each-file)"
            )
        return parse_lesion_name(file).patient


def read_groups(path: str | os.PathLike) -> dict[str, str]:
    """Read a CSV file with the columns ``stem,patient``; an image extension in ``stem`` is ignored.

    Raises:
        CTMaskNetError: the file is missing, lacks a column, has an empty cell, names a slice twice
            or none at all.
    """
    groups: dict[str, str] = {}
    for number, row in read_csv_rows(path, ("stem", "patient"), what="groups file"):
        stem, patient = row["stem"], row["patient"]
        if not stem or not patient:
            raise CTMaskNetError(f"{path}:{number}: needs both a stem and a patient")
        key = PatientRule(each_file=True).key(stem)
        if key in groups:
            raise CTMaskNetError(f"{path}:{number}: {stem} is listed twice; remove one line")
        groups[key] = patient
    if not groups:
        raise CTMaskNetError(f"{path}: lists no slice; leave --groups out")
    return groups


def compile_patient_pattern(pattern: str) -> re.Pattern:
    """Compile a regular expression that finds ``patient`` (and ``scan``, ``slice``) in a file's
    name.

    Raises:
        CTMaskNetError: not a regular expression, or one without the group ``(?P<patient>...)``.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CTMaskNetError(
            f"patient pattern {pattern!r}: not a regular expression ({error})"
        ) from None
    if "patient" not in compiled.groupindex:
        raise CTMaskNetError(
            f"patient pattern {pattern!r}: has no group named patient; write (?P<patient>...)"
        )
    return compiled


def match_patient(file: str, pattern: re.Pattern) -> tuple[str, str, str]:
    """Patient, scan and slice of ``file`` (relative, ``/`` between parts) by ``pattern``, which may
    match anywhere.

    Without a group ``scan`` the scan repeats the patient; without ``slice`` the slice is the file's
    stem.

    Raises:
        CTMaskNetError: the pattern does not match, or its group ``patient`` took no part in the
            match.
    """
    match = pattern.search(file)
    groups = match.groupdict() if match else {}
    patient = groups.get("patient")
    if not patient:
        raise CTMaskNetError(
            f"{file}: the patient pattern {pattern.pattern!r} finds no patient in this name"
        )
    return patient, groups.get("scan") or patient, groups.get("slice") or PurePosixPath(file).stem
