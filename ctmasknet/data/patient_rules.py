"""What the name of a lesion slice's file says of slice and patient."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ctmasknet.data.classes import parse_lesion_name
from ctmasknet.data.csv_rows import read_csv_rows
from ctmasknet.errors import CTMaskNetError

#: Of the images of a lesion set.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


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
