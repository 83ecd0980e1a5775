"""Make synthetic chest-CT patients in the raw layouts of the lesion set and of COVIDx-CT."""

from __future__ import annotations

import argparse
import sys

from tabulate import tabulate

from ctmasknet.errors import command_line
from ctmasknet.overrides import ToolParser
from ctmasknet.phantom.write import (
    check_phantom_lesions,
    write_phantom_lesions,
    write_phantom_slices,
)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ToolParser(description=__doc__)
    parser.add("output", required=True, help="folder that gets the two trees")
    parser.add("seed", help="another seed gives other patients (default: %(default)s)")
    for name, default, what in (
        ("side", 256, "height and width of a slice, px"),
        ("lesion-patients", 40, "COVID patients with masks"),
        ("lesion-slices", 8, "slices of each of them"),
        ("train-patients", 60, "of each class"),
        ("val-patients", 12, "of each class"),
        ("test-patients", 24, "of each class"),
        ("slices", 6, "slices of each patient of the lists"),
    ):
        what = f"{what} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=what)
    parser.add("workers")
    parser.add_argument("--with-masks", action="store_true", help="keep masks of the listed slices")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser.parse_args(argv)


@command_line
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    common = {
        "seed": args.seed,
        "side_px": args.side,
        "workers": args.workers,
        "overwrite": args.overwrite,
    }
    masked = {"patients": args.lesion_patients, "slices": args.lesion_slices}
    check_phantom_lesions(seed=args.seed, **masked)
    slices = write_phantom_slices(
        args.output,
        patients={
            "train": args.train_patients,
            "val": args.val_patients,
            "test": args.test_patients,
        },
        slices=args.slices,
        with_masks=args.with_masks,
        **common,
    )
    lesions = write_phantom_lesions(args.output, **masked, **common)
    rows = [("lesions", lesions["patients"], lesions["slices"])]
    rows += [(n, s["patients"], s["slices"]) for n, s in slices["splits"].items()]
    rows = [(n, p, *(s.values() if isinstance(s, dict) else ("", "", s))) for n, p, s in rows]
    print(tabulate(rows, headers=["list", "patients", "normal", "pneumonia", "covid"]))
    print(f"lesion slices without a lesion: {lesions['slices_without_lesion']}")
    pixels = [
        (name, *s["label_px"].values()) for name, s in (("lesions", lesions), ("lists", slices))
    ]
    print(tabulate(pixels, headers=["px of label", *lesions["label_px"]], intfmt=","))


if __name__ == "__main__":
    sys.exit(main())
