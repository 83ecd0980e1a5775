"""A slice that is drawn on: enlarged by a whole factor, labels where they hide no other.

Pictures are (H, W, 3) uint8 RGB arrays. Boxes and masks are given in px of the slice and drawn in
px of the enlarged one, so that lines and text keep their size whatever the slice measures.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.utils.visualizer import Visualizer

#: A slice is enlarged by the whole factor that brings its longer side nearest to so many px.
_LEGIBLE_PX = 600
_LABEL_POINTS = 9


def legible_scale(height: int, width: int) -> int:
    """The whole factor that brings the longer side (px) nearest to 600 px; never a reduction."""
    return max(1, round(_LEGIBLE_PX / max(height, width)))


def enlarged(image: np.ndarray, scale: int, interpolation: int = cv2.INTER_CUBIC) -> np.ndarray:
    """A picture or mask, ``scale`` times as wide and high."""
    if scale == 1:
        return image
    size = (image.shape[1] * scale, image.shape[0] * scale)
    return cv2.resize(image, size, interpolation=interpolation)


def as_rgb(pixels: np.ndarray, crop_box: Sequence[int] | None = None) -> np.ndarray:
    """A slice, grey or in colour, for drawing; of a crop what the model saw before the resize.

    Args:
        pixels: (H, W) or (H, W, 3) uint8.
        crop_box: (x0, y0, x1, y1) px; None for all of it.

    Returns:
        (H', W', 3) uint8.
    """
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    if crop_box is None:
        return rgb
    x0, y0, x1, y1 = crop_box
    return np.ascontiguousarray(rgb[y0:y1, x0:x1])


class SliceCanvas(Visualizer):
    """Detectron2's primitives on an enlarged slice."""

    def __init__(self, image_rgb: np.ndarray, scale: int):
        """
        Args:
            image_rgb: (H, W, 3) uint8.
            scale: enlargement, a whole number.
        """
        super().__init__(enlarged(image_rgb, scale))
        self.enlargement = scale
        # Detectron2 derives line widths from the font; thin lines hide less of a small lesion
        self._default_font_size = 4
        self._taken: list[tuple[float, float, float, float]] = []

    def label(
        self, texts: Sequence[str], box: Sequence[float], color: tuple[float, ...]
    ) -> str | None:
        """Write the first of ``texts`` that finds room beside or in the box.

        Args:
            texts: the same said ever shorter.
            box: (x0, y0, x1, y1) px of the slice.
            color: RGB in 0..1.

        Returns:
            The text written, None when there was no room for any.
        """
        box = [side * self.enlargement for side in box]
        for text in texts:
            self.draw_text(
                text, (0, 0), font_size=_LABEL_POINTS, color=color, horizontal_alignment="left"
            )
            artist = self.output.ax.texts[-1]
            extent = artist.get_window_extent(self.output.canvas.get_renderer())
            corner = self._free_corner(box, extent.width + 4, extent.height + 4)
            if corner is not None:
                artist.set_position((corner[0] + 2, corner[1] + 2))
                return text
            artist.remove()
        return None

    def picture(self) -> np.ndarray:
        """(H * scale, W * scale, 3) uint8 RGB."""
        return np.ascontiguousarray(self.output.get_image())

    def _free_corner(
        self, box: Sequence[float], width: float, height: float
    ) -> tuple[float, float] | None:
        """Upper left corner (px) of free room above, below, beside or in the box, for a label."""
        x0, y0, x1, y1 = box
        right, bottom = self.output.width - width, self.output.height - height
        for x, y in (
            (x0, y0 - height),
            (x0, y1),
            (x1 - width, y0 - height),
            (x1 - width, y1),
            (x1, y0),
            (x0 - width, y0),
            (x1, y1 - height),
            (x0 - width, y1 - height),
            (x0, y0),
        ):
            x, y = min(max(x, 0), right), min(max(y, 0), bottom)
            room = (x, y, x + width, y + height)
            if not any(_overlap(room, other) for other in self._taken):
                self._taken.append(room)
                return x, y
        return None


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
