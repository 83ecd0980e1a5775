"""Through which HU window 8-bit pictures were made, by their grey levels (see docs/data.md)."""

from __future__ import annotations

import sys

from ctmasknet.ct.window_estimate import measure_pictures
from ctmasknet.errors import command_line
from ctmasknet.overrides import ToolParser


def parser() -> ToolParser:
    p = ToolParser(description=__doc__)
    p.add("input", required=True)
    p.add("limit", default=200, help="pictures looked at, at most (default: %(default)s)")
    return p


@command_line
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    print(measure_pictures(args.input, args.limit))


if __name__ == "__main__":
    sys.exit(main())
