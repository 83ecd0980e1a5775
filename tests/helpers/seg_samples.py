"""DICOM-SEG files of the volumes in :mod:`ct_samples`."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.sr.codedict import codes


def write_seg(series: Path, mask: np.ndarray, names: dict[int, str], path: Path, **given) -> Path:
    """Write a binary DICOM-SEG.

    Args:
        series: folder of the DICOM files.
        mask: (slices, H, W) label values, feet to head, upright; or (slices, H, W, segments) 0/1.
        names: label of each segment, by value, from 1. The coded meaning of "A" is lesion, that of
            all others mass.
        given: more arguments of highdicom's ``Segmentation``.
    """
    source = [pydicom.dcmread(file) for file in series.iterdir()]
    source.sort(key=lambda data: float(data.ImagePositionPatient[2]))
    for data in source:
        # What a scanner's file has and the SEG copies from it.
        for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"):
            setattr(data, keyword, "")
        data.StudyID = data.AccessionNumber = data.ReferringPhysicianName = ""
        data.FrameOfReferenceUID = f"{data.SeriesInstanceUID}.9"
        data.PositionReferenceIndicator = ""
    segments = [
        SegmentDescription(number, name, codes.SCT.MorphologicallyAbnormalStructure, code, "MANUAL")
        for number, (name, code) in enumerate(
            (
                (name, codes.SCT.Lesion if name == "A" else codes.SCT.Mass)
                for name in names.values()
            ),
            start=1,
        )
    ]
    if mask.ndim == 3:
        mask = np.stack([mask == value for value in names], axis=-1)
    seg = Segmentation(
        source_images=source,
        pixel_array=mask.astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=2,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        **given,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return path
