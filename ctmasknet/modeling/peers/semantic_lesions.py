"""Lesions by a semantic network in the harness: Inf-Net, JCS, and U-Nets of
segmentation-models-pytorch.

Shapes: B slices of H x W px, padded to a multiple of 32 px; K lesion classes.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, ImageList, Instances
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.finite import check_images
from ctmasknet.modeling.peers.infnet import InfNet
from ctmasknet.modeling.peers.jcs import JCSSegmentation

#: Networks of ``MODEL.SEMANTIC.NAME`` that come from segmentation-models-pytorch.
_OF_SMP = {"unet": "Unet", "unetplusplus": "UnetPlusPlus", "deeplabv3plus": "DeepLabV3Plus"}
#: All of them; Inf-Net and JCS have one lesion class.
SEMANTIC_NETWORKS = ("infnet", "jcs", "jcs_joint", *_OF_SMP)
_STRIDE = 32


@META_ARCH_REGISTRY.register()
class SemanticLesionNet(nn.Module):
    """A lesion map a class, and as lesions its connected parts with the mean probability as score.

    Lesions of one class that touch are one lesion to it.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        network: nn.Module,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        threshold: float = 0.5,
        max_lesions: int = 100,
    ):
        """
        Args:
            name: of :data:`SEMANTIC_NETWORKS`; decides over the losses.
            network: (B, 3, H, W) to what that network gives.
            num_classes: K.
            pixel_mean, pixel_std: of RGB in 0..255.
            threshold: a px is lesion from this probability on.
            max_lesions: so many of the best are given out of a slice.
        """
        super().__init__()
        self.name, self.network, self.num_classes = name, network, num_classes
        self.threshold, self.max_lesions = threshold, max_lesions
        for key, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(key, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg):
        name, classes = cfg.MODEL.SEMANTIC.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if name not in _OF_SMP and classes > 1:
            raise CTMaskNetError(
                f"MODEL.SEMANTIC.NAME is {name!r}, which has one lesion class, but there are "
                f"{classes} (MODEL.ROI_HEADS.NUM_CLASSES); prepare the set with merged classes, or "
                f"choose {', '.join(_OF_SMP)}"
            )
        return {
            "name": name,
            "network": _network(name, cfg.MODEL.SEMANTIC.ENCODER, classes, cfg.MODEL.JCS.NORM),
            "num_classes": classes,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "threshold": cfg.MODEL.SEMANTIC.THRESHOLD,
            "max_lesions": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[dict[str, Any]]):
        """
        Args:
            batched_inputs: B dicts with ``image`` (3, H, W), values 0..255, RGB; ``height`` and
                ``width`` (px) of what is returned; in training ``instances`` with ``gt_masks`` and
                ``gt_classes``.

        Returns:
            In training ``{"loss_map": scalar}`` and for Inf-Net ``loss_edge``. In evaluation B
            dicts: ``instances`` as a detector's, best first, and ``lesion_maps`` (K, height,
            width), probabilities.

        Raises:
            NotFiniteError: a map is not finite.
        """
        pixels = [
            (item["image"].to(self.device).float() - self.pixel_mean) / self.pixel_std
            for item in batched_inputs
        ]
        images = ImageList.from_tensors(pixels, _STRIDE)
        outputs = self.network(images.tensor)
        if self.training:
            truth = self._truth(batched_inputs, images.tensor.shape[-2:])
            return _LOSSES.get(self.name, _smp_losses)(outputs, truth)
        if self.name == "infnet":
            outputs = outputs["map_2"]
        maps = outputs[:, : self.num_classes].float()
        check_images("lesion map", [maps])
        return [
            self._found(one[:, : size[0], : size[1]].detach().sigmoid(), item)
            for one, size, item in zip(maps, images.image_sizes, batched_inputs, strict=True)
        ]

    def _truth(self, batched_inputs: Sequence[dict[str, Any]], size: tuple[int, int]) -> Tensor:
        """(B, K, H, W) of 0 and 1."""
        truth = torch.zeros(len(batched_inputs), self.num_classes, *size, device=self.device)
        for one, item in zip(truth, batched_inputs, strict=True):
            given = item["instances"]
            masks = given.gt_masks.tensor.to(self.device).float()
            for mask, number in zip(masks, given.gt_classes.tolist(), strict=True):
                part = one[number, : mask.shape[0], : mask.shape[1]]
                torch.maximum(part, mask, out=part)
        return truth

    def _found(self, maps: Tensor, item: dict[str, Any]) -> dict[str, Any]:
        size = item.get("height", maps.shape[1]), item.get("width", maps.shape[2])
        maps = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
        masks, scores, classes = [], [], []
        for number, probability in enumerate(maps.cpu().numpy()):
            parts, count = ndimage.label(probability >= self.threshold, np.ones((3, 3)))
            labels = np.arange(1, count + 1)
            scores += ndimage.mean(probability, parts, labels).tolist() if count else []
            masks += [parts == label for label in labels]
            classes += [number] * count
        best = np.argsort(-np.asarray(scores), kind="stable")[: self.max_lesions]
        kept = np.stack([masks[i] for i in best]) if len(best) else np.zeros((0, *size), bool)
        instances = Instances(size)
        instances.pred_masks = torch.from_numpy(kept).to(self.device)
        instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes().to(self.device)
        instances.scores = torch.tensor([scores[i] for i in best], device=self.device)
        found = torch.tensor([classes[i] for i in best], dtype=torch.int64)
        instances.pred_classes = found.to(self.device)
        return {"instances": instances, "lesion_maps": maps}


