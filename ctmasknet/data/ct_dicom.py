"""DICOM as slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array

from ctmasknet.data.ct_orientation import Upright, upright
from ctmasknet.data.ct_pictures import natural_key
from ctmasknet.data.ct_scan import CTScan, CTSlice, check_claimed_size, outside_to_air
from ctmasknet.errors import CTMaskNetError

_CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2",)


@dataclass(frozen=True)
class DicomSource:
    file: str
    turn: Upright
    slope: float
    intercept: float

    def read_picture(self, frame: int | None) -> None:
        return None

    def read_hu(self, frame: int | None) -> np.ndarray:
        stored = pixel_array(self.file, index=frame or 0, raw=True)
        hu = stored.astype(np.float32) * self.slope + self.intercept
        return self.turn.plane(outside_to_air(hu).T)


def read_dicom_file(file: str, name: str) -> list[CTSlice]:
    header = pydicom.dcmread(file, stop_before_pixels=True)
    modality = header.get("Modality") or (header.get("SOPClassUID") in _CT_CLASSES and "CT")
    if modality != "CT":
        raise CTMaskNetError(f"{file}: not CT")
    check_claimed_size(file, (header.Rows, header.Columns))
    turn = upright(_affine(header), (header.Columns, header.Rows, 1), file)
    one = CTSlice(
        file=file,
        frame=None,
        name=name,
        patient=str(header.get("PatientID", "")),
        scan=str(header.SeriesInstanceUID),
        shape=(turn.shape[1], turn.shape[0]),
        spacing_mm=turn.spacing_mm,
        position_mm=float(turn.affine[2, 3]),
        source=DicomSource(file, turn, float(header.RescaleSlope), float(header.RescaleIntercept)),
    )
    return [one]


def dicom_scans(slices: list[CTSlice]) -> list[CTScan]:
    groups: dict[tuple, list[CTSlice]] = {}
    for one in slices:
        groups.setdefault((one.patient, one.scan, one.shape), []).append(one)
    return [_scan(group) for group in groups.values()]


def _scan(group: list[CTSlice]) -> CTScan:
    group = sorted(group, key=lambda one: (one.position_mm, natural_key(one.name)))
    affine = group[0].source.turn.affine.copy()
    if len(group) > 1:
        last = group[-1].source.turn.affine
        affine[:3, 2] = (last[:3, 3] - affine[:3, 3]) / (len(group) - 1)
    return CTScan(group[0].patient, group[0].scan, "dicom", tuple(group), affine)


def _affine(header: Dataset) -> np.ndarray:
    along_columns, along_rows = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
    row_mm, column_mm = (float(value) for value in header.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = along_columns * column_mm
    affine[:3, 1] = along_rows * row_mm
    affine[:3, 2] = np.cross(along_columns, along_rows)
    affine[:3, 3] = [float(value) for value in header.ImagePositionPatient]
    affine[:2] *= -1  # DICOM's x runs to the left, y to the back
    return affine
