"""How often the 95 % intervals of tools/evaluate_predictions.py hold the truth, on simulated
patients.

    python tools/interval_coverage.py --resamples 400 --output configs/interval_coverage.json
"""

import argparse
import sys

from tabulate import tabulate

from ctmasknet.errors import command_line
from ctmasknet.evaluation.coverage import interval_coverage
from ctmasknet.files import write_json, writing


@command_line
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, nargs="+", default=[40, 80, 293])
    parser.add_argument("--simulations", type=int, default=1000, help="data sets (1000)")
    parser.add_argument("--resamples", type=int, default=1000, help="of each (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON file for the figures")
    args = parser.parse_args(argv)
    found = [
        interval_coverage(count, args.simulations, n_boot=args.resamples, seed=args.seed)
        for count in args.patients
    ]
    names = list(found[0]["held"])
    rows = [[name, *(f"{item['held'][name]:.1f}" for item in found)] for name in names]
    headers = ["% held", *(f"{item['patients']} patients" for item in found)]
    print(tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True))
    if args.output:
        with writing(args.output):
            write_json(args.output, found, 1)


if __name__ == "__main__":
    sys.exit(main())
