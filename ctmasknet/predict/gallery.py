"""A folder of pictures: slices of a data set or of files, with what a model finds in them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ctmasknet.config import is_classifier
from ctmasknet.config_file import read_cfg
from ctmasknet.console.progress import tracked
from ctmasknet.console.verbosity import verbosity
from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.data.mapper import task_mapper, training_mapper
from ctmasknet.data.registry import dataset_dicts, register_prepared
from ctmasknet.data.training.recipe import what_changes_pictures, without_augmentation
from ctmasknet.draw.augmented import augmented_page
from ctmasknet.draw.canvas import as_rgb
from ctmasknet.draw.lesions import check_score_threshold, side_by_side
from ctmasknet.draw.pages import contact_sheet, write_picture
from ctmasknet.engine.setup import inference_cfg
from ctmasknet.engine.train_data import SeededMapping
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import check_writable
from ctmasknet.predict.predictor import CTPredictor
from ctmasknet.predict.shown import (
    ShownSlices,
    pick,
    read_entry,
    same_classes,
    slice_call,
    slice_title,
    writable_folder,
)

CONTACT_SHEET = "contact_sheet.png"
#: The contact sheet shows at most so many pictures, each reduced to so many px across.
_SHEET_PICTURES, _SHEET_COLUMNS, _SHEET_CELL_PX = 24, 3, 800


def draw_from_command_line(args: argparse.Namespace) -> list[Path]:
    """What ``tools/visualize.py`` does with its arguments.

    Args:
        args: ``config_file``, ``opts`` and ``weights`` (see
            :func:`ctmasknet.engine.setup.inference_cfg`), one of ``dataset`` (registered name) and
            ``input`` (files and folders of any depth), ``rescale`` (text, for ``input``; None for
            none), ``output`` (folder), ``limit`` (pictures;
            None for all), ``seed`` (None: evenly spread), ``score_threshold`` (0..1),
            ``ground_truth_only``; ``augmented``: training samples beside their originals, of
            ``dataset`` or DATASETS.TRAIN, drawn by ``seed`` (None: SEED, or 0), without a model.

    Returns:
        The pictures in order; the contact sheet stands beside them.

    Raises:
        CTMaskNetError: contradicting arguments, no slice, an unreadable one, an output folder that
            cannot be written, or what :func:`inference_cfg` and :class:`CTPredictor` raise.
    """
    if args.augmented:
        return _draw_augmented(args)
    if args.input and args.ground_truth_only:
        raise CTMaskNetError("`ground_truth_only`: files have no ground truth; give `dataset` NAME")
    check_score_threshold(args.score_threshold)
    check_writable(args.output, folder=True)
    shown = ShownSlices.from_arguments(args)
    metadata = MetadataCatalog.get(args.dataset) if args.dataset else None
    lesion_classes = list(metadata.get("thing_classes", ())) if metadata else []
    image_classes = list(metadata.get("image_classes", ())) if metadata else []
    cfg = None if args.ground_truth_only else model_cfg(args)
    if cfg is not None:
        lesion_classes = same_classes(
            args.dataset, "lesion", lesion_classes, cfg.MODEL.LESION_CLASSES
        )
        if is_classifier(cfg):
            image_classes = same_classes(
                args.dataset, "slice", image_classes, cfg.MODEL.IMAGE_HEAD.CLASSES
            )
    # Made once all else is known to be right, and tried before the model is loaded
    output = writable_folder(args.output, shown.entries, shown.sources)
    if cfg is not None and verbosity() != "quiet":
        print(f"Loading from {cfg.MODEL.WEIGHTS}", file=sys.stderr, flush=True)
    predictor = None if cfg is None else CTPredictor(cfg, lesions=True)
    return draw_gallery(
        shown.entries,
        output,
        predictor=predictor,
        read=(lambda entry: shown.pixels(entry, predictor.window)) if predictor else read_entry,
        lesion_classes=lesion_classes,
        image_classes=image_classes,
        score_threshold=args.score_threshold,
    )


def draw_gallery(
    entries: Sequence[dict[str, Any]],
    output: str | os.PathLike,
    *,
    predictor: CTPredictor | None,
    lesion_classes: Sequence[str],
    image_classes: Sequence[str] = (),
    score_threshold: float = 0.75,
    read: Callable[[Mapping[str, Any]], np.ndarray] = read_entry,
) -> list[Path]:
    """Draw each slice with its ground truth and what ``predictor`` finds, and a contact sheet.

    Args:
        entries: dataset dicts; ``annotations`` and ``label`` are drawn where there are any.
        output: folder for ``001_<stem>.png``, ... and ``contact_sheet.png``; each file is written
            whole or not at all.
        predictor: a detector's, or a classifier's that finds lesions; None draws ground truth
            alone.
        lesion_classes: names of the lesion classes.
        image_classes: names of the slice classes.
        score_threshold: lesions have to score more (paper Figure 2: 0.75).
        read: gives an entry's px, (H, W) or (H, W, 3) uint8.

    Returns:
        The pictures in order.

    Raises:
        CTMaskNetError: an image is missing or unreadable, or a file cannot be written.
    """
    paths: list[Path] = []
    for_sheet: list[np.ndarray] = []
    for number, entry in enumerate(tracked(entries, "overlays"), start=1):
        pixels, item, found = read(entry), entry, {}
        if predictor is not None:
            item = predictor.mapped(entry, pixels)
            (found,) = predictor.predict([item])
            if getattr(predictor.model, "sees_scans", False):  # a slice alone has no class
                found = {"instances": found["instances"]}
        picture = side_by_side(
            as_rgb(pixels, item.get("crop_box")),
            entry.get("annotations"),
            found.get("instances"),
            class_names=lesion_classes,
            title=slice_title(entry),
            call=slice_call(entry, found, image_classes),
            score_threshold=score_threshold,
        )
        path = Path(output) / f"{number:03d}_{_stem(entry['file_name'])}.png"
        write_picture(path, picture)
        paths.append(path)
        if len(for_sheet) < _SHEET_PICTURES:
            for_sheet.append(picture)
    sheet = contact_sheet(for_sheet, _SHEET_COLUMNS, _SHEET_CELL_PX)
    write_picture(Path(output) / CONTACT_SHEET, sheet)
    return paths


def _draw_augmented(args: argparse.Namespace) -> list[Path]:
    """What the configuration's training makes of slices, each beside its original."""
    for name in ("input", "weights", "ground_truth_only"):
        if getattr(args, name):
            raise CTMaskNetError(
                f"`{name}`: has no effect with `augmented`, which shows a prepared set without a "
                "model; leave it out"
            )
    if not args.config_file:
        raise CTMaskNetError("`augmented`: give the training's configuration as `config_file`")
    check_writable(args.output, folder=True)
    cfg = read_cfg(args.config_file, args.opts)
    register_prepared()
    names = [args.dataset] if args.dataset else cfg.DATASETS.TRAIN
    entries = [entry for name in names for entry in dataset_dicts(name)]
    kind = "image_classes" if is_classifier(cfg) else "thing_classes"
    classes = MetadataCatalog.get(names[0]).get(kind) if names else None
    if not classes:
        raise CTMaskNetError(
            f"{', '.join(names) or 'DATASETS.TRAIN'}: has no classes for "
            f"{args.config_file} to learn; name a set of its task as `dataset`"
        )
    if not is_classifier(cfg) and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        entries = [entry for entry in entries if entry["annotations"]]
    seed = max(cfg.SEED, 0) if args.seed is None else args.seed
    chosen = [entries[index] for index in pick(len(entries), args.limit, args.seed)]
    if not chosen:
        raise CTMaskNetError(f"{', '.join(names)}: no slice to train on; prepare the set again")
    what = what_changes_pictures(cfg)
    header = "" if what else "this configuration augments nothing"
    plain = SeededMapping(chosen, task_mapper(without_augmentation(cfg), True), seed)
    drawn = SeededMapping(chosen, training_mapper(cfg), seed)
    output, paths, for_sheet = writable_folder(args.output, chosen), [], []
    for number, entry in enumerate(tracked(chosen, "augmented")):
        items = [mapping[(number, number)] for mapping in (plain, drawn)]
        for item in items:
            if isinstance(item, BadSlice):
                raise CTMaskNetError(f"{item.file}: {item.reason}")
        names_of = () if is_classifier(cfg) else classes
        shown = {"class_names": names_of, "title": slice_title(entry), "header": header}
        picture = augmented_page(*items, **shown)
        paths.append(output / f"{number + 1:03d}_{_stem(entry['file_name'])}.png")
        write_picture(paths[-1], picture)
        for_sheet.append(picture)
    sheet = contact_sheet(for_sheet[:_SHEET_PICTURES], _SHEET_COLUMNS, _SHEET_CELL_PX)
    write_picture(output / CONTACT_SHEET, sheet)
    return paths


def model_cfg(args: argparse.Namespace) -> CfgNode:
    """The model's configuration; a data set that is drawn and has classes of its task has to agree
    with it."""
    opts, checked = list(args.opts), False
    if args.dataset:
        register_prepared()
        if args.config_file:
            classifier = is_classifier(read_cfg(args.config_file, opts))
        else:
            classifier = is_classifier(inference_cfg("", opts, args.weights)[0])
        known = MetadataCatalog.get(args.dataset)
        checked = known.get("image_classes" if classifier else "thing_classes") is not None
    if checked and "DATASETS.TEST" not in opts:
        opts += ["DATASETS.TEST", f"({args.dataset!r},)"]
    return inference_cfg(args.config_file, opts, args.weights, test_sets=checked)[0]


def _stem(name: str) -> str:
    """A slice's name without folder and suffix; with both where its number stands behind them."""
    path = Path(name)
    return path.name.replace("#", "_") if "#" in path.suffix else path.stem
