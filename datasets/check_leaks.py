"""Look for patients and near-identical slices that data sets share (see README.md)."""

from __future__ import annotations

import sys

from ctmasknet.data.duplicates import (
    DEFAULT_DISTANCE,
    near_duplicate_lines,
    near_duplicates_of_sets,
    write_near_duplicates,
)
from ctmasknet.data.patients import overlap_lines, overlaps
from ctmasknet.errors import command_line
from ctmasknet.files import check_writable
from ctmasknet.overrides import ToolParser


def parser() -> ToolParser:
    p = ToolParser(description=__doc__)
    p.add_argument("names", nargs="+", metavar="NAME", help="registered sets")
    p.add_argument(
        "--within",
        action="store_true",
        help="near-identical slices of unlike patients of one set count too",
    )
    p.add_argument(
        "--distance",
        type=int,
        default=DEFAULT_DISTANCE,
        help="unlike bits, of 256, up to which two slices count as near-identical "
        "(default: %(default)s)",
    )
    p.add_argument(
        "--strict",
        action="store_true",
        help="patients that may be one, spelled otherwise, count as shared",
    )
    p.add("workers")
    p.add("output", metavar="FILE", help="write all pairs of slices to this CSV file")
    return p


@command_line
def main(argv: list[str] | None = None) -> int:
    """Returns 1 when something is shared."""
    args = parser().parse_args(argv)
    if args.output:
        check_writable(args.output)
    found = overlaps(args.names)
    pairs = near_duplicates_of_sets(args.names, args.distance, args.workers, args.within)
    if args.output:
        write_near_duplicates(args.output, pairs)
    print("\n".join([*overlap_lines(found), *near_duplicate_lines(pairs, args.distance)]))
    shared = any(overlap.shared or (args.strict and overlap.spelled) for overlap in found)
    return 1 if pairs or shared else 0


if __name__ == "__main__":
    sys.exit(main())
