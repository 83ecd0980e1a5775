"""Lesions of a DICOM series as a DICOM segmentation that refers to the series, with coded classes.

Codes:

- GGO: (112120, DCM, "Ground glass opacity"), from DICOM PS3.16 CID 6104, Abnormal Opacity Finding
  or Feature (RadLex calls it RID28531).
- consolidation: (95436008, SCT, "Lung consolidation"); DICOM has no code of its own (RadLex:
  RID43255) and lists none of SNOMED CT's.
- the merged class: (52988006, SCT, "Lesion").

The category of all is (49755003, SCT, "Morphologically Abnormal Structure"), CID 7150, in
(39607008, SCT, "Lung").
"""

from __future__ import annotations

import datetime
import importlib
import io
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pydicom
from pydicom.uid import generate_uid

import ctmasknet
from ctmasknet.ct.dicom.bytes import check_items
from ctmasknet.ct.scan import CTScan, decoding
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.masks import mask_values, stored_plane

#: Value, scheme and meaning of each lesion class; others are coded as lesions under their name.
LESION_CODES = {
    "ggo": ("112120", "DCM", "Ground glass opacity"),
    "consolidation": ("95436008", "SCT", "Lung consolidation"),
    "lesion": ("52988006", "SCT", "Lesion"),
}
_CATEGORY = ("49755003", "SCT", "Morphologically Abnormal Structure")
LUNG_CODE = ("39607008", "SCT", "Lung")
#: What an image has to state, if only as empty; some anonymisers drop it.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
_AI_FAMILY = ("123110", "DCM", "Artificial Intelligence")  # CID 7162
#: Descriptions of content and series (64 characters at most), as they are and with a caution.
_PLAIN = ("Lesions found by ctmasknet; research, not diagnosis", "ctmasknet lesions (research)")
_CAUTIOUS = (
    "Caution: see the segments' descriptions; research, not diagnosis",
    "ctmasknet lesions, CAUTION: see segments (research)",
)
#: Most characters of a segment's description.
_ST_LENGTH = 1024
#: What the frames refer to, so it may be neither missing nor empty; and whether all share it.
_REFERENCES = {
    "StudyInstanceUID": ("Study Instance UID", True),
    "SeriesInstanceUID": ("Series Instance UID", True),
    "FrameOfReferenceUID": ("Frame Of Reference UID", True),
    "SOPInstanceUID": ("SOP Instance UID", False),
}


