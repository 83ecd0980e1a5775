"""What ``tools/explain.py`` does with its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ctmasknet.data.ct_io import CTSlice, read_scans
from ctmasknet.data.datasets import dataset_dicts
from ctmasknet.data.window import Window
from ctmasknet.engine.checkpoint import is_classifier
from ctmasknet.engine.setup import load_model
from ctmasknet.errors import CTMaskNetError
from ctmasknet.explain.attribution import check_method
from ctmasknet.explain.slices import ATTRIBUTIONS, explain_slices
from ctmasknet.gallery import model_cfg, pick, same_classes, writable_folder
from ctmasknet.modeling.inference import inference_model
from ctmasknet.predict.setup import prediction_cfg


def explain_from_command_line(args: argparse.Namespace) -> int:
    """Explain the slices of a data set or of files; called in every process of the run.

    Args:
        args: ``config_file`` and ``opts`` (see :func:`ctmasknet.engine.setup.setup_cfg`; for
            ``input`` see :func:`ctmasknet.predict.setup.prediction_cfg`), one of ``dataset``
            (registered name) and ``input`` (whatever :func:`ctmasknet.data.ct_io.read_scans`
            reads), ``output`` (folder), ``limit`` (slices; None for all), ``seed`` (None: evenly
            spread), ``method``, ``hidden``, ``target`` (class; None for the predicted one),
            ``boxes`` (drawn at most), ``pictures`` (bool).

    Returns:
        The number of slices.

    Raises:
        CTMaskNetError: contradicting arguments, no classifier, no image, an unreadable one, an
            output folder that cannot be written, or what :func:`setup_cfg`, :func:`prediction_cfg`,
            :func:`load_model` and :func:`explain_slices` raise.
    """
    if bool(args.dataset) == bool(args.input):
        raise CTMaskNetError("give either --dataset NAME or --input FILE_OR_FOLDER")
    if args.boxes < 1:
        raise CTMaskNetError(f"--boxes: {args.boxes} is not a number of boxes; give 1 or more")
    check_method(args.method, args.hidden)
    entries, found = _entries(args)
    entries = [entries[index] for index in pick(len(entries), args.limit, args.seed)]
    cfg = _cfg(args)
    if not is_classifier(cfg):
        raise CTMaskNetError(
            f"{args.config_file}: a lesion detector has no decision on the slice; give a "
            "classifier's configuration such as configs/cls.yaml"
        )
    if args.dataset:
        classes = list(MetadataCatalog.get(args.dataset).get("image_classes", ()))
        same_classes(args.dataset, "slice", classes, cfg.MODEL.IMAGE_HEAD.CLASSES)
    class_names = list(cfg.MODEL.IMAGE_HEAD.CLASSES)
    if args.target is not None and args.target not in class_names:
        raise CTMaskNetError(
            f"--target: {args.target!r} is no class; choose one of {', '.join(class_names)}"
        )
    output = writable_folder(args.output)
    window = Window(cfg.INPUT.WINDOW_CENTER_HU, cfg.INPUT.WINDOW_WIDTH_HU)
    count = explain_slices(
        inference_model(cfg, load_model(cfg)),
        cfg,
        entries,
        output,
        method=args.method,
        hidden=args.hidden,
        target=args.target,
        most=args.boxes,
        pictures=args.pictures,
        read=(lambda entry: found[entry["file_name"]].pixels(window)) if found else None,
    )
    if comm.is_main_process():
        made = f"{ATTRIBUTIONS}{' and pictures' if args.pictures else ''}"
        print(f"{made} of {count} slices in {args.output}")
    return count


def _cfg(args: argparse.Namespace) -> CfgNode:
    """Classes are the data set's, and those of the weights for files, which need no data set."""
    if args.dataset:
        return model_cfg(args)
    return prediction_cfg(args.config_file, args.opts)[0]


def _entries(
    args: argparse.Namespace,
) -> tuple[list[dict[str, Any]], dict[str, CTSlice]]:
    """Dataset dicts, and the slices of ``--input`` by name."""
    if args.dataset:
        return dataset_dicts(args.dataset), {}
    found = {item.name: item for scan in read_scans(args.input) for item in scan.slices}
    entries = [
        {"file_name": name, "image_id": name, "patient": item.patient, "scan": item.scan}
        for name, item in found.items()
    ]
    return entries, found