def _network(name: str, encoder: str, classes: int, jcs_norm: str) -> nn.Module:
    if name == "infnet":
        return InfNet()
    if name.startswith("jcs"):
        return JCSSegmentation("res2net101d" if name == "jcs_joint" else None, jcs_norm)
    try:
        smp = importlib.import_module("segmentation_models_pytorch")
    except ImportError:
        raise CTMaskNetError(
            f"MODEL.SEMANTIC.NAME {name} needs segmentation-models-pytorch; pip install "
            "segmentation-models-pytorch"
        ) from None
    try:
        return getattr(smp, _OF_SMP[name])(encoder, encoder_weights=None, classes=classes)
    except KeyError as error:
        raise CTMaskNetError(
            f"MODEL.SEMANTIC.ENCODER is {encoder!r}: {' '.join(str(error).split())[:120]}...; name "
            "an encoder of segmentation-models-pytorch, such as resnet34"
        ) from None


def _infnet_losses(outputs: dict[str, Tensor], truth: Tensor) -> dict[str, Tensor]:
    """BCE of the edge, and of each of four maps BCE and an IoU that weighs borders more."""
    weight = 1 + 5 * (F.avg_pool2d(truth, 31, stride=1, padding=15) - truth).abs()
    total = truth.new_zeros(())
    for level in (2, 3, 4, 5):
        logits = outputs[f"map_{level}"].float()
        found = logits.sigmoid()
        shared = (found * truth * weight).sum((2, 3))
        union = ((found + truth) * weight).sum((2, 3)) - shared
        iou = (1 - (shared + 1) / (union + 1)).mean()
        total = total + F.binary_cross_entropy_with_logits(logits, truth) + iou
    inner = -F.max_pool2d(-truth, 3, stride=1, padding=1)
    edge = F.binary_cross_entropy_with_logits(outputs["edge"].float(), truth - inner)
    return {"loss_edge": edge, "loss_map": total}


def _jcs_losses(outputs: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """BCE and 1 - Dice of the batch, summed over five maps."""
    maps = outputs.float().split(1, dim=1)
    return {"loss_map": torch.stack([_bce_and_dice(one, truth) for one in maps]).sum()}


def _smp_losses(outputs: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """BCE and 1 - Dice of the batch, mean over the classes."""
    maps, truths = outputs.float().split(1, dim=1), truth.split(1, dim=1)
    pairs = zip(maps, truths, strict=True)
    return {"loss_map": torch.stack([_bce_and_dice(*pair) for pair in pairs]).mean()}


def _bce_and_dice(logits: Tensor, truth: Tensor) -> Tensor:
    found = logits.sigmoid()
    dice = (2 * (found * truth).sum() + 1e-5) / (found.sum() + truth.sum() + 1e-5)
    return F.binary_cross_entropy_with_logits(logits, truth) + 1 - dice


_LOSSES = {"infnet": _infnet_losses, "jcs": _jcs_losses, "jcs_joint": _jcs_losses}
