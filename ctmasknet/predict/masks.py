"""Lesions of a scan as one volume of labels, and that volume as NIfTI.

A voxel has one label. Where lesions overlap, the class that comes later in the model's list wins:
consolidation over GGO, because dense tissue often lies within a haze and hides it. Which of two
lesions of one class covers a voxel makes no difference.

Lesions of a DICOM series as a DICOM segmentation that refers to the series, with coded classes.

Codes:

- GGO: (112120, DCM, "Ground glass opacity"), from DICOM PS3.16 CID 6104, Abnormal Opacity Finding
  or Feature (RadLex calls it RID28531).
- consolidation: (95436008, SCT, "Lung consolidation"); DICOM has no code of its own (RadLex:
  RID43255).
- the merged class: (52988006, SCT, "Lesion").

The category of all is (49755003, SCT, "Morphologically Abnormal Structure"), CID 7150, in
(39607008, SCT, "Lung").
"""

from __future__ import annotations

import datetime
import gzip
import importlib
import os
import warnings
from collections.abc import Iterable, Sequence

import nibabel
import numpy as np
import pydicom
from pydicom.uid import generate_uid

import ctmasknet
from ctmasknet.ct.orientation import Upright
from ctmasknet.ct.read import CTScan
from ctmasknet.ct.scan import decoding
from ctmasknet.data.label_masks import LABEL_NAMES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write
from ctmasknet.predict.results import FoundBox


def mask_values(lesion_classes: Sequence[str]) -> dict[str, int]:
    """The label of each lesion class, above 0.

    As in the CNCB masks: 2 ggo, 3 consolidation (0 is background and 1 lung there, so neither is a
    lesion's); 4 for the merged class ``lesion``; 5 and on for classes of other names, in their
    order.
    """
    known = {name: LABEL_NAMES.index(name) for name in lesion_classes if name in LABEL_NAMES[2:]}
    others = [name for name in lesion_classes if name not in known]
    return known | {name: len(LABEL_NAMES) + place for place, name in enumerate(others)}


def label_slice(
    lesions: Iterable[FoundBox],
    shape: tuple[int, int],
    values: Sequence[int],
    score_threshold: float,
) -> np.ndarray:
    """(H, W) uint8: at each px the value of the lesion there, 0 without.

    Args:
        lesions: with masks; those without are left out.
        shape: (H, W).
        values: label of each class index.
        score_threshold: lesions have to score more.
    """
    label = np.zeros(shape, dtype=np.uint8)
    for lesion in sorted(lesions, key=lambda one: one.class_index):
        mask = lesion.mask(*shape) if lesion.score > score_threshold else None
        if mask is not None:
            label[mask] = values[lesion.class_index]
    return label


def stored_plane(turn: Upright, plane: np.ndarray) -> np.ndarray:
    """What :meth:`Upright.plane` turned upright, as it was stored.

    Args:
        turn: of the stored grid.
        plane: (rows, columns) upright.

    Returns:
        the two axes that are not the slice axis, in stored order.
    """
    column_axis, row_axis, _ = turn.axes
    plane = plane[:: -1 if turn.flips[1] else 1, :: -1 if turn.flips[0] else 1]
    return plane if row_axis < column_axis else plane.T


def write_nifti(path: str | os.PathLike, scan: CTScan, labels: Sequence[np.ndarray]) -> None:
    """Write the labels as gzipped NIfTI, so that they lie on the source voxel by voxel.

    Of a NIfTI source the file has the shape, affine and voxel order; slices that could not be read
    are 0. Of a DICOM source axes run as the upright slices do: columns, rows, feet to head.

    Args:
        path: of the file, written whole.
        scan: where the slices are from.
        labels: (H, W) uint8 of each of its slices.

    Raises:
        CTMaskNetError: a scan without even geometry; a NIfTI source that nibabel cannot read.
    """
    unit = "mm"
    if scan.kind == "nifti":
        source = _load(scan.slices[0].file)
        volume, affine = _as_source(labels, scan).reshape(source.shape), source.affine
        image = nibabel.Nifti1Image(volume, affine, source.header if _is_nifti1(source) else None)
        image.header.set_data_dtype(np.uint8)
        image.header.set_slope_inter(1, 0)
        unit = source.header.get_xyzt_units()[0].replace("unknown", unit)
    elif scan.affine is not None:
        volume, affine = np.stack([label.T for label in labels], axis=2), scan.affine
        image = nibabel.Nifti1Image(volume, affine)
        image.set_qform(affine, code="scanner")
        image.set_sform(affine, code="scanner")
    else:
        raise CTMaskNetError(
            f"{scan.slices[0].file}: slices of its series are missing, uneven, shifted or of "
            "unknown spacing, so no NIfTI volume can hold their labels; leave out --masks nifti"
        )
    image.header.extensions.clear()
    image.header["cal_min"] = image.header["cal_max"] = 0
    image.header.set_xyzt_units(unit)
    image.header["descrip"] = b"ctmasknet lesions"
    # Without a name and a time in it: the same labels are the same bytes
    with (
        atomic_write(path, "wb") as stream,
        gzip.GzipFile("", "wb", 6, stream, mtime=0) as compressed,
    ):
        image.to_stream(compressed)


def _load(file: str):
    try:
        return nibabel.load(file)
    except nibabel.filebasedimages.ImageFileError as error:
        raise CTMaskNetError(
            f"{file}: its header cannot be taken over ({' '.join(str(error).split())}); give it a "
            "name that ends with .nii or .nii.gz"
        ) from error


def _is_nifti1(image) -> bool:
    return isinstance(image, nibabel.Nifti1Image)


