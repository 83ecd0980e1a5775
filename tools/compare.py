"""Compare classifiers on the same patients, two at a time.

    python tools/compare.py s=output/cls/inference/covidx_ct_test/predictions.csv \\
        densenet=output/densenet/inference/covidx_ct_test/predictions.csv --output output/comparison
    python tools/compare.py output/cls output/densenet output/covnet --output output/comparison

A system is a predictions.csv, or the OUTPUT_DIR of a run that holds one, with NAME= in front where
the folder's name does not tell. Prints one table of all systems with accuracies and their intervals
and, where the run's folder has its model, parameters, multiply-adds and seconds of a slice; then
every difference with its paired interval, McNemar's and DeLong's p; writes comparison.json and
comparison.png.
"""

import sys

from ctmasknet.errors import command_line
from ctmasknet.evaluation.comparison import comparison_text
from ctmasknet.evaluation.pooling import RULES, SCORE_POOLINGS, TOP_K
from ctmasknet.overrides import ToolParser
from ctmasknet.report.comparison import write_comparison


@command_line
def main(argv=None):
    parser = ToolParser(description=__doc__)
    text = "predictions.csv of a system, or its OUTPUT_DIR"
    parser.add_argument("systems", nargs="+", metavar="[NAME=]FILE_OR_FOLDER", help=text)
    parser.add("output", required=True, help="folder of comparison.json and .png")
    parser.add("dataset", help="which set of runs that evaluated several")
    parser.add_argument("--against", help="show the differences from this system alone")
    parser.add_argument(
        "--common", action="store_true", help="compare on the slices that all systems have"
    )
    parser.add_argument(
        "--no-measure",
        action="store_false",
        dest="measure",
        help="leave out what models cost, which runs each of them on a few slices",
    )
    poolings = (*SCORE_POOLINGS, *RULES)
    parser.add_argument("--pooling", choices=poolings, default="mean", help="default: mean")
    parser.add_argument("--top-k", type=int, default=TOP_K, help=f"slices, default: {TOP_K}")
    for name in ("normal_class", "resamples", "seed"):
        parser.add(name)
    args = parser.parse_args(argv)
    comparison = write_comparison(
        args.systems,
        args.output,
        dataset=args.dataset,
        against=args.against,
        measure=args.measure,
        common=args.common,
        pooling=args.pooling,
        top_k=args.top_k,
        normal_class=args.normal_class,
        n_boot=args.resamples,
        seed=args.seed,
    )
    print(comparison_text(comparison, args.against))
    print(f"comparison.json and comparison.png in {args.output}")


if __name__ == "__main__":
    sys.exit(main())
