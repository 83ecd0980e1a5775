"""The one window through which Hounsfield units become 8-bit grey levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ctmasknet.errors import CTMaskNetError


@dataclass(frozen=True)
class Window:
    """Levels from ``center_hu - width_hu / 2`` (0) to ``center_hu + width_hu / 2`` (255), in HU.

    The default is a common lung window.

    Raises:
        CTMaskNetError: a center or width that is no finite number, or a width of 0 or less.
    """

    center_hu: float = -600.0
    width_hu: float = 1500.0

    def __post_init__(self):
        if not (math.isfinite(self.center_hu) and math.isfinite(self.width_hu)):
            raise CTMaskNetError(f"window: {self} is not finite; give center and width in HU")
        if self.width_hu <= 0:
            raise CTMaskNetError(
                f"window: the width is {self.width_hu} HU; set INPUT.WINDOW_WIDTH_HU above 0"
            )

    def to_uint8(self, hu: np.ndarray) -> np.ndarray:
        """Clip to the window and map it linearly to 0..255, rounded to the nearest level.

        Args:
            hu: Hounsfield units, any shape.

        Returns:
            uint8 of the same shape.
        """
        low = self.center_hu - self.width_hu / 2
        share = (np.asarray(hu, dtype=np.float32) - low) * (255.0 / self.width_hu)
        return np.rint(share.clip(0, 255)).astype(np.uint8)


def parse_window(text: str) -> Window:
    """``"-600,1500"`` -> center and width in HU.

    Raises:
        CTMaskNetError: another form, or no window.
    """
    try:
        center, width = map(float, text.split(","))
    except ValueError:
        raise CTMaskNetError(
            f"--window {text}: expected CENTER,WIDTH in HU, such as --window=-600,1500"
        ) from None
    return Window(center, width)
