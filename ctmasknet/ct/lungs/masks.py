"""Lung masks of scans and slices, with what speaks against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctmasknet.ct.lungs.network import network_lungs
from ctmasknet.ct.lungs.threshold import AIR_BELOW_HU, BODY_WIDTH_MM, GAS_BELOW_HU, threshold_lungs
from ctmasknet.ct.scan import CTScan, CTSlice, Window
from ctmasknet.errors import CTMaskNetError

#: Ways to find lungs: the rule of :mod:`.threshold`, and the network of :mod:`.network`.
LUNG_WAYS = ("threshold", "network")
#: Volumes of an adult's lungs lie between, ml.
_USUAL_ML = (1000.0, 9000.0)
#: Lungs take up at least this share of a chest's slices, and of its fullest slice.
_SMALL_SHARE, _SMALL_IN_FULLEST = 0.01, 0.03
#: A lung below this share of the other, and a border that is touched along this share of it.
_UNEQUAL, _TOUCHED = 1 / 3, 0.02


@dataclass(frozen=True)
class LungMasks:
    """Lungs of one scan.

    Attributes:
        masks: (n, H, W) bool, lesions in the lungs included.
        way: how they were found, in words.
        doubts: what speaks against them, one sentence each.
    """

    masks: np.ndarray
    way: str
    doubts: tuple[str, ...]


def scan_lungs(scan: CTScan, way: str = "threshold", window: Window | None = None) -> LungMasks:
    """The lungs of a scan.

    Args:
        scan: slices in HU; or pictures, whose grey levels became HU through ``window``.
        way: of :data:`LUNG_WAYS`.
        window: of pictures, which state no HU.

    Raises:
        CTMaskNetError: an unknown way; no lung in any slice; pictures without a window, or with
            one that does not show lungs; slices of unlike sides; what cannot be read.
    """
    if way not in LUNG_WAYS:
        raise CTMaskNetError(f"lungs: {way!r} is no way to find them; {' or '.join(LUNG_WAYS)}")
    first = scan.slices[0]
    unlike = [one.name for one in scan.slices if one.shape != first.shape]
    if unlike:
        raise CTMaskNetError(
            f"{unlike[0]}: has other sides than {first.name} of its scan; give slices of one size"
        )
    if scan.kind != "image":
        # Pictures are in no order of the body
        return _found(scan.slices, way, window)
    each = [_found([one], way, window, alone=False) for one in scan.slices]
    masks = np.concatenate([one.masks for one in each])
    return _judged(scan.slices, masks, each[0].way, pictures=True)


def _found(
    slices: Sequence[CTSlice], way: str, window: Window | None, *, alone: bool = True
) -> LungMasks:
    planes = (_hu(one, window) for one in slices)
    spacing = slices[0].spacing_mm
    if way == "network":
        masks, words = network_lungs(np.stack(list(planes))), "lungmask's U-Net R231"
    else:
        masks = threshold_lungs(planes, None if spacing is None else spacing[1])
        words = f"threshold {AIR_BELOW_HU:g} HU and connected components"
    if window is not None:
        words += f", grey levels through the window {window.center_hu:g}, {window.width_hu:g} HU"
    return _judged(slices, masks, words) if alone else LungMasks(masks, words, ())


def _hu(one: CTSlice, window: Window | None) -> np.ndarray:
    picture = one.source.read_picture(one.frame)
    if picture is None:
        return one.hu()
    if window is None:
        raise CTMaskNetError(
            f"{one.name}: is a picture, which states no HU to find lungs by; give the window "
            "CENTER,WIDTH in HU that it was made through, or leave out the search for lungs"
        )
    check_shows_lungs(one.name, window)
    return picture_hu(picture, window)


def check_shows_lungs(name: str, window: Window) -> None:
    """Raise :class:`CTMaskNetError`, which begins with ``name``, where a picture made through
    ``window`` does not show where lungs are."""
    low, high = window.center_hu - window.width_hu / 2, window.center_hu + window.width_hu / 2
    if low > GAS_BELOW_HU - 50 or high < AIR_BELOW_HU + 50:
        raise CTMaskNetError(
            f"{name}: the window {window.center_hu:g},{window.width_hu:g} HU does not tell air "
            f"from lung and lung from tissue; it has to reach from {GAS_BELOW_HU - 50:g} to "
            f"{AIR_BELOW_HU + 50:g} HU"
        )


def picture_hu(picture: np.ndarray, window: Window) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 -> (H, W) HU by the window that it was made through."""
    low = window.center_hu - window.width_hu / 2
    grey = picture if picture.ndim == 2 else picture.max(axis=2)
    return low + grey.astype(np.float32) * (window.width_hu / 255)


def _judged(
    slices: Sequence[CTSlice], masks: np.ndarray, way: str, *, pictures: bool = False
) -> LungMasks:
    """
    Raises:
        CTMaskNetError: no lung in any slice.
    """
    name = slices[0].scan or slices[0].name
    if not masks.any():
        raise CTMaskNetError(
            f"{name}: no lung was found in any slice by {way}; check that it is a chest in HU, "
            "give label masks, or leave out the search for lungs"
        )
    doubts = []
    shares = masks.mean(axis=(1, 2))
    if shares.mean() < _SMALL_SHARE or shares.max() < _SMALL_IN_FULLEST:
        doubts.append(
            f"lungs take up {100 * shares.max():.1f} % of the fullest slice, little for a chest"
        )
    volume = _volume_ml(slices, masks)
    if volume is not None and not _USUAL_ML[0] <= volume <= _USUAL_ML[1]:
        doubts.append(
            f"lungs of {volume:.0f} ml, where an adult's whole ones have {_USUAL_ML[0]:.0f} to "
            f"{_USUAL_ML[1]:.0f}"
        )
    borders = [masks[:, [0, -1]].mean(axis=(1, 2)), masks[:, :, [0, -1]].mean(axis=(1, 2))]
    touching = int((np.maximum(*borders) > _TOUCHED).sum())
    if touching:
        doubts.append(f"lungs touch the border of {touching} of {len(masks)} slices, so are cut")
    per_column = masks.sum(axis=(0, 1))
    middle = len(per_column) // 2
    sides = sorted((int(per_column[:middle].sum()), int(per_column[middle:].sum())))
    if sides[0] < _UNEQUAL * sides[1]:
        doubts.append(
            "one lung is less than a third of the other: dense disease may have been left out"
        )
    if slices[0].spacing_mm is None:
        doubts.append(
            f"the size of a px is not stated; a body was taken to be {BODY_WIDTH_MM:g} mm wide"
        )
    if pictures and len(slices) > 1:
        doubts.append("lungs were looked for in each slice alone, for pictures state no order")
    return LungMasks(masks, way, tuple(doubts))


def _volume_ml(slices: Sequence[CTSlice], masks: np.ndarray) -> float | None:
    """None where slices do not say where they lie, or how large a px is."""
    positions = [one.position_mm for one in slices]
    spacing = slices[0].spacing_mm
    if spacing is None or None in positions or len(set(positions)) < 2:
        return None
    step = (max(positions) - min(positions)) / (len(set(positions)) - 1)
    return float(masks.sum()) * spacing[0] * spacing[1] * step / 1000
