"""Speed and memory as ratios measured in one run."""

import argparse
import json
import sys

from ctmasknet.benchmarks.classifier_training import heads_bn, heads_cache
from ctmasknet.benchmarks.registration import registration
from ctmasknet.errors import command_line
from ctmasknet.files import write_json


@command_line
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--repeats", type=int, default=5, help="times each is measured (5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config-file", default="configs/cls.yaml", help="of a classifier")
    what = parser.add_subparsers(dest="what", required=True)
    cache = what.add_parser("heads-cache", help="heads on kept rows against heads on images")
    cache.add_argument("--slices", type=int, default=8, help="noise slices to draw from (8)")
    norms = what.add_parser("heads-bn", help="heads_bn against a gradient for every weight")
    norms.add_argument("--batch", type=int, default=2, help="slices a step (2)")
    sets = what.add_parser("registration", help="a large set registered and checked for leaks")
    sets.add_argument("--slices", type=int, default=100_000, help="in three splits (100000)")
    sets.add_argument("--workers", type=int, default=1, help="threads that compare hashes (1)")
    args = parser.parse_args(argv)
    if args.what == "heads-cache":
        found = heads_cache(args.config_file, args.slices, args.repeats, args.seed)
    elif args.what == "registration":
        found = registration(args.slices, args.repeats, args.seed, args.workers)
    else:
        found = heads_bn(args.config_file, args.batch, args.repeats, args.seed)
    print(json.dumps(found, indent=1))
    print(f"{found['what']}: ratio {found['ratio']:.2f}")
    if args.output:
        write_json(args.output, found, 1)


if __name__ == "__main__":
    sys.exit(main())
