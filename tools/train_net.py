"""Train or evaluate the lesion detector (configs/seg.yaml) or the slice classifier
(configs/cls.yaml)."""

import sys

from ctmasknet.engine.processes import launch
from ctmasknet.engine.runs.command import train_from_command_line, training_parser
from ctmasknet.errors import command_line


@command_line(go_on="the same command with `resume` goes on")
def main(argv=None):
    parser = training_parser()
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove what an earlier training left in OUTPUT_DIR, and begin anew",
    )
    args = parser.parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv
    launch(train_from_command_line, args)


if __name__ == "__main__":
    sys.exit(main())
