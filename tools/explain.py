"""Why this class: which of the detector's ranked boxes moved a slice's logits, or where a network
of whole slices looked (Grad-CAM).

    python tools/explain.py --config-file configs/cls.yaml --dataset covidx_ct_test --limit 50 \
        --output output/cls/why
    python tools/explain.py --config-file configs/cls.yaml --input scans/ --output why

Inputs are pictures, DICOM and volumes, as files and as folders of any depth. Writes
attributions.jsonl (every box of every slice with its weight for each class, or every class' map)
and pictures/.
Boxes are input to the decision, not its cause: weights tell what the image head made of the boxes,
not why a patient is ill. Weights of the model are --weights, or the best checkpoint of the
configuration's OUTPUT_DIR. With --num-gpus, or under torchrun, processes share the
slices.
"""

import sys

from ctmasknet.engine.processes import launch
from ctmasknet.errors import command_line
from ctmasknet.explain.attribution import HIDDEN, METHODS
from ctmasknet.explain.drawing import MOST_BOXES
from ctmasknet.explain.gradcam import GRADCAM
from ctmasknet.explain.run import ATTRIBUTIONS, explain_from_command_line
from ctmasknet.overrides import OverrideParser


def parse(argv=None):
    parser = OverrideParser(description=__doc__)
    for name in ("weights", "config_file", "dataset", "input", "rescale", "axes"):
        parser.add(name)
    parser.add("output", required=True, help=f"folder for {ATTRIBUTIONS} and pictures")
    parser.add("limit")
    parser.add("seed", default=None, help="choose them at random (default: evenly spread)")
    parser.add_argument(
        "--method",
        choices=(*METHODS, GRADCAM),
        help="default: occlusion of boxes; gradcam of networks of slices",
    )
    parser.add_argument(
        "--hidden",
        choices=HIDDEN,
        default=HIDDEN[0],
        help="occlusion: a box' rows become zero, or the box is removed and the rest moves up",
    )
    parser.add_argument("--target", help="class whose boxes are drawn (default: the predicted)")
    parser.add_argument(
        "--boxes", type=int, default=MOST_BOXES, help=f"drawn at most ({MOST_BOXES})"
    )
    text = "write the weights alone"
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help=text)
    for name in ("num_gpus", "num_machines", "machine_rank", "dist_url"):
        parser.add(name)
    return parser.parse_args(argv)


@command_line
def main(argv=None):
    launch(explain_from_command_line, parse(argv))


if __name__ == "__main__":
    sys.exit(main())
