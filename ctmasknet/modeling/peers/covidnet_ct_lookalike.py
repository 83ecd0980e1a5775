"""A network that can be trained in COVIDNet-CT's place: its kind of blocks, not its widths.

COVIDNet-CT's own layers were found by a machine and are published as a graph alone (see
:mod:`ctmasknet.modeling.peers.covidnet_ct`). Sizes here are those of a network of 1.79 M parameters
known under its name; where it normalises, halves and cuts off negative values is chosen here.
"""

from __future__ import annotations

from torch import Tensor, nn

#: Its name among image networks.
LOOKALIKE = "covidnet_ct_lookalike"
_STEM, _STAGES = 24, ((84, 3), (152, 4), (268, 6), (412, 3))


class PRPEBlock(nn.Module):
    """Project, replicate, depthwise 3 x 3, project, expand, with a shortcut.

    (N, in, H, W) -> (N, out, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        half, more = in_channels // 2, 3 * in_channels // 4
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, half, 1),
            nn.Conv2d(half, more, 1),
            nn.Conv2d(more, more, 3, stride, 1, groups=more),
            nn.ReLU(inplace=True),
            nn.Conv2d(more, half, 1),
            nn.Conv2d(half, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.relu(self.body(features) + self.shortcut(features))


class COVIDNetCTLookalike(nn.Sequential):
    """(N, 3, H, W) -> (N, num_outputs) logits."""

    def __init__(self, num_outputs: int):
        layers: list[nn.Module] = [
            nn.Conv2d(3, _STEM, 7, 2, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        ]
        channels = _STEM
        for stage, (width, blocks) in enumerate(_STAGES):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(PRPEBlock(channels, width, stride))
                channels = width
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_outputs))
        super().__init__(*layers, *head)
        # Five layers lie between two normalisations; torch's own start would leave them a variance
        # so small that running statistics, which begin at 1, take hundreds of steps to get there
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                # Nothing follows a shortcut that would halve what is doubled
                after = "linear" if name.endswith("shortcut") else "relu"
                nn.init.kaiming_normal_(module.weight, nonlinearity=after)
                nn.init.zeros_(module.bias)
