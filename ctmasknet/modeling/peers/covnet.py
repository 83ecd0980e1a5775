"""COVNet (Li et al. 2020): a ResNet-50 over every slice of a scan, the maximum over slices of each
feature, one linear layer."""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from ctmasknet.errors import CTMaskNetError


class COVNet(nn.Module):
    """Classifier of a scan. Tensor names are those of the authors' files.

    The authors evaluate with batch normalisation in training mode: a scan is then normalised by
    its own slices. ``batch_norm_of_scan`` does the same, without their drift of the statistics.
    """

    def __init__(
        self, num_classes: int, backbone: str = "resnet50", batch_norm_of_scan: bool = False
    ):
        """
        Args:
            num_classes: C logits.
            backbone: a ResNet of torchvision by name.
            batch_norm_of_scan: in evaluation, normalise every scan by its own slices.
        """
        super().__init__()
        children = list(torchvision.models.get_model(backbone, weights=None).children())
        self.pretrained_model = nn.Sequential(*children[:-2])
        # The authors' spelling
        self.classifer = nn.Linear(children[-1].in_features, num_classes)
        self.batch_norm_of_scan = batch_norm_of_scan

    def train(self, mode: bool = True) -> COVNet:
        super().train(mode)
        by_scan = self.batch_norm_of_scan and not mode
        for module in self.pretrained_model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = mode or by_scan
                module.track_running_stats = not by_scan
        return self

    def slice_features(self, slices: Tensor) -> Tensor:
        """(S, 3, H, W) slices of one scan -> (S, F) features."""
        return self.pretrained_model(slices).mean((2, 3))

    def forward(self, slices: Tensor) -> Tensor:
        """
        Args:
            slices: (S, 3, H, W) one scan, S >= 1, values 0..1, zero outside the lungs.

        Returns:
            (C,) logits.

        Raises:
            CTMaskNetError: the scan has no slice.
        """
        if not len(slices):
            raise CTMaskNetError("a scan without slices has no class; leave it out")
        return self.classifer(self.slice_features(slices).amax(0))
