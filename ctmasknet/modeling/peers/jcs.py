"""JCS (Wu et al. 2020): lesion maps by VGG-16 with grouped pyramid dilation, alone or joint with
Res2Net-101, and a slice classifier on Res2Net-101.

Batch normalisation of the encoders is frozen and has no eps, as published, which needs a start from
ImageNet's weights; from random ones signals fade or grow from layer to layer, so it can learn too
(``BN``). Tensor names are those of the authors' files either way. C below is a level's channels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from ctmasknet.modeling.peers.backbones import timm_model

_VGG_CHANNELS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_RES2NET_CHANNELS = (64, 256, 512, 1024, 2048)
#: Channels of the six levels that the decoder sees, finest first.
_LEVELS = (64, 128, 256, 512, 512, 512)


def _frozen_norm(channels: int, **_) -> nn.Module:
    return FrozenBatchNorm2d(channels, eps=0.0)


#: ``MODEL.JCS.NORM`` -> what makes the normalisation of an encoder's channels.
JCS_NORMS = {"FrozenBN": _frozen_norm, "BN": nn.BatchNorm2d}


def _res2net(name: str, norm: str, num_classes: int) -> nn.Module:
    # Blocks whose last weights are frozen at zero would add nothing to their shortcuts
    last = norm != "FrozenBN"
    return timm_model(
        name, norm_layer=JCS_NORMS[norm], num_classes=num_classes, zero_init_last=last
    )


class _Conv(nn.Module):
    """Convolution with bias, then normalisation and ReLU as asked for."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm=None, relu: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.bn = norm(outputs) if norm else None
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.bn is None else self.bn(x)
        return x.relu() if self.relu else x


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.linear2(self.linear1(x.mean((2, 3))).relu()).sigmoid()
        return x * gate[:, :, None, None]


