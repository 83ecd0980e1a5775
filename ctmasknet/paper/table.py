"""A table of text cells, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: A cell that a result file would fill.
NOT_RUN = "not run"


@dataclass(frozen=True)
class Table:
    """``rows`` hold one text for every column; ``notes`` stand below the table."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells in {len(self.columns)} columns")

    def markdown(self, level: int = 2) -> str:
        """Title, table and notes; a line break or bar inside a cell does not break the table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        body = "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"{'#' * level} {self.title}\n\n{body}\n" + (f"{notes}\n" if notes else "")

    def csv(self) -> str:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return stream.getvalue()

    def plain(self) -> dict[str, Any]:
        """For JSON: title, columns, rows as column -> cell, notes."""
        return {
            "title": self.title,
            "columns": self.columns,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
            "notes": self.notes,
        }


def document(title: str, made_by: str, parts: Sequence[str]) -> str:
    """A Markdown page that says which command made it."""
    return "\n".join([f"# {title}\n", f"Made by `{made_by}`; do not edit by hand.\n", *parts])


def _escaped(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")
