"""Fill the paper's Tables 1, 2 and 3 from result files; published figures stand beside them.

    python tools/paper_tables.py --results output/cls output/cls_heads_bn --output output/tables
    python tools/paper_tables.py --zoo docs/results/MODEL_ZOO.md --results output/seg output/cls
    python tools/paper_tables.py --models               # sizes of all configs, on the terminal
    python tools/paper_tables.py --models models.md models.json
    python tools/paper_tables.py --hours docs/reproduce.md

A cell without a result file says "not run". Hours are computed, of seconds that tools/benchmark.py
measured.
"""

import shlex
import sys

from ctmasknet.errors import command_line
from ctmasknet.overrides import ToolParser
from ctmasknet.paper.hours import write_hours
from ctmasknet.paper.tables import write_tables
from ctmasknet.paper.zoo import write_model_table, write_zoo


@command_line
def main(argv=None):
    parser = ToolParser(description=__doc__)
    parser.add_argument(
        "--results",
        nargs="+",
        action="extend",
        default=[],
        help="OUTPUT_DIR folders of tools/train_net.py, or folders that hold such",
    )
    parser.add("output", help="folder for tables.md, .json and .csv")
    parser.add_argument("--zoo", metavar="FILE", help="write the model zoo")
    parser.add_argument(
        "--models", nargs="*", metavar="FILE", help="list every config with its model's size"
    )
    parser.add_argument(
        "--hours", metavar="FILE", help="write how long the paper's runs take into this page"
    )
    text = "folder of measured seconds, for --hours (default: %(default)s)"
    parser.add_argument("--benchmarks", default="docs/results/benchmarks", metavar="DIR", help=text)
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    made_by = shlex.join(["python", "tools/paper_tables.py", *argv])
    if {args.output, args.zoo, args.hours} == {None} and args.models is None:
        parser.error("give --output FOLDER, --zoo FILE, --models or --hours FILE")
    if args.results and args.output is None and args.zoo is None:
        parser.error("--results is for tables and the model zoo: give --output or --zoo")
    odd = [name for name in args.models or () if not name.endswith((".md", ".json"))]
    if odd:
        parser.error(f"--models: {odd[0]} ends in neither .md nor .json")
    if args.output is not None:
        write_tables(args.results, args.output, made_by)
        print(f"tables.md, tables.json and a .csv for each table in {args.output}")
    if args.zoo is not None:
        write_zoo(args.zoo, args.results, made_by, "python tools/train_net.py --config-file {}")
        print(f"wrote: {args.zoo}")
    if args.hours is not None:
        write_hours(args.hours, args.benchmarks, made_by)
        print(f"wrote: {args.hours}")
    if args.models is not None:
        text = write_model_table(made_by, *args.models)
        print("\n".join(f"wrote: {path}" for path in args.models) or text)


if __name__ == "__main__":
    sys.exit(main())
