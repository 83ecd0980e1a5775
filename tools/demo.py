"""The whole way on phantoms: the other tools in order, then two tables (see README.md)."""

import argparse
import sys

from ctmasknet.demo import run_demo, write_readme_table
from ctmasknet.errors import command_line


@command_line
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="output/demo", help="folder for everything made")
    parser.add_argument("--phantom-seed", type=int, default=1, help="seed of the phantom patients")
    parser.add_argument("--seed", type=int, default=1, help="seed of split and training")
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
