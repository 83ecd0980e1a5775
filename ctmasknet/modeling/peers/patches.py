"""Xu et al. 2020 (and the retracted "ResNet-18" of Butt et al.): a ResNet-18 names patches with
their place, and a scan is what its patches say by noisy-or."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import roi_align


class PatchClassifier(nn.Module):
    """Patches of slices and where they lie -> classes."""

    def __init__(self, num_classes: int, num_places: int = 4, patch_px: int = 64):
        """
        Args:
            num_classes: C.
            num_places: numbers that state a patch's place; 0 for the network without.
            patch_px: side that boxes are resized to.
        """
        super().__init__()
        self.network = torchvision.models.resnet18(weights=None)
        features = self.network.fc.in_features
        self.network.fc = nn.Identity()
        self.logits = nn.Linear(features + num_places, num_classes)
        self.num_places, self.patch_px = num_places, patch_px

    def forward(self, images: Tensor, boxes: list[Tensor]) -> list[Tensor]:
        """
        Args:
            images: (B, 3, H, W).
            boxes: B tensors (n, 4): x0, y0, x1, y1 in px; n may be 0.

        Returns:
            B tensors (n, C) logits.
        """
        counts = [len(one) for one in boxes]
        if not sum(counts):
            return [images.new_zeros(0, self.logits.out_features) for _ in boxes]
        patches = roi_align(images, boxes, self.patch_px, aligned=True)
        features = self.network(patches)
        if self.num_places:
            places = relative_places(torch.cat(boxes), *images.shape[-2:])
            features = torch.cat([features, places[:, : self.num_places]], dim=1)
        return list(self.logits(features).split(counts))


def relative_places(boxes: Tensor, height: int, width: int) -> Tensor:
    """(n, 4) boxes in px -> (n, 4): centre x and y, width, height, as shares of the slice."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + sizes / 2
    return torch.cat([centres, sizes], dim=1) / boxes.new_tensor([width, height] * 2)


def noisy_or(probabilities: Tensor) -> Tensor:
    """(n, C) probabilities of patches -> (C,): 1 - prod(1 - p); zeros without a patch."""
    return 1 - (1 - probabilities).prod(0)