def require_highdicom(asked: str = "`masks` dicom-seg"):
    """highdicom's package.

    Args:
        asked: what needs it, for the message.

    Raises:
        CTMaskNetError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module("highdicom")
    except ImportError as error:
        raise CTMaskNetError(
            f"{asked} needs highdicom, which is not installed: pip install highdicom"
        ) from error


def dicom_seg_bytes(
    scan: CTScan,
    labels: Sequence[np.ndarray],
    lesion_classes: Sequence[str],
    *,
    identity: str,
    created: datetime.datetime,
    software: str,
    cautions: Sequence[str] = (),
) -> bytes:
    """One segmentation with one binary segment for each lesion class.

    Frames have the stored orientation of the series and refer to its images; frames without
    lesions are left out, as the standard allows. Patient and study are the series' own.

    Args:
        scan: of kind ``dicom``.
        labels: (H, W) uint8 of each slice, values as in
            :func:`ctmasknet.predict.masks.mask_values`.
        lesion_classes: names; segment numbers follow their order, from 1.
        identity: what made it (weights, configuration, inputs); the same gives the same UIDs.
        created: when.
        software: name and version of the model, for the algorithm's identification.
        cautions: what has to be said of the lesions; each segment's description holds it.

    Raises:
        CTMaskNetError: highdicom is not installed; the scan is no DICOM, lacks what a segmentation
            has to refer to, or its slices do not lie straight behind one another.
    """
    highdicom = require_highdicom()
    if scan.kind != "dicom":
        raise CTMaskNetError(
            f"{scan.slices[0].file}: a DICOM segmentation needs a DICOM series; leave out "
            "this kind of mask"
        )
    values = mask_values(lesion_classes)
    segment_of = np.zeros(256, dtype=np.uint8)
    for number, name in enumerate(lesion_classes, start=1):
        segment_of[values[name]] = number
    _check_upright_stack(scan)
    step_mm = _step_mm(scan)
    images = _source_images(scan, step_mm)
    rows, columns = int(images[0].Rows), int(images[0].Columns)
    pixels = np.zeros((_frame_count(scan, images), rows, columns), dtype=np.uint8)
    _check_references(scan, images)
    for index, (one, label) in enumerate(zip(scan.slices, labels, strict=True)):
        frame = index if one.frame is None else one.frame
        pixels[frame] = segment_of[stored_plane(one.source.turn, label).T]
    series_uid, image_uid, dimensions_uid = (
        generate_uid(entropy_srcs=[identity, scan.scan, scan.slices[0].name, what])
        for what in ("series", "image", "dimensions")
    )
    coded = highdicom.sr.CodedConcept
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="ctmasknet", version=software[:64], family=coded(*_AI_FAMILY)
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=coded(*_CATEGORY),
            segmented_property_type=coded(*LESION_CODES.get(name, LESION_CODES["lesion"])),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=[coded(*LUNG_CODE)],
        )
        for number, name in enumerate(lesion_classes, start=1)
    ]
    told = _CAUTIOUS if cautions else _PLAIN
    try:
        with warnings.catch_warnings():
            # Of source attributes that bend the standard, and of a segmentation that is empty
            warnings.simplefilter("ignore")
            segmentation = highdicom.seg.Segmentation(
                source_images=images,
                pixel_array=pixels,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=descriptions,
                series_instance_uid=series_uid,
                series_number=9000,
                sop_instance_uid=image_uid,
                instance_number=1,
                manufacturer="ctmasknet",
                manufacturer_model_name="ctmasknet",
                software_versions=ctmasknet.__version__,
                device_serial_number="0",
                content_label="LESIONS",
                content_description=told[0],
                series_description=told[1],
                content_date=created.date(),
                content_time=created.time(),
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CTMaskNetError(
            f"{scan.slices[0].file}: no DICOM segmentation can refer to this series "
            f"({' '.join(str(error).split())}); leave out this kind of mask"
        ) from error
    for segment in segmentation.SegmentSequence if cautions else ():
        segment.SegmentDescription = f"Caution: {' '.join(cautions)}"[:_ST_LENGTH]
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    # Of a source's header it may be a false or negative value
    if step_mm is not None:
        measures.SpacingBetweenSlices = format(step_mm, ".6g")
    elif "SpacingBetweenSlices" in measures:
        del measures.SpacingBetweenSlices
    if not measures.get("SliceThickness"):  # written so, no reader would take it
        raise CTMaskNetError(
            f"{scan.slices[0].file}: states no slice thickness, which a DICOM segmentation has to; "
            "leave out this kind of mask"
        )
    # highdicom takes these from the clock and by chance; a run that is continued gives them anew
    segmentation.InstanceCreationDate = created.strftime("%Y%m%d")
    segmentation.InstanceCreationTime = created.strftime("%H%M%S")
    for equipment in segmentation.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = created.strftime("%Y%m%d%H%M%S")
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions_uid
    stream = io.BytesIO()
    segmentation.save_as(stream)
    return stream.getvalue()


def _check_upright_stack(scan: CTScan) -> None:
    """Refuse slices that lean against each other: no reader would put their labels in place."""
    first, last = scan.slices[0], scan.slices[-1]
    refused = f"{first.file}: no DICOM segmentation can be made of this series, "
    if first.position_mm is None:
        raise CTMaskNetError(
            f"{refused}whose files do not state where each slice lies; leave out this kind of mask"
        )
    start, end = (one.source.turn.affine for one in (first, last))
    normal = np.cross(start[:3, 0], start[:3, 1])
    way_mm = end[:3, 3] - start[:3, 3]
    along_mm = way_mm @ normal / np.linalg.norm(normal)
    aside_mm = np.sqrt(max(0.0, way_mm @ way_mm - along_mm**2))
    if aside_mm > min(first.spacing_mm or (1.0,)) / 2:
        raise CTMaskNetError(
            f"{refused}a tilted one (gantry): its slices lean by "
            f"{np.degrees(np.arctan2(aside_mm, abs(along_mm))):.1f} degrees against each other; "
            "leave out this kind of mask"
        )


def _step_mm(scan: CTScan) -> float | None:
    """From one slice to the next by their positions; None where the steps differ."""
    known = scan.affine is not None and len(scan.slices) > 1
    return float(np.linalg.norm(scan.affine[:3, 2])) if known else None


def _source_images(scan: CTScan, step_mm: float | None) -> list[pydicom.Dataset]:
    """Headers of the files that hold the slices, each file once, in the order of the slices.

    Where a slice's thickness is left open, it is taken to reach to the next slice."""
    images = series_headers(one.source.file for one in scan.slices)
    for image in images:
        with decoding(image.filename):
            if "NumberOfFrames" not in image and not float(image.get("SliceThickness") or 0) > 0:
                image.SliceThickness = format(step_mm, ".6g") if step_mm else None
            if "SpacingBetweenSlices" in image:
                del image.SpacingBetweenSlices
    return images


