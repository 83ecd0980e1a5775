"""A prediction of DICOM series as secondary captures: pictures in colour, a DICOM file each, of the
slices that have a lesion, with the lesions outlined, for viewers that show no segmentations.

That they are research is burned into every picture, as its header says. Each refers to the image
that it is of.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pycocotools import mask as coco_mask
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import ctmasknet
from ctmasknet.console.progress import Progress
from ctmasknet.ct.scan import CTSlice, Window
from ctmasknet.data.registry import lesion_colors
from ctmasknet.draw.canvas import as_rgb, legible_scale
from ctmasknet.draw.lesions import Lesion, draw_lesions
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import (
    atomic_write,
    check_room,
    check_writable,
    lock_folder,
    remove_folder,
    remove_unlocked,
    writing,
)
from ctmasknet.predict.dicom_seg import require_highdicom
from ctmasknet.report.dicom_sr import RESEARCH, date_of, headers_of
from ctmasknet.report.viewer.prediction import ViewedPrediction, ViewedScan, read_prediction
from ctmasknet.report.viewer.slices import SliceFinder

_LOGGER = logging.getLogger(__name__)
_FOLDER, _STAGED = "secondary_captures", ".secondary-captures-"
#: Slices of a series at most: those with most lesion.
MOST_CAPTURES = 200
_BURNED = "RESEARCH - NOT FOR DIAGNOSTIC USE"
_DESCRIPTION = "ctmasknet lesions, research, not for diagnostic use"
#: DICOM's purpose of a reference: source image for image processing operation.
_SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")
#: Rows run to the patient's left, columns to the back: as slices are shown.
_UPRIGHT = ("L", "P")


def write_secondary_captures(
    folder: str | os.PathLike,
    *,
    images: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
) -> list[Path]:
    """Write ``FOLDER/secondary_captures``: a series of captures for each DICOM series of a
    prediction, in a folder of its own; all of them or, where one cannot be written, none.

    Slices that have a lesion above the run's threshold are captured, through the window of the run,
    at most :data:`MOST_CAPTURES` of a series. What was there goes. A series that none can be made
    of is warned of.

    Args:
        folder: of a finished ``tools/predict.py`` with lesions.
        images: a folder below which the series lie, or files and folders.

    Returns:
        the files; none where no slice has a lesion.

    Raises:
        CTMaskNetError: highdicom is not installed; no prediction or no lesions; no DICOM series, or
            none whose files are found; no room; a file cannot be written.
    """
    require_highdicom("`secondary_captures`")
    prediction = read_prediction(folder)
    path = prediction.folder / "lesions.json"
    if not path.is_file():
        raise CTMaskNetError(f"{path}: no such file; captures show lesions: predict with `lesions`")
    output = check_writable(prediction.folder / _FOLDER, folder=True)
    if images is None or isinstance(images, str | os.PathLike):
        images = [] if images is None else [images]
    chosen = {
        number: _slices_to_show(scan, prediction)
        for number, scan in enumerate(prediction.scans, start=1)
        if scan.about["kind"] == "dicom"
    }
    if not chosen:
        raise CTMaskNetError(f"{folder}: no secondary capture can be made: it has no DICOM series")
    needed = sum(_bytes_of(line) for lines in chosen.values() for line in lines.values())
    check_room(prediction.folder, needed, "secondary captures", "leave out `secondary_captures`")
    finder = SliceFinder([*images, prediction.folder], prediction.rescale, prediction.axes)
    content = (prediction.folder / "predictions.jsonl").read_bytes() + path.read_bytes()
    identity, names, faults = hashlib.sha256(content).hexdigest(), [], []
    remove_unlocked(prediction.folder, f"{_STAGED}*")
    total = sum(map(len, chosen.values()))
    with writing(output), Progress("captures", total) as progress:
        staged = Path(tempfile.mkdtemp(prefix=_STAGED, dir=prediction.folder))
        held = lock_folder(staged)
        try:
            for number, lines in chosen.items():
                scan = prediction.scans[number - 1]
                sources = finder.find(one["file"] for one in scan.slices)
                try:
                    made = _Captures(scan, prediction, sources, identity)
                except CTMaskNetError as error:
                    faults.append(str(error))
                    continue
                for index, line in lines.items():
                    stem = f"{number:06d}_{scan.own_name}"
                    name = Path(stem) / f"{scan.own_name}_slice-{index + 1:04d}.dcm"
                    with atomic_write(staged / _FOLDER / name, "wb") as stream:
                        stream.write(made.of(index, line))
                    names.append(name)
                    progress.update()
            if faults and len(faults) == len(chosen):
                raise CTMaskNetError(f"{folder}: no secondary capture can be made: {faults[0]}")
            if output.exists():
                remove_folder(output)
            if names:
                os.replace(staged / _FOLDER, output)
        finally:
            held.close()
            remove_folder(staged)
    if faults:
        told = "; ".join(faults)
        _LOGGER.warning("%s: %d series have no captures: %s", output, len(faults), told)
    return [output / name for name in names]


def _slices_to_show(scan: ViewedScan, prediction: ViewedPrediction) -> dict[int, Mapping[str, Any]]:
    """Index in the scan -> line, of the slices with lesions, those with most of them if there are
    too many."""
    areas = {}
    for index, line in enumerate(scan.slices):
        its = _lesions_of(line, prediction)
        if its:
            areas[index] = sum(one["area"] for one in its)
    kept = sorted(sorted(areas, key=lambda index: -areas[index])[:MOST_CAPTURES])
    if len(kept) < len(areas):
        _LOGGER.warning(
            "%s: captures of the %d of its %d slices with most lesion",
            *(scan.title, len(kept), len(areas)),
        )
    return {index: scan.slices[index] for index in kept}


def _lesions_of(line: Mapping[str, Any], prediction: ViewedPrediction) -> list[Mapping[str, Any]]:
    lesions = prediction.lesions.get(line["file"], ())
    return [one for one in lesions if one["score"] > prediction.score_threshold]


def _bytes_of(line: Mapping[str, Any]) -> int:
    return 3 * line["height"] * line["width"] * legible_scale(line["height"], line["width"]) ** 2


class _Captures:
    """Makes the captures of one series."""

    def __init__(
        self,
        scan: ViewedScan,
        prediction: ViewedPrediction,
        sources: Mapping[str, CTSlice],
        identity: str,
    ):
        """See :func:`write_secondary_captures`; ``identity`` tells this prediction from others.

        Raises:
            CTMaskNetError: files of the series are not found, or lack what is referred to.
        """
        self._scan, self._prediction, self._sources = scan, prediction, sources
        headers = headers_of(scan, sources)
        self._headers = {str(header.filename): header for header in headers}
        self._created = date_of(headers[0])
        self._identity = [identity, scan.about["scan"], scan.slices[0]["file"], "capture"]
        self._series = generate_uid(entropy_srcs=self._identity)
        self._cautions = [str(one) for one in scan.about["cautions"] or ()]

    def of(self, index: int, line: Mapping[str, Any]) -> bytes:
        """The file of the slice that is number ``index`` of the series.

        Raises:
            CTMaskNetError: its file is damaged, or no image can refer to it.
        """
        highdicom = require_highdicom()
        source = self._sources[line["file"]]
        header = self._headers[str(source.source.file)]
        pixels, scale = self._picture(index, line, source)
        spacing = None
        if source.spacing_mm is not None:
            spacing = tuple(mm / scale for mm in source.spacing_mm)
        try:
            with warnings.catch_warnings():
                # Of source attributes that bend the standard
                warnings.simplefilter("ignore")
                capture = highdicom.sc.SCImage.from_ref_dataset(
                    header,
                    pixel_array=pixels,
                    photometric_interpretation="RGB",
                    bits_allocated=8,
                    coordinate_system="PATIENT",
                    patient_orientation=_UPRIGHT,
                    pixel_spacing=spacing,
                    series_instance_uid=self._series,
                    series_number=9002,
                    sop_instance_uid=generate_uid(entropy_srcs=[*self._identity, line["file"]]),
                    instance_number=index + 1,
                    manufacturer="ctmasknet",
                    transfer_syntax_uid=ExplicitVRLittleEndian,
                    manufacturer_model_name="ctmasknet",
                    software_versions=ctmasknet.__version__,
                    series_description=_DESCRIPTION,
                )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CTMaskNetError(f"{line['file']}: {' '.join(str(error).split())}") from error
        self._describe(capture, header, source)
        stream = io.BytesIO()
        capture.save_as(stream)
        return stream.getvalue()

    def _describe(self, capture: pydicom.Dataset, header: Any, source: CTSlice) -> None:
        """What is said of the picture beside itself; dates are the series' own, so that the same
        prediction gives the same files."""
        capture.BurnedInAnnotation = "YES"
        capture.BodyPartExamined = "CHEST"  # no paired one, whose side would have to be stated
        told = " ".join(f"{' '.join(one.split()).rstrip('.')}." for one in self._cautions)
        capture.ImageComments = f"{RESEARCH} {told}".strip()[:10240]
        capture.DerivationDescription = f"Lesions above {self._prediction.score_threshold:g}"
        reference = pydicom.Dataset()
        reference.ReferencedSOPClassUID = header.SOPClassUID
        reference.ReferencedSOPInstanceUID = header.SOPInstanceUID
        if source.frame is not None:
            reference.ReferencedFrameNumber = source.frame + 1
        coded = require_highdicom().sr.CodedConcept
        reference.PurposeOfReferenceCodeSequence = [coded(*_SOURCE_IMAGE)]
        capture.SourceImageSequence = [reference]
        day, time = (self._created.strftime(form) for form in ("%Y%m%d", "%H%M%S"))
        for kind in ("Content{}", "{}OfSecondaryCapture", "InstanceCreation{}"):
            setattr(capture, kind.format("Date"), day)
            setattr(capture, kind.format("Time"), time)
        for equipment in capture.get("ContributingEquipmentSequence", ()):
            equipment.ContributionDateTime = day + time

    def _picture(
        self, index: int, line: Mapping[str, Any], source: CTSlice
    ) -> tuple[np.ndarray, int]:
        """(H, W, 3) uint8 RGB with its words, and how many of its px are one of the slice."""
        prediction = self._prediction
        pixels = as_rgb(source.pixels(prediction.window or Window()))
        height, width = pixels.shape[:2]
        if (height, width) != (line["height"], line["width"]):
            raise CTMaskNetError(
                f"{line['file']}: has {height} x {width} px and not the {line['height']} x "
                f"{line['width']} of the prediction; it is another file"
            )
        classes, scale = prediction.lesion_classes, legible_scale(height, width)
        lesions = [_lesion(one) for one in _lesions_of(line, prediction)]
        picture = np.ascontiguousarray(draw_lesions(pixels, lesions, classes, scale=scale))
        words = [
            (_BURNED, (255, 225, 77)),
            (f"slice {index + 1} of {len(self._scan.slices)}", (255, 255, 255)),
            *([("CAUTION: see image comments", (255, 225, 77))] if self._cautions else []),
        ]
        _write(picture, words, from_top=True)
        legend = zip(classes, lesion_colors(classes), strict=True)
        _write(picture, [*legend], from_top=False)
        return picture, scale


def _lesion(found: Mapping[str, Any]) -> Lesion:
    x, y, width, height = (float(value) for value in found["bbox"])
    rle = found.get("segmentation")
    mask = coco_mask.decode(rle).astype(bool) if rle else None
    return Lesion(found["class"], (x, y, x + width, y + height), mask, float(found["score"]))


def _write(
    picture: np.ndarray, lines: Sequence[tuple[str, tuple[int, int, int]]], *, from_top: bool
) -> None:
    """Burn lines of words and RGB colours into a picture, on black at its upper or lower left."""
    height, width = picture.shape[:2]
    size = width / 1000
    step = round(34 * size)
    for number, (text, color) in enumerate(lines):
        shown = text.encode("ascii", "replace").decode()
        down = step * (number + 1)
        if not from_top:
            down = height - step * (len(lines) - number) + step // 2
        how = cv2.FONT_HERSHEY_SIMPLEX, size
        thickness, left = max(1, round(2 * size)), round(10 * size)
        (wide, high), below = cv2.getTextSize(shown, *how, thickness)
        cv2.rectangle(picture, (left, down - high), (left + wide, down + below), (0, 0, 0), -1)
        cv2.putText(picture, shown, (left, down), *how, color, thickness, cv2.LINE_AA)
