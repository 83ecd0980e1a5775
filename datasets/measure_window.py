"""Through which HU window 8-bit pictures were made, by their grey levels (see docs/data.md)."""

from __future__ import annotations

import argparse
import sys

from ctmasknet.ct.window_estimate import measure_pictures
from ctmasknet.errors import command_line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files and folders")
    p.add_argument(
        "--limit", type=int, default=200, help="pictures looked at (default: %(default)s)"
    )
    return p


@command_line
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    print(measure_pictures(args.input, args.limit))


if __name__ == "__main__":
    sys.exit(main())
