"""A folder of pictures: slices of a data set or of files, with what a model finds in them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from PIL import Image
from tqdm import tqdm

from ctmasknet.ct.find import natural_key
from ctmasknet.ct.pictures import IMAGE_SUFFIXES, read_rgb
from ctmasknet.data.mapper import LesionMapper, SliceMapper
from ctmasknet.data.registry import dataset_dicts, register_prepared
from ctmasknet.draw.lesions import SliceCall, check_score_threshold, contact_sheet, side_by_side
from ctmasknet.engine.checkpoint import is_classifier
from ctmasknet.engine.setup import load_model, read_cfg, setup_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write, writing
from ctmasknet.modeling.fast.inference import inference_model

CONTACT_SHEET = "contact_sheet.png"
#: The contact sheet shows at most so many pictures, each reduced to so many px across.
_SHEET_PICTURES, _SHEET_COLUMNS, _SHEET_CELL_PX = 24, 3, 800
#: A dataset dict -> the model's input and its output for it.
Predictor = Callable[[dict[str, Any]], tuple[Mapping[str, Any], Mapping[str, Any]]]


def draw_from_command_line(args: argparse.Namespace) -> list[Path]:
    """What ``tools/visualize.py`` does with its arguments.

    Args:
        args: ``config_file`` and ``opts`` (see :func:`ctmasknet.engine.setup.setup_cfg`), one of
            ``dataset`` (registered name) and ``input`` (files and folders), ``output`` (folder),
            ``limit`` (pictures; None for all), ``seed`` (None: evenly spread), ``score_threshold``
            (0..1), ``ground_truth_only``.

    Returns:
        The pictures in order; the contact sheet stands beside them.

    Raises:
        CTMaskNetError: contradicting arguments, no image, an unreadable one, an output folder that
            cannot be written, or what :func:`setup_cfg` and :func:`load_model` raise.
    """
    if bool(args.dataset) == bool(args.input):
        raise CTMaskNetError("give either --dataset NAME or --input FILE_OR_FOLDER")
    if args.input and args.ground_truth_only:
        raise CTMaskNetError("--ground-truth-only: files have no ground truth; give --dataset NAME")
    check_score_threshold(args.score_threshold)
    if args.dataset:
        entries, metadata = dataset_dicts(args.dataset), MetadataCatalog.get(args.dataset)
    else:
        entries, metadata = image_entries(args.input), None
    entries = [entries[index] for index in pick(len(entries), args.limit, args.seed)]
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
    output = writable_folder(args.output)
    return draw_gallery(
        entries,
        output,
        predict=None if cfg is None else build_predictor(cfg),
        lesion_classes=lesion_classes,
        image_classes=image_classes,
        score_threshold=args.score_threshold,
    )


def draw_gallery(
    entries: Sequence[dict[str, Any]],
    output: str | os.PathLike,
    *,
    predict: Predictor | None,
    lesion_classes: Sequence[str],
    image_classes: Sequence[str] = (),
    score_threshold: float = 0.75,
) -> list[Path]:
    """Draw each slice with its ground truth and what ``predict`` finds, and a contact sheet.

    Args:
        entries: dataset dicts; ``annotations`` and ``label`` are drawn where there are any.
        output: folder for ``001_<stem>.png``, ... and ``contact_sheet.png``; each file is written
            whole or not at all.
        predict: None draws ground truth alone.
        lesion_classes: names of the lesion classes.
        image_classes: names of the slice classes.
        score_threshold: lesions have to score more (paper Figure 2: 0.75).

    Returns:
        The pictures in order.

    Raises:
        CTMaskNetError: an image is missing or unreadable, or a file cannot be written.
    """
    paths: list[Path] = []
    for_sheet: list[np.ndarray] = []
    for number, entry in enumerate(tqdm(entries, desc="overlays", unit="slice"), start=1):
        item, found = predict(entry) if predict else (entry, {})
        picture = side_by_side(
            _as_seen(read_rgb(entry["file_name"]), item.get("crop_box")),
            entry.get("annotations"),
            found.get("instances"),
            class_names=lesion_classes,
            title=slice_title(entry),
            call=slice_call(entry, found, image_classes),
            score_threshold=score_threshold,
        )
        path = Path(output) / f"{number:03d}_{Path(entry['file_name']).stem}.png"
        write_png(path, picture)
        paths.append(path)
        if len(for_sheet) < _SHEET_PICTURES:
            for_sheet.append(picture)
    sheet = contact_sheet(for_sheet, _SHEET_COLUMNS, _SHEET_CELL_PX)
    write_png(Path(output) / CONTACT_SHEET, sheet)
    return paths


def build_predictor(cfg: CfgNode) -> Predictor:
    """Load the model of a detector's or a classifier's configuration; both give ``instances``."""
    model = load_model(cfg)
    if is_classifier(cfg):
        model.return_instances = True
    model = inference_model(cfg, model)
    mapper = (SliceMapper if is_classifier(cfg) else LesionMapper)(cfg, is_train=False)

    def predict(entry: dict[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        item = mapper(entry)
        with torch.no_grad():
            return item, model([item])[0]

    return predict


def image_entries(inputs: Sequence[str | os.PathLike]) -> list[dict[str, Any]]:
    """Dataset dicts of files, and of the pictures that lie directly in folders, in natural order
    (``slice_9.png`` before ``slice_10.png``). In folders, names that begin with a dot are passed
    over.

    Raises:
        CTMaskNetError: a path that does not exist, or a folder without pictures.
    """
    entries = []
    for given in map(Path, inputs):
        if given.is_dir():
            try:
                found = list(given.iterdir())
            except OSError as error:
                raise CTMaskNetError(
                    f"{given}: cannot be listed ({error.strerror}); check its permissions"
                ) from error
            files = [
                path
                for path in sorted(found, key=lambda path: natural_key(path.name))
                if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."
            ]
            if not files:
                raise CTMaskNetError(
                    f"{given}: no image in this folder; it must hold {', '.join(IMAGE_SUFFIXES)} "
                    "files (folders inside it are not searched)"
                )
        elif given.is_file():
            files = [given]
        else:
            raise CTMaskNetError(f"{given}: no such file or folder; correct --input")
        entries += [{"file_name": str(path)} for path in files]
    return entries


def pick(count: int, limit: int | None, seed: int | None) -> list[int]:
    """Indices, rising, of at most ``limit`` of ``count`` slices.

    With a seed they are a random choice, without one they are spread evenly, so that a data set
    sorted by patient shows many patients.
    """
    if limit is not None and limit < 1:
        raise CTMaskNetError(f"--limit: {limit} is not a number of pictures; give 1 or more")
    if limit is None or limit >= count:
        return list(range(count))
    if seed is None:
        return [index * count // limit for index in range(limit)]
    return sorted(np.random.default_rng(seed).choice(count, limit, replace=False).tolist())


def writable_folder(path: str | os.PathLike) -> Path:
    """Make the folder where needed; found out before a model is loaded and run.

    Raises:
        CTMaskNetError: it is a file, or cannot be made or written to.
    """
    path = Path(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise CTMaskNetError(f"{path}: no permission to write here; choose another --output")
    return path


def model_cfg(args: argparse.Namespace) -> CfgNode:
    """``setup_cfg``, with the data set that is drawn as the one that names the classes."""
    opts = list(args.opts)
    if args.dataset and "DATASETS.TEST" not in opts:
        register_prepared()
        task = "image_classes" if is_classifier(read_cfg(args.config_file, opts)) else None
        if MetadataCatalog.get(args.dataset).get(task or "thing_classes") is not None:
            opts += ["DATASETS.TEST", f"({args.dataset!r},)"]
    return setup_cfg(argparse.Namespace(**{**vars(args), "opts": opts}))


def same_classes(dataset: str, kind: str, found: Sequence[str], known: Sequence[str]) -> list[str]:
    """The model's classes; those of the data set, if it has any, have to be the same."""
    if found and list(found) != list(known):
        raise CTMaskNetError(
            f"{dataset}: has {kind} classes {list(found)} but the model has {list(known)}; "
            "choose a data set with the classes that the model was trained on"
        )
    return list(known)


def slice_call(
    entry: Mapping[str, Any], found: Mapping[str, Any], image_classes: Sequence[str]
) -> SliceCall | None:
    """The class of a slice as its dataset dict and a model's result have it; None for neither."""
    if entry.get("label") is None and "pred_class" not in found:
        return None
    scores = found.get("scores")
    return SliceCall(
        image_classes,
        predicted=found.get("pred_class"),
        truth=entry.get("label"),
        scores=None if scores is None else scores.tolist(),
    )


def slice_title(entry: Mapping[str, Any]) -> str:
    """Short name of a slice: its id in the data set, or file and folder."""
    name = entry.get("image_id")
    return name if isinstance(name, str) else "/".join(Path(entry["file_name"]).parts[-2:])


def _as_seen(pixels: np.ndarray, crop_box: Sequence[int] | None) -> np.ndarray:
    """The slice as the model saw it before the resize."""
    if crop_box is None:
        return pixels
    x0, y0, x1, y1 = crop_box
    return pixels[y0:y1, x0:x1]


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture, whole or not at all.

    Raises:
        CTMaskNetError: the file cannot be written.
    """
    with writing(path), atomic_write(path, "wb") as stream:
        Image.fromarray(picture).save(stream, format="PNG")
