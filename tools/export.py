"""Write a trained classifier as one file that runs without Detectron2.

    python tools/export.py --config-file configs/cls.yaml --output output/cls/model.pt2
    python tools/export.py --config-file configs/cls.yaml --output output/cls/model.onnx

Weights are --weights, or the best checkpoint of the configuration's OUTPUT_DIR.
"""

import sys
from pathlib import Path

from ctmasknet.engine.export import export_classifier
from ctmasknet.engine.setup import inference_cfg, load_model
from ctmasknet.errors import command_line
from ctmasknet.files import check_writable
from ctmasknet.overrides import OverrideParser


@command_line
def main(argv=None):
    parser = OverrideParser(description=__doc__)
    parser.add("weights")
    parser.add("config_file")
    parser.add("output", required=True, metavar="FILE", help="file to write, .pt2 or .onnx")
    parser.add_argument("--height", type=int, default=512, help="of every slice, px (512)")
    parser.add_argument("--width", type=int, default=512, help="of every slice, px (512)")
    args = parser.parse_args(argv)
    check_writable(args.output)
    cfg, _ = inference_cfg(args.config_file, args.opts, args.weights)
    difference = export_classifier(cfg, load_model(cfg), args.output, args.height, args.width)
    size = Path(args.output).stat().st_size / 1e6
    print(f"{args.output}: {size:.1f} MB, logits within {difference:.1e} of the model's")


if __name__ == "__main__":
    sys.exit(main())
