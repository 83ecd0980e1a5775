"""Models that look at a slice more than once: flipped, by another model, or both.

A classifier's logits are averaged over a slice and its mirror image, which one model gives on one
scale; of several models the scores are, which are probabilities, for every model has a scale of its
own. Boxes, rows and lesions are the first model's, of the slice as it is, so left stays left.

A detector's looks are merged by Detectron2's ``GeneralizedRCNNWithTTA``: boxes of all looks, turned
back, are suppressed together, and a mask is the mean of what all looks give for its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from torch import Tensor, nn
from torch.nn import functional as F

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.finite import NotFiniteError
from ctmasknet.modeling.masks import PublishedROIMasks

#: In a slice's input, a list of those of an ensemble's other models.
MEMBER_INPUTS = "member_inputs"


def mean_score_logits(logits: Tensor) -> Tensor:
    """The logits whose sigmoids are the mean of all models' sigmoids.

    Args:
        logits: (M, ...) of M models.

    Returns:
        (...) finite wherever all logits are: both score and 1 - score are summed as logarithms.
    """
    for_it, against = F.logsigmoid(logits), F.logsigmoid(-logits)
    return for_it.logsumexp(0) - against.logsumexp(0)


class AveragedClassifier(nn.Module):
    """One classifier or several, each on a slice as it is and, if asked, on its mirror image."""

    def __init__(self, models: Sequence[nn.Module], *, flip: bool):
        """
        Args:
            models: M classifiers of the same C classes, in evaluation mode.
            flip: whether each sees the mirror image (left to right) too.
        """
        super().__init__()
        self.models = nn.ModuleList(models)
        self.flip = flip

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Args:
            batched_inputs: B inputs of the first model; with several models each has the others'
                under :data:`MEMBER_INPUTS`.

        Returns:
            what the first model gives for the slices as they are, with averaged ``logits`` (C,),
            ``scores`` (C,) and ``pred_class``.

        Raises:
            CTMaskNetError: inputs are cached rows, which have no mirror image.
        """
        if self.flip and any("image" not in item for item in batched_inputs):
            raise CTMaskNetError(
                "TEST.AUG.ENABLED: cached rows hold no slice that could be flipped; set it to "
                'False, or MODEL.RANKED_BOXES.CACHE_DIR to ""'
            )
        outputs, logits = self._look(self.models[0], batched_inputs)
        every = [logits]
        for number, model in enumerate(self.models[1:]):
            its = [item[MEMBER_INPUTS][number] for item in batched_inputs]
            every.append(self._look(model, its)[1].to(logits.device))
        if len(every) > 1:
            logits = mean_score_logits(torch.stack(every))
        for output, averaged in zip(outputs, logits, strict=True):
            output["logits"], output["scores"] = averaged, averaged.sigmoid()
            output["pred_class"] = int(averaged.argmax())
        return outputs

    def _look(
        self, model: nn.Module, inputs: Sequence[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """What one model gives for the slices as they are, and its (B, C) logits."""
        outputs = model(list(inputs))
        logits = torch.stack([output["logits"] for output in outputs])
        if self.flip:
            mirrored = [{**item, **_mirrored(item)} for item in inputs]
            flipped = torch.stack([output["logits"] for output in model(mirrored)])
            logits = (logits + flipped) / 2
        return outputs, logits


def _mirrored(item: dict[str, Any]) -> dict[str, Any]:
    """An input's image, and the box around its lungs, left to right."""
    image, found = item["image"].flip(-1), {}
    if item.get("lung_box") is not None:
        x0, y0, x1, y1 = item["lung_box"]
        found["lung_box"] = (image.shape[-1] - x1, y0, image.shape[-1] - x0, y1)
    return {"image": image, **found}


class AugmentedDetector(GeneralizedRCNNWithTTA):
    """Detectron2's, also for masks that are pasted as the authors did, and for slices that are
    looked at in the size they come in.

    Args:
        cfg: with ``TEST.AUG``; without ``TEST.AUG.MIN_SIZES`` no size is added.
        model: a lesion detector.
    """

    def __init__(self, cfg: CfgNode, model: GeneralizedRCNN):
        super().__init__(cfg, model, None if cfg.TEST.AUG.MIN_SIZES else _SameSize(cfg))

    def __call__(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """As the model's ``forward`` in evaluation."""
        found = []
        for index, item in enumerate(batched_inputs):
            try:
                found += self._merged(item)
            except NotFiniteError as error:  # of a look at it
                raise NotFiniteError(error.part, index) from None
        return found

    def _merged(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        heads = self.model.roi_heads
        kept = heads.mask_paste, heads.mask_on
        heads.mask_paste = "detectron2"  # masks of all looks are averaged first
        try:
            with torch.no_grad():
                self._paste = kept[0]
                return super().__call__([item])
        finally:
            heads.mask_paste, heads.mask_on = kept

    def _reduce_pred_masks(self, outputs, tfms) -> Tensor | PublishedROIMasks:
        masks = super()._reduce_pred_masks(outputs, tfms)
        return PublishedROIMasks(masks[:, 0]) if self._paste == "published" else masks


class _SameSize(DatasetMapperTTA):
    """Looks at an input in its own size."""

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        sides = dataset_dict["image"].shape[-2:]
        self.min_sizes, self.max_size = [min(sides)], max(sides)
        return super().__call__(dataset_dict)


def averaged(cfg: CfgNode, models: Sequence[nn.Module]) -> nn.Module:
    """The models as ``TEST.AUG`` and an ensemble want them, or the one model itself.

    Args:
        cfg: the first model's configuration.
        models: one detector, or classifiers.
    """
    if len(models) == 1 and not cfg.TEST.AUG.ENABLED:
        return models[0]
    if _is_detector(cfg):
        return AugmentedDetector(cfg, models[0])
    return AveragedClassifier(models, flip=cfg.TEST.AUG.ENABLED and cfg.TEST.AUG.FLIP)


def averaging_text(cfg: CfgNode) -> str:
    """What is averaged, in words such as ``ensemble of 2 models (mean of their scores), flips (mean
    of logits)``; "" for one look of one model."""
    aug, parts = cfg.TEST.AUG, []
    if cfg.TEST.ENSEMBLE:
        parts.append(f"ensemble of {1 + len(cfg.TEST.ENSEMBLE)} models (mean of their scores)")
    if aug.ENABLED and _is_detector(cfg):
        sizes = f"shorter sides {', '.join(map(str, aug.MIN_SIZES))} px" if aug.MIN_SIZES else ""
        looks = " and ".join(filter(None, [sizes, "flips" if aug.FLIP else ""]))
        parts.append(f"{looks} (boxes of all looks merged, masks averaged)")
    elif aug.ENABLED:
        parts.append("flips (mean of logits)")
    return ", ".join(parts)


def _is_detector(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
