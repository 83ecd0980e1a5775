"""Options that both preparations of a set have, and what they mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ctmasknet.ct.arrays import parse_axes
from ctmasknet.ct.scan import Window, parse_rescale
from ctmasknet.data.prepared import set_folder
from ctmasknet.overrides import ToolParser
from ctmasknet.prepare.arguments import bad_slices_from


def add_patients(parser: ToolParser, own_names: str) -> None:
    """Whose a file is. ``own_names``: the set whose names are known without any of these."""
    add = parser.add_argument
    add(
        "--patient-pattern",
        metavar="REGEX",
        help="finds the patient in a file's name by its group (?P<patient>...); also scan, slice",
    )
    add(
        "--split-like",
        metavar="NAME",
        help="with --split: patients whom this prepared set has too, under the same --patient-ids, "
        "stay in the split that it has them in",
    )
    add(
        "--patient-ids",
        metavar="NAME",
        help="name of the numbering that the patients are of: ids are compared with those of "
        f"another set under the same name (default: that of {own_names} for its names, else none)",
    )
    add(
        "--strict",
        action="store_true",
        help="refuse patients that may be one, spelled otherwise (7 and 007), instead of a warning",
    )


def add_reading(parser: ToolParser) -> None:
    """How CT files are read."""
    add = parser.add_argument
    add(
        "--window",
        metavar="CENTER,WIDTH",
        help="HU window of DICOM and NIfTI volumes; default: "
        f"{Window.center_hu:g},{Window.width_hu:g}",
    )
    parser.add("rescale")
    parser.add("axes")
    add(
        "--all-series",
        action="store_true",
        help="of a study with several DICOM series (lung and soft kernel, thick and thin) take "
        "all; default: the one that counts, see docs/data.md",
    )
    add("--every", type=int, default=1, metavar="K", help="take every K-th slice of a volume")


def add_run(parser: ToolParser) -> None:
    """Where the set goes, and what becomes of bad files."""
    for name in ("bad", "max_bad_share"):
        parser.add(name)
    parser.add_argument(
        "--output-root",
        metavar="DIR",
        help="root of the prepared data sets; default: $DETECTRON2_DATASETS, else ./datasets",
    )
    parser.add("seed")
    parser.add("workers")


def values_of(args: argparse.Namespace) -> dict[str, Any]:
    """How the values of files are taken, as :func:`ctmasknet.ct.read.read_scans` wants it."""
    return {
        "rescale": parse_rescale(args.rescale) if args.rescale is not None else None,
        "axes": parse_axes(args.axes) if args.axes is not None else None,
    }


def run_of(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """What all preparations below ``root`` take alike."""
    return {
        "seed": args.seed,
        "patient_ids": args.patient_ids,
        "split_like": set_folder(root, args.split_like) if args.split_like else None,
        "strict": args.strict,
        "bad": bad_slices_from(args),
    }
