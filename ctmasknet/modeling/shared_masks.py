"""Ground-truth masks that many proposals share.

Detectron2 hands every sampled proposal a copy of its lesion's whole mask: up to 192 of 512 x 512 px
an image, which are then made float32, to cut 28 x 28 px from each. Here a proposal keeps the number
of its lesion, and the cuts are taken from the few masks there are.

Shapes: g lesions, n proposals, M the side of a cut, H and W the image's sides in px.
"""

from __future__ import annotations

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks
from torch import Tensor


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
