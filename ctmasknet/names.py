"""Whose slice a file is: the one rule for patients, in lists, folders, volumes and predictions.

The names of the two published sets state the patient (:func:`parse_slice_name`,
:func:`parse_lesion_name`); for other files :class:`PatientRule` says how a path does.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath, PurePosixPath

from ctmasknet.csv_tables import read_csv_rows
from ctmasknet.errors import CTMaskNetError

_CLASS_TOKENS = {"normal": 0, "cp": 1, "ncp": 2, "0": 0, "1": 1, "2": 2}
_SLICE_NAME = re.compile(
    r"(?P<label>[A-Za-z]+|[012])_(?P<patient>\d+)_(?P<scan>\d+)_(?P<slice>\d+)$"
)
#: Of the sources that COVIDx-CT-2 and -3 added, each patient as their metadata call him.
_OTHER_SOURCES = tuple(
    re.compile(rf"{pattern}(?P<slice>\d+)$")
    for pattern in (
        r"(?P<scan>(?:\d+covid|normal(?:cd)?\d+|cdnormal\d+)_(?P<patient>patient\d+)_SR_\d+)_IM",
        r"(?P<patient>volume-covid19-A-\d+(?:_\d+)?)(?:_ct)?-",
        r"(?P<patient>coronacases_\d+)-",
        r"(?P<patient>radiopaedia_\d+_\d+)_(?P<scan>\d+)-",
        r"(?P<patient>LIDC-IDRI-\d+)-(?P<scan>[\d.]+)-",
        r"(?P<patient>COVIDCTMD-(?:P|cap|normal)\d+)-IM",
        # Not on the lists that are known; their metadata name the patients so
        r"(?P<patient>(?:HUST-Patient|STOIC-|study_|radiopaedia-)\d+|A\d{6})-(?:(?P<scan>.+)-)?(?:IM)?",
    )
)
_LESION_NAME = re.compile(r"(?P<patient>[^_]+)_(?P<slice>\d+)$")
#: What the names of pictures end in.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
#: Of NumPy's files.
ARRAY_SUFFIXES = (".npy", ".npz")
_KNOWN_SUFFIXES = (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)
#: A path that is written as PurePosixPath would write it.
_PLAIN_PATH = re.compile(r"[^/.][^/]*(/[^/.][^/]*)*")


def readable_stem(*parts: str, longest: int = 48) -> str:
    """What a file is called that is of these: letters, digits, ``.`` and ``-`` of each part, others
    as ``_``; of a longer part its beginning and end. Safe as a part of a path; the caller sees to
    it that no two files have one name.

    Args:
        parts: such as patient and scan; empty ones are left out.
        longest: of each part, bytes.
    """
    found = []
    for part in parts:
        text = re.sub(r"[^\w.-]+", "_", part).strip("._-")
        kept = len(text)
        while len((short := _shortened(text, kept)).encode()) > longest:
            kept -= 1
        found += [short] if short else []
    return "_".join(found)


def _shortened(text: str, kept: int) -> str:
    """So many characters of a text, half of them from its end."""
    if kept >= len(text):
        return text
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"


@dataclass(frozen=True)
class SliceName:
    """What is known of a slice by its file's name. ``label`` indexes
    :data:`~ctmasknet.classes.IMAGE_CLASSES`; it is None where the name states no class."""

    patient: str
    scan: str
    slice: str
    label: int | None = None


def parse_slice_name(file_name: str) -> SliceName:
    """Read a COVIDx-CT name (``NCP_341_1834_0022.png``), the authors' form of it
    (``2_341_1834_0022.png``), or one of another source of COVIDx-CT-2 and -3
    (``radiopaedia_36_86526_0-0000.png``), whose class the lists alone state.

    CNCB's patient numbers are unique across the three classes in COVIDx-CT, so the patient is the
    number alone; patients of other sources have letters in their names.

    Raises:
        CTMaskNetError: the name has another form.
    """
    # Not pathlib: a list has 100,000 names.
    stem = os.path.splitext(os.path.basename(file_name))[0]
    match = _SLICE_NAME.match(stem)
    label = _CLASS_TOKENS.get(match["label"].lower()) if match else None
    if label is None:
        for pattern in _OTHER_SOURCES:
            if match := pattern.match(stem):
                patient = match["patient"]
                return SliceName(patient, match.groupdict().get("scan") or patient, match["slice"])
        raise CTMaskNetError(
            f"{file_name}: not a COVIDx-CT slice name; expected CLASS_PATIENT_SCAN_SLICE with the "
            "class Normal, CP or NCP (or 0, 1, 2), such as NCP_341_1834_0022.png"
        )
    return SliceName(match["patient"], match["scan"], match["slice"], label)


def parse_lesion_name(file_name: str) -> SliceName:
    """Read a CNCB lesion slice's name: ``P/S.jpg`` (the archive's tree) or ``P_S.jpg`` (the
    authors' flat names).

    One scan a patient in that set, so the scan repeats the patient.

    Raises:
        CTMaskNetError: the name has neither form.
    """
    path = PurePath(file_name)
    match = _LESION_NAME.match(path.stem)
    if match:
        return SliceName(match["patient"], match["patient"], match["slice"])
    if path.stem.isdigit() and (patient := _without_zip(path.parent.name)):
        return SliceName(patient, patient, path.stem)
    raise CTMaskNetError(
        f"{file_name}: not a lesion slice name; expected PATIENT/SLICE.jpg or "
        "PATIENT_SLICE.jpg, such as 110_104.jpg"
    )


def _without_zip(patient: str) -> str:
    """A patient whose folder is a zip is called as one whose folder is unpacked."""
    return patient[:-4] if patient.lower().endswith(".zip") else patient


def parse_published_name(file_name: str) -> SliceName | None:
    """Read a name of either published set; None for any other.

    Lesion patients are numbers here: ``slice_12.png`` is no patient called "slice".
    """
    with contextlib.suppress(CTMaskNetError):
        return parse_slice_name(file_name)
    with contextlib.suppress(CTMaskNetError):
        name = parse_lesion_name(file_name)
        return name if name.patient.isdigit() else None
    return None


@dataclass(frozen=True)
class PatientRule:
    """How the path of a slice or volume tells its patient.

    Args:
        pattern: regular expression with a group ``patient``, and ``scan`` and ``slice`` where it
            finds these, searched for in the relative path.
        each_file: each file is a patient of its own.
        groups: patient of some files, by relative path without extension; goes before the other
            rules. If it is the only rule, it must list every file.
        published: reads the names where none of the others is given: :func:`parse_lesion_name` or
            :func:`parse_slice_name`.

    Raises:
        CTMaskNetError: a pattern that is no regular expression or has no group ``patient``; a
            pattern and ``each_file``.
    """

    pattern: str | None = None
    each_file: bool = False
    groups: Mapping[str, str] = field(default_factory=dict)
    published: Callable[[str], SliceName] = parse_lesion_name

    def __post_init__(self) -> None:
        if self.pattern is None:
            return
        try:
            named = "patient" in re.compile(self.pattern).groupindex
        except re.error as error:
            raise CTMaskNetError(
                f"patient pattern {self.pattern!r}: not a regular expression ({error})"
            ) from None
        if not named:
            raise CTMaskNetError(
                f"patient pattern {self.pattern!r}: has no group named patient; write "
                "(?P<patient>...)"
            )
        if self.each_file:
            raise CTMaskNetError("patients: give either a pattern or one patient a file, not both")

    @property
    def by_name(self) -> bool:
        """True when patients come from the names of a published set."""
        return self.pattern is None and not self.each_file and not self.groups

    def key(self, file: str) -> str:
        """The slice of a lesion set that the relative path ``file`` names.

        ``110/104.jpg``, ``110_104.jpg`` and ``110_104.png`` are the slice ``110_104`` by the CNCB
        names; by the other rules the key is the path without its extension.

        Raises:
            CTMaskNetError: the name should be, and is not, a CNCB name of an image.
        """
        file = file.replace("\\", "/")
        path = file if _PLAIN_PATH.fullmatch(file) else str(PurePosixPath(file))
        stem, suffix = posixpath.splitext(path)
        suffix = suffix.lower()
        if not self.by_name:
            return stem if suffix in _KNOWN_SUFFIXES else path
        if suffix.strip(".") and suffix not in _KNOWN_SUFFIXES:
            raise CTMaskNetError(
                f"{file}: not the name of an image file; expected a name such as 110_104.jpg"
            )
        name = self.published(path)
        return f"{name.patient}_{name.slice}"

    def read(self, file: str) -> SliceName:
        """Patient, scan and slice of the file with this relative path (``/`` between parts).

        Where the path states no scan it repeats the patient, and no slice, the file's stem.

        Raises:
            CTMaskNetError: the path does not tell the patient.
        """
        if self.by_name:
            return self.published(file)
        slice_ = PurePosixPath(file).stem
        if (self.groups or self.each_file) and (key := self.key(file)) in self.groups:
            return SliceName(self.groups[key], self.groups[key], slice_)
        if self.pattern is not None:
            match = re.search(self.pattern, file)
            found = match.groupdict() if match else {}
            patient = _without_zip(found.get("patient") or "")
            if not patient:
                raise CTMaskNetError(
                    f"{file}: the patient pattern {self.pattern!r} finds no patient in this name"
                )
            return SliceName(patient, found.get("scan") or patient, found.get("slice") or slice_)
        if not self.each_file:
            raise CTMaskNetError(
                f"{file}: the groups do not list it; add it, or make unlisted slices patients of "
                "their own (`patients` each-file)"
            )
        if key in self.groups.values():
            raise CTMaskNetError(
                f"{file}: the groups name a patient {key!r} that this slice is not of; rename that "
                "group"
            )
        return SliceName(key, key, slice_)

    def read_volume(self, key: str, patient: str, scan: str) -> SliceName:
        """Patient and scan of a volume: arguments go before what the file states.

        Args:
            key: its relative path without extension.
            patient, scan: what the file states, "" for nothing.

        Returns:
            the patient "" where nothing tells it.

        Raises:
            CTMaskNetError: as :meth:`read`.
        """
        if key not in self.groups and self.pattern is None and not self.each_file:
            return SliceName(patient, scan, "")
        found = self.read(key)
        scan_named = self.pattern is not None and "scan" in re.compile(self.pattern).groupindex
        return SliceName(found.patient, found.scan if scan_named else scan, "")


def read_groups(path: str | os.PathLike) -> dict[str, str]:
    """Read a CSV file with the columns ``stem,patient``; an image extension in ``stem`` is ignored.

    Raises:
        CTMaskNetError: the file is missing, lacks a column, has an empty cell, names a slice twice
            or none at all.
    """
    groups: dict[str, str] = {}
    rule = PatientRule(each_file=True)
    for number, row in read_csv_rows(path, ("stem", "patient"), what="groups file"):
        stem, patient = row["stem"], row["patient"]
        if not stem or not patient:
            raise CTMaskNetError(f"{path}:{number}: needs both a stem and a patient")
        key = rule.key(stem)
        if key in groups:
            raise CTMaskNetError(f"{path}:{number}: {stem} is listed twice; remove one line")
        groups[key] = patient
    if not groups:
        raise CTMaskNetError(f"{path}: lists no slice; leave `groups` out")
    return groups
