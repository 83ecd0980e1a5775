"""NIfTI volumes as scans.

NIfTI has no place to say that values are HU. They are taken as HU after slope and intercept, unless
they cannot be: a slice of the chest holds air and lung. A volume without a slice of which
:data:`AIR_SHARE` lies below :data:`AIR_SEEN_HU` is a mask, a picture in 0..255, a share in 0..1,
another modality, or CT that has lost its offset.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np

from ctmasknet.data.ct_nifti_file import read_volume
from ctmasknet.data.ct_nifti_voxels import NiftiVolume
from ctmasknet.data.ct_scan import CTScan, CTSlice, UnsuitableFile, mark_outside

#: A volume in HU has a slice with this share of its values below this.
AIR_SEEN_HU, AIR_SHARE = -200.0, 0.01
#: ... and no value beyond this, metal and padding values included.
_BEYOND_HU = 1e5


@dataclass(frozen=True)
class NiftiSource:
    """Reads one slice of one volume."""

    volume: NiftiVolume

    def read_picture(self, frame: int | None) -> None:
        return None

    def read_hu(self, frame: int | None) -> np.ndarray:
        return mark_outside(self.volume.values(frame).astype(np.float32))


def read_nifti_file(file: str, name: str) -> CTScan:
    """One volume as a scan.

    Args:
        file: path.
        name: how the scan's slices are called, ``#0000``, ``#0001``, ... in stored order appended.

    Raises:
        UnsuitableFile: values that cannot be HU, and what
            :func:`ctmasknet.data.ct_nifti_file.read_volume` says.
        CTMaskNetError: damaged.
    """
    volume = read_volume(file)
    _check_hu(volume)
    turn = volume.turn
    columns, rows, count = turn.shape
    scan = re.sub(r"(\.nii)?(\.gz)?$", "", os.path.basename(file), flags=re.IGNORECASE)
    source = NiftiSource(volume)
    slices = []
    for place in range(count):
        stored = count - 1 - place if turn.flips[2] else place
        slices.append(
            CTSlice(
                file=file,
                frame=stored,
                name=f"{name}#{stored:04d}",
                patient="",
                scan=scan,
                shape=(rows, columns),
                spacing_mm=turn.spacing_mm,
                position_mm=float(turn.affine[2, 2] * place + turn.affine[2, 3]),
                source=source,
            )
        )
    return CTScan("", scan, "nifti", tuple(slices), turn.affine, volume.problems)


def _check_hu(volume: NiftiVolume) -> None:
    """Looks at slices, the middle one first, until one holds air."""
    columns, rows, count = volume.turn.shape
    lowest, highest = np.inf, -np.inf
    for index in (count // 2, *range(count)):
        values = volume.values(index)
        values = values[np.isfinite(values)]
        if values.size:
            lowest, highest = min(lowest, values.min()), max(highest, values.max())
        if max(-lowest, highest) > _BEYOND_HU:
            break
        if (values < AIR_SEEN_HU).sum() >= AIR_SHARE * rows * columns:
            return
    found = f"{lowest:g} to {highest:g}" if np.isfinite(lowest) else "no number at all"
    raise UnsuitableFile(
        f"{volume.file}: its values, {found}, are not HU of a chest (air is -1000); give the CT "
        "volume in HU"
    )
