"""Look for patients and near-identical slices that two data sets share (see README.md)."""

from __future__ import annotations

import argparse
import sys

from ctmasknet.data.datasets import check_patients_disjoint
from ctmasknet.data.near_duplicates import (
    DEFAULT_DISTANCE,
    near_duplicates_of_sets,
    write_near_duplicates,
)
from ctmasknet.errors import command_line

_SHOWN = 10


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("names", nargs="+", metavar="NAME", help="registered sets, at least two")
    p.add_argument(
        "--distance",
        type=int,
        default=DEFAULT_DISTANCE,
        help="unlike bits, of 256, up to which two slices count as near-identical "
        "(default: %(default)s)",
    )
    p.add_argument("--workers", type=int, default=1, help="number of processes (default: 1)")
    p.add_argument("--output", metavar="FILE", help="write all pairs to this CSV file")
    return p


@command_line
def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    check_patients_disjoint(args.names)
    pairs = near_duplicates_of_sets(args.names, args.distance, args.workers)
    if args.output:
        write_near_duplicates(args.output, pairs)
    for pair in pairs[:_SHOWN]:
        print(f"{pair.distance:3d} bits  {pair.first_file}  ~  {pair.second_file}")
    print(f"near-identical slices across {', '.join(args.names)}: {len(pairs)} pair(s)")
    return 1 if pairs else 0


if __name__ == "__main__":
    sys.exit(main())
