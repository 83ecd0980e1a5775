"""CSV tables: read with their columns by name, and written so that no spreadsheet runs a cell."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import has_control_character, plain_file

#: What a cell begins with that a spreadsheet runs, or that :func:`safe_cell` made of such.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def safe_cell(text: str) -> str:
    """Text as a cell of a CSV file that no spreadsheet runs as a formula: with ``'`` in front where
    it begins as one. :func:`text_of_cell` gives the text back."""
    return f"'{text}" if _FORMULA.match(text) else text


def text_of_cell(cell: str) -> str:
    """The text that :func:`safe_cell` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def read_csv_rows(
    path: str | os.PathLike,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    what: str = "list",
    names: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a CSV file row by row whose first line names its columns; further columns are passed
    over.

    Args:
        path: UTF-8, with or without a byte order mark.
        needed: columns that must be there.
        optional: columns that may be.
        what: what the file is, for errors.
        names: column -> what the file calls it, of those that it calls otherwise; None where the
            user cannot say so.

    Yields:
        (number of its line, column -> text without surrounding blanks) of each row; "" where a cell
        is empty or its column is not there.

    Raises:
        CTMaskNetError: the file is missing, is no CSV, lacks a column, or has a cell with a line
            break or another control character.
    """
    hint = "; or say with `columns` what they are called" if names == {} else ""
    names = names or {}
    if unknown := sorted(set(names) - {*needed, *optional}):
        raise CTMaskNetError(
            f"`columns` {unknown[0]}={names[unknown[0]]}: {path} has no use for {unknown[0]}; "
            f"name {', '.join((*needed, *optional))}"
        )
    called = {name: names.get(name, name) for name in (*needed, *optional)}
    wanted = [called[name] for name in called if name in needed or name in names]
    try:
        with plain_file(path).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            columns = [name.strip() for name in next(reader, [])]
            _check_columns(path, columns, wanted, list(called.values()), hint)
            places = {name: place for place, name in enumerate(columns)}
            # A column that is not there has a place behind every cell
            taken = [(name, places.get(column, sys.maxsize)) for name, column in called.items()]
            for cells in reader:
                if cells:
                    row = {n: cells[at].strip() if at < len(cells) else "" for n, at in taken}
                    _check_cells(path, reader.line_num, row)
                    yield reader.line_num, row
    except FileNotFoundError:
        raise CTMaskNetError(f"{path}: no such {what}; check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CTMaskNetError(f"{path}: cannot be read as CSV ({error})") from None


def _check_cells(path: str | os.PathLike, number: int, row: Mapping[str, str]) -> None:
    if has_control_character("".join(row.values())):
        name, text = next((k, v) for k, v in row.items() if has_control_character(v))
        raise CTMaskNetError(
            f"{path}:{number}: {name} {text!r} holds a line break or another control character; "
            "correct it"
        )


def _check_columns(
    path: str | os.PathLike,
    columns: Sequence[str],
    wanted: Sequence[str],
    known: Sequence[str],
    hint: str,
) -> None:
    if missing := [name for name in wanted if name not in columns]:
        raise CTMaskNetError(
            f"{path}: needs the columns {','.join(wanted)} in its first line, and has no "
            f"{missing[0]}{hint}"
        )
    if twice := [name for name in known if columns.count(name) > 1]:
        raise CTMaskNetError(f"{path}: has two columns {twice[0]}; rename one")
