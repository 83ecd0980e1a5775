"""Whether values can be HU of a chest: a slice of one holds lung, and tissue where HU have it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ctmasknet.ct.scan import CTSlice
from ctmasknet.errors import CTMaskNetError

#: A volume in HU has a slice with this share of its values in this range: air and lung. What lies
#: below it is padding.
AIR_SEEN_HU, AIR_SHARE = (-1200.0, -200.0), 0.01
#: ... one with this share of lung and air beside its lowest value, which may be padding,
_LUNG_SHARE = 0.03
#: ... and, in the same slice, with the share of air in this range: fat, water and muscle.
_TISSUE_HU = (-150.0, 250.0)
#: ... and no value beyond this, metal and padding values included.
_BEYOND_HU = 1e5
#: Slices of a series that are looked at, at most.
_LOOKED_AT = 9


@dataclass(frozen=True)
class HULook:
    """What slices showed until one was a chest's.

    Attributes:
        chest: one holds lung and tissue.
        air: one holds values of air or lung, padding maybe, and none a value that no CT has.
        found: the values, as text.
    """

    chest: bool
    air: bool
    found: str

    @property
    def doubt(self) -> str:
        """What speaks against HU."""
        return (
            f"its values, {self.found}, may not be HU: no slice holds lung (-1200 to -200) and "
            "tissue (-150 to 250) beside padding"
        )


def look_for_chest(planes: Iterable[np.ndarray]) -> HULook:
    """Look at slices, until one is a chest's.

    Args:
        planes: (H, W) values each, of any type.
    """
    lowest, highest, air = np.inf, -np.inf, False
    for plane in planes:
        size, values = plane.size, plane[np.isfinite(plane)]
        if values.size:
            lowest, highest = min(lowest, values.min()), max(highest, values.max())
        if max(-lowest, highest) > _BEYOND_HU:
            air = False
            break
        air |= _count(values, AIR_SEEN_HU) >= AIR_SHARE * size
        if _holds_lung(values, size):
            return HULook(True, True, "")
    found = f"{lowest:g} to {highest:g}" if np.isfinite(lowest) else "no number at all"
    return HULook(False, bool(air), found)


def hu_doubts(slices: Sequence[CTSlice]) -> list[str]:
    """The problem of a series whose values cannot be HU, none of others. The middle slice is
    decoded and, where it is no chest's, some more; what cannot be is told when its turn comes."""
    middle = len(slices) // 2
    spread = {index * len(slices) // (_LOOKED_AT - 1) for index in range(_LOOKED_AT - 1)}
    read = []

    def planes() -> Iterable[np.ndarray]:
        for index in (middle, *sorted(spread - {middle})):
            with contextlib.suppress(CTMaskNetError):
                plane = slices[index].hu()
                read.append(index)
                yield plane

    look = look_for_chest(planes())
    if look.chest or not read:
        return []
    return [f"{look.doubt}; check the slope and intercept of its rescale"]


def _holds_lung(values: np.ndarray, size: int) -> bool:
    """Whether the finite values of a slice of ``size`` px hold lung and tissue as HU do."""
    measured = values[values > values.min(initial=np.inf)]
    lung = _count(measured, AIR_SEEN_HU)
    return (
        lung >= _LUNG_SHARE * size
        and lung >= _count(measured, (-np.inf, AIR_SEEN_HU[0]))
        and _count(measured, _TISSUE_HU) >= AIR_SHARE * size
    )


def _count(values: np.ndarray, bounds: tuple[float, float]) -> int:
    return int(((values >= bounds[0]) & (values < bounds[1])).sum())
