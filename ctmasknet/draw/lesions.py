"""Lesions over a CT slice by Detectron2's Visualizer, and ground truth beside prediction.

Pictures are (H, W, 3) uint8 RGB arrays; boxes and masks are given in px of the slice.

Predictions, ground truth and annotations in one form: a list of lesions in px of their slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, BoxMode, Instances, PolygonMasks
from detectron2.utils.visualizer import GenericMask

from ctmasknet.data.registry import lesion_colors
from ctmasknet.draw.canvas import SliceCanvas, enlarged, legible_scale
from ctmasknet.draw.pages import Chunk, Panel, compose_page
from ctmasknet.errors import CTMaskNetError

#: Predictions or ground truth of Detectron2, or the ``annotations`` of a dataset dict.
Found = Instances | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Lesion:
    """Box (x0, y0, x1, y1) px, mask (H, W) bool and score 0..1 of a lesion; None where unknown."""

    class_index: int
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = None
    score: float | None = None


def lesions_of(
    found: Found,
    height: int,
    width: int,
    *,
    score_threshold: float = 0.0,
    mask_threshold: float = 0.5,
) -> list[Lesion]:
    """Bring predictions, ground-truth ``Instances`` or annotations to one form.

    Args:
        found: ``Instances`` with ``pred_boxes, pred_classes, scores[, pred_masks]`` or ``gt_boxes,
            gt_classes[, gt_masks]``; masks are (N, H, W) bool or probability, or (N, 1, M, M)
            probability inside the box. Or annotations with ``category_id`` (from 0), ``bbox``,
            ``bbox_mode`` and ``segmentation`` (RLE or polygons).
        height: H of the slice, px.
        width: W of the slice, px.
        score_threshold: predictions have to score more than this.
        mask_threshold: mask pixels have to be more probable than this.

    Raises:
        CTMaskNetError: a mask of another size than the slice.
    """
    if isinstance(found, Instances):
        return _from_instances(found, height, width, score_threshold, mask_threshold)
    lesions = []
    for annotation in found:
        mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
        box = BoxMode.convert([float(v) for v in annotation["bbox"]], mode, BoxMode.XYXY_ABS)
        segmentation = annotation.get("segmentation")
        mask = None
        if segmentation:
            mask = GenericMask(segmentation, height, width).mask.astype(bool)
            _check_size(mask.shape, height, width)
        lesions.append(Lesion(int(annotation["category_id"]), tuple(box), mask))
    return lesions


def check_score_threshold(threshold: float) -> None:
    """Refuse what no score can be compared with, such as a percentage.

    Raises:
        CTMaskNetError: outside 0..1, or no number.
    """
    if not 0 <= threshold <= 1:
        raise CTMaskNetError(f"`score_threshold`: {threshold} is no score; give one of 0 to 1")


def has_masks(found: Found) -> bool:
    """Whether the lesions come with masks, even if there are none of them."""
    if isinstance(found, Instances):
        return found.has("pred_masks") or found.has("gt_masks")
    return any(annotation.get("segmentation") for annotation in found)


def _from_instances(
    instances: Instances, height: int, width: int, score_threshold: float, mask_threshold: float
) -> list[Lesion]:
    instances = instances.to(torch.device("cpu"))
    kind = "pred" if instances.has("pred_classes") else "gt"
    if instances.has("scores"):
        instances = instances[instances.scores > score_threshold]
    count = len(instances)
    boxes = instances.get(f"{kind}_boxes").tensor.tolist()
    classes = instances.get(f"{kind}_classes").tolist()
    scores = instances.scores.tolist() if instances.has("scores") else [None] * count
    masks: Sequence[np.ndarray | None] = [None] * count
    if count and instances.has(f"{kind}_masks"):
        masks = _masks(instances, kind, height, width, mask_threshold)
    return [
        Lesion(index, tuple(box), mask, score)
        for index, box, mask, score in zip(classes, boxes, masks, scores, strict=True)
    ]


def _masks(
    instances: Instances, kind: str, height: int, width: int, threshold: float
) -> np.ndarray:
    """(N, H, W) bool from whatever form Detectron2 gives masks."""
    masks = instances.get(f"{kind}_masks")
    if isinstance(masks, PolygonMasks):
        masks = [GenericMask(polygons, height, width).mask for polygons in masks.polygons]
        return np.stack(masks).astype(bool)
    masks = masks.tensor if isinstance(masks, BitMasks) else masks
    if masks.ndim == 4:
        boxes = instances.get(f"{kind}_boxes")
        masks = paste_masks_in_image(masks[:, 0], boxes, (height, width), threshold)
    elif masks.is_floating_point():
        masks = masks > threshold
    _check_size(masks.shape[1:], height, width)
    return masks.numpy().astype(bool)


def _check_size(shape: Sequence[int], height: int, width: int) -> None:
    if tuple(shape) != (height, width):
        raise CTMaskNetError(
            f"a lesion mask has {shape[1]} x {shape[0]} px but its slice {width} x {height}; "
            "prepare the data set again from images and masks of one size"
        )


#: Of a class the given names do not reach.
_NAMELESS = (240, 228, 66)
_GOOD, _BAD, _FAINT = (120, 220, 120), (255, 110, 110), (120, 120, 130)


@dataclass(frozen=True)
class SliceCall:
    """The class of a slice as known and as a classifier has it.

    ``predicted`` and ``truth`` index ``class_names``; ``scores`` (C,) are shown as they are.
    """

    class_names: Sequence[str]
    predicted: int | None = None
    truth: int | None = None
    scores: Sequence[float] | None = None


def draw_lesions(
    image_rgb: np.ndarray,
    found: Found | Sequence[Lesion],
    class_names: Sequence[str],
    *,
    colors: Sequence[tuple[int, int, int]] | None = None,
    score_threshold: float = 0.75,
    mask_threshold: float = 0.5,
    labels: bool = True,
    scale: int | None = None,
    dotted_to: float = 0.0,
) -> np.ndarray:
    """Draw mask, contour, box and a label such as ``ggo 0.93`` of each lesion.

    A label goes where it hides no other; without room it shrinks to the score, then is left out.

    Args:
        image_rgb: (H, W, 3) uint8.
        found: see :func:`lesions_of`, or its result.
        class_names: name of each class index.
        colors: RGB 0..255 of each class; default :func:`ctmasknet.data.registry.lesion_colors`.
        score_threshold: predictions have to score more (paper Figure 2: 0.75).
        mask_threshold: probability a mask pixel has to exceed (paper Figure 2: 0.5).
        labels: write class and score.
        scale: enlargement, a whole number; default :func:`legible_scale`.
        dotted_to: lesions that do not score more are dotted, and not filled.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB.
    """
    height, width = image_rgb.shape[:2]
    if not (isinstance(found, Sequence) and all(isinstance(item, Lesion) for item in found)):
        thresholds = {"score_threshold": score_threshold, "mask_threshold": mask_threshold}
        found = lesions_of(found, height, width, **thresholds)
    canvas = _LesionCanvas(image_rgb, scale or legible_scale(height, width))
    canvas.draw(found, class_names, colors or lesion_colors(class_names), labels, dotted_to)
    return canvas.picture()


def side_by_side(
    image_rgb: np.ndarray,
    ground_truth: Found | None,
    prediction: Found | None,
    *,
    class_names: Sequence[str],
    title: str = "",
    call: SliceCall | None = None,
    score_threshold: float = 0.75,
) -> np.ndarray:
    """Ground truth on the left, prediction on the right, under the file name and the slice's class.

    The bare slice stands on the left of the one of them that is given alone.

    Args:
        image_rgb: (H, W, 3) uint8.
        ground_truth: see :func:`lesions_of`; an empty list is a slice known to have no lesion.
        prediction: see :func:`lesions_of`.
        class_names: name of each lesion class.
        title: usually the file name; shortened in the middle when it is too long.
        call: the slice's class, true and predicted, and its scores.
        score_threshold: predictions have to score more.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    height, width = image_rgb.shape[:2]
    panels = []
    if ground_truth is not None:
        # The legend's colours name the class; without a score a label would only hide the slice
        picture = draw_lesions(image_rgb, ground_truth, class_names, labels=False)
        panels.append(Panel(f"ground truth: {_count(len(ground_truth))}", picture))
    if prediction is not None:
        shown = lesions_of(prediction, height, width, score_threshold=score_threshold)
        picture = draw_lesions(image_rgb, shown, class_names)
        count = f"{len(shown)} of {_count(len(prediction))}"
        # Short, for captions of narrow slices lose their middle
        panels.append(Panel(f"prediction: {count}, score > {score_threshold:g}", picture))
    if len(panels) < 2:
        panels.insert(0, Panel("slice", enlarged(image_rgb, legible_scale(height, width))))
    legend = [
        Chunk(name, swatch=color)
        for name, color in zip(class_names, lesion_colors(class_names), strict=True)
    ]
    if prediction is not None and has_masks(prediction):
        legend += [Chunk("|", color=_FAINT), Chunk("mask: probability > 0.5")]
    return compose_page(panels, title=title, header=call_chunks(call), legend=legend)


