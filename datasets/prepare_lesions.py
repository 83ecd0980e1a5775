#!/usr/bin/env python
"""CT slices with label masks, or with a COCO json -> COCO annotations of lesions, split by patient.

    python datasets/prepare_lesions.py --source CNCB --list train=train.txt --list val=test.txt

reads CNCB/image and CNCB/mask and writes $DETECTRON2_DATASETS/cncb_lesions/annotations/<mask
type>_<split>.json.

    python datasets/prepare_lesions.py --coco instances.json --images pictures --name mine

takes the categories of a COCO json as CVAT, Label Studio or a hand wrote it, and registers
mine_lesions_train and mine_lesions_val.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from ctmasknet.classes import MASK_LABELS, MASK_TYPES
from ctmasknet.ct.scan import Window, parse_window
from ctmasknet.data.label_masks import Orientation, supported_mask_types
from ctmasknet.data.prepared import datasets_root, set_folder
from ctmasknet.data.splits import SPLITS, parse_shares, read_folds, split_named
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.names import PatientRule, read_groups
from ctmasknet.overrides import ToolParser
from ctmasknet.prepare.annotated import annotated_table, prepare_annotated
from ctmasknet.prepare.arguments import (
    mask_options,
    parse_assignments,
    parse_columns,
    parse_segments,
    parse_split_files,
    show_warnings,
)
from ctmasknet.prepare.lesions import lesion_table, prepare_lesions
from ctmasknet.prepare.masks_to_coco import MIN_AREA_PX, Conversion
from ctmasknet.prepare.pairs import source_folders
from ctmasknet.prepare.pairs.stated import UNLABELLED

_OPTIONS = runpy.run_path(str(Path(__file__).with_name("_options.py")))
_SHARES = "train:0.8,val:0.2"
#: What --coco goes together with.
_OF_COCO = (
    *("coco", "classes", "crowds", "images", "output_root", "name", "patient_pattern", "groups"),
    *("patients", "split_like", "patient_ids", "split", "strict", "seed", "workers"),
    *("bad", "max_bad_share"),
)


def parser() -> ToolParser:
    p = ToolParser(description=__doc__)
    p.add_argument(
        "--source", type=Path, help="folder with image/ and mask/ (or images/ and masks/)"
    )
    p.add_argument(
        "--coco",
        action="append",
        default=[],
        metavar="[SPLIT=]FILE",
        help="instead of masks: COCO json of the lesions of the pictures in --images, with any "
        "categories; one file to split, or SPLIT=FILE for each; read by one process",
    )
    p.add_argument(
        "--classes",
        metavar="A,B",
        help="with --coco: its categories in the order to take them; default: those that are used",
    )
    p.add_argument(
        "--crowds",
        choices=["crowd", "lesion"],
        default="crowd",
        help="with --coco: what an annotation with iscrowd 1 is; CVAT writes so what was drawn "
        "with its brush; default: %(default)s",
    )
    p.add_argument("--images", type=Path, help="image folder, instead of the one in --source")
    p.add_argument("--masks", type=Path, help="mask folder, instead of the one in --source")
    p.add_argument(
        "--name", default="cncb_lesions", help="folder below the root; default: %(default)s"
    )
    p.add_argument(
        "--mask-type",
        nargs="+",
        choices=list(MASK_TYPES),
        help="mask types to write; default: all that the labels allow",
    )
    p.add_argument(
        "--labels",
        help="meaning of the mask values; default: "
        + ",".join(f"{value}:{name}" for value, name in MASK_LABELS.items()),
    )
    p.add_argument(
        "--min-area-px",
        type=int,
        default=MIN_AREA_PX,
        help="components of this area or less are dropped; default: %(default)s",
    )
    p.add_argument(
        "--transpose", action="store_true", help="rows and columns are exchanged on disk"
    )
    p.add_argument(
        "--flip",
        nargs="+",
        choices=["vertical", "horizontal"],
        default=[],
        help="mirror after transposing; the result must be spine down, patient's right on the left",
    )
    p.add_argument(
        "--pairs",
        metavar="CSV|TEMPLATE",
        help="which mask is whose: a CSV file image,mask, or a template such as "
        "'{case}/ct.nii.gz={case}/seg.nii.gz'; paths are relative to the two folders; default: "
        "names tell",
    )
    p.add_argument(
        "--columns",
        metavar="OURS=THEIRS",
        help="with a CSV of --pairs or --folds: what it calls its columns, such as image=scan,"
        "mask=label map or stem=id,fold=side",
    )
    p.add_argument(
        "--unlabelled",
        choices=UNLABELLED,
        default="error",
        help="what images without a mask are: an error, left out, or free of lesions; "
        "default: %(default)s",
    )
    p.add_argument(
        "--mask-classes",
        metavar="A,B",
        help="each mask is of one class, which the ending of its name (case_ggo.png), its name "
        "(case/ggo.nii.gz) or a folder (ggo/case.png) says; A=WORD where names say another word",
    )
    p.add_argument(
        "--colors",
        metavar="TABLE|CSV",
        help="masks are pictures whose colours are classes: '#ff0000:ggo,#0000ff:consolidation', "
        "or a CSV file color,class; black is background",
    )
    p.add_argument(
        "--instances",
        metavar="CSV",
        help="each mask value is one lesion, whose class this file gives: value,class, or "
        "image,value,class",
    )
    _OPTIONS["add_patients"](p, "the CNCB lesion set")
    p.add_argument("--groups", type=Path, help="CSV file stem,patient; goes before the other rules")
    p.add_argument(
        "--patients",
        choices=["name", "each-file"],
        default="name",
        help="name: CNCB names; each-file: each file its own patient; default: %(default)s",
    )
    p.add_argument(
        "--split", help="shares of a seeded split by patient; default: train:0.8,val:0.2"
    )
    p.add_argument(
        "--list", action="append", default=[], metavar="SPLIT=FILE", help="list file of a split"
    )
    p.add_argument(
        "--folds",
        metavar="CSV",
        help="CSV file stem,fold instead of lists, for one fold of a cross-validation: --test-fold "
        "is the test split, --val-fold for validation, the others for training",
    )
    p.add_argument("--test-fold", metavar="FOLD", help="with --folds: the fold to test on")
    p.add_argument(
        "--val-fold", metavar="FOLD", help="with --folds: the fold to validate on; default: none"
    )
    _OPTIONS["add_reading"](p)
    p.add_argument(
        "--segment",
        action="append",
        default=[],
        metavar="NAME=LABEL",
        help="label of a DICOM-SEG's segment, by its number, label or coded meaning; repeat for "
        "each whose name does not tell",
    )
    p.add_argument(
        "--keep-empty",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of a volume's slices without a lesion that is kept, evenly spread; "
        "default: %(default)s",
    )
    _OPTIONS["add_run"](p)
    return p


@command_line
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    show_warnings()
    lists = parse_assignments(args.list, "list")
    given = [name for name in ("split", "list", "folds") if getattr(args, name)]
    if len(given) > 1:
        raise CTMaskNetError(f"`{given[0]}` and `{given[1]}`: give one of the two")
    columns = parse_columns(args.columns)
    if args.folds:
        if args.test_fold is None:
            raise CTMaskNetError("`folds`: needs the one to test on, `test_fold`")
        of_folds = {name: columns.pop(name) for name in ("stem", "fold") if name in columns}
        lists = read_folds(args.folds, args.test_fold, args.val_fold, of_folds)
    elif args.test_fold is not None or args.val_fold is not None:
        raise CTMaskNetError("`test_fold` and `val_fold`: go with `folds`; leave them out")
    root = datasets_root(args.output_root)
    output = set_folder(root, args.name)
    rule = PatientRule(
        pattern=args.patient_pattern,
        each_file=args.patients == "each-file",
        groups=read_groups(args.groups) if args.groups else {},
    )
    if args.coco:
        _prepare_coco(args, rule, output)
        return
    for name in ("classes", "crowds"):
        if getattr(args, name) != parser().get_default(name):
            raise CTMaskNetError(f"`{name}`: goes with `coco`; leave it out")
    labels, pairing, masks_hold = mask_options(args, columns)
    images, masks = source_folders(args.source, args.images, args.masks)
    summaries = prepare_lesions(
        images,
        masks,
        output,
        rule=rule,
        how=Conversion(
            labels=labels,
            **masks_hold,
            mask_types=tuple(args.mask_type or supported_mask_types(labels)),
            min_area_px=args.min_area_px,
            orientation=Orientation(
                args.transpose, "vertical" in args.flip, "horizontal" in args.flip
            ),
            window=parse_window(args.window) if args.window else Window(),
            **_OPTIONS["values_of"](args),
            segments=parse_segments(args.segment),
            every=args.every,
            keep_empty=args.keep_empty,
        ),
        shares=None if lists else parse_shares(args.split or _SHARES),
        lists=lists or None,
        **_OPTIONS["run_of"](args, root),
        workers=args.workers,
        pairing=pairing,
        one_series=not args.all_series,
    )
    print(lesion_table(summaries))
    unlisted = next(iter(summaries.values()))["unlisted_images"]
    if unlisted:
        print(f"{unlisted} images are on no list and were left out")
    names = [
        f"{args.name}_{kind}_{split}" for kind in summaries for split in summaries[kind]["splits"]
    ]
    print(f"registered as: {', '.join(names)} (below {root})")


def _prepare_coco(args: argparse.Namespace, rule: PatientRule, output: Path) -> None:
    usual = parser()
    for name, value in vars(args).items():
        if name not in _OF_COCO and value != usual.get_default(name):
            raise CTMaskNetError(f"`{name}`: does not go together with `coco`; leave it out")
    if args.images is None:
        raise CTMaskNetError("`coco`: needs the folder of its pictures, `images` DIR")
    files = {"": args.coco[0]}
    if len(args.coco) > 1 or split_named(args.coco[0].partition("=")[0]) in SPLITS:
        files = parse_split_files(args.coco, "coco")
        if args.split:
            raise CTMaskNetError("`split`: the files state their split themselves; leave it out")
    counts = prepare_annotated(
        files,
        args.images,
        output,
        rule=rule,
        shares=parse_shares(args.split or _SHARES) if "" in files else None,
        classes=args.classes.split(",") if args.classes else None,
        crowds_are_lesions=args.crowds == "lesion",
        **_OPTIONS["run_of"](args, output.parent),
    )
    print(annotated_table(counts))
    names = ", ".join(f"{args.name}_lesions_{split}" for split in counts)
    print(f"registered as: {names} (below {output.parent})")


if __name__ == "__main__":
    sys.exit(main())
