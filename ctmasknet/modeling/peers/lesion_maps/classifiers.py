"""A lesion detector, or a semantic network, and a head that names slices or scans by its lesions.

Weights of the first have the names that they have without the head, so that a training starts from
``MODEL.WEIGHTS`` of a lesion model. They stay as they are; the head alone learns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from torch import Tensor, nn
from torch.nn import functional as F

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.finite import slices_named
from ctmasknet.modeling.meta_arch import slice_labels
from ctmasknet.modeling.peers.lesion_maps.heads import VolumeHead, lesion_features, lesion_head
from ctmasknet.modeling.peers.scan_classifier import scan_members
from ctmasknet.modeling.peers.semantic_lesions import SemanticLesionNet
from ctmasknet.modeling.peers.slice_classifier import log_odds, named

#: Slices whose lesions are looked for at once.
_AT_ONCE = 8


def lesion_head_of(cfg, threshold: float) -> dict[str, Any]:
    """What a configuration says of a :class:`LesionMapClassifier` whose lesions count from
    ``threshold`` on.

    Raises:
        CTMaskNetError: the lesion model is to be trained too, or gives no masks.
    """
    if cfg.MODEL.TRAINABLE != "heads":
        raise CTMaskNetError(
            f"MODEL.TRAINABLE is {cfg.MODEL.TRAINABLE!r}, but the lesion model of a "
            f"{cfg.MODEL.META_ARCHITECTURE} stays as it is; set it to heads"
        )
    if not cfg.MODEL.MASK_ON:
        raise CTMaskNetError(
            "MODEL.MASK_ON is False, but areas of lesions are those of their masks; set it to True"
        )
    classes = len(cfg.MODEL.IMAGE_HEAD.CLASSES)
    if classes < 2:
        raise CTMaskNetError(
            "MODEL.IMAGE_HEAD.CLASSES names one class, which there is nothing to tell from"
        )
    head = lesion_head(
        *(cfg.MODEL.LESION_HEAD.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES, classes),
        fc_dim=cfg.MODEL.LESION_HEAD.FC_DIM,
        depth=cfg.MODEL.LESION_HEAD.DEPTH,
        size=cfg.MODEL.LESION_HEAD.SIZE,
    )
    return {"image_head": head, "lesion_threshold": threshold}


class LesionMapClassifier(nn.Module):
    """What both have in common; stands before the lesion model's class, whose ``forward`` it calls.

    In evaluation slices have ``logits``, ``scores`` and ``pred_class`` as of a
    :class:`~ctmasknet.modeling.peers.slice_classifier.SliceClassifier`; with a head on scans, those
    of their scan.
    """

    def add_head(self, image_head: nn.Module, lesion_threshold: float) -> None:
        """
        Args:
            image_head: of :func:`~ctmasknet.modeling.peers.lesion_maps.heads.lesion_head`.
            lesion_threshold: px of a map count as lesion from this value on, a semantic network's
                probability or a detector's score; a head on scans sees them all.
        """
        self.requires_grad_(False)
        self.image_head, self.lesion_threshold = image_head, lesion_threshold
        #: Also return ``instances`` of the lesion model in evaluation.
        self.return_instances = False
        self.train(self.training)

    @property
    def sees_scans(self) -> bool:
        """Whether slices of a scan have to come together."""
        return isinstance(self.image_head, VolumeHead)

    def train(self, mode: bool = True) -> LesionMapClassifier:
        super().train(mode)
        for name, part in self.named_children():
            if name != "image_head":
                part.eval()
        return self

    def forward(self, batched_inputs: Sequence[dict[str, Any]]):
        """
        Args:
            batched_inputs: B dicts with ``image`` (3, H, W), values 0..255, RGB, and what names
                their scan (``patient``, ``scan``); in training also ``label`` (int).

        Returns:
            In training ``{"loss_image": scalar}``, the cross-entropy. In evaluation B dicts, see
            the class; with ``instances`` where ``return_instances`` is set.

        Raises:
            CTMaskNetError: in training, an input has no label or one outside 0..C-1.
            NotFiniteError: the lesion model gives a number that is not finite.
        """
        small, features, instances = [], [], []
        for start in range(0, len(batched_inputs), _AT_ONCE):
            part = list(batched_inputs[start : start + _AT_ONCE])
            with torch.no_grad(), self._evaluating(), slices_named(lambda part=part: part):
                found = super().forward(part)
            for result in found:
                maps = self._maps(result)
                if self.sees_scans:
                    small.append(self.image_head.small(maps))
                else:
                    features.append(self._features(result, maps))
                if self.return_instances and not self.training:
                    instances.append(result["instances"])
        groups = [[index] for index in range(len(batched_inputs))]
        if self.sees_scans:
            groups = scan_members(batched_inputs)
            features = [self.image_head.volume(torch.stack([small[i] for i in g])) for g in groups]
        outputs = self.image_head(torch.stack(features)).float()
        if self.training:
            labels = slice_labels(batched_inputs, outputs.shape[1])
            target = torch.tensor([labels[members[0]] for members in groups])
            return {"loss_image": F.cross_entropy(outputs, target.to(outputs.device))}
        results: list[dict[str, Any]] = [{} for _ in batched_inputs]
        for logits, members in zip(log_odds(outputs.detach()), groups, strict=True):
            for index in members:
                results[index] = named(logits)
        for result, found in zip(results, instances, strict=False):
            result["instances"] = found
        return results

    def _features(self, result: dict[str, Any], maps: Tensor) -> Tensor:
        found = result["instances"]
        counted = found.pred_classes[found.scores >= self.lesion_threshold]
        return lesion_features(maps >= self.lesion_threshold, counted.bincount(minlength=len(maps)))

    def _maps(self, result: dict[str, Any]) -> Tensor:
        """(K, height, width), 0..1."""
        if "lesion_maps" in result:
            return result["lesion_maps"]
        found = result["instances"]
        maps = found.scores.new_zeros(self.roi_heads.num_classes, *found.image_size)
        for number, score, mask in zip(
            found.pred_classes.tolist(), found.scores, found.pred_masks, strict=True
        ):
            maps[number] = torch.maximum(maps[number], score * mask)
        return maps

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The lesion model finds lesions, and does not learn, in training too."""
        before, self.training = self.training, False
        try:
            yield
        finally:
            self.training = before


@META_ARCH_REGISTRY.register()
class DetectedLesionClassifier(LesionMapClassifier, GeneralizedRCNN):
    """Lesions by Mask R-CNN (ARK20)."""

    @configurable
    def __init__(self, *, image_head: nn.Module, lesion_threshold: float, **kwargs):
        """Arguments of :meth:`LesionMapClassifier.add_head`, and of the detector."""
        super().__init__(**kwargs)
        self.add_head(image_head, lesion_threshold)

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), **lesion_head_of(cfg, cfg.MODEL.LESION_HEAD.THRESHOLD)}


@META_ARCH_REGISTRY.register()
class SemanticLesionClassifier(LesionMapClassifier, SemanticLesionNet):
    """Lesions by a semantic network (U-Net ways, Zhang et al.)."""

    @configurable
    def __init__(self, *, image_head: nn.Module, lesion_threshold: float, **kwargs):
        """Arguments of :meth:`LesionMapClassifier.add_head`, and of the semantic network."""
        super().__init__(**kwargs)
        self.add_head(image_head, lesion_threshold)

    @classmethod
    def from_config(cls, cfg):
        # Its lesions are connected parts of these px, so that areas and counts are of one cut
        return {**super().from_config(cfg), **lesion_head_of(cfg, cfg.MODEL.SEMANTIC.THRESHOLD)}
