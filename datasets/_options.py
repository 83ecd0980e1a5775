"""Options that both preparations of a set have."""

from __future__ import annotations

import argparse

from ctmasknet.ct.scan import Window
from ctmasknet.data.bad_slices import BAD_SLICE_MODES, REPORT


def add_patients(parser: argparse.ArgumentParser, own_names: str) -> None:
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


def add_reading(parser: argparse.ArgumentParser) -> None:
    """How CT files are read."""
    add = parser.add_argument
    add(
        "--window",
        metavar="CENTER,WIDTH",
        help="HU window of DICOM and NIfTI volumes; default: "
        f"{Window.center_hu:g},{Window.width_hu:g}",
    )
    add(
        "--rescale",
        metavar="SLOPE,INTERCEPT",
        help="slope and intercept to HU of pictures of more than 8 bits, DICOM without rescale and "
        "volumes not in HU; grey: their values are grey levels 0..255",
    )
    add(
        "--axes",
        metavar="ORDER",
        help="axes of .npy and .npz: zyx for slices, rows, columns; ct:zyx for the array ct",
    )
    add(
        "--all-series",
        action="store_true",
        help="of a study with several DICOM series (lung and soft kernel, thick and thin) take "
        "all; default: the one that counts, see docs/data.md",
    )
    add("--every", type=int, default=1, metavar="K", help="take every K-th slice of a volume")


def add_run(parser: argparse.ArgumentParser, workers: int) -> None:
    """Where the set goes, and what becomes of bad files. ``workers``: as many as are usual."""
    add = parser.add_argument
    add(
        "--bad",
        choices=BAD_SLICE_MODES,
        default="error",
        help=f"what to do with a slice or volume that cannot be read: end with an error, or leave "
        f"it out and list it in {REPORT} beside the set; default: %(default)s",
    )
    add(
        "--max-bad-share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="with --bad skip: nothing is prepared, and the exit code is 2, if more than this "
        "share of the files was bad; default: %(default)s",
    )
    add(
        "--output-root",
        metavar="DIR",
        help="root of the prepared data sets; default: $DETECTRON2_DATASETS, else ./datasets",
    )
    add("--seed", type=int, default=0, help="of everything drawn at random; default: %(default)s")
    add("--workers", type=int, default=workers, help="processes; default: %(default)s")
