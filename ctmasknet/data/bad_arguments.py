"""What the preparation tools ask about bad slices on their command line."""

from __future__ import annotations

import argparse

from ctmasknet.data.bad_slices import MODES, REPORT, BadSlices


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
