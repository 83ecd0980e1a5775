"""Draw lesions: ground truth beside prediction for a data set, or predictions for files.

    python tools/visualize.py --config-file configs/seg.yaml --dataset cncb_lesions_both_val \
        --output output/overlays --limit 20
    python tools/visualize.py --config-file configs/cls.yaml --input scans/ --output pictures
    python tools/visualize.py --augmented --config-file configs/seg.yaml --limit 12 --seed 1 \
        --output output/augmented INPUT.AUGMENTATION.ROTATION_DEG 15.0

Inputs are pictures, DICOM and volumes, as files and as folders of any depth. Weights are --weights,
or the best checkpoint of the configuration's OUTPUT_DIR.
"""

import argparse
import sys

from ctmasknet.errors import command_line
from ctmasknet.overrides import OverrideParser
from ctmasknet.predict.gallery import CONTACT_SHEET, draw_from_command_line


def parse(argv=None):
    parser = OverrideParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="the model file, which also states its configuration")
    parser.add_argument("--config-file", default="", help="configs/seg.yaml, configs/cls.yaml, ...")
    parser.add_argument("--dataset", help="name of a prepared data set")
    parser.add_argument("--input", nargs="+", help="files and folders")
    parser.add_argument(
        "--rescale",
        metavar="SLOPE,INTERCEPT",
        help="slope and intercept to HU of pictures of more than 8 bits, DICOM without rescale and "
        "volumes not in HU; grey: their values are grey levels 0..255",
    )
    parser.add_argument(
        "--axes",
        metavar="ORDER",
        help="axes of .npy and .npz: zyx for slices, rows, columns; ct:zyx for the array ct",
    )
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--limit", type=int, help="at most so many slices (default: all)")
    parser.add_argument("--seed", type=int, help="choose them at random (default: evenly spread)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.75, help="lesions must score more (0.75)"
    )
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
