"""Lesions over a CT slice by Detectron2's Visualizer, and ground truth beside prediction.

Pictures are (H, W, 3) uint8 RGB arrays; boxes and masks are given in px of the slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.utils.visualizer import GenericMask

from ctmasknet.canvas import SliceCanvas, enlarged, legible_scale
from ctmasknet.data.datasets import lesion_colors
from ctmasknet.lesion_list import Found, Lesion, has_masks, lesions_of
from ctmasknet.pages import Chunk, Panel, compose_page, contact_sheet

__all__ = [
    "Lesion",
    "SliceCall",
    "contact_sheet",
    "draw_lesions",
    "legible_scale",
    "lesions_of",
    "side_by_side",
]

#: Of a class the given names do not reach.
_NAMELESS = (240, 228, 66)
_GOOD, _BAD, _FAINT = (120, 220, 120), (255, 110, 110), (120, 120, 130)


@dataclass(frozen=True)
class SliceCall:
    """The class of a slice as known and as a classifier has it.

    ``predicted`` and ``truth`` index ``class_names``; ``scores`` (C,) are shown as they are, under
    the name ``score_name``.
    """

    class_names: Sequence[str]
    predicted: int | None = None
    truth: int | None = None
    scores: Sequence[float] | None = None
    score_name: str = "sigmoid scores"


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
) -> np.ndarray:
    """Draw mask, contour, box and a label such as ``ggo 0.93`` of each lesion.

    A label goes where it hides no other; without room it shrinks to the score, then is left out.

    Args:
        image_rgb: (H, W, 3) uint8.
        found: see :func:`lesions_of`, or its result.
        class_names: name of each class index.
        colors: RGB 0..255 of each class; default :func:`ctmasknet.data.datasets.lesion_colors`.
        score_threshold: predictions have to score more (paper Figure 2: 0.75).
        mask_threshold: probability a mask pixel has to exceed (paper Figure 2: 0.5).
        labels: write class and score.
        scale: enlargement, a whole number; default :func:`legible_scale`.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB.
    """
    height, width = image_rgb.shape[:2]
    if not (isinstance(found, Sequence) and all(isinstance(item, Lesion) for item in found)):
        found = lesions_of(
            found,
            height,
            width,
            score_threshold=score_threshold,
            mask_threshold=mask_threshold,
        )
    scale = scale or legible_scale(height, width)
    canvas = _LesionCanvas(image_rgb, scale)
    canvas.draw(found, class_names, colors or lesion_colors(class_names), labels)
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
    mask_threshold: float = 0.5,
    scale: int | None = None,
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
        score_threshold, mask_threshold, scale: see :func:`draw_lesions`.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    height, width = image_rgb.shape[:2]
    scale = scale or legible_scale(height, width)
    options = {"scale": scale, "score_threshold": score_threshold, "mask_threshold": mask_threshold}
    bare = Panel("slice", enlarged(image_rgb, scale))
    panels = []
    if ground_truth is not None:
        # The legend's colours name the class; without a score a label would only hide the slice
        picture = draw_lesions(image_rgb, ground_truth, class_names, labels=False, **options)
        panels.append(Panel(f"ground truth: {_count(len(ground_truth))}", picture))
    if prediction is not None:
        shown = lesions_of(prediction, height, width, score_threshold=score_threshold)
        picture = draw_lesions(image_rgb, prediction, class_names, **options)
        count = f"{len(shown)} of {_count(len(prediction))}"
        # Short, for captions of narrow slices lose their middle
        panels.append(Panel(f"prediction: {count}, score > {score_threshold:g}", picture))
    if len(panels) < 2:
        panels.insert(0, bare)
    legend = [
        Chunk(name, swatch=color)
        for name, color in zip(class_names, lesion_colors(class_names), strict=True)
    ]
    if prediction is not None and has_masks(prediction):
        legend.append(Chunk("|", color=_FAINT))
        legend.append(Chunk(f"mask: probability > {mask_threshold:g}"))
    return compose_page(panels, title=title, header=call_chunks(call), legend=legend)


class _LesionCanvas(SliceCanvas):
    """One look for lesions."""

    def draw(
        self,
        lesions: Sequence[Lesion],
        class_names: Sequence[str],
        colors: Sequence[tuple[int, int, int]],
        labels: bool,
    ) -> None:
        scale = self.enlargement

        def color_of(index: int) -> tuple[float, ...]:
            known = colors[index] if index < len(colors) else _NAMELESS
            return tuple(value / 255 for value in known)

        masks = {
            id(lesion): enlarged(lesion.mask.astype(np.uint8), scale, cv2.INTER_NEAREST)
            for lesion in lesions
            if lesion.mask is not None
        }
        # One layer a class: overlapping predictions must not add up to an opaque patch
        for index in sorted({lesion.class_index for lesion in lesions}):
            layers = [
                masks[id(lesion)]
                for lesion in lesions
                if lesion.class_index == index and id(lesion) in masks
            ]
            if layers:
                union = np.maximum.reduce(layers).astype(np.float32)
                self.draw_soft_mask(union, color_of(index), alpha=0.3)
        for lesion in lesions:
            color = color_of(lesion.class_index)
            if id(lesion) in masks:
                outline = GenericMask(masks[id(lesion)], *masks[id(lesion)].shape)
                for segment in outline.polygons:
                    # A closed line: a polygon of so many points takes matplotlib far longer
                    x, y = np.append(segment, segment[:2]).reshape(-1, 2).T
                    self.draw_line(x, y, color, linewidth=1)
            if lesion.box is not None:
                box = [side * scale for side in lesion.box]
                self.draw_box(box, alpha=0.9, edge_color=color, line_style=(0, (4, 2)))
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
        right = call.truth is None or call.truth == call.predicted
        classes.append(Chunk("predicted class:"))
        classes.append(Chunk(names[call.predicted], bold=True, color=_GOOD if right else _BAD))
    if call.scores is not None:
        scores.append(Chunk(f"{call.score_name}:"))
        for index, (name, score) in enumerate(zip(names, call.scores, strict=True)):
            scores.append(Chunk(f"{name} {float(score):.2f}", bold=index == call.predicted))
    return [line for line in (classes, scores) if line]


def _count(number: int) -> str:
    return f"{number} lesion" if number == 1 else f"{number} lesions"
