"""Judge a classifier by its predictions.csv: slices, scans and patients, with intervals.

    F=output/cls/inference
    python tools/evaluate_predictions.py --predictions $F/covidx_ct_test/predictions.csv \\
        --validation $F/covidx_ct_val/predictions.csv --output output/cls/report

Writes report.json, and from validation calibration.json (temperature, thresholds), pooling.json
(the learned pooling) and, with --pooling attention, attention.json. Without --validation nothing is
fitted. --checkpoint stores calibration.json in the classifier's checkpoint as well.
"""

import sys

from ctmasknet.engine.checkpoint import store_calibration, stored_calibration
from ctmasknet.errors import command_line
from ctmasknet.evaluation.pooling import TOP_K
from ctmasknet.evaluation.report import evaluate_predictions, report_text
from ctmasknet.evaluation.validation_fit import POOLINGS, PoolingChoice
from ctmasknet.files import check_writable
from ctmasknet.overrides import ToolParser


@command_line
def main(argv=None):
    parser = ToolParser(description=__doc__)
    parser.add_argument("--predictions", required=True, help="predictions.csv of the test set")
    parser.add_argument("--validation", help="predictions.csv of the validation set")
    parser.add("output", required=True, help="folder for report.json")
    parser.add_argument("--checkpoint", help="of the classifier: keep the calibration in it")
    parser.add_argument("--pooling", choices=POOLINGS, default="mean", help="default: mean")
    parser.add_argument("--top-k", type=int, default=TOP_K, help=f"slices, default: {TOP_K}")
    parser.add_argument(
        "--sensitivity", type=float, default=0.95, help="of the operating points, default: 0.95"
    )
    for name in ("normal_class", "resamples", "seed"):
        parser.add(name)
    parser.add_argument(
        "--by",
        metavar="COLUMN[,COLUMN]",
        help="patient metadata to group by, such as source,age (default: every column behind the "
        "scores with two values or more; none: no groups)",
    )
    args = parser.parse_args(argv)
    if args.checkpoint and not args.validation:
        parser.error("--checkpoint keeps what is fitted on validation: give --validation FILE")
    if args.checkpoint:
        stored_calibration(args.checkpoint)  # refuses what cannot take one, before the work is done
        check_writable(args.checkpoint, argument="checkpoint")
    report, fit = evaluate_predictions(
        args.predictions,
        args.output,
        validation=args.validation,
        choice=PoolingChoice(args.pooling, args.top_k, args.normal_class),
        sensitivity=args.sensitivity,
        n_boot=args.resamples,
        seed=args.seed,
        by=None if args.by is None else [] if args.by == "none" else args.by.split(","),
    )
    print(report_text(report))
    if args.checkpoint:
        store_calibration(args.checkpoint, fit.to_json())
        print(f"calibration stored in {args.checkpoint}")
    print(f"report.json in {args.output}")


if __name__ == "__main__":
    sys.exit(main())
