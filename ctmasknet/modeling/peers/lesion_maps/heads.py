"""From areas and places of lesions, or a scan's lesion maps, to classes.

Shapes: K lesion classes, C classes, F = :func:`num_features` numbers a slice.
"""

from __future__ import annotations

import math

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

#: Heads on a slice's areas and places, and the one on a scan's maps, by name.
SLICE_HEADS = ("area_rule", "logistic", "mlp")
SCAN_HEAD = "volume"
_OF_A_CLASS = 8


def num_features(num_lesions: int) -> int:
    """F for K lesion classes."""
    return 1 + _OF_A_CLASS * num_lesions


def lesion_features(masks: Tensor, counts: Tensor) -> Tensor:
    """Areas and places of a slice's lesions, in numbers of about -1 to 6.

    Args:
        masks: (K, H, W) bool, px of each lesion class.
        counts: (K,) how many lesions they are.

    Returns:
        (F,): :func:`area_number` of the px of any class; then of each class that number, log(1 +
        count), the centre's x and y and the spread in x and y (-1..1 from one side to the other; 0
        without a lesion), the shares of its px in the left and in the lower half.
    """
    height, width = masks.shape[1:]
    values = masks.float()
    px = values.sum((1, 2))
    weight = values / px.clamp_min(1)[:, None, None]
    columns, rows = weight.sum(1), weight.sum(2)
    found = [area_number(px / (height * width)), counts.to(px).log1p()]
    centres, spreads = [], []
    for shares, length in ((columns, width), (rows, height)):
        places = (2 * torch.arange(length, device=px.device) + 1) / length - 1
        centre = (shares * places).sum(1)
        far = (places[None] - centre[:, None]) ** 2
        centres.append(centre)
        spreads.append((shares * far).sum(1).sqrt())
    found += [*centres, *spreads, columns[:, : width // 2].sum(1), rows[:, height // 2 :].sum(1)]
    every = area_number(masks.any(0).float().mean())
    return torch.cat([every[None], torch.stack(found, dim=1).flatten()])


def area_number(share: Tensor) -> Tensor:
    """log(1 + 1000 share) of shares of a slice, 0..1."""
    return (1000 * share).log1p()


class AreaRule(nn.Module):
    """The larger the area of all lesions, the later the class (ARK20: mild, alarming).

    C - 1 learned areas part the classes; how sharply is learned too.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        # Shares of a slice that a tenth of a percent and two percent are the ends of
        areas = torch.linspace(math.log1p(1), math.log1p(20), num_classes - 1)
        self.first = nn.Parameter(areas[:1].clone())
        # Steps stay above zero, so that classes keep their order
        self.steps = nn.Parameter(areas.diff().expm1().clamp_min(1e-3).log())
        self.sharpness = nn.Parameter(torch.zeros(()))

    @property
    def areas(self) -> Tensor:
        """(C - 1,) rising numbers, of :func:`area_number`, from which on the next class begins."""
        return torch.cat([self.first, self.first + F.softplus(self.steps).cumsum(0)])

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, C) logarithms of probabilities."""
        beyond = self.sharpness.exp() * (features[:, :1] - self.areas)
        # p(class j) = p(beyond area j - 1) - p(beyond area j)
        above = F.pad(F.logsigmoid(beyond), (1, 0))
        below = F.pad(F.logsigmoid(-beyond), (0, 1))
        gap = F.pad(self.sharpness.exp() * self.areas.diff(), (1, 1), value=torch.inf)
        return above + below + torch.log(-torch.expm1(-gap))


class VolumeHead(nn.Module):
    """A scan's lesion maps, resized to one size, by torchvision's 3D ResNet-18."""

    def __init__(self, num_lesions: int, num_classes: int, depth: int, size: int):
        """
        Args:
            num_lesions: K.
            num_classes: C.
            depth: slices that a scan is resized to.
            size: side of a map, px.
        """
        super().__init__()
        self.network = torchvision.models.video.r3d_18(weights=None, num_classes=num_classes)
        first = self.network.stem[0]
        self.network.stem[0] = nn.Conv3d(
            num_lesions,
            first.out_channels,
            kernel_size=first.kernel_size,
            stride=first.stride,
            padding=first.padding,
            bias=False,
        )
        self.depth, self.size = depth, size

    def small(self, maps: Tensor) -> Tensor:
        """(K, H, W) of a slice -> (K, size, size): means over the px of each field."""
        return F.adaptive_avg_pool2d(maps, self.size)

    def volume(self, maps: Tensor) -> Tensor:
        """(S, K, size, size) small maps of a scan -> (K, depth, size, size)."""
        shape = (self.depth, self.size, self.size)
        return F.interpolate(maps.transpose(0, 1)[None], shape, mode="trilinear")[0]

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, K, depth, size, size) -> (B, C) logits."""
        return self.network(volumes)


def lesion_head(
    name: str, num_lesions: int, num_classes: int, *, fc_dim: int, depth: int, size: int
) -> nn.Module:
    """The head ``name`` of :data:`SLICE_HEADS`, (B, F) -> (B, C), or :data:`SCAN_HEAD`."""
    features = num_features(num_lesions)
    if name == "area_rule":
        return AreaRule(num_classes)
    if name == "logistic":
        return nn.Linear(features, num_classes)
    if name == "mlp":
        return nn.Sequential(nn.Linear(features, fc_dim), nn.ReLU(), nn.Linear(fc_dim, num_classes))
    return VolumeHead(num_lesions, num_classes, depth, size)
