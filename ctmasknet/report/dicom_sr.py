"""A prediction of DICOM series as DICOM measurement reports (structured reports, TID 1500).

One report a series: the volume of each kind of lesion and its share of the lung, as in
``burden.csv``, and the score of each class. All is marked as found by an algorithm and not
verified; the comment says that it is research, and repeats the cautions of the prediction.

Measurements without a code of the standard have codes of their own scheme (``99CTMASKNET``).
"""

from __future__ import annotations

import datetime
import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import generate_uid

import ctmasknet
from ctmasknet.console.progress import tracked
from ctmasknet.ct.scan import CTSlice
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.lesions.burden import ANY
from ctmasknet.files import atomic_write, check_writable, read_json, writing
from ctmasknet.predict.dicom_seg import LESION_CODES, LUNG_CODE, require_highdicom, series_headers
from ctmasknet.report.forms import burden_form
from ctmasknet.report.viewer.prediction import ViewedPrediction, ViewedScan, read_prediction
from ctmasknet.report.viewer.slices import SliceFinder
from ctmasknet.schema import checked

_LOGGER = logging.getLogger(__name__)
SR_FOLDER = "sr"
_OWN = "99CTMASKNET"
#: (value, scheme, meaning)
_CT_CHEST = ("169069000", "SCT", "CT of chest")
_VOLUME = ("118565006", "SCT", "Volume")
_SHARE = ("LESION_SHARE", _OWN, "Share of the lung taken up by the lesion")
_SLICES = ("LESION_SLICES", _OWN, "Slices with the lesion")
_COMMENT = ("121106", "DCM", "Comment")
_CLASS_SCORE = ("CLASS_SCORE", _OWN, "Score of the class, 0 to 1")
_ML, _PERCENT, _ONE = (("mL", "UCUM", "mL"), ("%", "UCUM", "%"), ("1", "UCUM", "no units"))
RESEARCH = "Found by a research model; not verified, not for diagnosis."


def write_structured_reports(
    folder: str | os.PathLike,
    *,
    images: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
) -> list[Path]:
    """Write ``FOLDER/sr``: a measurement report of each DICOM series of a prediction.

    Reports of another prediction that were there go; a series that none can be made of is warned
    of.

    Args:
        folder: of a finished ``tools/predict.py`` with ``burden``.
        images: a folder below which the series lie, or files and folders.

    Returns:
        the files.

    Raises:
        CTMaskNetError: highdicom is not installed; no prediction or no burden; no DICOM series, or
            none that a report can refer to; a file cannot be written.
    """
    require_highdicom("`sr`")
    prediction = read_prediction(folder)
    path = prediction.folder / "burden" / "burden.json"
    if not path.is_file():
        raise CTMaskNetError(
            f"{path}: no such file; a structured report needs the volumes of lesions: predict with "
            "`burden`"
        )
    burden = checked(path, read_json(path), burden_form, "lesion burden", "measure it again")
    output = check_writable(prediction.folder / SR_FOLDER, folder=True)
    if images is None or isinstance(images, str | os.PathLike):
        images = [] if images is None else [images]
    finder = SliceFinder([*images, prediction.folder], prediction.rescale, prediction.axes)
    content = (prediction.folder / "predictions.jsonl").read_bytes() + path.read_bytes()
    identity, written, faults = hashlib.sha256(content).hexdigest(), [], []
    series = [
        (number, scan)
        for number, scan in enumerate(prediction.scans, start=1)
        if scan.about["kind"] == "dicom"
    ]
    for number, scan in tracked(series, "reports", unit="report"):
        sources = finder.find(one["file"] for one in scan.slices)
        try:
            report = _report(scan, prediction, burden, sources, identity)
        except CTMaskNetError as error:
            faults.append(str(error))
            continue
        file = output / f"{number:06d}_{scan.own_name}.dcm"
        with writing(output), atomic_write(file, "wb") as stream:
            stream.write(report)
        written.append(file)
    if not written:
        reason = faults[0] if faults else "it has no DICOM series"
        raise CTMaskNetError(f"{folder}: no structured report can be made: {reason}")
    if faults:
        _LOGGER.warning("%s: %d series have no report: %s", output, len(faults), "; ".join(faults))
    with writing(output):
        for old in set(output.glob("[0-9]*_*.dcm")) - set(written):
            old.unlink()
    return written


