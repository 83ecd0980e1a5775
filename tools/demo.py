"""The whole way on phantoms: the other tools in order, then two tables (see README.md)."""

import sys

from ctmasknet.demo import run_demo, write_readme_table
from ctmasknet.errors import command_line
from ctmasknet.overrides import ToolParser


@command_line
def main(argv=None):
    parser = ToolParser(description=__doc__)
    text = "folder for everything made (default: %(default)s)"
    parser.add("output", default="output/demo", help=text)
    # Those of the table in README.md
    text = "of the phantom patients (default: %(default)s)"
    parser.add_argument("--phantom-seed", type=int, default=1, metavar="N", help=text)
    parser.add("seed", default=1, help="of split and training (default: %(default)s)")
    parser.add_argument(
        "--readme",
        nargs="+",
        metavar=("README", "SUMMARY"),
        help="run nothing; write the table of these summary.json files into README",
    )
    args = parser.parse_args(argv)
    if args.readme:
        write_readme_table(args.readme[0], args.readme[1:])
    else:
        run_demo(args.output, args.phantom_seed, args.seed)


if __name__ == "__main__":
    sys.exit(main())
