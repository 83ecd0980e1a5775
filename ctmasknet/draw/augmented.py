"""Augmented training samples beside their originals, as a model would be given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctmasknet.data.registry import lesion_colors
from ctmasknet.draw.canvas import enlarged, legible_scale
from ctmasknet.draw.lesions import draw_lesions
from ctmasknet.draw.pages import Chunk, Panel, compose_page


def augmented_page(
    original: Mapping[str, Any],
    augmented: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    title: str,
    header: str = "",
) -> np.ndarray:
    """A sample without and with augmentation, boxes and masks on both.

    Args:
        original: input of the model, ``image`` (3, H, W) uint8 and, of a detector, ``instances``.
        augmented: the same, of any other size.
        class_names: of the lesions; empty for a classifier.
        title: usually the file name.
        header: a line below it.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    panels = []
    for words, item in (("as in testing", original), ("as in training", augmented)):
        image = np.ascontiguousarray(item["image"].numpy().transpose(1, 2, 0))
        height, width = image.shape[:2]
        if "instances" in item:
            picture = draw_lesions(image, item["instances"], class_names, labels=False)
            words += f": {len(item['instances'])} lesions"
        else:
            picture = enlarged(image, legible_scale(height, width))
        panels.append(Panel(f"{words}, {width} x {height} px", picture))
    legend = [
        Chunk(name, swatch=color)
        for name, color in zip(class_names, lesion_colors(class_names), strict=True)
    ]
    lines = [[Chunk(header)]] if header else []
    return compose_page(panels, title=title, header=lines, legend=legend)
