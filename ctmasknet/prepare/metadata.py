"""What is known of the patients of a set beside their slices: COVIDx-CT's ``metadata.csv``.

A row has the patient's id and whatever else is known of him (source, country, sex, age, verified
finding, slice selection ...). It goes into the prepared set once a patient, from there into dataset
dicts and ``predictions.csv``, and so into the evaluation by subgroup.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.data.prepared import SliceRecord
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import has_control_character, plain_file

_ID, _FINDING = "patient id", "finding"
_FILES = ("metadata.csv", "covidx_ct_metadata.csv")
_CNCB_ID = re.compile(r"(?:NCP|CP|Normal)_(\d+)$")
_FINDINGS = {"normal": 0, "pneumonia": 1, "covid-19": 2}


class PatientMetadata:
    """The rows of a ``metadata.csv`` by patient.

    Attributes:
        path: the file.
        values: of each patient, as the names of slices call him, column -> value ("" where nothing
            is stated). Columns are in lower case with ``_`` for blanks.
        findings: class (index of :data:`~ctmasknet.classes.IMAGE_CLASSES`) of each patient whose
            row states one.
    """

    def __init__(self, path: str | os.PathLike):
        """
        Raises:
            CTMaskNetError: the file is missing, is no CSV text, lacks the column ``patient id``,
                names a column or a patient twice, or has a row of another length or an unknown
                finding; the message names the line.
        """
        self.path = path
        self.values: dict[str, dict[str, str]] = {}
        self.findings: dict[str, int] = {}
        try:
            with plain_file(path).open(encoding="utf-8-sig", newline="") as stream:
                rows = csv.reader(stream)
                header = [re.sub(r"\s+", " ", name.strip().lower()) for name in next(rows, [])]
                if _ID not in header or len(set(header)) < len(header) or "" in header:
                    raise CTMaskNetError(
                        f"{path}: its first line is {','.join(header)!r:.80}; it needs a column "
                        f"{_ID!r}, and every column a name of its own"
                    )
                lines = [(rows.line_num, [cell.strip() for cell in row]) for row in rows if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise CTMaskNetError(f"{path}: cannot be read as patient metadata ({error})") from None
        columns = [name.replace(" ", "_") for name in header]
        for number, cells in lines:
            where = f"{path}:{number}"
            if len(cells) != len(header):
                raise CTMaskNetError(
                    f"{where}: has {len(cells)} fields, the first line {len(header)}; correct it"
                )
            if any(map(has_control_character, cells)):
                raise CTMaskNetError(f"{where}: a cell holds a control character; correct it")
            self._add(dict(zip(columns, cells, strict=True)), where)
        if not self.values:
            raise CTMaskNetError(f"{path}: names no patient; leave it out")

    def _add(self, row: dict[str, str], where: str) -> None:
        stated = row.pop(_ID.replace(" ", "_"))
        cncb = _CNCB_ID.match(stated)
        patient = cncb[1] if cncb else stated
        if not patient:
            raise CTMaskNetError(f"{where}: states no patient; fill the column {_ID!r}")
        if patient in self.values:
            raise CTMaskNetError(f"{where}: patient {stated} has two rows; remove one")
        finding = row.pop(_FINDING, "")
        if finding:
            if finding.lower() not in _FINDINGS:
                raise CTMaskNetError(
                    f"{where}: the finding {finding!r} of patient {stated} is none of Normal, "
                    "Pneumonia, COVID-19; correct it"
                )
            self.findings[patient] = _FINDINGS[finding.lower()]
        self.values[patient] = row

    def of(self, splits: Mapping[str, Sequence[SliceRecord]]) -> dict[str, dict[str, str]]:
        """The values of the patients of these slices; those without a row have none.

        Raises:
            CTMaskNetError: a slice whose class is another one than its patient's finding (the first
                is named with its patient, the others are counted), or no patient has a row.
        """
        wrong: list[tuple[str, SliceRecord]] = []
        found: dict[str, dict[str, str]] = {}
        for split, records in splits.items():
            for record in records:
                if self.findings.get(record.patient, record.label) != record.label:
                    wrong.append((split, record))
                if record.patient in self.values:
                    found[record.patient] = self.values[record.patient]
        if wrong:
            split, record = wrong[0]
            more = f" (and {len(wrong) - 1} more slices)" if len(wrong) > 1 else ""
            raise CTMaskNetError(
                f"{self.path}: patient {record.patient} is "
                f"{IMAGE_CLASSES[self.findings[record.patient]]} there, but {record.file} of "
                f"{split} is listed as {IMAGE_CLASSES[record.label]}{more}; correct one of them, "
                "or give `metadata` none"
            )
        if not found:
            raise CTMaskNetError(
                f"{self.path}: knows none of the patients of the lists; give the file of this set, "
                "or `metadata` none"
            )
        return found


def find_metadata(given: str | None, beside: Sequence[str | os.PathLike]) -> PatientMetadata | None:
    """The metadata that are given, or that stand beside lists or images.

    Args:
        given: a file; ``none`` for no metadata; None to look for ``metadata.csv``.
        beside: the folders to look in, the first that has one counts.

    Raises:
        CTMaskNetError: as :class:`PatientMetadata`.
    """
    if given is not None:
        return None if given == "none" else PatientMetadata(given)
    for folder in beside:
        for name in _FILES:
            if (path := Path(folder, name)).is_file():
                return PatientMetadata(path)
    return None