def series_headers(files: Iterable[str]) -> list[pydicom.Dataset]:
    """Headers of a series' files, each file once, as highdicom takes them: what an image has to
    state is there, if only as empty.

    Raises:
        CTMaskNetError: a damaged file.
    """
    headers = []
    for file in dict.fromkeys(files):
        with decoding(file):
            check_items(file)
            # As when the slices were read: without a preamble too
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            for keyword in _MAY_BE_EMPTY:
                if keyword not in header:
                    setattr(header, keyword, "")
            _drop_unknown_characters(header)
        headers.append(header)
    return headers


def _drop_unknown_characters(image: pydicom.Dataset) -> None:
    """Remove a SpecificCharacterSet that is empty or unknown; the default one holds then."""
    stated = image.get("SpecificCharacterSet", "")
    known = {one.value for one in require_highdicom().SpecificCharacterSetValues} | {"ISO_IR 6"}
    names = [stated] if isinstance(stated, str) else list(stated or ())
    if len(names) > 1 and not names[0] and any(names):
        names[0] = "ISO 2022 IR 6"  # the default's own name, with which it may be the first of many
    if names and all(name in known for name in names):
        image.SpecificCharacterSet = names
    else:
        image.pop("SpecificCharacterSet", None)


def _check_references(scan: CTScan, images: Sequence[pydicom.Dataset]) -> None:
    for keyword, (name, shared) in _REFERENCES.items():
        uids = [str(image.get(keyword) or "").strip() for image in images]
        fault = None
        if not all(uids):
            fault = f"{name} is missing or empty"
        elif shared and len(set(uids)) > 1:
            fault = f"{name} differs from file to file"
        elif not shared and len(set(uids)) < len(uids):
            fault = f"{name} is the same in several files"
        if fault:
            raise CTMaskNetError(
                f"{scan.slices[0].file}: no DICOM segmentation can refer to this series, whose "
                f"{fault}; leave out this kind of mask"
            )


def _frame_count(scan: CTScan, images: Sequence[pydicom.Dataset]) -> int:
    if len(images) == 1:
        return int(images[0].get("NumberOfFrames") or 1)
    if any(one.frame is not None for one in scan.slices):
        raise CTMaskNetError(
            f"{scan.slices[0].file}: no DICOM segmentation can refer to several files that hold "
            "several frames each; leave out this kind of mask"
        )
    return len(images)
