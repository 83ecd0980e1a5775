"""Lesion burden: the share of the lung that lesions take up, of slices, scans and patients.

    # as drawn in the label masks (their lung is what the share is of)
    python tools/lesion_burden.py --dataset cncb_lesions_both_val --label-masks /data/cncb/mask \
        --output output/burden
    # as predicted for the same slices
    python tools/lesion_burden.py --dataset cncb_lesions_both_val --label-masks /data/cncb/mask \
        --predictions output/seg/inference/cncb_lesions_both_val/coco_instances_results.json \
        --output output/burden_predicted
    # lesions in COCO's form, from tools/predict.py or elsewhere
    python tools/lesion_burden.py --lesions output/predicted/lesions.json --output output/burden
    # the same as a share of the lungs, looked for in the scans that were predicted
    python tools/lesion_burden.py --lesions output/predicted/lesions.json --input /data/scans \
        --output output/burden

Writes burden.csv and burden.json. Without lungs the share is of the whole slice and called so.
"""

import sys

from ctmasknet.ct.lungs.masks import LUNG_WAYS
from ctmasknet.errors import command_line
from ctmasknet.evaluation.lesions.burden_files import burden_text, measure_burden
from ctmasknet.overrides import ToolParser


@command_line
def main(argv=None):
    parser = ToolParser(description=__doc__)
    parser.add("dataset", help="name of a prepared lesion set")
    parser.add_argument("--lesions", help="COCO json, instead of a data set")
    parser.add_argument("--predictions", help="coco_instances_results.json for the data set")
    parser.add_argument("--label-masks", help="folder of masks that tell the lung")
    parser.add_argument(
        "--labels", help="meaning of the mask values (default: as the set was prepared)"
    )
    parser.add("score_threshold")
    parser.add_argument(
        *("--input", "--scans"),
        dest="scans",
        nargs="+",
        metavar="PATH",
        help="look for lungs in these files and folders, those predicted",
    )
    parser.add_argument(
        "--lungs",
        choices=LUNG_WAYS,
        default=LUNG_WAYS[0],
        help="how: a rule on HU, or the U-Net of the package lungmask",
    )
    parser.add("rescale")
    parser.add("axes")
    parser.add_argument(
        "--lung-window",
        metavar="CENTER,WIDTH",
        help="window in HU that --input was made through, where it is pictures",
    )
    parser.add("output", required=True, help="folder for burden.csv and burden.json")
    args = parser.parse_args(argv)
    print(burden_text(measure_burden(**vars(args))))
    print(f"burden.csv and burden.json in {args.output}")


if __name__ == "__main__":
    sys.exit(main())
