"""Draw lesions: ground truth beside prediction for a data set, or predictions for files.

    python tools/visualize.py --config-file configs/seg.yaml --dataset cncb_lesions_both_val \
        --output output/overlays --limit 20
    python tools/visualize.py --config-file configs/cls.yaml --input scans/ --output pictures
    python tools/visualize.py --augmented --config-file configs/seg.yaml --limit 12 --seed 1 \
        --output output/augmented INPUT.AUGMENTATION.ROTATION_DEG 15.0

Inputs are pictures, DICOM and volumes, as files and as folders of any depth. Weights are --weights,
or the best checkpoint of the configuration's OUTPUT_DIR.
"""

import sys

from ctmasknet.errors import command_line
from ctmasknet.overrides import OverrideParser
from ctmasknet.predict.gallery import CONTACT_SHEET, draw_from_command_line


def parse(argv=None):
    parser = OverrideParser(description=__doc__)
    for name in ("weights", "config_file", "dataset", "input", "rescale", "axes"):
        parser.add(name)
    parser.add("output", required=True, help="folder for the pictures")
    parser.add("limit")
    parser.add("seed", default=None, help="choose them at random (default: evenly spread)")
    parser.add("score_threshold")
    parser.add_argument("--ground-truth-only", action="store_true", help="no model, no prediction")
    parser.add_argument(
        "--augmented",
        action="store_true",
        help="slices as the configuration's training sees them, beside the originals; of --dataset "
        "(default: DATASETS.TRAIN), without a model",
    )
    return parser.parse_args(argv)


@command_line
def main(argv=None):
    args = parse(argv)
    pictures = draw_from_command_line(args)
    print(f"{len(pictures)} pictures and {CONTACT_SHEET} in {args.output}")


if __name__ == "__main__":
    sys.exit(main())
