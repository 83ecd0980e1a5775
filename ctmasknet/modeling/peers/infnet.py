"""Inf-Net (Fan et al. 2020): lesion maps by Res2Net-50, a partial decoder and reverse attention,
and the U-Net that divides them into classes.

Tensor names are those of the authors' files. Strides in px.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.peers.backbones import timm_model


class _Conv(nn.Module):
    """Convolution without bias and batch normalisation, size kept."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], dilation: int = 1):
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(dilation * (k // 2) for k in kernel)
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class _ReceptiveField(nn.Module):
    """Four branches of growing reach, joined, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.branch0 = nn.Sequential(_Conv(inputs, outputs, 1))
        for number, reach in enumerate((3, 5, 7), start=1):
            branch = nn.Sequential(
                _Conv(inputs, outputs, 1),
                _Conv(outputs, outputs, (1, reach)),
                _Conv(outputs, outputs, (reach, 1)),
                _Conv(outputs, outputs, 3, dilation=reach),
            )
            setattr(self, f"branch{number}", branch)
        self.conv_cat = _Conv(4 * outputs, outputs, 3)
        self.conv_res = _Conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch0, self.branch1, self.branch2, self.branch3)
        joined = self.conv_cat(torch.cat([branch(x) for branch in branches], dim=1))
        return (joined + self.conv_res(x)).relu()


class _PartialDecoder(nn.Module):
    """Three levels of C channels, deepest first, to one map of the finest."""

    def __init__(self, channels: int):
        super().__init__()
        for number in range(1, 5):
            setattr(self, f"conv_upsample{number}", _Conv(channels, channels, 3))
        self.conv_upsample5 = _Conv(2 * channels, 2 * channels, 3)
        self.conv_concat2 = _Conv(2 * channels, 2 * channels, 3)
        self.conv_concat3 = _Conv(3 * channels, 3 * channels, 3)
        self.conv4 = _Conv(3 * channels, 3 * channels, 3)
        self.conv5 = nn.Conv2d(3 * channels, 1, 1)

    def forward(self, deep: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        deep_up = _times(deep, 2, corners=True)
        middle_now = self.conv_upsample1(deep_up) * middle
        fine_now = (
            self.conv_upsample2(_times(deep_up, 2, corners=True))
            * self.conv_upsample3(_times(middle, 2, corners=True))
            * fine
        )
        x = self.conv_concat2(torch.cat([middle_now, self.conv_upsample4(deep_up)], dim=1))
        x = self.conv_upsample5(_times(x, 2, corners=True))
        return self.conv5(self.conv4(self.conv_concat3(torch.cat([fine_now, x], dim=1))))


class InfNet(nn.Module):
    """Lesion map of slices with three coarser ones and an edge map."""

    #: Sides have to be multiples of this, px.
    stride = 32

    def __init__(self, backbone: str = "res2net50d", channels: int = 32):
        """
        Args:
            backbone: timm's Res2Net by name.
            channels: of the decoder.
        """
        super().__init__()
        self.resnet = timm_model(backbone, num_classes=1000)
        for level, inputs in ((2, 512), (3, 1024), (4, 2048)):
            setattr(self, f"rfb{level}_1", _ReceptiveField(inputs, channels))
        self.ParDec = _PartialDecoder(channels)
        self._add("ra4_conv", ((2048, 256, 1), (320, 256, 5), *((256, 256, 5),) * 2, (256, 1, 1)))
        self._add("ra3_conv", ((1024, 64, 1), (128, 64, 3), (64, 64, 3), (64, 1, 3)))
        self._add("ra2_conv", ((512, 64, 1), (128, 64, 3), (64, 64, 3), (64, 1, 3)))
        self._add("edge_conv", ((256, 64, 1), (64, 64, 3), (64, 64, 3), (64, 1, 3)))

    def _add(self, name: str, layers: tuple[tuple[int, int, int], ...]) -> None:
        for number, layer in enumerate(layers, start=1):
            setattr(self, f"{name}{number}", _Conv(*layer))

    def _layers(self, name: str) -> list[nn.Module]:
        names = (f"{name}{number}" for number in range(1, 6))
        return [getattr(self, each) for each in names if hasattr(self, each)]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (B, 3, H, W), less ImageNet's means over its deviations; H and W multiples of
                ``stride``.

        Returns:
            (B, 1, H, W) logits each: ``map_5``, ``map_4``, ``map_3``, ``map_2`` (the answer),
            ``edge``.

        Raises:
            CTMaskNetError: a side is no multiple of ``stride``.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise CTMaskNetError(
                f"a slice of {height} x {width} px: Inf-Net takes sides that are multiples of "
                f"{self.stride} px; set INPUT.MIN_SIZE_TEST to one"
            )
        net = self.resnet
        x = net.maxpool(net.act1(net.bn1(net.conv1(images))))
        level_1 = net.layer1(x)
        level_2 = net.layer2(level_1)
        level_3 = net.layer3(level_2)
        level_4 = net.layer4(level_3)
        *layers, last = self._layers("edge_conv")
        edge = level_1
        for layer in layers:
            edge = layer(edge)
        found = {"edge": _times(last(edge), 4)}
        x = self.ParDec(self.rfb4_1(level_4), self.rfb3_1(level_3), self.rfb2_1(level_2))
        found["map_5"] = _times(x, 8)
        x = _times(x, 0.25)
        for level, features in ((4, level_4), (3, level_3), (2, level_2)):
            x = x + self._reverse(level, features, 1 - x.sigmoid(), edge)
            found[f"map_{level}"] = _times(x, 2 ** (level + 1))
            x = _times(x, 2)
        return found

    def _reverse(self, level: int, features: Tensor, attention: Tensor, edge: Tensor) -> Tensor:
        first, *layers, last = self._layers(f"ra{level}_conv")
        x = first(features * attention)
        x = torch.cat([x, _times(edge, 2.0 ** (1 - level))], dim=1)
        for layer in layers:
            x = layer(x).relu()
        return last(x)


def _times(x: Tensor, factor: float, corners: bool = False) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=corners)


class _TwoConvs(nn.Module):
    def __init__(self, inputs: int, outputs: int, middle: int | None = None):
        super().__init__()
        middle = middle or outputs
        self.double_conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 3, padding=1),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class _Down(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), _TwoConvs(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class _Up(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = _TwoConvs(inputs, outputs, inputs // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = _times(x, 2, corners=True)
        rows, columns = (a - b for a, b in zip(skip.shape[-2:], x.shape[-2:], strict=True))
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return self.conv(torch.cat([skip, x], dim=1))


class _Last(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MultiClassUNet(nn.Module):
    """U-Net of a slice and its lesion map of Inf-Net to GGO, consolidation, background."""

    def __init__(self, num_inputs: int = 6, num_classes: int = 3):
        super().__init__()
        self.inc = _TwoConvs(num_inputs, 64)
        self.down1 = _Down(64, 128)
        self.down2 = _Down(128, 256)
        self.down3 = _Down(256, 512)
        self.down4 = _Down(512, 512)
        self.up1 = _Up(1024, 256)
        self.up2 = _Up(512, 128)
        self.up3 = _Up(256, 64)
        self.up4 = _Up(128, 64)
        self.outc = _Last(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """
        Args:
            images: (B, 6, H, W): the slice, then the prior map as RGB, both less ImageNet's means
                over its deviations; sides of 16 px or more.

        Returns:
            (B, num_classes, H, W) logits.
        """
        levels = [self.inc(images)]
        for down in (self.down1, self.down2, self.down3, self.down4):
            levels.append(down(levels[-1]))
        x = levels.pop()
        for up in (self.up1, self.up2, self.up3, self.up4):
            x = up(x, levels.pop())
        return self.outc(x)
