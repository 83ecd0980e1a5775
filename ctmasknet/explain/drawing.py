"""Box weights on the slice: which boxes spoke for a class, which against it, and how loudly.

Pictures are (H, W, 3) uint8 RGB arrays; boxes are (x0, y0, x1, y1) px of the slice. Shapes: n
boxes, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances
from matplotlib.patches import Rectangle

from ctmasknet.draw.canvas import SliceCanvas, enlarged, legible_scale
from ctmasknet.draw.lesions import SliceCall, call_chunks
from ctmasknet.draw.pages import Chunk, Panel, compose_page
from ctmasknet.explain.attribution import CAVEAT, BoxAttribution

#: RGB of boxes that speak for the class and of those against it. Neither is a lesion's colour, and
#: the second are dashed as well, for eyes that see no difference.
FOR, AGAINST = (255, 92, 190), (0, 214, 190)
#: Boxes drawn; the others have less weight than any of them.
MOST_BOXES = 10


def draw_box_weights(
    image_rgb: np.ndarray,
    boxes: np.ndarray,
    weights: np.ndarray,
    texts: Sequence[str] = (),
    *,
    most: int = MOST_BOXES,
    scale: int | None = None,
) -> np.ndarray:
    """Draw the boxes with the most weight, the heavier the thicker and the more filled.

    Boxes for the class are solid, those against it dashed and of another colour; each has its
    weight beside it where there is room. Boxes without weight are not drawn.

    Args:
        image_rgb: (H, W, 3) uint8.
        boxes: (n, 4) px.
        weights: (n,) positive for the class.
        texts: n words to go behind the weights, such as ``ggo 0.93``; left out without room.
        most: boxes drawn at most.
        scale: enlargement, a whole number; default :func:`ctmasknet.draw.canvas.legible_scale`.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB.
    """
    canvas = SliceCanvas(image_rgb, scale or legible_scale(*image_rgb.shape[:2]))
    chosen = heaviest(weights, most)
    loudest = abs(weights[chosen[0]]) if len(chosen) else 1.0
    for index in chosen[::-1]:
        share = abs(weights[index]) / loudest
        color = _unit(FOR if weights[index] > 0 else AGAINST)
        x0, y0, x1, y1 = boxes[index] * canvas.enlargement
        frame = {"xy": (x0, y0), "width": x1 - x0, "height": y1 - y0}
        width = canvas.output.scale * (0.6 + 2.4 * share)
        dashes = "-" if weights[index] > 0 else (0, (4, 2))
        edge = {"edgecolor": (*color, 0.9), "linewidth": width, "linestyle": dashes}
        canvas.output.ax.add_patch(Rectangle(**frame, color=(*color, 0.15 * share), linewidth=0))
        canvas.output.ax.add_patch(Rectangle(**frame, fill=False, **edge))
    for index in chosen:
        weight = f"{weights[index]:+.2f}"
        spoken = [f"{weight} {texts[index]}", weight] if len(texts) else [weight]
        canvas.label(spoken, boxes[index], _unit(FOR if weights[index] > 0 else AGAINST))
    return canvas.picture()


def attribution_page(
    image_rgb: np.ndarray,
    ranked: Instances,
    found: BoxAttribution,
    target: int,
    *,
    class_names: Sequence[str],
    lesion_classes: Sequence[str],
    hidden: str = "zero",
    title: str = "",
    call: SliceCall | None = None,
    most: int = MOST_BOXES,
    scale: int | None = None,
) -> np.ndarray:
    """The bare slice, and the slice with its box weights, under the sum they make.

    Args:
        image_rgb: (H, W, 3) uint8, as the model saw it before the resize.
        ranked: the ``ranked_instances`` of the model's result.
        found: their attribution.
        target: the class whose logit is explained.
        class_names: names of the C slice classes.
        lesion_classes: names of the boxes' classes.
        hidden: how occlusion hid boxes, for the legend.
        title: usually the file name.
        call: the slice's class, true and predicted, and its scores.
        most, scale: see :func:`draw_box_weights`.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    scale = scale or legible_scale(*image_rgb.shape[:2])
    weights = found.weights[:, target].cpu().numpy()
    chosen = heaviest(weights, most)
    texts = [
        f"{lesion_classes[index]} {score:.2f}"
        for index, score in zip(ranked.pred_classes.tolist(), ranked.scores.tolist(), strict=True)
    ]
    picture = draw_box_weights(
        image_rgb, ranked.pred_boxes.tensor.cpu().numpy(), weights, texts, most=most, scale=scale
    )
    moved = np.abs(weights).sum()
    share = f", {100 * np.abs(weights[chosen]).sum() / moved:.0f} % of all weight" if moved else ""
    name = class_names[target]
    caption = f"{len(chosen)} of {len(weights)} boxes{share}"
    method = "integrated gradients" if found.complete is not None else f"occlusion ({hidden})"
    return compose_page(
        [Panel("slice", enlarged(image_rgb, scale)), Panel(caption, picture)],
        title=title,
        header=[*call_chunks(call), _sum_chunks(found, weights, target, name)],
        legend=[
            Chunk(f"for {name} (solid)", swatch=FOR),
            Chunk(f"against {name} (dashed)", swatch=AGAINST),
            Chunk(f"by {method}"),
            Chunk("label: weight, lesion class, its score"),
            Chunk(CAVEAT, bold=True),
        ],
    )


def heaviest(weights: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most ``most`` weights that are not 0, the largest by amount first."""
    order = np.argsort(-np.abs(weights), kind="stable")[:most]
    return order[weights[order] != 0]


def _sum_chunks(found: BoxAttribution, weights: np.ndarray, target: int, name: str) -> list[Chunk]:
    """``logit of covid +2.31 = without boxes -0.42 + boxes for +3.10 ...`` in words that wrap."""
    rest = float(found.rest[target])
    together = "of no box alone" if found.complete is None else "missed by integration"
    return [
        Chunk(f"logit of {name} {float(found.logits[target]):+.2f}:", bold=True),
        Chunk(f"without boxes {float(found.without_boxes[target]):+.2f},"),
        Chunk(f"boxes for {weights[weights > 0].sum():+.2f},", color=FOR),
        Chunk(f"against {-abs(weights[weights < 0].sum()):+.2f},", color=AGAINST),
        Chunk(f"{together} {rest:+.2f}"),
    ]


def _unit(color: Sequence[int]) -> tuple[float, ...]:
    return tuple(value / 255 for value in color)