def _as_source(labels: Sequence[np.ndarray], scan: CTScan) -> np.ndarray:
    """(i, j, k) in the voxel order of the file; slices that are not there are 0."""
    stored = scan.slices[0].source.volume
    turn = stored.turn
    volume = np.zeros(stored.shape, dtype=np.uint8)
    along_slices = np.moveaxis(volume, turn.axes[2], 0)
    for one, label in zip(scan.slices, labels, strict=True):
        along_slices[one.frame] = stored_plane(turn, label)
    return volume


#: Value, scheme and meaning of each lesion class; others are coded as lesions under their name.
LESION_CODES = {
    "ggo": ("112120", "DCM", "Ground glass opacity"),
    "consolidation": ("95436008", "SCT", "Lung consolidation"),
    "lesion": ("52988006", "SCT", "Lesion"),
}
_CATEGORY = ("49755003", "SCT", "Morphologically Abnormal Structure")
_LUNG = ("39607008", "SCT", "Lung")
#: What an image has to state, if only as empty; some anonymisers drop it.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
_AI_FAMILY = ("123109", "DCM", "Artificial Intelligence")


def require_highdicom():
    """highdicom's package.

    Raises:
        CTMaskNetError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module("highdicom")
    except ImportError as error:
        raise CTMaskNetError(
            "--masks dicom-seg needs highdicom, which is not installed: pip install "
            "'ctmasknet[seg]'"
        ) from error


def write_dicom_seg(
    path: str | os.PathLike,
    scan: CTScan,
    labels: Sequence[np.ndarray],
    lesion_classes: Sequence[str],
    *,
    identity: str,
    created: datetime.datetime,
    software: str,
) -> None:
    """Write one segmentation with one binary segment for each lesion class.

    Frames have the stored orientation of the series and refer to its images; frames without
    lesions are left out, as the standard allows. Patient and study are the series' own.

    Args:
        path: of the file, written whole.
        scan: of kind ``dicom``.
        labels: (H, W) uint8 of each slice, values as in
            :func:`ctmasknet.predict.masks.mask_values`.
        lesion_classes: names; segment numbers follow their order, from 1.
        identity: what made it (weights, configuration, inputs); the same gives the same UIDs.
        created: when.
        software: name and version of the model, for the algorithm's identification.

    Raises:
        CTMaskNetError: highdicom is not installed; the scan is no DICOM, or lacks what a
            segmentation has to refer to.
    """
    highdicom = require_highdicom()
    if scan.kind != "dicom":
        raise CTMaskNetError(
            f"{scan.slices[0].file}: a DICOM segmentation needs a DICOM series; leave out "
            "--masks dicom-seg"
        )
    values = mask_values(lesion_classes)
    segment_of = np.zeros(256, dtype=np.uint8)
    for number, name in enumerate(lesion_classes, start=1):
        segment_of[values[name]] = number
    images = _source_images(scan)
    rows, columns = int(images[0].Rows), int(images[0].Columns)
    pixels = np.zeros((_frame_count(scan, images), rows, columns), dtype=np.uint8)
    for place, (one, label) in enumerate(zip(scan.slices, labels, strict=True)):
        frame = place if one.frame is None else one.frame
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
            anatomic_regions=[coded(*_LUNG)],
        )
        for number, name in enumerate(lesion_classes, start=1)
    ]
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
                content_description="Lesions found by ctmasknet; research, not diagnosis",
                series_description="ctmasknet lesions (research)",
                content_date=created.date(),
                content_time=created.time(),
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CTMaskNetError(
            f"{scan.slices[0].file}: no DICOM segmentation can refer to this series "
            f"({' '.join(str(error).split())}); leave out --masks dicom-seg"
        ) from error
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    if not measures.get("SliceThickness"):  # written so, no reader would take it
        raise CTMaskNetError(
            f"{scan.slices[0].file}: states no slice thickness, which a DICOM segmentation has to; "
            "leave out --masks dicom-seg"
        )
    # highdicom takes these from the clock and by chance; a run that is continued gives them anew
    segmentation.InstanceCreationDate = created.strftime("%Y%m%d")
    segmentation.InstanceCreationTime = created.strftime("%H%M%S")
    for equipment in segmentation.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = created.strftime("%Y%m%d%H%M%S")
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions_uid
    with atomic_write(path, "wb") as stream:
        segmentation.save_as(stream)


def _source_images(scan: CTScan) -> list[pydicom.Dataset]:
    """Headers of the files that hold the slices, each file once, in the order of the slices.

    Where a slice's thickness is left open, it is taken to reach to the next slice."""
    step_mm = None
    if scan.affine is not None and len(scan.slices) > 1:
        step_mm = float(np.linalg.norm(scan.affine[:3, 2]))
    images = []
    for file in dict.fromkeys(one.file for one in scan.slices):
        with decoding(file):
            # As when the slices were read: without a preamble too
            image = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            for keyword in _MAY_BE_EMPTY:
                if keyword not in image:
                    setattr(image, keyword, "")
            if "NumberOfFrames" not in image and not image.get("SliceThickness"):
                image.SliceThickness = format(step_mm, ".6g") if step_mm else None
        images.append(image)
    return images


def _frame_count(scan: CTScan, images: Sequence[pydicom.Dataset]) -> int:
    if len(images) == 1:
        return int(images[0].get("NumberOfFrames") or 1)
    if any(one.frame is not None for one in scan.slices):
        raise CTMaskNetError(
            f"{scan.slices[0].file}: no DICOM segmentation can refer to several files that hold "
            "several frames each; leave out --masks dicom-seg"
        )
    return len(images)
