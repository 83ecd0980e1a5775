"""Masks between a box and its image as the authors' torchvision 0.3 moved them.

Detectron2 samples at a box's exact corners; torchvision 0.3 stretches a mask over the box rounded
to whole px. In training, Detectron2 cuts a lesion's mask to the box and rounds it to 0 and 1, which
torchvision 0.3 leaves soft. The keys ``MODEL.ROI_MASK_HEAD.PASTE`` and ``TARGETS`` choose.

Shapes: n instances, M the side of a mask within its box, H and W the image's sides in px.
"""

from __future__ import annotations

import torch
from detectron2.structures import BitMasks, Boxes, ROIMasks
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import roi_align

from ctmasknet.modeling.shared_masks import SharedBitMasks

#: What the two keys may be.
WAYS = ("detectron2", "published")


class PublishedROIMasks(ROIMasks):
    """Predicted masks (n, M, M), probabilities within their boxes, pasted as logits over rounded
    boxes."""

    def to(self, device: torch.device) -> PublishedROIMasks:
        return PublishedROIMasks(self.tensor.to(device))

    def __getitem__(self, item) -> PublishedROIMasks:
        return PublishedROIMasks(super().__getitem__(item).tensor)

    def to_bitmasks(self, boxes: Boxes, height: int, width: int, threshold: float = 0.5):
        """Paste into the image.

        Args:
            boxes: (n, 4) xyxy px.
            height: H.
            width: W.
            threshold: probability above which a pixel belongs to the lesion.

        Returns:
            BitMasks (n, H, W)
        """
        above = self.tensor.logit(eps=1e-7) - torch.tensor(threshold).logit()
        pasted = paste_masks_in_image(above[:, None], boxes.tensor, (height, width))
        return BitMasks(pasted[:, 0] > 0)


class PublishedBitMasks(SharedBitMasks):
    """Ground-truth masks (n, H, W) whose cuts to boxes are soft."""

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Mask i within box i.

        Args:
            boxes: (n, 4) xyxy px.
            mask_size: M.

        Returns:
            (n, M, M) float32, share of the lesion at each place, 0..1
        """
        return roi_align(self._pictures(boxes), self._places(boxes), mask_size)[:, 0]
