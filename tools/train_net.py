"""Train or evaluate the lesion detector or the slice classifier.

    python tools/train_net.py --config-file configs/seg.yaml OUTPUT_DIR output/seg
    python tools/train_net.py --config-file configs/seg.yaml --resume OUTPUT_DIR output/seg
    python tools/train_net.py --config-file configs/cls.yaml --eval-only OUTPUT_DIR output/cls
    torchrun --nproc-per-node 4 tools/train_net.py --config-file configs/cls.yaml

    python tools/train_net.py --config-file configs/cls.yaml --folds 5 OUTPUT_DIR output/cls_folds

Evaluation takes the best checkpoint of OUTPUT_DIR, or MODEL.WEIGHTS.
"""

import sys

from ctmasknet.engine.processes import launch
from ctmasknet.engine.runs.command import train_from_command_line
from ctmasknet.errors import command_line
from ctmasknet.experiments.folds import train_folds
from ctmasknet.overrides import OverrideParser


def parse(argv=None):
    parser = OverrideParser(description=__doc__)
    add = parser.add_argument
    parser.add("config_file")
    add("--eval-only", action="store_true", help="evaluate on DATASETS.TEST, train nothing")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    add(
        "--folds",
        type=int,
        metavar="K",
        help="train K times on all but one of K parts of DATASETS.TRAIN, patients whole; "
        "OUTPUT_DIR/predictions.csv (a detector's: lesions.json): each slice by the model that has "
        "not seen its patient",
    )
    add(
        "--overwrite",
        action="store_true",
        help="remove what an earlier training left in OUTPUT_DIR, and begin anew",
    )
    for name in ("num_gpus", "num_machines", "machine_rank", "dist_url"):
        parser.add(name)
    args = parser.parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    return args


@command_line(go_on="the same command with `resume` goes on")
def main(argv=None):
    args = parse(argv)
    if args.folds is not None:
        train_folds(args)
    else:
        launch(train_from_command_line, args)


if __name__ == "__main__":
    sys.exit(main())
