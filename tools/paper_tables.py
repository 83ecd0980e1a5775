"""Fill the paper's Tables 1, 2 and 3 from result files; published figures stand beside them.

    python tools/paper_tables.py --results output/cls output/cls_heads_bn --output output/tables

A cell without a result file says "not run".
"""

import argparse
import shlex
import sys

from ctmasknet.errors import command_line
from ctmasknet.paper.tables import write_tables


@command_line
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results",
        nargs="+",
        action="extend",
        default=[],
        help="OUTPUT_DIR folders of tools/train_net.py, or folders that hold such",
    )
    parser.add_argument("--output", required=True, help="folder for tables.md, .json and .csv")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    write_tables(args.results, args.output, shlex.join(["python", "tools/paper_tables.py", *argv]))
    print(f"tables.md, tables.json and a .csv for each table in {args.output}")


if __name__ == "__main__":
    sys.exit(main())
