"""Heads that name a slice from the mask features of its best boxes: affinity and LSTM with
attention, the later models of the paper's author.

Shapes: B slices, N boxes of each, C slice classes. Mask features are (B, N, 256, 28, 28).
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ctmasknet.modeling.image_heads import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.image_heads.later_models import AttendedLSTM, VectorClassifier

#: Channels of mask features, and of the vector that becomes of a box.
FEATURES = 256


@ROI_MASK_HEAD_REGISTRY.register()
class MaskFeatureHead(nn.Module):
    """A mask head up to its features: 3x3 convolution, ReLU, 2x2 deconvolution, 3x3 convolution,
    ReLU."""

    @configurable
    def __init__(self, *, in_channels: int):
        super().__init__()
        self.mask_fcn1 = nn.Conv2d(in_channels, FEATURES, 3, padding=1)
        self.deconv = nn.ConvTranspose2d(FEATURES, FEATURES, 2, stride=2)
        self.reduce = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        for layer in (self.mask_fcn1, self.deconv, self.reduce):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        return {"in_channels": input_shape.channels}

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, 14, 14) -> (R, 256, 28, 28)."""
        return F.relu(self.reduce(self.deconv(F.relu(self.mask_fcn1(x)))))


class Sieve(nn.Module):
    """To half the side and half the channels, and back."""

    def __init__(self):
        super().__init__()
        self.conv_down = nn.Conv2d(FEATURES, FEATURES // 2, 2, stride=2)
        self.bn = nn.BatchNorm2d(FEATURES // 2)
        self.conv_up = nn.ConvTranspose2d(FEATURES // 2, FEATURES, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_up(F.relu(self.bn(self.conv_down(x))))


class BoxVectors(nn.Module):
    """Mask features of boxes -> a vector each.

    The authors' list of ``stages`` sieves holds one module ``stages`` times, and is gone through
    ``stages`` times: it is applied stages ** 2 times with shared weights.
    """

    def __init__(self, stages: int):
        super().__init__()
        self.stages = stages
        self.sieve = Sieve()
        self.conv_d1 = nn.Conv2d(FEATURES, FEATURES, 2, stride=2)
        self.bn1 = nn.BatchNorm2d(FEATURES)
        self.conv_d2 = nn.Conv2d(FEATURES, FEATURES, 2, stride=2)
        self.bn2 = nn.BatchNorm2d(FEATURES)
        self.conv_d_final = nn.Conv2d(FEATURES, FEATURES, 7)
        self.bn3 = nn.BatchNorm2d(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """(R, 256, 28, 28) -> (R, 256)."""
        for _ in range(self.stages**2):
            x = self.sieve(x)
        x = self.bn1(F.relu(self.conv_d1(x)))
        x = self.bn2(F.relu(self.conv_d2(x)))
        return self.bn3(F.relu(self.conv_d_final(x))).flatten(1)


@IMAGE_HEAD_REGISTRY.register()
class AffinityImageHead(nn.Module):
    """Boxes' vectors times a matrix N x A and a vector A x 1, then :class:`VectorClassifier`."""

    reads_mask_features = True

    @configurable
    def __init__(self, *, num_boxes: int, affinities: int, stages: int, width: int, classes: int):
        """
        Args:
            num_boxes: N.
            affinities: A.
            stages: of the sieve, see :class:`BoxVectors`.
            width: of the hidden layers.
            classes: C.
        """
        super().__init__()
        self.vectors = BoxVectors(stages)
        self.matrix = nn.Parameter(torch.empty(num_boxes, affinities))
        self.vector = nn.Parameter(torch.empty(affinities, 1))
        for parameter in (self.matrix, self.vector):
            nn.init.xavier_normal_(parameter)
        self.classifier = VectorClassifier(FEATURES, width, classes)

    @classmethod
    def from_config(cls, cfg):
        return {
            "num_boxes": cfg.MODEL.RANKED_BOXES.NUM,
            "affinities": cfg.MODEL.IMAGE_HEAD.AFFINITIES,
            "stages": cfg.MODEL.IMAGE_HEAD.SIEVE_STAGES,
            "width": cfg.MODEL.IMAGE_HEAD.FC_DIM,
            "classes": len(cfg.MODEL.IMAGE_HEAD.CLASSES),
        }

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Mask features, and boxes (B, N, 4) that are not looked at -> (B, C) logits."""
        vectors = self.vectors(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        joined = vectors.transpose(1, 2) @ self.matrix @ self.vector
        return self.classifier(joined.squeeze(2))


@IMAGE_HEAD_REGISTRY.register()
class LSTMAttentionImageHead(nn.Module):
    """Boxes in order of their top-left corner's distance from the image's through two LSTMs with
    attention, one for and one against each class."""

    reads_mask_features = True

    @configurable
    def __init__(self, *, stages: int, width: int, classes: int):
        """
        Args:
            stages: of the sieve, see :class:`BoxVectors`.
            width: of the hidden layers.
            classes: C.
        """
        super().__init__()
        self.vectors = BoxVectors(stages)
        self.positive = AttendedLSTM(FEATURES, width, classes)
        self.negative = AttendedLSTM(FEATURES, width, classes)

    @classmethod
    def from_config(cls, cfg):
        return {
            "stages": cfg.MODEL.IMAGE_HEAD.SIEVE_STAGES,
            "width": cfg.MODEL.IMAGE_HEAD.FC_DIM,
            "classes": len(cfg.MODEL.IMAGE_HEAD.CLASSES),
        }

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Mask features and the boxes (B, N, 4) px that they are of -> (B, C) logits."""
        order = boxes[..., :2].square().sum(dim=2).sort(dim=1, stable=True).indices
        vectors = self.vectors(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        vectors = vectors.gather(1, order[..., None].expand_as(vectors))
        return self.positive(vectors) - self.negative(vectors)
