"""Dice of lesion maps, by the three figures that publications call by that name.

A lesion map of a slice holds, at each pixel, the highest score of the predicted masks of a class
that cover it (0 where none does). Of a map and the ground truth:

- *mean*: the map is scaled to 0..1 by its own minimum and maximum, cut (>=) at the 256 levels
  1, 254/255, ... 0, and Dice at each level (0 without a true positive) averaged over slices, then
  over levels. It is what Inf-Net and the works beside it print as "mean Dice" (peers reference):
  a soft map that is right at every pixel with a cut at 0.5 can score 0.7 by it;
- *maximum*: the same averages over slices, at the level where they are highest;
- *at 0.5*: Dice of the pixels with a score of at least 0.5, nothing scaled.

Slices whose ground truth has no lesion of the class take no part: any answer but the empty one
would score 0 there, and false positives on them are counted by
:func:`ctmasknet.evaluation.lesions.coco.lesion_free_metrics`.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.logger import create_small_table

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.lesions.per_image_ap import EachSliceEvaluator

#: 1, 254/255, ... 0, rounded as the published metric rounds them: a map of 8 bits lies on the
#: levels, so the last bit decides.
_LEVELS = 1 - np.arange(256) / 255

#: What stands before the name of a map.
DICE_KINDS = ("mean", "maximum", "at-0.5", "slices")


def dice_by_level(lesion_map: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice of one slice at each level of its scaled map.

    Args:
        lesion_map: (H, W) scores, any range; a constant map is scaled to 0.
        truth: (H, W) bool.

    Returns:
        (256,) float64 in 0..1, for the levels 1, 254/255, ... 0.
    """
    scaled = scaled_map(lesion_map)
    # The first level that a pixel reaches, then everything at once by counting.
    first = np.searchsorted(-_LEVELS, -scaled)
    predicted = np.cumsum(np.bincount(first.ravel(), minlength=len(_LEVELS)))
    hit = np.cumsum(np.bincount(first[truth], minlength=len(_LEVELS)))
    return 2.0 * hit / np.maximum(predicted + int(truth.sum()), 1)


def scaled_map(lesion_map: np.ndarray) -> np.ndarray:
    """(H, W) float64 scores so that the lowest is 0 and the highest 1; zeros where all are one."""
    values = np.asarray(lesion_map, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def mean_absolute_error(lesion_map: np.ndarray, truth: np.ndarray) -> float:
    """Mean over px of what separates the scaled map (H, W) from the truth (H, W), 0..1, as Inf-Net
    prints beside its Dice."""
    return float(np.abs(scaled_map(lesion_map) - truth).mean())


def dice_at(lesion_map: np.ndarray, truth: np.ndarray, threshold: float = 0.5) -> float:
    """Dice of the pixels of (H, W) scores that reach ``threshold``; 0 without a true positive."""
    found = np.asarray(lesion_map) >= threshold
    return 2.0 * int((found & truth).sum()) / max(int(found.sum()) + int(truth.sum()), 1)


def dice_maps(class_names: Sequence[str]) -> dict[str, set[int]]:
    """Name of each map that has figures -> the classes that it joins."""
    maps = {name: {index} for index, name in enumerate(class_names)}
    return maps | ({"lesions": set(range(len(class_names)))} if len(class_names) > 1 else {})


class DiceEvaluator(EachSliceEvaluator):
    """Dice of lesion maps over a registered lesion data set.

    Results on the main process (``{}`` on others), Dice in 0..1, by class (and over the classes
    together, ``lesions``): ``{"dice": {"mean-<class>", "maximum-<class>", "at-0.5-<class>",
    "slices-<class>"}}``; NaN for a class that no slice has.
    """

    def __init__(self, dataset_name: str, *, distributed: bool = True):
        super().__init__(dataset_name, distributed)
        self._maps = dice_maps(MetadataCatalog.get(dataset_name).thing_classes)

    def measure(
        self, instances: Instances, annotations: Sequence[dict[str, Any]]
    ) -> dict[str, tuple[np.ndarray, float]]:
        if len(instances) and not instances.has("pred_masks"):
            raise CTMaskNetError("MODEL.MASK_ON: Dice compares masks and this model makes none")
        found = {}
        for name, classes in self._maps.items():
            own = [a for a in annotations if self._class_index[a["category_id"]] in classes]
            if own:
                truth = np.any([self._coco.annToMask(a).astype(bool) for a in own], axis=0)
                lesion_map = _lesion_map(instances, classes, truth.shape)
                found[name] = dice_by_level(lesion_map, truth), dice_at(lesion_map, truth)
        return found

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Gather and average over slices; see the class for what is returned."""
        slices = self.gathered()
        if not slices:
            return OrderedDict()
        results: OrderedDict[str, float] = OrderedDict()
        for name in self._maps:
            found = [item[name] for item in slices if name in item]
            levels = np.mean([item[0] for item in found], axis=0) if found else np.array(math.nan)
            at_half = float(np.mean([item[1] for item in found])) if found else math.nan
            figures = (float(levels.mean()), float(levels.max()), at_half, float(len(found)))
            results |= {
                f"{kind}-{name}": value for kind, value in zip(DICE_KINDS, figures, strict=True)
            }
        logging.getLogger(__name__).info(
            "Dice of lesion maps (0..1), slices with the lesion alone:\n%s",
            create_small_table(results),
        )
        return OrderedDict(dice=results)


def _lesion_map(instances: Instances, classes: set[int], shape: tuple[int, int]) -> np.ndarray:
    """The (H, W) map of some classes, see the top of this module."""
    lesion_map = np.zeros(shape, dtype=np.float32)
    for index in range(len(instances)):
        if int(instances.pred_classes[index]) in classes:
            mask = instances.pred_masks[index].numpy()
            np.maximum(lesion_map, float(instances.scores[index]) * mask, out=lesion_map)
    return lesion_map
