"""The paper's Figure 2: the same model's lesions at two thresholds of the RoI suppression."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from ctmasknet.config import is_classifier
from ctmasknet.config_file import read_cfg
from ctmasknet.data.registry import dataset_dicts, lesion_colors
from ctmasknet.draw.lesion_statistics import png_path
from ctmasknet.draw.lesions import draw_lesions, lesions_of
from ctmasknet.draw.pages import Chunk, Panel, compose_page, contact_sheet, write_picture
from ctmasknet.engine.setup import inference_cfg, load_model
from ctmasknet.errors import CTMaskNetError, check_seed
from ctmasknet.predict.predictor import CTPredictor
from ctmasknet.predict.shown import read_entry


def figure_2(args: argparse.Namespace) -> dict[str, Any]:
    """Draw Figure 2: (a) and (b) predictions at two NMS thresholds, (c) ground truth; a row a
    slice.

    Args:
        args: ``config_file``, ``opts`` and ``weights`` of a detector (see
            :func:`ctmasknet.engine.setup.inference_cfg`), ``dataset`` (registered name), ``output``
            (PNG; the numbers stand beside it as JSON), ``image_id``, ``index`` (lists of ids, of
            indices in the data set; None) and ``seed`` (None), see :func:`choose`; ``nms`` (two IoU
            thresholds, paper 0.25 and 0.75), ``score_threshold`` (paper 0.75), ``mask_threshold``
            (probability, paper 0.5).

    Returns:
        ``thresholds`` and ``slices``: of each its ``image_id``, ``file_name``, the number of
        ``ground_truth`` lesions and of ``predictions`` above the score at each threshold.

    Raises:
        CTMaskNetError: a classifier's configuration, bad thresholds, no such slice, and what
            :func:`inference_cfg` and :func:`load_model` raise.
    """
    output = png_path(args.output)
    for name in ("nms", "score_threshold", "mask_threshold"):
        values = getattr(args, name) if name == "nms" else [getattr(args, name)]
        if not all(0 <= value <= 1 for value in values):
            raise CTMaskNetError(f"`{name}`: {values} is not within 0..1")
    if args.config_file:
        _check_detector(read_cfg(args.config_file, args.opts), args.config_file)
    entries = choose(args.dataset, args.image_id, args.index, args.seed)
    test_set = [] if "DATASETS.TEST" in args.opts else ["DATASETS.TEST", f"({args.dataset!r},)"]
    opts = [*args.opts, *test_set]
    cfg, _ = inference_cfg(args.config_file, opts, args.weights, test_sets=True)
    _check_detector(cfg, args.weights)
    # The model as it was trained, not in another form: both panels are the reference's
    predictor = CTPredictor(cfg, model=load_model(cfg))
    rows, told = [], []
    for entry in entries:
        pixels = read_entry(entry)
        item = predictor.mapped(entry, pixels)
        found = [detect(predictor, item, nms) for nms in args.nms]
        page, counts = _row(args, pixels, found, entry, list(cfg.MODEL.LESION_CLASSES))
        rows.append(page)
        told.append(
            {
                "image_id": entry["image_id"],
                "file_name": entry["file_name"],
                "ground_truth": len(entry["annotations"]),
                "predictions": counts,
            }
        )
    numbers = {
        "dataset": args.dataset,
        "thresholds": {
            "nms": list(args.nms),
            "score": args.score_threshold,
            "mask_probability": args.mask_threshold,
        },
        "slices": told,
    }
    write_picture(output, contact_sheet(rows, columns=1), numbers)
    return numbers


def _check_detector(cfg: CfgNode, where: str) -> None:
    if is_classifier(cfg):
        raise CTMaskNetError(
            f"{where}: is a classifier; Figure 2 shows a detector, such as configs/seg.yaml"
        )


def choose(
    dataset: str,
    image_ids: Sequence[str] | None = None,
    indices: Sequence[int] | None = None,
    seed: int | None = None,
) -> list[dict[str, Any]]:
    """Slices to draw: by id, by index in the data set, or at random among those with lesions.

    Given none of these, the paper's choice: the slice with most lesions among those with every
    class, and the one with most among those with the first class alone (where there are such).

    Raises:
        CTMaskNetError: more than one way given, no such slice, no seed, or no slice with a lesion.
    """
    entries = dataset_dicts(dataset)
    names = MetadataCatalog.get(dataset).get("thing_classes")
    if not names:
        raise CTMaskNetError(
            f"{dataset}: is not a lesion data set; give one of datasets/prepare_lesions.py"
        )
    if sum(given is not None for given in (image_ids, indices, seed)) > 1:
        raise CTMaskNetError("give only one of `image_id`, `index` and `seed`")
    if image_ids is not None:
        by_id = {str(entry["image_id"]): entry for entry in entries}
        missing = [name for name in image_ids if name not in by_id]
        if missing:
            raise CTMaskNetError(f"`image_id`: {dataset} has no image {missing[0]}")
        return [by_id[name] for name in image_ids]
    if indices is not None:
        wrong = [index for index in indices if not 0 <= index < len(entries)]
        if wrong:
            raise CTMaskNetError(f"`index`: {wrong[0]} is not within 0..{len(entries) - 1}")
        return [entries[index] for index in indices]
    labels = [{a["category_id"] for a in entry["annotations"]} for entry in entries]
    if seed is not None:
        check_seed(seed)
        with_lesions = [index for index, found in enumerate(labels) if found]
        if with_lesions:
            return [entries[int(np.random.default_rng(seed).choice(with_lesions))]]
    chosen = []
    for wanted in ({*range(len(names))}, {0}):
        fitting = [entry for entry, found in zip(entries, labels, strict=True) if found == wanted]
        best = max(fitting, key=lambda entry: len(entry["annotations"]), default=None)
        if best is not None and all(best is not other for other in chosen):
            chosen.append(best)
    if not chosen:
        raise CTMaskNetError(
            f"{dataset}: no slice shows every class or the first alone; name one with `image_id`"
        )
    return chosen


def detect(predictor: CTPredictor, item: dict[str, Any], nms_iou: float) -> Instances:
    """Detections of a lesion detector at another threshold of its RoI suppression.

    Args:
        predictor: its model is left as it was.
        item: the model's input.
        nms_iou: IoU above which the lower-scoring of two boxes of a class is dropped.
    """
    head = predictor.model.roi_heads.box_predictor
    before = head.test_nms_thresh
    head.test_nms_thresh = nms_iou
    try:
        return predictor.predict([item])[0]["instances"]
    finally:
        head.test_nms_thresh = before


def _row(
    args: argparse.Namespace,
    image_rgb: np.ndarray,
    found: Sequence[Instances],
    entry: dict[str, Any],
    class_names: Sequence[str],
) -> tuple[np.ndarray, list[int]]:
    """One row of the figure: a panel for each threshold, then ground truth.

    Args:
        args: see :func:`figure_2`.
        image_rgb: (H, W, 3) uint8.
        found: detections at each of the thresholds ``nms``.
        entry: the slice, with its annotations.
        class_names: of the lesions.

    Returns:
        (H', W', 3) uint8 RGB, and the number of detections drawn at each threshold.
    """
    size = image_rgb.shape[:2]
    limits = {"score_threshold": args.score_threshold, "mask_threshold": args.mask_threshold}
    drawn = [lesions_of(instances, *size, **limits) for instances in found]
    counts = [len(lesions) for lesions in drawn]
    told = [f"RoI NMS {iou:g}: {n} predictions" for iou, n in zip(args.nms, counts, strict=True)]
    drawn.append(lesions_of(entry["annotations"], *size))
    told.append(f"ground truth: {len(drawn[-1])} lesions")
    panels = []
    for letter, text, lesions in zip("abcdefgh", told, drawn, strict=False):
        # Scores over many overlapping boxes would hide the slice
        picture = draw_lesions(image_rgb, lesions, class_names, labels=False)
        panels.append(Panel(f"({letter}) {text}", picture))
    colors = zip(class_names, lesion_colors(class_names), strict=True)
    legend = [Chunk(name, swatch=color) for name, color in colors]
    limit = f"score > {args.score_threshold:g}, mask probability > {args.mask_threshold:g}"
    title = f"{args.dataset}: image {entry['image_id']}"
    return compose_page(panels, title=title, legend=[*legend, Chunk(limit)]), counts
