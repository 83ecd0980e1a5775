"""Which HU window pictures were made through, from the grey levels of air, fat and muscle."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctmasknet.console.progress import tracked
from ctmasknet.ct.appearance import UNLIKE_LEVELS, GreyLevels, appearance, typical_levels
from ctmasknet.ct.arrays import Axes
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import GREY, Rescale, Window
from ctmasknet.errors import CTMaskNetError

#: HU that the three are taken to have.
USUAL_HU = GreyLevels(air=-1000.0, fat=-105.0, muscle=45.0)
#: Lung windows (center, width in HU) in common use.
COMMON_WINDOWS = (
    *((-700, 1000), (-600, 1500), (-600, 1200), (-500, 1400), (-500, 1500), (-550, 1600)),
    *((-600, 1600), (-600, 1000), (-700, 1500), (-400, 1500), (-650, 1000)),
)
#: A level from here on up, or down to 255 less it, may be cut off.
_CUT_OFF = 250
#: How far a common window's levels may be from those seen.
_FIT_LEVELS = 10


@dataclass(frozen=True)
class WindowEstimate:
    """What the levels tell of the window.

    Attributes:
        window: from two levels or three that are not cut off; None with fewer.
        common: those of :data:`COMMON_WINDOWS` that give these levels, the closest first.
    """

    window: Window | None
    common: tuple[Window, ...]


def estimate_window(levels: GreyLevels) -> WindowEstimate:
    """Fit a window to levels; those at the ends of the scale only say on which side they lie."""
    seen = [(hu, level) for hu, level in zip(USUAL_HU, levels, strict=True) if level is not None]
    inside = [pair for pair in seen if 255 - _CUT_OFF < pair[1] < _CUT_OFF]
    window = None
    if len({level for _, level in inside}) > 1:
        hu, level = np.array(inside).T
        slope, start = np.polyfit(level / 255, hu, 1)
        if slope > 0:
            window = Window(float(start + slope / 2), float(slope))
    fits = []
    for center, width in COMMON_WINDOWS if len(seen) > 1 else ():
        shown = Window(center, width).to_uint8(np.array([hu for hu, _ in seen])).astype(float)
        off = np.abs(shown - [level for _, level in seen]).max()
        if off <= _FIT_LEVELS:
            fits.append((off, Window(float(center), float(width))))
    return WindowEstimate(window, tuple(one for _, one in sorted(fits, key=lambda fit: fit[0])))


def _text(window: Window) -> str:
    return f"{window.center_hu:.0f},{window.width_hu:.0f}"


def measure_pictures(
    inputs: Sequence[str | os.PathLike],
    limit: int = 200,
    rescale: Rescale | None = None,
    axes: Axes | None = None,
) -> str:
    """Levels of air, fat and muscle of grey pictures and what they tell of the window, as text.

    Args:
        inputs: files and folders of any depth: 8-bit pictures, and what is stated to hold grey
            levels, by ``rescale`` or beside the files.
        limit: pictures looked at, spread evenly over all.
        rescale, axes: see :func:`ctmasknet.ct.read.read_scans`.

    Raises:
        CTMaskNetError: a limit below 1; what :func:`ctmasknet.ct.read.read_scans` says; DICOM or
            volumes that state HU.
    """
    if limit < 1:
        raise CTMaskNetError(f"`limit`: {limit} is not a number of pictures; give 1 or more")
    slices = []
    for scan in read_scans(inputs, rescale=rescale, axes=axes):
        slices += scan.slices
        first = scan.slices[0]
        in_hu = scan.kind != "image" or rescale is not None
        if in_hu and first.source.read_picture(first.frame) is None:
            raise CTMaskNetError(
                f"{first.file}: states HU, so its window is yours to choose; give 8-bit pictures, "
                f"or `rescale` {GREY} where its values are grey levels 0..255"
            )
    count = min(limit, len(slices))
    chosen = [slices[index * len(slices) // count] for index in range(count)]
    seen = [appearance(one.pixels(Window())) for one in tracked(chosen, "levels")]
    levels = [one.levels for one in seen if one.fault is None]
    typical = typical_levels(levels)
    lines = [f"{count} of {len(slices)} pictures looked at"]
    if others := count - len(levels):
        lines.append(f"{others} of them look like no axial chest CT, and do not count")
    spread = 0.0
    for name, level in typical._asdict().items():
        text = f"{name:<7}not seen"
        if level is not None:
            known = [one for one in map(operator.attrgetter(name), levels) if one is not None]
            low, high = np.percentile(known, [10, 90])
            spread = max(spread, high - low)
            text = f"{name:<7}{level:3.0f}  (10-90 %: {low:.0f}-{high:.0f}, {len(known)} pictures)"
        lines.append(text)
    found = estimate_window(typical)
    if found.window is None:
        lines.append("fewer than two levels lie inside the scale, so no window can be calculated")
    else:
        taken = ", ".join(f"{name} {hu:g}" for name, hu in USUAL_HU._asdict().items())
        lines.append(f"window with {taken} HU: {_text(found.window)} (center,width)")
    common = "; ".join(map(_text, found.common)) or "none"
    lines.append(f"common lung windows that give these levels: {common}")
    if spread > UNLIKE_LEVELS:
        lines.append("the levels differ from picture to picture: they may not share one window")
    return "\n".join(lines)
