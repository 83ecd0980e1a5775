"""CSV files that users write: groups of slices, lists of volumes."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

from ctmasknet.errors import CTMaskNetError


def read_csv_rows(
    path: str | os.PathLike, needed: Sequence[str], optional: Sequence[str] = (), what: str = "list"
) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file whose first line names its columns; further columns are passed over.

    Args:
        path: UTF-8, with or without a byte order mark.
        needed: columns that must be there.
        optional: columns that may be.
        what: what the file is, for errors.

    Returns:
        (number of its line, column -> text without surrounding blanks) of each row; "" where a cell
        is empty or its column is not there.

    Raises:
        CTMaskNetError: the file is missing, is no CSV, or lacks a column.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            reader.fieldnames = columns = [str(name).strip() for name in reader.fieldnames or []]
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise CTMaskNetError(f"{path}: no such {what}; check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CTMaskNetError(f"{path}: cannot be read as CSV ({error})") from None
    if not set(needed) <= set(columns):
        raise CTMaskNetError(f"{path}: needs the columns {','.join(needed)} in its first line")
    return [
        (number, {name: (row.get(name) or "").strip() for name in (*needed, *optional)})
        for number, row in rows
    ]
