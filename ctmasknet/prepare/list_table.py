"""COVIDx-CT's lists and their ``metadata.csv`` counted side by side: what either says of a patient
without the other."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.prepare.lists import read_slice_lists
from ctmasknet.prepare.metadata import PatientMetadata

_UNKNOWN = "not known"
#: Each source by what the names of its patients look like.
_SOURCES = (
    (r"\d+$", "CNCB"),
    (r"patient\d+$", "COVID-CTset"),
    (r"volume-covid19-A-", "TCIA"),
    (r"coronacases_|radiopaedia_", "COVID-19-CT-Seg"),
    (r"radiopaedia-", "radiopaedia.org"),
    (r"LIDC-IDRI-", "LIDC-IDRI"),
    (r"COVIDCTMD-", "COVID-CT-MD"),
    (r"HUST-Patient", "iCTCF"),
    (r"STOIC-", "STOIC"),
    (r"study_", "MosMedData"),
    (r"A\d{6}$", "Stony Brook"),
)


def named_source(patient: str) -> str:
    """The source that a patient's name tells, as ``metadata.csv`` calls it."""
    return next((name for form, name in _SOURCES if re.match(form, patient)), _UNKNOWN)


def count_lists(
    lists: Mapping[str, str | os.PathLike], metadata: str | os.PathLike
) -> dict[str, Any]:
    """Count slices, patients and scans of lists by split, source and class, and the patients that
    the metadata have of the same splits.

    Args:
        lists: split -> list file. Source and class are those of names and lists.
        metadata: ``metadata.csv``. Source and class are those of its rows; it knows no split,
            slice or scan, so that a patient counts in the split whose list names him.

    Returns:
        ``{"rows": [(split, source, class, slices, patients, scans, patients in the metadata)],
        "differences": [a sentence each], "unlisted": patients of the metadata on no list}``.

    Raises:
        CTMaskNetError: a list or the metadata cannot be used; a slice or a patient in two lists.
    """
    known = PatientMetadata(metadata)
    cells: dict[tuple[str, str, str], tuple[list[Any], set[str], set[tuple[str, str]], set[str]]]
    cells = {}
    without: dict[str, None] = {}
    unlike: dict[str, str] = {}
    listed: set[str] = set()
    for split, records in read_slice_lists(lists).items():
        for record in records:
            patient, source = record.patient, named_source(record.patient)
            here = source, IMAGE_CLASSES[record.label]
            slices, patients, scans, _ = _cell(cells, split, *here)
            slices.append(record.file)
            patients.add(patient)
            scans.add((patient, record.scan))
            listed.add(patient)
            if patient not in known.values:
                without[patient] = None
                continue
            finding = known.findings.get(patient)
            stated = (
                known.values[patient].get("source") or _UNKNOWN,
                _UNKNOWN if finding is None else IMAGE_CLASSES[finding],
            )
            _cell(cells, split, *stated)[3].add(patient)
            if stated != here:
                unlike[patient] = f"{', '.join(here)} in {split}, {', '.join(stated)} there"
    rows = [
        (*place, len(slices), len(patients), len(scans), len(theirs))
        for place, (slices, patients, scans, theirs) in sorted(cells.items())
    ]
    differences = []
    if without:
        differences.append(f"{len(without)} listed patients have no row: {_some(without)}")
    if unlike:
        some = _some(f"{patient} ({why})" for patient, why in unlike.items())
        differences.append(f"{len(unlike)} patients are of another source or class there: {some}")
    return {"rows": rows, "differences": differences, "unlisted": len(known.values.keys() - listed)}


def list_table_text(found: Mapping[str, Any]) -> str:
    """What :func:`count_lists` found as a table, totals of splits in it, and where both differ."""
    rows = []
    for split in dict.fromkeys(row[0] for row in found["rows"]):
        of_split = [row for row in found["rows"] if row[0] == split]
        sums = [sum(column) for column in list(zip(*of_split, strict=True))[3:]]
        for row in [*of_split, (split, "all", "all", *sums)]:
            rows.append([*row, "" if row[4] == row[6] else row[6] - row[4]])
    headers = ("split", "source", "class", "slices", "patients", "scans")
    headers = (*headers, "patients in metadata", "difference")
    lines = [tabulate(rows, headers=headers, intfmt=","), *found["differences"]]
    if not found["differences"]:
        lines.append("lists and metadata agree in the source and class of every patient")
    lines.append(f"{found['unlisted']} patients of the metadata are on none of these lists")
    return "\n".join(lines)


def _cell(cells: dict, *place: str) -> tuple:
    return cells.setdefault(place, ([], set(), set(), set()))


def _some(items: Any) -> str:
    items = list(items)
    return ", ".join(items[:3]) + (" ..." if len(items) > 3 else "")
