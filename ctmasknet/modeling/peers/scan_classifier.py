"""A classifier of whole scans in the harness: COVNet (Li et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.meta_arch import slice_labels
from ctmasknet.modeling.peers.covnet import COVNet
from ctmasknet.modeling.peers.slice_classifier import SliceClassifier, log_odds, named
from ctmasknet.modeling.peers.slice_pixels import SlicePixels

#: Slices that go through the network at once where they do not share statistics.
_AT_ONCE = 16


@META_ARCH_REGISTRY.register()
class ScanClassifier(SliceClassifier):
    """COVNet on scans. Inputs are slices; those of one ``patient`` and ``scan`` are seen together,
    and each of them is given its scan's logits: no slice is named by itself.

    It finds no lesions.
    """

    #: Slices of a scan have to come together.
    sees_scans = True

    @configurable
    def __init__(self, **kwargs):
        """Arguments as :class:`SliceClassifier`, but ``network`` is a :class:`COVNet`: (S, 3, h, w)
        slices of a scan -> (C,)."""
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg):
        network, classes = cfg.MODEL.SLICE_NETWORK, len(cfg.MODEL.IMAGE_HEAD.CLASSES)
        if not network.NAME.startswith(("resnet", "resnext", "wide_resnet")):
            raise CTMaskNetError(
                f"MODEL.SLICE_NETWORK.NAME is {network.NAME!r}; a ScanClassifier takes a ResNet of "
                "torchvision, such as resnet50"
            )
        try:
            covnet = COVNet(classes, network.NAME, cfg.MODEL.SCAN_NETWORK.BATCH_STATISTICS)
        except ValueError:
            raise CTMaskNetError(
                f"MODEL.SLICE_NETWORK.NAME: torchvision has no network {network.NAME}; choose "
                "resnet18, resnet50, ..."
            ) from None
        return {"network": covnet, "num_classes": classes, "pixels": SlicePixels.from_config(cfg)}

    def forward(self, batched_inputs: Sequence[dict[str, Any]]):
        """
        Args:
            batched_inputs: slices, dicts with ``image`` (3, H, W), whole values 0..255, RGB, and
                ``patient`` and ``scan``; those without are one scan. In training also ``label``
                (int), which a scan's slices share; a scan that is in the batch twice counts once.

        Returns:
            In training ``{"loss_image": scalar}``, the mean cross-entropy of the scans. In
            evaluation a dict for every slice, those of its scan: ``scores`` (C,), softmax;
            ``logits`` (C,), log-odds of the scores; ``pred_class`` int.

        Raises:
            CTMaskNetError: in training, an input has no label or one outside 0..C-1; a scan whose
                slices are all black; slices of a scan unlike in size after ``pixels``.
        """
        scans = scan_members(batched_inputs)
        outputs = torch.stack([self._outputs([batched_inputs[i] for i in one]) for one in scans])
        if self.training:
            labels = slice_labels(batched_inputs, self.num_classes)
            target = torch.tensor([labels[members[0]] for members in scans])
            return {"loss_image": F.cross_entropy(outputs, target.to(outputs.device))}
        found: list[dict[str, Any]] = [{} for _ in batched_inputs]
        for logits, members in zip(log_odds(outputs.detach()), scans, strict=True):
            for index in members:
                found[index] = named(logits)
        return found

    def _outputs(self, scan: Sequence[dict[str, Any]]) -> Tensor:
        """(C,) of one scan."""
        if not any(item["image"].any() for item in scan):
            raise CTMaskNetError(
                f"{scan[0].get('file_name', 'a scan')}: every slice of its scan is black (no lungs "
                "were found, where INPUT.LUNGS_ONLY is set), so it has no class; leave it out"
            )
        whole = self.training or self.network.batch_norm_of_scan
        if whole:
            return self.network(self.network_input(scan)).float()
        # The maximum over slices is that over parts of them
        parts = [
            self.network.slice_features(self.network_input(scan[start : start + _AT_ONCE])).amax(0)
            for start in range(0, len(scan), _AT_ONCE)
        ]
        return self.network.classifer(torch.stack(parts).amax(0)).float()

    def _unlike_sizes(self, batched_inputs: Sequence[dict[str, Any]]) -> str:
        first = batched_inputs[0].get("file_name", "a scan")
        return (
            f"{first}: slices of its scan differ in size; set MODEL.SLICE_NETWORK.CROP, or "
            "MODEL.SLICE_NETWORK.SQUASH True"
        )


def scan_members(batched_inputs: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Which inputs are slices of one scan, by ``patient`` and ``scan``: their numbers, scan by
    scan."""
    scans: dict[tuple[Any, Any], list[int]] = {}
    for index, item in enumerate(batched_inputs):
        scans.setdefault((item.get("patient"), item.get("scan")), []).append(index)
    return list(scans.values())
