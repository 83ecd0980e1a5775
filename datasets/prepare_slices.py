"""Prepare classified slices: COVIDx-CT, or a set whose folders are its classes (see README.md)."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from ctmasknet.ct.scan import parse_window
from ctmasknet.data.prepared import datasets_root
from ctmasknet.data.splits import parse_shares
from ctmasknet.errors import command_line
from ctmasknet.overrides import ToolParser
from ctmasknet.prepare.arguments import (
    parse_assignments,
    parse_class_folders,
    parse_columns,
    parse_grey_window,
    parse_samples,
    show_warnings,
)
from ctmasknet.prepare.class_lists import parse_class_lists
from ctmasknet.prepare.slices import prepare_slices, slice_table

_OPTIONS = runpy.run_path(str(Path(__file__).with_name("_options.py")))


def parser() -> ToolParser:
    p = ToolParser(description=__doc__)
    p.add_argument("--images", metavar="DIR", help="folder of the images")
    p.add_argument(
        "--list",
        action="append",
        default=[],
        metavar="SPLIT=FILE",
        help="list of one split (train, val, test); repeat for each",
    )
    p.add_argument(
        "--source",
        metavar="DIR",
        help="without --list: folder with {train,val,test}_COVIDx_CT.txt and the images in "
        "images/, 2A_images/, 3A_images/ or beside the lists (default: OUTPUT_ROOT/NAME)",
    )
    p.add_argument(
        "--metadata",
        metavar="CSV",
        help="with lists: what is known of the patients (patient id, source, country, sex, age, "
        "...); none: nothing (default: metadata.csv beside lists or images, where it is)",
    )
    p.add_argument(
        "--exclude",
        metavar="FILE",
        help="with lists: leave out CNCB's scans that it names, lines 'class scan'",
    )
    p.add_argument(
        "--only-slices",
        metavar="CSV",
        help="with lists: of the classes in its column imgpath take these slices only, such as "
        "CNCB's lesions_slices.csv",
    )
    p.add_argument(
        "--class-folder",
        action="append",
        default=[],
        metavar="CLASS=DIR[,DIR]",
        help="instead of lists: the folders below --images that hold a class; repeat for each, "
        "the order is that of the labels",
    )
    p.add_argument(
        "--class-list",
        action="append",
        default=[],
        metavar="[[SPLIT:]CLASS=]FILE",
        help="instead of lists: names alone of a class, below --images; covid.txt is of the class "
        "covid; train:covid=FILE is of one split (with --class-folder, --list does that)",
    )
    p.add_argument(
        "--split",
        metavar="SHARES",
        help="with --class-folder, --class-list or --volume-list: shares of the patients, such as "
        "train:0.6,val:0.2,test:0.2",
    )
    _OPTIONS["add_patients"](p, "COVIDx-CT")
    p.add_argument(
        "--sample",
        action="append",
        default=[],
        metavar="SPLIT=K",
        help="draw K slices of every class; repeat for each split",
    )
    p.add_argument(
        "--per-class",
        type=int,
        metavar="K",
        help="at most K slices of a class in every other split",
    )
    p.add_argument(
        "--grey-window",
        metavar="LOW,HIGH",
        help="write copies whose 8-bit grey levels LOW..HIGH are stretched to 0..255",
    )
    p.add_argument(
        "--volume-list",
        metavar="CSV",
        help="instead of lists: columns path,class and, where known, patient,scan,split; a path "
        "(below --images, else beside the list) is a NIfTI volume, a DICOM file or folder, or "
        "pictures",
    )
    p.add_argument(
        "--columns",
        metavar="OURS=THEIRS",
        help="with --volume-list: what it calls its columns, such as path=file,class=finding",
    )
    p.add_argument(
        "--classes",
        metavar="A,B",
        help="with --volume-list: the classes in the order of the labels "
        "(default: normal,pneumonia,covid where any row is of one of these, else those of "
        "the rows)",
    )
    _OPTIONS["add_reading"](p)
    p.add_argument(
        "--verify",
        action="store_true",
        help="decode every image, to find those that are truncated or damaged inside; without it "
        "only headers are read",
    )
    p.add_argument("--name", default="covidx_ct", help="name of the set (default: covidx_ct)")
    _OPTIONS["add_run"](p)
    return p


@command_line
def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    show_warnings()
    root = datasets_root(args.output_root)
    summary = prepare_slices(
        root,
        args.name,
        images=args.images,
        source=args.source,
        lists=parse_assignments(args.list, "list"),
        class_folders=parse_class_folders(args.class_folder),
        class_lists=parse_class_lists(args.class_list),
        shares=parse_shares(args.split) if args.split else None,
        patient_pattern=args.patient_pattern or None,
        sample=parse_samples(args.sample),
        per_class=args.per_class,
        grey_window=parse_grey_window(args.grey_window) if args.grey_window else None,
        verify=args.verify,
        workers=args.workers,
        volume_list=args.volume_list,
        classes=[name.strip() for name in args.classes.split(",")] if args.classes else None,
        columns=parse_columns(args.columns),
        window=parse_window(args.window) if args.window else None,
        every=args.every,
        one_series=not args.all_series,
        **_OPTIONS["values_of"](args),
        **_OPTIONS["run_of"](args, root),
        metadata=args.metadata,
        exclude=args.exclude,
        only_slices=args.only_slices,
    )
    print(slice_table(summary["splits"]))
    names = ", ".join(f"{args.name}_{split}" for split in summary["splits"])
    if unlisted := summary["unlisted_images"]:
        where = ", or on it and not taken," if summary["excluded_slices"] else ""
        print(f"{unlisted} images are on no list{where} and were left out")
    if excluded := summary["excluded_slices"]:
        print(f"{excluded} listed slices were left out, as `exclude` or `only_slices` say")
    print(f"classes: {', '.join(summary['classes'])}")
    print(f"registered as: {names} (below {root})")


if __name__ == "__main__":
    sys.exit(main())
