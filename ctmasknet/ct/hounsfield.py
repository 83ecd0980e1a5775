"""Whether values can be HU of a chest: a slice of one holds lung, and tissue where HU have it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ctmasknet.ct.scan import GREY, CTSlice, Rescale, UnsuitableFile, grey_levels
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
#: A volume of grey levels has a slice with so many of them; label masks have fewer.
_GREY_LEVELS = 32


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


def volume_rescale(
    file: str, values: Callable[[int], np.ndarray], count: int, rescale: Rescale | None
) -> tuple[Rescale | None, tuple[str, ...]]:
    """What makes HU, or grey levels, of the values of a volume whose format cannot say what they
    are. Looks at slices, the middle one first, until one is a chest's.

    Values that are HU of a chest stay as they are, whatever is given for those that are not.

    Args:
        file: named in errors.
        values: number of a slice -> (H, W) values.
        count: of slices.
        rescale: given by the user.

    Returns:
        what is to be applied, None for values in HU; what speaks against HU.

    Raises:
        UnsuitableFile: values that cannot be HU, nor become HU or grey levels by ``rescale``.
        CTMaskNetError: a slice that cannot be read; grey levels beyond 0..255 in a slice.
    """
    order = (count // 2, *range(count))
    for index in order if rescale is not None else ():
        plane = values(index)
        if look_for_chest([plane]).chest:
            return None, ()
        if rescale == GREY and _holds_grey(plane):
            for each in range(count):
                grey_levels(file, values(each))
            return GREY, ()
        if rescale != GREY and look_for_chest([plane * rescale[0] + rescale[1]]).chest:
            return rescale, ()
    look = look_for_chest(map(values, order))
    if look.chest:
        return None, ()
    if look.air:
        return None, (f"{look.doubt}; check what was stored",)
    if rescale is None:
        remedy = (
            "; give the CT volume in HU, or `rescale` SLOPE,INTERCEPT to HU, or `rescale` "
            f"{GREY} for grey levels 0..255"
        )
    elif rescale == GREY:
        remedy = f", and no slice's are {_GREY_LEVELS} or more grey levels within 0..255; correct "
        remedy += "`rescale` or leave the file out"
    else:
        remedy = ", nor do they become so by the slope and intercept given; correct `rescale` or "
        remedy += "leave the file out"
    raise UnsuitableFile(
        f"{file}: its values, {look.found}, are not HU of a chest (air is -1000){remedy}"
    )


def _holds_grey(plane: np.ndarray) -> bool:
    levels = plane[np.isfinite(plane)]
    in_range = levels.size and levels.min() >= 0 and levels.max() <= 255
    return bool(in_range) and len(np.unique(np.rint(levels))) >= _GREY_LEVELS


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
