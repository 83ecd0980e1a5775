"""List every config with the size of its model, or write the model zoo from result files.

python tools/model_table.py                                  # the table on the terminal
python tools/model_table.py --markdown models.md --json models.json
python tools/model_table.py --zoo docs/results/MODEL_ZOO.md --results output/seg output/cls
"""

import argparse
import shlex
import sys

from ctmasknet.errors import command_line
from ctmasknet.paper.zoo import write_model_table, write_zoo


@command_line
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the table here")
    parser.add_argument("--json", metavar="FILE", help="write its numbers here")
    parser.add_argument("--zoo", metavar="FILE", help="write the model zoo here, not the table")
    parser.add_argument(
        "--results", nargs="+", action="extend", default=[], help="OUTPUT_DIR folders for the zoo"
    )
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    made_by = shlex.join(["python", "tools/model_table.py", *argv])
    if args.results and not args.zoo:
        parser.error("--results is for the model zoo: give --zoo FILE")
    if args.zoo:
        write_zoo(args.zoo, args.results, made_by, "python tools/train_net.py --config-file {}")
        print(f"wrote: {args.zoo}")
    if args.markdown or args.json or not args.zoo:
        text = write_model_table(made_by, args.markdown, args.json)
        written = [path for path in (args.markdown, args.json) if path]
        print("\n".join(f"wrote: {path}" for path in written) or text)


if __name__ == "__main__":
    sys.exit(main())
