"""Write a trained classifier as one file: one that runs without Detectron2, or the weights in int8.

    python tools/export.py --config-file configs/cls.yaml --output output/cls/model.pt2
    python tools/export.py --config-file configs/cls.yaml --output output/cls/model.onnx
    python tools/export.py --config-file configs/demo/cls.yaml \\
        --output output/demo/cls/model_best.int8 --dataset covidx_ct_train

Weights are --weights, or the best checkpoint of the configuration's OUTPUT_DIR. The file in int8 is
looked for beside them, under their name, where MODEL.INFERENCE.DTYPE is int8.
"""

import sys
from pathlib import Path

from ctmasknet.engine.export import export_classifier, export_int8
from ctmasknet.engine.setup import inference_cfg, load_model
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.files import check_writable
from ctmasknet.modeling.fast.int8 import SUFFIX
from ctmasknet.overrides import OverrideParser

_SIDE, _SLICES = 512, 256


def _to_int8(args):
    if args.height is not None or args.width is not None:
        raise CTMaskNetError("`height`, `width`: int8 takes slices of any size; leave them out")
    if not args.dataset:
        raise CTMaskNetError(
            f"{args.output}: int8 is calibrated on slices; name what the model was trained on as "
            "`dataset`"
        )
    slices = _SLICES if args.slices is None else args.slices
    if slices < 4:
        raise CTMaskNetError(f"`slices`: {slices} are too few to calibrate on; give 4 or more")
    opts = [*args.opts, "DATASETS.TEST", (args.dataset,)]
    cfg, _ = inference_cfg(args.config_file, opts, args.weights, test_sets=True)
    told = export_int8(cfg, load_model(cfg), args.output, args.dataset, slices, args.seed)
    tried = told["tried"]
    return (
        f"of {tried} slices that it was not quantized on, {told['same_class']} have float32's "
        f"class at the first look, {told['again']} ({100 * told['again'] / tried:.1f} %) get a "
        f"second in float32 (lead below {told['margin']:.2f})"
    )


def _to_program(args):
    if args.dataset or args.slices is not None:
        raise CTMaskNetError(f"`dataset`, `slices`: are of {SUFFIX} files alone; leave them out")
    cfg, _ = inference_cfg(args.config_file, args.opts, args.weights)
    sides = [_SIDE if side is None else side for side in (args.height, args.width)]
    difference = export_classifier(cfg, load_model(cfg), args.output, *sides)
    return f"logits within {difference:.1e} of the model's"


@command_line
def main(argv=None):
    parser = OverrideParser(description=__doc__)
    parser.add("weights")
    parser.add("config_file")
    parser.add("output", required=True, metavar="FILE", help="file to write: .pt2, .onnx or .int8")
    parser.add_argument("--height", type=int, help=f"of every slice, px ({_SIDE}); not int8")
    parser.add_argument("--width", type=int, help=f"of every slice, px ({_SIDE}); not int8")
    parser.add("dataset")
    parser.add_argument(
        "--slices", type=int, help=f"of --dataset that int8 is calibrated on ({_SLICES})"
    )
    parser.add("seed")
    args = parser.parse_args(argv)
    check_writable(args.output)
    said = (_to_int8 if Path(args.output).suffix == SUFFIX else _to_program)(args)
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.1f} MB, {said}")


if __name__ == "__main__":
    sys.exit(main())
