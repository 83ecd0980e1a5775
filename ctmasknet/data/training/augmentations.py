"""Augmentations of slices: each draws how one slice is changed, from numpy's random state.

Those of the frame are made of the whole file, in its px, about the middle of what is cut out: the
body box where slices are cropped to it, else the slice. Each is made with a probability of its own.
"""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.data import transforms as T

from ctmasknet.data.training.transforms import AffineTransform, ElasticTransform

#: Blur before tissue is told from air, and what is too thin to be body (a table), px.
_BLUR_PX, _OPEN_PX = 5, 13


class FramedInput(T.AugInput):
    """A slice with the box that is cut out of it."""

    def __init__(self, image: np.ndarray, box: tuple[int, int, int, int] | None = None):
        """
        Args:
            image: (H, W, 3) uint8.
            box: (x0, y0, x1, y1) px; None for the whole slice.
        """
        super().__init__(image)
        self.box = (0, 0, image.shape[1], image.shape[0]) if box is None else tuple(box)


class HideOutside(T.Augmentation):
    """Outside of the body is the mean of what is dark there, so that no table and no text shows."""

    def __init__(self, prob: float):
        super().__init__()
        self.prob = prob

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return T.ColorTransform(outside_hidden) if _drawn(self.prob) else T.NoOpTransform()


def outside_hidden(image: np.ndarray) -> np.ndarray:
    """A copy of a slice whose outside is the mean of its dark px, all of it where no body is found.

    The body is the largest outline by Otsu's threshold, filled.

    Args:
        image: (H, W, 3) uint8.
    """
    grey = cv2.GaussianBlur(image.max(axis=2), (_BLUR_PX, _BLUR_PX), 0)
    seen = grey[grey > 0]
    if not seen.size:
        return image
    level, _ = cv2.threshold(seen, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    tissue = (grey > level).astype(np.uint8)
    filled = _outlines_filled(tissue, largest=False)
    opened = cv2.morphologyEx(filled, cv2.MORPH_OPEN, np.ones((_OPEN_PX, _OPEN_PX), np.uint8))
    if not opened.any():
        return image
    body = _outlines_filled(opened, largest=True)
    # The blur may have taken the skin
    outside = cv2.dilate(body, np.ones((_BLUR_PX, _BLUR_PX), np.uint8)) == 0
    dark = image[outside & (image.max(axis=2) <= level)]
    hidden = image.copy()
    hidden[outside] = np.rint(dark.mean(axis=0)) if len(dark) else 0
    return hidden


def _outlines_filled(mask: np.ndarray, *, largest: bool) -> np.ndarray:
    """(H, W) uint8: the outlines of a mask, or the largest, with all that is inside."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if largest:
        outlines = [max(outlines, key=cv2.contourArea)]
    filled = np.zeros(mask.shape, np.uint8)
    return cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)


class RandomAffine(T.Augmentation):
    """Turn, shear, scale and shift about the middle of the box, each with ``prob``."""

    def __init__(
        self,
        prob: float,
        *,
        degrees: float = 0.0,
        shear: float = 0.0,
        scale: tuple[float, float] | tuple[()] = (),
        shift: float = 0.0,
    ):
        """
        Args:
            degrees: up to so much either way.
            shear: up to so many px a px, in x or in y.
            scale: least and largest factor; () for none.
            shift: up to so much of the box's sides either way, in x and y.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, box: tuple[int, int, int, int]) -> T.Transform:
        x0, y0, x1, y1 = box
        drawn = {}
        if self.degrees and _drawn(self.prob):
            drawn["degrees"] = _either_way(self.degrees)
        if self.shear and _drawn(self.prob):
            amount = _either_way(self.shear)
            drawn["shear"] = (amount, 0.0) if _drawn(0.5) else (0.0, amount)
        if self.scale and _drawn(self.prob):
            drawn["scale"] = np.random.uniform(*self.scale)
        if self.shift and _drawn(self.prob):
            sides = (x1 - x0, y1 - y0)
            drawn["shift"] = tuple(_either_way(self.shift) * side for side in sides)
        if not drawn:
            return T.NoOpTransform()
        return AffineTransform.about(((x0 + x1) / 2, (y0 + y1) / 2), **drawn)


class RandomElastic(T.Augmentation):
    """Moves px by a smooth random field."""

    def __init__(self, prob: float, *, largest_px: float, smooth_px: float):
        """
        Args:
            largest_px: the largest move is drawn from 0 to this.
            smooth_px: standard deviation of the Gaussian that smooths the field.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        if not _drawn(self.prob):
            return T.NoOpTransform()
        field = np.random.uniform(-1, 1, (*image.shape[:2], 2)).astype(np.float32)
        field = cv2.GaussianBlur(field, (0, 0), self.smooth_px)
        largest = np.linalg.norm(field, axis=2).max()
        return ElasticTransform(field * (np.random.uniform(0, self.largest_px) / largest))


class CropToFrame(T.Augmentation):
    """Cuts the box out, each of its sides moved with ``prob``, never beyond the slice."""

    def __init__(self, prob: float, *, jitter: float = 0.0):
        """
        Args:
            jitter: up to so much of the box's sides either way.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, box: tuple[int, int, int, int]) -> T.Transform:
        height, width = image.shape[:2]
        x0, y0, x1, y1 = box
        if self.jitter and _drawn(self.prob):
            by = [_either_way(self.jitter) * side for side in (x1 - x0, y1 - y0) * 2]
            x0, y0, x1, y1 = (round(side + move) for side, move in zip(box, by, strict=True))
            x0, y0 = max(0, min(x0, width - 1)), max(0, min(y0, height - 1))
            x1, y1 = max(x0 + 1, min(x1, width)), max(y0 + 1, min(y1, height))
        return T.CropTransform(x0, y0, x1 - x0, y1 - y0)


class RandomGrey(T.Augmentation):
    """Grey levels times a factor, plus a shift, each with ``prob``; clipped to 0..255."""

    def __init__(
        self, prob: float, *, shift: float = 0.0, scale: tuple[float, float] | tuple[()] = ()
    ):
        """
        Args:
            shift: up to so many grey levels either way.
            scale: least and largest factor; () for none.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        factor = np.random.uniform(*self.scale) if self.scale and _drawn(self.prob) else 1.0
        shift = _either_way(self.shift) if self.shift and _drawn(self.prob) else 0.0
        # The transform rounds down
        return T.BlendTransform(np.float32(shift + 0.5), 1.0, factor)


class RandomNoise(T.Augmentation):
    """Normal noise, the same in all channels, for CT is grey; clipped to 0..255."""

    def __init__(self, prob: float, *, largest_std: float):
        """
        Args:
            largest_std: the standard deviation is drawn from 0 to this, grey levels.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        if not _drawn(self.prob):
            return T.NoOpTransform()
        std = np.random.uniform(0, self.largest_std)
        noise = np.random.normal(0, std, (*image.shape[:2], 1)).astype(np.float32)
        return T.BlendTransform(noise + 0.5, 1.0, 1.0)


def _drawn(prob: float) -> bool:
    return np.random.uniform() < prob


def _either_way(most: float) -> float:
    return np.random.uniform(-most, most)
