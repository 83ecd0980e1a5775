"""A classifier of whole slices over any image network of torchvision or timm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.meta_arch import slice_labels
from ctmasknet.modeling.peers.backbones import image_network
from ctmasknet.modeling.peers.jcs import jcs_classifier
from ctmasknet.modeling.peers.slice_pixels import SlicePixels

#: JCS's classifier among image networks: Res2Net-101 with frozen normalisation, no bias at the end.
JCS_CLASSIFIER_NAME = "jcs_classifier"


@META_ARCH_REGISTRY.register()
class SliceClassifier(nn.Module):
    """A network on slices; COVID-CT with ``densenet169`` or ``resnet50`` and 1000 outputs.

    It looks at the slice itself and at no boxes, so it finds no lesions.
    """

    @configurable
    def __init__(self, *, network: nn.Module, num_classes: int, pixels: SlicePixels):
        """
        Args:
            network: (B, 3, h, w) -> (B, outputs), outputs >= num_classes.
            num_classes: C; outputs above them are no class, but share the softmax.
            pixels: makes the network's input of a slice.
        """
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.pixels = pixels

    @classmethod
    def from_config(cls, cfg):
        classes = len(cfg.MODEL.IMAGE_HEAD.CLASSES)
        outputs = cfg.MODEL.SLICE_NETWORK.NUM_OUTPUTS or classes
        if outputs < classes:
            raise CTMaskNetError(
                f"MODEL.SLICE_NETWORK.NUM_OUTPUTS is {outputs}, but there are {classes} classes "
                "(MODEL.IMAGE_HEAD.CLASSES); set it to 0, or to their number or more"
            )
        return {
            "network": _network(cfg.MODEL.SLICE_NETWORK.NAME, outputs, cfg.MODEL.JCS.NORM),
            "num_classes": classes,
            "pixels": SlicePixels.from_config(cfg),
        }

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batched_inputs: Sequence[dict[str, Any]]):
        """
        Args:
            batched_inputs: B dicts with ``image`` (3, H, W), whole values 0..255, RGB; in training
                also ``label`` (int).

        Returns:
            In training ``{"loss_image": scalar}``, the cross-entropy over all outputs. In
            evaluation B dicts: ``scores`` (C,), softmax over all outputs; ``logits`` (C,), the
            log-odds of the scores; ``pred_class`` int. With ``pixels.ten_crops`` the scores are
            the mean of those of ten crops.

        Raises:
            CTMaskNetError: in training, an input has no label or one outside 0..C-1; slices that
                are unlike in size after ``pixels``.
        """
        if self.pixels.ten_crops and not self.training:
            return [self._voted(item) for item in batched_inputs]
        outputs = self.network(self.network_input(batched_inputs)).float()
        if self.training:
            labels = torch.tensor(slice_labels(batched_inputs, self.num_classes))
            return {"loss_image": F.cross_entropy(outputs, labels.to(outputs.device))}
        return [named(one) for one in log_odds(outputs.detach())[:, : self.num_classes]]

    def network_input(self, batched_inputs: Sequence[dict[str, Any]]) -> Tensor:
        """(B, 3, h, w) that the network is given for inputs of :meth:`forward`."""
        images = [self.pixels(_picture(item)) for item in batched_inputs]
        if len({image.shape for image in images}) > 1:
            raise CTMaskNetError(self._unlike_sizes(batched_inputs))
        return torch.stack(images).to(self.device)

    def _voted(self, item: dict[str, Any]) -> dict[str, Any]:
        outputs = self.network(self.pixels.crops(_picture(item)).to(self.device)).float().detach()
        mean = outputs.log_softmax(1).logsumexp(0, keepdim=True) - math.log(len(outputs))
        return named(log_odds(mean)[0, : self.num_classes])

    def _unlike_sizes(self, batched_inputs: Sequence[dict[str, Any]]) -> str:
        return (
            "slices of a batch differ in size; set MODEL.SLICE_NETWORK.CROP, or "
            "MODEL.SLICE_NETWORK.SQUASH True, or SOLVER.IMS_PER_BATCH and TEST.IMS_PER_BATCH to 1"
        )


def _picture(item: dict[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8 of an input."""
    return np.rint(item["image"].cpu().numpy()).astype(np.uint8).transpose(1, 2, 0)


def _network(name: str, outputs: int, jcs_norm: str) -> nn.Module:
    if name == JCS_CLASSIFIER_NAME:
        return jcs_classifier(num_classes=outputs, norm=jcs_norm)
    return image_network(name, outputs)


def named(logits: Tensor) -> dict[str, Any]:
    """What a classifier answers for a slice of (C,) log-odds."""
    return {"logits": logits, "scores": logits.sigmoid(), "pred_class": int(logits.argmax())}


def log_odds(outputs: Tensor) -> Tensor:
    """(B, n >= 2) outputs before a softmax -> (B, n) log-odds of its probabilities."""
    count = outputs.shape[1]
    alone = torch.eye(count, dtype=torch.bool, device=outputs.device)
    others = outputs[:, None, :].expand(-1, count, -1).masked_fill(alone, -torch.inf)
    return outputs - others.logsumexp(2)
