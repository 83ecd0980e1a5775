"""An attribution as plain values, a line of ``attributions.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ctmasknet.explain.attribution import CAVEAT, BoxAttribution


def attribution_record(
    item: Mapping[str, Any],
    result: Mapping[str, Any],
    found: BoxAttribution,
    class_names: Sequence[str],
    lesion_classes: Sequence[str],
    *,
    hidden: str = "zero",
) -> dict[str, Any]:
    """One slice as plain values: a line of ``attributions.jsonl``.

    Lists of numbers by class are in the order of ``classes``. ``boxes`` are best score first; of
    each ``class``, ``score``, ``box_px`` ([x0, y0, x1, y1] px of the file, whatever was cropped),
    ``rows`` (how many rows it fills) and ``weights``. For the rest see :class:`BoxAttribution`.

    Args:
        item: the model's input, as mapped.
        result: the model's result, with ``ranked_instances``.
        found: the attribution.
        class_names: C names.
        lesion_classes: names of the boxes' classes.
        hidden: how occlusion hid boxes.
    """
    ranked = result["ranked_instances"]
    left, top = (item.get("crop_box") or (0, 0))[:2]
    boxes = ranked.pred_boxes.tensor.cpu().numpy() + np.array([left, top, left, top])
    rows = np.bincount(found.places.cpu().numpy().clip(0), minlength=len(ranked))
    image_id, label = item.get("image_id"), item.get("label")
    return {
        "file": image_id if isinstance(image_id, str) else str(item["file_name"]),
        "patient": str(item.get("patient") or ""),
        "scan": str(item.get("scan") or ""),
        "label": None if label is None else class_names[label],
        "pred": class_names[result["pred_class"]],
        "classes": list(class_names),
        "method": found.method,
        "hidden": hidden,
        "note": CAVEAT,
        "logits": _numbers(found.logits),
        "without_boxes": _numbers(found.without_boxes),
        "rest": _numbers(found.rest),
        "complete": found.complete,
        "boxes": [
            {
                "class": lesion_classes[index],
                "score": _digits(score),
                "box_px": [round(float(side), 2) for side in box],
                "rows": int(count),
                "weights": _numbers(weights),
            }
            for index, score, box, count, weights in zip(
                ranked.pred_classes.tolist(),
                ranked.scores.tolist(),
                boxes,
                rows[: len(ranked)],
                found.weights,
                strict=True,
            )
        ],
    }


def _numbers(values: torch.Tensor) -> list[float]:
    return [_digits(value) for value in values.tolist()]


def _digits(value: float) -> float:
    """Seven digits, as many as a float32 has."""
    return float(format(value, ".7g"))