def _report(
    scan: ViewedScan,
    prediction: ViewedPrediction,
    burden: Mapping[str, Any],
    sources: Mapping[str, CTSlice],
    identity: str,
) -> bytes:
    """The report of a series.

    Raises:
        CTMaskNetError: its files are not found, have no UIDs, or have no burden.
    """
    highdicom = require_highdicom()
    sr, coded = highdicom.sr, highdicom.sr.CodedConcept
    name = scan.about["scan"]
    measured = [one for one in burden["scans"] if one["scan"] == name]
    if len(measured) != 1:
        raise CTMaskNetError(f"{name}: {len(measured)} scans of the burden have this name")
    evidence = headers_of(scan, sources)
    uids = [
        generate_uid(entropy_srcs=[identity, name, what]) for what in ("series", "image", "device")
    ]
    # Dates are the series' own: the same prediction gives the same report
    created = date_of(evidence[0])
    algorithm = sr.AlgorithmIdentification(
        name="ctmasknet", version=ctmasknet.__version__, parameters=[RESEARCH]
    )
    observer = sr.ObserverContext(
        observer_type=coded("121007", "DCM", "Device"),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=uids[2], name="ctmasknet", manufacturer_name="ctmasknet", model_name="ctmasknet"
        ),
    )

    def measurement(kind: tuple[str, str, str], value: float, unit: tuple[str, str, str]):
        return sr.Measurement(name=coded(*kind), value=float(value), unit=coded(*unit))

    def group(label: str, finding: tuple[str, str, str], measurements: list[Any]):
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(
                identifier=label, uid=generate_uid(entropy_srcs=[identity, name, label])
            ),
            finding_type=coded(*finding),
            algorithm_id=algorithm,
            finding_sites=[sr.FindingSite(anatomic_location=coded(*LUNG_CODE))],
            measurements=measurements,
        )

    groups = []
    with_lesion = _slices_with(scan, prediction)
    (one,) = measured
    for kind in (*burden["classes"], ANY):
        found = []
        if one["ml"] is not None:
            found.append(measurement(_VOLUME, one["ml"][kind], _ML))
        if one["percent"][kind] is not None and burden["of"] == "lung":
            found.append(measurement(_SHARE, one["percent"][kind], _PERCENT))
        if kind in with_lesion:
            found.append(measurement(_SLICES, with_lesion[kind], _ONE))
        if found:
            label = "any lesion" if kind == ANY else kind
            groups.append(group(label, LESION_CODES.get(kind, LESION_CODES["lesion"]), found))
    for kind, score in (scan.about["scores"] or {}).items():
        code = re.sub(r"[^A-Za-z0-9]+", "_", kind).upper()[:16]
        found = [measurement(_CLASS_SCORE, score, _ONE)]
        groups.append(group(f"class {kind}", (code, _OWN, f"Class {kind}"[:64]), found))
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=coded(*_CT_CHEST),
        imaging_measurements=groups,
        title=coded("126000", "DCM", "Imaging Measurement Report"),
    )
    told = [RESEARCH, *(scan.about["cautions"] or ()), *burden["cautions"], *scan.about["problems"]]
    content[0].ContentSequence.append(
        sr.TextContentItem(
            name=coded(*_COMMENT),
            value=" ".join(f"{' '.join(text.split()).rstrip('.')}." for text in told),
            relationship_type=sr.RelationshipTypeValues.CONTAINS,
        )
    )
    try:
        with warnings.catch_warnings():
            # Of source attributes that bend the standard
            warnings.simplefilter("ignore")
            report = sr.Comprehensive3DSR(
                evidence=evidence,
                content=content[0],
                series_instance_uid=uids[0],
                series_number=9001,
                sop_instance_uid=uids[1],
                instance_number=1,
                manufacturer="ctmasknet",
                is_complete=False,
                is_final=False,
                is_verified=False,
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CTMaskNetError(f"{name}: {' '.join(str(error).split())}") from error
    report.SeriesDescription = "ctmasknet lesion measurements (research)"
    report.ContentDate = report.InstanceCreationDate = created.strftime("%Y%m%d")
    report.ContentTime = report.InstanceCreationTime = created.strftime("%H%M%S")
    for equipment in report.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = created.strftime("%Y%m%d%H%M%S")
    stream = io.BytesIO()
    report.save_as(stream)
    return stream.getvalue()


def _slices_with(scan: ViewedScan, prediction: ViewedPrediction) -> dict[str, int]:
    """Slices with a lesion of each kind above the threshold, and with any."""
    counts = dict.fromkeys((*prediction.lesion_classes, ANY), 0)
    for line in scan.slices:
        lesions = prediction.lesions.get(line["file"], ())
        its = {one["class"] for one in lesions if one["score"] > prediction.score_threshold}
        for index in its:
            counts[prediction.lesion_classes[index]] += 1
        counts[ANY] += bool(its)
    return counts


def headers_of(scan: ViewedScan, sources: Mapping[str, CTSlice]) -> list[pydicom.Dataset]:
    """Headers of a series' files, each once, that another object can refer to.

    Raises:
        CTMaskNetError: one is not found, or lacks what has to be referred to.
    """
    lost = [line["file"] for line in scan.slices if line["file"] not in sources]
    if lost:
        raise CTMaskNetError(
            f"{lost[0]}: not found; name the folder below which the series lie as `images`"
        )
    headers = series_headers(sources[line["file"]].source.file for line in scan.slices)
    for header in headers:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
            if not str(header.get(keyword) or "").strip():
                raise CTMaskNetError(
                    f"{header.filename}: states no {keyword}, which a report refers to"
                )
    return headers


def date_of(header: pydicom.Dataset) -> datetime.datetime:
    """When the series was made; a fixed day where it does not say."""
    stated = str(header.get("SeriesDate") or header.get("StudyDate") or "")
    try:
        return datetime.datetime.strptime(stated[:8], "%Y%m%d")
    except ValueError:
        return datetime.datetime(2000, 1, 1)
