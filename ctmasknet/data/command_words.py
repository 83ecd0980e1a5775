"""Words of the preparation tools' command lines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ctmasknet.errors import CTMaskNetError


def parse_assignments(values: Sequence[str], option: str) -> dict[str, str]:
    """``["train=a.txt", "val=b.txt"]`` -> ``{"train": "a.txt", "val": "b.txt"}``, order kept.

    Raises:
        CTMaskNetError: a value without ``=`` or a name given twice; it names ``option``.
    """
    assigned: dict[str, str] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise CTMaskNetError(f"{option} {value}: expected NAME=VALUE")
        if key in assigned:
            raise CTMaskNetError(f"{option} {value}: {key} is given twice")
        assigned[key] = text
    return assigned


def add_numbering_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--split-like`` and ``--patient-ids``.

    Args:
        parser: of a preparation tool.
        default: which numbering is taken without ``--patient-ids``, in words.
    """
    parser.add_argument(
        "--split-like",
        metavar="NAME",
        help="with --split: patients whom this prepared set has too, under the same --patient-ids, "
        "stay in the split that it has them in",
    )
    parser.add_argument(
        "--patient-ids",
        metavar="NAME",
        help="name of the numbering that the patients are of: ids are compared with those of "
        f"another set under the same name (default: {default})",
    )
