"""Draw the paper's figures for a prepared lesion data set.

    python tools/paper_figures.py figure1 --dataset cncb_lesions_both_train --output fig1.png
    python tools/paper_figures.py figure2 --config-file configs/seg.yaml \
        --dataset cncb_lesions_both_val --output fig2.png

Figure 1: lesions an image, and their area as a share of the image. Figure 2: the same slice at RoI
NMS 0.25 and 0.75 beside ground truth. The numbers drawn stand beside the picture, as .json.
"""

import sys

from ctmasknet.draw.lesion_statistics import figure_1
from ctmasknet.errors import command_line
from ctmasknet.overrides import OverrideParser
from ctmasknet.paper.suppression import figure_2


def parse(argv=None):
    parser = OverrideParser(description=__doc__)
    figures = parser.add_subparsers(dest="figure", required=True)
    one = figures.add_parser("figure1", help="distribution of lesions in a data set")
    two = figures.add_parser("figure2", help="two suppression thresholds beside ground truth")
    for figure in (one, two):
        figure.add("dataset", required=True, help="name of a prepared lesion data set")
        figure.add("output", required=True, metavar="FILE", help="PNG file")
    two.add("config_file", help="of a detector: configs/seg.yaml, ...")
    two.add("weights")
    two.add_argument("--image-id", nargs="+", help="slices by their id in the data set")
    two.add_argument("--index", nargs="+", type=int, help="slices by their place, from 0")
    two.add("seed", default=None, help="one slice with lesions at random")
    two.add_argument("--nms", nargs=2, type=float, default=[0.25, 0.75], help="IoU (0.25 0.75)")
    two.add("score_threshold")
    two.add_argument("--mask-threshold", type=float, default=0.5, help="probability above (0.5)")
    return parser.parse_args(argv)


@command_line
def main(argv=None):
    args = parse(argv)
    if args.figure == "figure1":
        figure_1(args.dataset, args.output)
    else:
        figure_2(args)
    print(f"wrote: {args.output}")


if __name__ == "__main__":
    sys.exit(main())
