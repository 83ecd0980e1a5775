"""Speed and memory as ratios measured in one run.

python tools/benchmark.py heads-bn --output docs/results/benchmarks/heads_bn.json
python tools/benchmark.py table docs/speed.md docs/results/benchmarks/*.json
"""

import shlex
import sys
from pathlib import Path

from ctmasknet.benchmarks.catalogue import BENCHMARKS
from ctmasknet.benchmarks.table import text_of, write_speed_tables
from ctmasknet.errors import command_line
from ctmasknet.files import check_writable, write_json
from ctmasknet.overrides import ToolParser


@command_line
def main(argv=None):
    parser = ToolParser(description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    for name, benchmark in BENCHMARKS.items():
        own = names.add_parser(name, help=benchmark.help)
        own.add("output", metavar="FILE", help="JSON file for the figures")
        own.add_argument("--repeats", type=int, default=5, help="times each is measured (5)")
        own.add("seed")
        benchmark.add_options(own)
    table = names.add_parser("table", help="write the tables of such files into a page")
    table.add_argument("page", help="Markdown file with the marks `benchmarks`")
    table.add_argument("files", nargs="+", help="files that --output named")
    args = parser.parse_args(argv)
    if args.name == "table":
        write_speed_tables(args.page, args.files)
        return
    if args.output:
        check_writable(args.output)
    found = BENCHMARKS[args.name](args)
    words = sys.argv[1:] if argv is None else map(str, argv)
    found["command"] = shlex.join(["python", "tools/benchmark.py", *words])
    print(text_of(found))
    if args.output:
        write_json(args.output, found, 1)
        draw = BENCHMARKS[args.name].draw
        if draw:
            draw(found, str(Path(args.output).with_suffix(".png")))


if __name__ == "__main__":
    sys.exit(main())
