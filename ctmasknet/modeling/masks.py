"""Masks that many proposals share, and masks moved between box and image as the authors did.

Detectron2 hands every sampled proposal a copy of its lesion's whole mask: up to 192 of 512 x 512 px
an image, which are then made float32, to cut 28 x 28 px from each. Here a proposal keeps the number
of its lesion, and the cuts are taken from the few masks there are.

Detectron2 samples at a box's exact corners; torchvision 0.3 stretches a mask over the box rounded
to whole px. In training, Detectron2 cuts a lesion's mask to the box and rounds it to 0 and 1, which
torchvision 0.3 leaves soft. The keys ``MODEL.ROI_MASK_HEAD.PASTE`` and ``TARGETS`` choose.

Shapes: g lesions, n proposals or instances, M the side of a mask within its box, H and W the
image's sides in px.
"""

from __future__ import annotations

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes, ROIMasks
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import roi_align


class SharedBitMasks(BitMasks):
    """Detectron2's bit masks (n, H, W), each one of g that are kept once."""

    def __init__(self, masks: Tensor, owner: Tensor | None = None):
        """
        Args:
            masks: (g, H, W), lesion where not 0.
            owner: (n,) int64, the mask of each; default: all masks, in order.
        """
        self.masks = masks.to(torch.bool)
        self.owner = torch.arange(len(masks), device=masks.device) if owner is None else owner
        self.image_size = tuple(masks.shape[1:])

    @property
    def tensor(self) -> Tensor:
        """(n, H, W) bool, a copy."""
        return self.masks[self.owner]

    @property
    def device(self) -> torch.device:
        return self.masks.device

    def to(self, *args, **kwargs) -> SharedBitMasks:
        return type(self)(self.masks.to(*args, **kwargs), self.owner.to(*args, **kwargs))

    def __len__(self) -> int:
        return len(self.owner)

    def __getitem__(self, item) -> SharedBitMasks:
        """An int (one mask), a slice, or a tensor of bools or numbers."""
        return type(self)(self.masks, self.owner[[item] if isinstance(item, int) else item])

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Mask i within box i, as Detectron2's ``BitMasks`` does it.

        Args:
            boxes: (n, 4) xyxy px.
            mask_size: M.

        Returns:
            (n, M, M) bool
        """
        cut = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        return cut(self._pictures(boxes), self._places(boxes))[:, 0] >= 0.5

    def _pictures(self, boxes: Tensor) -> Tensor:
        """(g, 1, H, W) float32 on the boxes' device."""
        return self.masks[:, None].to(boxes.device, torch.float32)

    def _places(self, boxes: Tensor) -> Tensor:
        """(n, 5): mask, and box within it."""
        return torch.cat([self.owner[:, None].to(boxes), boxes], dim=1)


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
            (n, M, M) float32, share of the lesion at each pixel, 0..1
        """
        return roi_align(self._pictures(boxes), self._places(boxes), mask_size)[:, 0]
