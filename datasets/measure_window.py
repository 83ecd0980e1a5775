"""Through which HU window grey pictures were made, by their grey levels (see docs/data.md)."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from ctmasknet.ct.window_estimate import measure_pictures
from ctmasknet.errors import command_line
from ctmasknet.overrides import ToolParser

_OPTIONS = runpy.run_path(str(Path(__file__).with_name("_options.py")))


def parser() -> ToolParser:
    p = ToolParser(description=__doc__)
    p.add("input", required=True)
    p.add("limit", default=200, help="pictures looked at, at most (default: %(default)s)")
    p.add("rescale")
    p.add("axes")
    return p


@command_line
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    print(measure_pictures(args.input, args.limit, **_OPTIONS["values_of"](args)))


if __name__ == "__main__":
    sys.exit(main())
