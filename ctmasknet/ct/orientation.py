"""Turn a stored grid upright: columns to the patient's left, rows to the back, slices to the head.

Storage axes are called i, j, k; an affine maps their index to RAS mm (x to the right, y to the
front, z to the head).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from ctmasknet.ct.scan import UnsuitableFile
from ctmasknet.errors import CTMaskNetError

#: How far a grid's axes may lean from the patient's. Beyond it a slice is not axial: a reformat, an
#: oblique plane, or a tilted gantry.
AXIAL_TOLERANCE_DEGREES = 10.0
_UPRIGHT = axcodes2ornt(("L", "P", "S"))


@dataclass(frozen=True, eq=False)
class Upright:
    """How to turn one stored grid.

    Attributes:
        axes: the stored axis that becomes (columns, rows, slices).
        flips: whether (columns, rows, slices) run against that stored axis.
        shape: (columns, rows, slices) after turning.
        affine: (4, 4) upright (column, row, slice) index -> RAS mm.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Distance between (rows, columns)."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[1]), float(lengths[0])

    def plane(self, stored: np.ndarray) -> np.ndarray:
        """Turn one slice.

        Args:
            stored: the two axes that are not the slice axis, in stored order.

        Returns:
            (rows, columns), contiguous.
        """
        column_axis, row_axis, _ = self.axes
        plane = stored if row_axis < column_axis else stored.T
        return np.ascontiguousarray(
            plane[:: -1 if self.flips[1] else 1, :: -1 if self.flips[0] else 1]
        )


def upright(affine: np.ndarray, shape: Sequence[int], file: str) -> Upright:
    """Work out how to turn a grid.

    Args:
        affine: (4, 4) stored (i, j, k) index -> RAS mm.
        shape: of the three stored axes.
        file: named in errors.

    Raises:
        UnsuitableFile: axes that lean more than :data:`AXIAL_TOLERANCE_DEGREES` from the patient's.
        CTMaskNetError: an affine that is singular or not finite.
    """
    directions = np.asarray(affine, dtype=np.float64)[:3, :3]
    lengths = np.linalg.norm(directions, axis=0)
    if not (np.isfinite(affine).all() and (lengths > 0).all()):
        raise CTMaskNetError(
            f"{file}: states no usable orientation (its axes have no length or are not finite)"
        )
    cosines = np.abs(directions / lengths)
    orientation = io_orientation(affine)
    if np.isnan(orientation).any():
        raise CTMaskNetError(f"{file}: states no usable orientation (two axes are parallel)")
    nearest = orientation[:, 0].astype(int)
    lean = np.degrees(np.arccos(np.clip(cosines[nearest, [0, 1, 2]], 0.0, 1.0))).max()
    if lean > AXIAL_TOLERANCE_DEGREES:
        raise UnsuitableFile(
            f"{file}: oblique, its axes lean {lean:.3g} degrees from the patient's (at most "
            f"{AXIAL_TOLERANCE_DEGREES:.0f}); give axial slices, or resample to them first"
        )
    to_upright = ornt_transform(orientation, _UPRIGHT)
    axes = tuple(int(np.flatnonzero(to_upright[:, 0] == new)[0]) for new in range(3))
    flips = tuple(bool(to_upright[axis, 1] < 0) for axis in axes)
    return Upright(
        axes=axes,
        flips=flips,
        shape=tuple(int(shape[axis]) for axis in axes),
        affine=np.asarray(affine, dtype=np.float64) @ inv_ornt_aff(to_upright, shape),
    )
