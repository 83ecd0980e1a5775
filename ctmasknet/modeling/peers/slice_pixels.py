"""How the published slice classifiers make a network's input of a slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tvf

from ctmasknet.errors import CTMaskNetError

IMAGENET_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class SlicePixels:
    """A slice resized, cut and normalised.

    Attributes:
        size: shorter side after resizing (bilinear, antialiased), px; 0 leaves the slice as it is.
        crop: side of the centre cut, px; 0 for none.
        squash: resize to ``size`` x ``size`` whatever the shape.
        mean, std: of RGB in 0..1; one number stands for all three.
        ten_crops: in evaluation, ten cuts answer for a slice, see :meth:`crops`.
    """

    size: int = 224
    crop: int = 224
    squash: bool = False
    mean: tuple[float, ...] = IMAGENET_PIXELS[0]
    std: tuple[float, ...] = IMAGENET_PIXELS[1]
    ten_crops: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SlicePixels:
        """As ``MODEL.SLICE_NETWORK``, ``MODEL.PIXEL_MEAN`` and ``MODEL.PIXEL_STD`` say.

        Raises:
            CTMaskNetError: a crop larger than the slice.
        """
        size, crop = cfg.MODEL.SLICE_NETWORK.SIZE, cfg.MODEL.SLICE_NETWORK.CROP
        if size and crop > size:
            raise CTMaskNetError(
                f"MODEL.SLICE_NETWORK.CROP is {crop} px, more than MODEL.SLICE_NETWORK.SIZE {size} "
                "px; let it be at most that"
            )
        return cls(
            size=size,
            crop=crop,
            squash=cfg.MODEL.SLICE_NETWORK.SQUASH,
            mean=tuple(value / 255 for value in cfg.MODEL.PIXEL_MEAN),
            std=tuple(value / 255 for value in cfg.MODEL.PIXEL_STD),
            ten_crops=cfg.MODEL.SLICE_NETWORK.TEN_CROPS,
        )

    def __call__(self, image: np.ndarray) -> Tensor:
        """(H, W) or (H, W, 3) uint8 -> (3, h, w) float32."""
        picture = self._resized(image)
        if self.crop:
            picture = tvf.center_crop(picture, [self.crop, self.crop])
        return self._normalised(picture)

    def crops(self, image: np.ndarray) -> Tensor:
        """(H, W) or (H, W, 3) uint8 -> (10, 3, crop, crop) float32: the corners, the middle, and
        their mirror images; a slice smaller than ``crop`` is padded with black first."""
        picture = self._resized(image)
        short = [max(self.crop - side, 0) for side in picture.size]
        sides = [part // 2 for part in short]
        picture = tvf.pad(picture, [*sides, short[0] - sides[0], short[1] - sides[1]])
        return torch.stack([self._normalised(one) for one in tvf.ten_crop(picture, self.crop)])

    def _resized(self, image: np.ndarray) -> Image.Image:
        picture = Image.fromarray(np.asarray(image, np.uint8)).convert("RGB")
        if not self.size:
            return picture
        return tvf.resize(picture, [self.size, self.size] if self.squash else self.size)

    def _normalised(self, picture: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(picture, np.uint8)).permute(2, 0, 1).float() / 255
        mean, std = (
            torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.std)
        )
        return (pixels - mean) / std

    def seen(self, height: int, width: int) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 px of a slice of this size: the part of it that is not cut off."""
        if not self.crop:
            return 0.0, 0.0, float(width), float(height)
        short = min(height, width)
        size = self.size or short
        high, wide = (size if self.squash else side * size / short for side in (height, width))
        left, top = max(wide - self.crop, 0) / 2, max(high - self.crop, 0) / 2
        across, down = width / wide, height / high
        return left * across, top * down, (wide - left) * across, (high - top) * down


#: COVID-CT's two validation transforms, JCS's classifier's.
COVID_CT_BASELINE = SlicePixels()
COVID_CT_SELF_TRANS = SlicePixels(crop=0, squash=True, mean=(0.45271412,), std=(0.33165374,))
JCS_CLASSIFIER = SlicePixels(size=256)
