"""A table of text cells as Markdown, CSV and JSON, and the words that all tables share."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctmasknet.csv_tables import safe_cell
from ctmasknet.files import atomic_write, writing
from ctmasknet.paper.runs import Run

#: A cell that a result file would fill.
NOT_RUN = "not run"
#: Source of the rows that are not published figures.
OURS = "this project"


@dataclass(frozen=True)
class Table:
    """Text cells: ``rows`` hold one for every column; ``notes`` stand below the table."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells in {len(self.columns)} columns")

    def markdown(self) -> str:
        """Title, table and notes; a line break or bar inside a cell does not break the table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
        body = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"## {self.title}\n\n{body}\n" + (f"{notes}\n" if notes else "")

    def csv(self) -> str:
        """Columns and rows, a line each."""
        stream = io.StringIO()
        rows = ([safe_cell(cell) for cell in row] for row in (self.columns, *self.rows))
        csv.writer(stream, lineterminator="\n").writerows(rows)
        return stream.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Title, columns, rows as column -> cell, notes."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "columns": self.columns, "rows": rows, "notes": self.notes}


def document(title: str, made_by: str, parts: Sequence[str]) -> str:
    """A Markdown page that says which command made it."""
    return "\n".join([f"# {title}\n", f"Made by `{made_by}`; do not edit by hand.\n", *parts])


def write_text(path: str | Path, text: str) -> None:
    """Write a page or table, whole or not at all."""
    with writing(path), atomic_write(path) as stream:
        # Text out of JSON need not be Unicode; what is none becomes a question mark
        stream.write(text.encode("utf-8", "replace").decode("utf-8"))


def name_of(run: Run) -> str:
    """The run's variant, or that it is a model of its own."""
    return run.variant.name if run.variant else f"own model ({run.folder.name})"


def percent(value: float | None) -> str:
    """A figure in percent; None (a share of nothing) is "undefined"."""
    return "undefined" if value is None else f"{value:.2f}"
