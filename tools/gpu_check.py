"""Check and time ctmasknet on a GPU, in a few minutes, stock Detectron2 beside it.

    python tools/gpu_check.py --output docs/results/gpu.json

Forward passes, training steps of every kind, half precision, parity with the CPU, and resuming.
"""

import sys

from ctmasknet.benchmarks.gpu.check import gpu_check, gpu_text
from ctmasknet.engine.processes import keep_freed_memory
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.files import check_writable, write_json
from ctmasknet.overrides import OverrideParser


@command_line
def main(argv=None):
    parser = OverrideParser(description=__doc__)
    parser.add("output", metavar="FILE", help="JSON file for the figures")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu tries the check")
    parser.add_argument("--side", type=int, default=512, help="of the slices, px (512)")
    parser.add_argument("--batch", type=int, default=2, help="slices a call or step (2)")
    parser.add_argument("--repeats", type=int, default=5, help="times each is measured (5)")
    parser.add("seed")
    args = parser.parse_args(argv)
    if args.output:
        check_writable(args.output)
    keep_freed_memory()
    found = gpu_check(
        device=args.device,
        side=args.side,
        batch=args.batch,
        repeats=args.repeats,
        seed=args.seed,
        overrides=args.opts,
    )
    print(gpu_text(found))
    if args.output:
        write_json(args.output, found, 1)
    failed = [check["check"] for check in found["checks"] if not check["holds"]]
    failed += found["problems"]
    if failed:
        raise CTMaskNetError(
            f"{args.device}: {len(failed)} of the checks failed, such as: {failed[0]}; the table "
            "above has them all"
        )


if __name__ == "__main__":
    sys.exit(main())