class _LesionCanvas(SliceCanvas):
    """One look for lesions."""

    def draw(
        self,
        lesions: Sequence[Lesion],
        class_names: Sequence[str],
        colors: Sequence[tuple[int, int, int]],
        labels: bool,
        dotted_to: float,
    ) -> None:
        scale = self.enlargement

        def is_dotted(lesion: Lesion) -> bool:
            return lesion.score is not None and lesion.score <= dotted_to

        def color_of(index: int) -> tuple[float, ...]:
            known = colors[index] if index < len(colors) else _NAMELESS
            return tuple(value / 255 for value in known)

        masks = {
            id(lesion): enlarged(lesion.mask.astype(np.uint8), scale, cv2.INTER_NEAREST)
            for lesion in lesions
            if lesion.mask is not None
        }
        # One layer a class: overlapping predictions must not add up to an opaque patch
        filled = [one for one in lesions if one.mask is not None and not is_dotted(one)]
        for index in sorted({one.class_index for one in filled}):
            its = [one for one in filled if one.class_index == index]
            union = np.maximum.reduce([masks[id(one)] for one in its]).astype(np.float32)
            self.draw_soft_mask(union, color_of(index), alpha=0.3)
        for lesion in lesions:
            color = color_of(lesion.class_index)
            if id(lesion) in masks:
                outline = GenericMask(masks[id(lesion)], *masks[id(lesion)].shape)
                for segment in outline.polygons:
                    # A closed line: a polygon of so many points takes matplotlib far longer
                    x, y = np.append(segment, segment[:2]).reshape(-1, 2).T
                    how, width = ((0, (1, 1.5)), 1.6) if is_dotted(lesion) else ("-", 1)
                    self.draw_line(x, y, color, linestyle=how, linewidth=width)
            if lesion.box is not None:
                box = [side * scale for side in lesion.box]
                how = (0, (1, 3)) if is_dotted(lesion) else (0, (4, 2))
                self.draw_box(box, alpha=0.9, edge_color=color, line_style=how)
        if labels:
            for lesion in sorted(lesions, key=lambda item: -(item.score or 0)):
                if lesion.box is not None:
                    self._label_lesion(lesion, class_names, color_of(lesion.class_index))

    def _label_lesion(self, lesion, class_names, color) -> None:
        index = lesion.class_index
        name = class_names[index] if index < len(class_names) else f"class {index}"
        score = None if lesion.score is None else f"{lesion.score:.2f}"
        self.label([name] if score is None else [f"{name} {score}", score], lesion.box, color)


def call_chunks(call: SliceCall | None) -> list[list[Chunk]]:
    """Header lines of a page: the slice's class as known and as predicted, then the scores."""
    if call is None:
        return []
    names = call.class_names
    classes, scores = [], []
    if call.truth is not None:
        classes += [Chunk("true class:"), Chunk(names[call.truth], bold=True)]
    if call.predicted is not None:
        if classes:
            classes.append(Chunk("|", color=_FAINT))
        # Green is right and red wrong, so what nobody knows is neither
        color = _GOOD if call.truth == call.predicted else _BAD
        known = {} if call.truth is None else {"color": color}
        classes += [Chunk("predicted class:"), Chunk(names[call.predicted], bold=True, **known)]
    if call.scores is not None:
        scores.append(Chunk("sigmoid scores:"))
        for index, (name, score) in enumerate(zip(names, call.scores, strict=True)):
            scores.append(Chunk(f"{name} {float(score):.2f}", bold=index == call.predicted))
    return [line for line in (classes, scores) if line]


def _count(number: int) -> str:
    return f"{number} lesion" if number == 1 else f"{number} lesions"