class GroupedPyramidDilation(nn.Module):
    """(B, C, H, W) -> the same shape, through four groups that are dilated unlike."""

    def __init__(self, channels: int, dilations: tuple[int, ...]):
        super().__init__()
        group = 2 * channels // len(dilations)
        self.expand_conv = _Conv(channels, 2 * channels, 1)
        self.reduce_conv = _Conv(2 * channels, channels, 1)
        self.end_conv = _Conv(channels, channels, 3)
        self.se_block = _SqueezeExcite(2 * channels, channels // 2)
        self.dilation_convs = nn.ModuleList(
            nn.Conv2d(group, group, 3, padding=d, dilation=d) for d in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        groups = self.expand_conv(x).chunk(len(self.dilation_convs), dim=1)
        x = torch.cat([conv(g) for conv, g in zip(self.dilation_convs, groups, strict=True)], dim=1)
        return self.end_conv(self.reduce_conv(self.se_block(x.relu())))


class _VGG16(nn.Module):
    """Five levels; the last two have one stride, 8 px."""

    def __init__(self, norm: str):
        super().__init__()
        inputs = 3
        for level, (outputs, convs) in enumerate(_VGG_CHANNELS, start=1):
            for number in range(1, convs + 1):
                setattr(self, f"conv{level}_{number}", _Conv(inputs, outputs, 3, JCS_NORMS[norm]))
                inputs = outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for level, (_, convs) in enumerate(_VGG_CHANNELS, start=1):
            if 1 < level < 5:
                x = F.max_pool2d(x, 2)
            for number in range(1, convs + 1):
                x = getattr(self, f"conv{level}_{number}")(x)
            found.append(x)
        return found


class _FuseLevel(nn.Module):
    """One step of the decoder: ``lateral`` and ``above``, C/2 channels each."""

    def __init__(self, channels: int):
        super().__init__()
        joined = channels + channels // 2
        self.se1 = _SqueezeExcite(channels, 1)
        self.conv1 = _Conv(channels, channels, 3)
        self.se2 = _SqueezeExcite(joined, 1)
        self.reduce_conv = _Conv(joined, channels, 1)
        self.conv2 = _Conv(channels, channels, 3)

    def forward(self, lateral: Tensor, above: Tensor) -> Tensor:
        x = self.conv1(self.se1(torch.cat([lateral, above], dim=1)))
        return self.conv2(self.reduce_conv(self.se2(torch.cat([x, above], dim=1))))


class _Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        *levels, top = _LEVELS
        self.inners_a = nn.ModuleList([_Conv(c, c // 2, 1) for c in levels] + [_Conv(top, top, 1)])
        self.inners_b = nn.ModuleList(
            _Conv(above, c // 2, 1) for c, above in zip(levels, _LEVELS[1:], strict=True)
        )
        self.fuse = nn.ModuleList([_FuseLevel(c) for c in levels] + [_Conv(top, top, 3)])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Six levels -> six, finest first."""
        x = self.fuse[-1](self.inners_a[-1](features[-1]))
        found = [x]
        for level in reversed(range(len(self.inners_b))):
            lateral = self.inners_a[level](features[level])
            above = _resized(self.inners_b[level](x), lateral)
            x = self.fuse[level](lateral, above)
            found.append(x)
        return found[::-1]


class _Fusion(nn.Module):
    """Maps of both encoders, level by level, in the size of the second's."""

    def __init__(self):
        super().__init__()
        pairs = list(zip(_LEVELS, _RES2NET_CHANNELS, strict=False))
        conv = partial(_Conv, kernel=3, norm=nn.BatchNorm2d)
        self.cat_modules = nn.ModuleList(conv(a + b, a) for a, b in pairs)
        self.se_modules = nn.ModuleList(conv(a, a) for a, _ in pairs)
        self.fuse_modules = nn.ModuleList(conv(a, a) for a, _ in pairs)

    def forward(self, first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
        steps = zip(self.cat_modules, self.se_modules, self.fuse_modules, strict=True)
        return [
            fuse(se(cat(torch.cat([_resized(a, b), b], dim=1))))
            for (cat, se, fuse), a, b in zip(steps, first, second, strict=True)
        ]


class JCSSegmentation(nn.Module):
    """Lesion maps of slices at five levels."""

    def __init__(self, joint: str | None = None, norm: str = "FrozenBN"):
        """
        Args:
            joint: timm's name of the second encoder (``res2net101d``); None for VGG-16 alone.
            norm: of :data:`JCS_NORMS`, of both encoders.
        """
        super().__init__()
        self.vgg16 = _VGG16(norm)
        self.res2net = self.fuse = None
        if joint:
            self.res2net = _res2net(joint, norm, num_classes=0)
            self.fuse = _Fusion()
        self.gpd = GroupedPyramidDilation(512, (1, 3, 6, 9))
        self.gpd1 = GroupedPyramidDilation(512, (1, 2, 3, 4))
        self.fpn = _Decoder()
        for level, channels in enumerate(_LEVELS[:5], start=1):
            setattr(self, f"cls{level}", nn.Conv2d(channels, 1, 1))
        # Nothing normalises in the decoder, through which torch's own start would lose the signal
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """
        Args:
            images: (B, 3, H, W), less ImageNet's means over its deviations; sides of 16 px or more.

        Returns:
            (B, 5, H, W) logits, finest first; map 0 is the answer.
        """
        features = self.vgg16(images)
        features[-1] = self.gpd(features[-1])
        top = self.gpd1(F.max_pool2d(features[-1], 2))
        if self.res2net is not None:
            features = self.fuse(features, res2net_levels(self.res2net, images))
        maps = [
            _resized(getattr(self, f"cls{level}")(x), images)
            for level, x in enumerate(self.fpn([*features, top])[:5], start=1)
        ]
        return torch.cat(maps, dim=1)


def res2net_levels(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Outputs of stem and four stages of timm's Res2Net, strides 2..32 px."""
    found = [net.act1(net.bn1(net.conv1(images)))]
    x = net.maxpool(found[0])
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        found.append(x)
    return found


def jcs_classifier(
    name: str = "res2net101d", num_classes: int = 2, norm: str = "FrozenBN"
) -> nn.Module:
    """(B, 3, H, W) as for :class:`JCSSegmentation` -> (B, num_classes) logits; the last layer has
    no bias. ``norm`` is of :data:`JCS_NORMS`."""
    net = _res2net(name, norm, num_classes)
    net.fc = nn.Linear(net.num_features, num_classes, bias=False)
    return net


def _resized(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
