"""Transforms of slices that Detectron2 does not have; image, masks and points move alike.

Points are (x, y) in px; the middle of the first px is at (0.5, 0.5). What comes from outside of the
slice is black, and no lesion.
"""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.data.transforms import Transform

#: Steps that find where a point goes; fields are smooth, so each at least halves the error.
_STEPS = 20


class AffineTransform(Transform):
    """Turn, shear, scale and shift in one interpolation; the sides stay as they are."""

    def __init__(self, matrix: np.ndarray):
        """
        Args:
            matrix: (2, 3), takes a point (x, y, 1) of the slice to where it is afterwards.
        """
        super().__init__()
        self.matrix = np.asarray(matrix, dtype=float)

    @classmethod
    def about(
        cls,
        center: tuple[float, float],
        *,
        degrees: float = 0.0,
        shear: tuple[float, float] = (0.0, 0.0),
        scale: float = 1.0,
        shift: tuple[float, float] = (0.0, 0.0),
    ) -> AffineTransform:
        """Shear, then turn counter-clockwise and scale, about ``center`` (x, y) px; then shift.

        Args:
            shear: px that x moves a px of y, and y a px of x.
            shift: (x, y) px.
        """
        sheared = np.array([[1.0, shear[0]], [shear[1], 1.0]])
        linear = cv2.getRotationMatrix2D((0.0, 0.0), degrees, scale)[:, :2] @ sheared
        middle = np.asarray(center, dtype=float)
        return cls(np.column_stack([linear, middle - linear @ middle + shift]))

    def apply_image(self, img: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        # OpenCV counts from the middle of a px
        matrix = self.matrix.copy()
        matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
        return cv2.warpAffine(img, matrix, img.shape[1::-1], flags=interpolation)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return np.asarray(coords, dtype=float) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, cv2.INTER_NEAREST)


class ElasticTransform(Transform):
    """Every px is taken from a little beside it, as a smooth field says."""

    def __init__(self, field_px: np.ndarray):
        """
        Args:
            field_px: (H, W, 2), from a px to the point that it is taken from, in x and y, px.
        """
        super().__init__()
        self.field_px = np.asarray(field_px, dtype=np.float32)

    def apply_image(self, img: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        height, width = self.field_px.shape[:2]
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        return cv2.remap(img, x + self.field_px[..., 0], y + self.field_px[..., 1], interpolation)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        # A point goes where the field takes it from
        coords = np.asarray(coords, dtype=float)
        if not len(coords):
            return coords
        found = coords.copy()
        for _ in range(_STEPS):
            at = (found - 0.5).astype(np.float32)
            moved = cv2.remap(
                self.field_px,
                *(at[:, None, 0], at[:, None, 1], cv2.INTER_LINEAR),
                borderMode=cv2.BORDER_REPLICATE,
            )
            found = coords - moved[:, 0]
        return found

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, cv2.INTER_NEAREST)
