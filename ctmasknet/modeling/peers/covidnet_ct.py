"""COVIDNet-CT: its published graph, run in torch, and the crop to the body that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.meta_arch import slice_labels
from ctmasknet.modeling.peers.graph_network import Graph, GraphNetwork
from ctmasknet.modeling.peers.slice_classifier import log_odds, named

_BLUR_PX, _EROSION_PX = 5, 7


def body_box(grey: np.ndarray) -> tuple[int, int, int, int]:
    """Where the body is: Otsu's threshold of the blurred slice, eroded, largest contour.

    Args:
        grey: (H, W) uint8.

    Returns:
        x0, y0, x1, y1 px; the whole slice where no body is found.
    """
    blurred = cv2.GaussianBlur(grey, (_BLUR_PX, _BLUR_PX), 0)
    _, bright = cv2.threshold(blurred, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    bright = cv2.erode(bright, np.ones((_EROSION_PX, _EROSION_PX), np.uint8))
    contours, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return 0, 0, grey.shape[1], grey.shape[0]
    x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
    return x, y, x + width, y + height


@META_ARCH_REGISTRY.register()
class COVIDNetCT(nn.Module):
    """The network that ``tools/import_weights.py`` finds in COVIDNet-CT's files.

    It looks at the body: what the mapper cut out (a list's body box, ``crop_box``), else what
    :func:`body_box` finds. Means and variances of its batch normalisation stay as they are.
    """

    @configurable
    def __init__(self, *, network: GraphNetwork, num_classes: int):
        """
        Args:
            network: (B, h, w, 3) 0..1 -> (B, C) logits.
            num_classes: C.
        """
        super().__init__()
        self.network = network
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg):
        if not cfg.MODEL.COVIDNET_CT.GRAPH:
            raise CTMaskNetError(
                "MODEL.COVIDNET_CT.GRAPH: is empty; set MODEL.WEIGHTS to what "
                "tools/import_weights.py made of COVIDNet-CT's files, or train its look-alike "
                "(configs/peers/covidnet_ct_lookalike.yaml)"
            )
        classes = len(cfg.MODEL.IMAGE_HEAD.CLASSES)
        try:
            graph = Graph.from_text(cfg.MODEL.COVIDNET_CT.GRAPH)
            outputs = graph.num_outputs
        except CTMaskNetError as error:
            raise CTMaskNetError(
                f"MODEL.COVIDNET_CT.GRAPH: {error}; import the files anew"
            ) from None
        if outputs != classes or graph.input_shape[2] != 3:
            raise CTMaskNetError(
                f"MODEL.COVIDNET_CT.GRAPH: {outputs} logits of an input of shape "
                f"{graph.input_shape}, but there are {classes} classes (MODEL.IMAGE_HEAD.CLASSES) "
                "and 3 colours; give the classes it was trained on"
            )
        return {"network": GraphNetwork(graph), "num_classes": classes}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batched_inputs: Sequence[dict[str, Any]]):
        """
        Args:
            batched_inputs: B dicts with ``image`` (3, H, W), whole values 0..255, RGB;
                ``crop_box`` where it is cut to the body; in training also ``label`` (int).

        Returns:
            as :class:`ctmasknet.modeling.peers.slice_classifier.SliceClassifier`.

        Raises:
            CTMaskNetError: in training, an input has no label or one outside 0..C-1.
        """
        images = torch.stack([self._pixels(item) for item in batched_inputs]).to(self.device)
        outputs = self.network(images).float()
        if self.training:
            labels = torch.tensor(slice_labels(batched_inputs, self.num_classes))
            return {"loss_image": F.cross_entropy(outputs, labels.to(outputs.device))}
        return [named(one) for one in log_odds(outputs.detach())]

    def _pixels(self, item: dict[str, Any]) -> Tensor:
        """(h, w, 3) float32, 0..1: grey, cut to the body, resized without antialiasing."""
        values = np.rint(item["image"].cpu().numpy()).astype(np.uint8).transpose(1, 2, 0)
        grey = cv2.cvtColor(np.ascontiguousarray(values), cv2.COLOR_RGB2GRAY)
        if "crop_box" not in item:
            x0, y0, x1, y1 = body_box(grey)
            grey = grey[y0:y1, x0:x1]
        high, wide, _ = self.network.graph.input_shape
        grey = cv2.resize(grey, (wide, high), interpolation=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(grey.astype(np.float32) / np.float32(255))
        return pixels[..., None].expand(-1, -1, 3)
