"""What the preparation tools ask about bad slices on their command line.

Words of the preparation tools' command lines.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ctmasknet.data.bad_slices import MODES, REPORT, BadSlices
from ctmasknet.errors import CTMaskNetError


def add_bad_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--bad`` and ``--max-bad-share``."""
    parser.add_argument(
        "--bad",
        choices=MODES,
        default="error",
        help=f"what to do with a slice or volume that cannot be read: end with an error, or leave "
        f"it out and list it in {REPORT} beside the set; default: %(default)s",
    )
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="with --bad skip: nothing is prepared, and the exit code is 2, if more than this "
        "share of the files was bad; default: %(default)s",
    )


def bad_slices_from(args: argparse.Namespace) -> BadSlices:
    """The arguments as :class:`~ctmasknet.data.bad_slices.BadSlices`."""
    return BadSlices(
        {},
        mode=args.bad,
        max_share=args.max_bad_share,
        keys=("--bad", "--max-bad-share"),
        unit="files",
    )


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
