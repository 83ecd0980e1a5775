"""What a DICOM header states of each frame, and whether that is an axial CT slice in HU.

A file is CT when its Modality says so. Where Modality is missing (some anonymisers drop it), the
SOP class still states it for CT Image Storage and the enhanced CT classes; without either the file
is refused, whatever its numbers look like.

MONOCHROME1 or MONOCHROME2 says how a viewer shows the smallest value, white or black. HU come from
the stored values and the rescale alone, so both are read alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from ctmasknet.ct.orientation import AXIAL_TOLERANCE_DEGREES
from ctmasknet.ct.scan import GREY, Rescale, UnsuitableFile
from ctmasknet.errors import CTMaskNetError

_CT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image
)
#: Functional group -> what of it is used. A frame's own group goes before the shared one, and both
#: before the data set itself.
_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "CTImageFrameTypeSequence": ("FrameType",),
    "CTAcquisitionDetailsSequence": ("GantryDetectorTilt",),
}


@dataclass(frozen=True)
class Frame:
    """One frame as stated.

    Attributes:
        affine: (4, 4) (column, row, along the normal) index as stored -> RAS mm.
        spacing_known: False where the file states no pixel spacing; the affine then counts px.
        slope, intercept: stored value -> HU.
    """

    affine: np.ndarray
    spacing_known: bool
    slope: float
    intercept: float


#: Values of ImageType and FrameType that tell what a file is instead of a slice. DERIVED and
#: SECONDARY do not: reformatted slices say so too.
_NO_SLICES = {
    "LOCALIZER": "localizer",
    "DOSE_INFO": "dose page",
    "DOSE INFO": "dose page",
    "SCREEN SAVE": "screen shot",
    "SCREEN_SAVE": "screen shot",
    "SCREENSHOT": "screen shot",
}


def check_is_ct(header: Dataset, file: str) -> None:
    """Refuse what is no CT, is a localizer or is in colour, and values that begin above bit 0.

    Raises:
        UnsuitableFile: with the reason.
        CTMaskNetError: HighBit says so; decoders take no notice, and HU would be wrong.
    """
    modality = str(header.get("Modality") or "").strip()
    sop_class = str(header.get("SOPClassUID") or "")
    if modality != "CT" and (modality or sop_class not in _CT_CLASSES):
        said = f"Modality is {modality}" if modality else "neither Modality nor SOP class says CT"
        raise UnsuitableFile(f"{file}: not CT ({said}); give CT slices")
    _check_is_slice(header.get("ImageType"), file)
    if header.get("SamplesPerPixel", 1) != 1 or header.get("PhotometricInterpretation") not in (
        "MONOCHROME1",
        "MONOCHROME2",
    ):
        raise UnsuitableFile(
            f"{file}: in colour ({header.get('PhotometricInterpretation')}), so it states no HU"
        )
    high, bits = header.get("HighBit"), header.get("BitsStored")
    if high is not None and bits is not None and int(high) >= int(bits):
        raise CTMaskNetError(
            f"{file}: its {bits} bits a value do not begin at bit 0 (HighBit is {high}), which is "
            "not read; convert the file"
        )


def frames_of(header: Dataset, file: str, rescale: Rescale | None = None) -> list[Frame]:
    """What the header states of every frame, in stored order; ``rescale`` is for frames that state
    none.

    Raises:
        UnsuitableFile: a localizer, a tilted gantry, no rescale to HU, no position or orientation.
        CTMaskNetError: values that make no sense.
    """
    return [
        _frame(stated, offset_mm, file, rescale) for stated, offset_mm in _statements(header, file)
    ]


def _statements(header: Dataset, file: str) -> Iterator[tuple[dict, float]]:
    """For each frame the elements that hold for it, and how far it lies along the normal from the
    stated position, mm."""
    count = int(header.get("NumberOfFrames") or 1)
    common = {key: header.get(key) for keys in _GROUPS.values() for key in keys}
    for group in _items(header, "SharedFunctionalGroupsSequence")[:1]:
        common |= _stated_in(group)
    frames = _items(header, "PerFrameFunctionalGroupsSequence")
    if frames:
        if len(frames) != count:
            raise CTMaskNetError(
                f"{file}: says {count} frames and describes {len(frames)}; the file is damaged"
            )
        for group in frames:
            yield common | _stated_in(group), 0.0
    elif count == 1:
        yield common, 0.0
    else:
        for offset_mm in _frame_offsets_mm(header, count, file):
            yield common, offset_mm


def _frame_offsets_mm(header: Dataset, count: int, file: str) -> list[float]:
    """Multi-frame files from before functional groups: a vector gives the frames' positions."""
    offsets = header.get("GridFrameOffsetVector")
    if offsets is None and header.get("SliceLocationVector") is not None:
        # Locations have no fixed sign or zero. Where the first one is the stated z, they are z.
        locations = [float(value) for value in header.SliceLocationVector]
        position = header.get("ImagePositionPatient") or ()
        orientation = header.get("ImageOrientationPatient") or ()
        if len(position) == 3 and len(orientation) == 6 and locations:
            up = np.cross(*np.reshape(np.asarray(orientation, dtype=float), (2, 3)))[2]
            if math.isclose(locations[0], float(position[2]), abs_tol=0.01) and abs(up) > 0.5:
                offsets = [(location - locations[0]) / up for location in locations]
    if offsets is None or len(offsets) != count:
        raise UnsuitableFile(
            f"{file}: {count} frames without a stated position each, so they cannot be put in order"
        )
    return [_number(value, "GridFrameOffsetVector", file) for value in offsets]


def _frame(stated: dict, offset_mm: float, file: str, rescale: Rescale | None) -> Frame:
    _check_is_slice(stated.get("FrameType"), file)
    tilt = _number(stated.get("GantryDetectorTilt") or 0, "GantryDetectorTilt", file)
    if abs(tilt) > AXIAL_TOLERANCE_DEGREES:
        raise UnsuitableFile(
            f"{file}: the gantry was tilted by {tilt:.0f} degrees (at most "
            f"{AXIAL_TOLERANCE_DEGREES:.0f}); give axial slices"
        )
    slope, intercept = _rescale(stated, file, rescale)
    if slope == 0:
        raise CTMaskNetError(f"{file}: RescaleSlope is 0; the file is damaged")
    unit = str(stated.get("RescaleType") or "HU").strip().upper()
    if unit != "HU":
        raise UnsuitableFile(f"{file}: its rescale gives {unit}, not HU (RescaleType)")
    orientation = _vector(stated, "ImageOrientationPatient", 6, file)
    position = _vector(stated, "ImagePositionPatient", 3, file)
    along_columns, along_rows = orientation.reshape(2, 3)
    lengths = np.linalg.norm(orientation.reshape(2, 3), axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(along_columns @ along_rows) > 0.01:
        raise CTMaskNetError(
            f"{file}: ImageOrientationPatient is no pair of perpendicular unit vectors "
            f"({orientation.tolist()})"
        )
    spacing = np.ones(2)
    if stated.get("PixelSpacing"):
        spacing = _vector(stated, "PixelSpacing", 2, file)
        if spacing.min() <= 0:
            raise CTMaskNetError(f"{file}: PixelSpacing is {spacing.tolist()} mm; must be above 0")
    normal = np.cross(along_columns, along_rows)
    affine = np.eye(4)
    affine[:3, 0] = along_columns * spacing[1]  # PixelSpacing: between rows, between columns
    affine[:3, 1] = along_rows * spacing[0]
    affine[:3, 2] = normal
    affine[:3, 3] = position + normal * offset_mm
    affine[:2] *= -1  # DICOM's x runs to the patient's left and y to the back; RAS to right, front
    return Frame(affine, bool(stated.get("PixelSpacing")), slope, intercept)


def _check_is_slice(image_type: object, file: str) -> None:
    values = [image_type] if isinstance(image_type, str) else list(image_type or ())
    for value in values:
        kind = _NO_SLICES.get(str(value).strip().upper())
        if kind:
            raise UnsuitableFile(f"{file}: a {kind}, not an axial slice")


def _items(dataset: Dataset, key: str) -> list[Dataset]:
    value = dataset.get(key)
    return list(value) if isinstance(value, DicomSequence) else []


def _stated_in(group: Dataset) -> dict:
    found = {}
    for sequence, keys in _GROUPS.items():
        for item in _items(group, sequence)[:1]:
            found |= {key: item.get(key) for key in keys if item.get(key) is not None}
    return found


def _rescale(stated: dict, file: str, given: Rescale | None) -> tuple[float, float]:
    keys = "RescaleSlope", "RescaleIntercept"
    known = [None if stated.get(key) is None else _number(stated[key], key, file) for key in keys]
    for index, key in enumerate(keys):
        if known[index] is None and given in (None, GREY):
            raise UnsuitableFile(
                f"{file}: states no {key}, so its values cannot be taken as HU; give `rescale` "
                "SLOPE,INTERCEPT if you know them"
            )
        if known[index] is None and known[1 - index] not in (None, given[1 - index]):
            raise CTMaskNetError(
                f"{file}: states no {key}, and its {keys[1 - index]} is {known[1 - index]:g}, not "
                f"{given[1 - index]:g}; correct `rescale`"
            )
    return tuple(float(given[i]) if each is None else each for i, each in enumerate(known))


def _vector(stated: dict, key: str, length: int, file: str) -> np.ndarray:
    value = stated.get(key)
    if not value:
        raise UnsuitableFile(f"{file}: states no {key}, so its place in the body is unknown")
    if isinstance(value, str | float) or len(value) != length:
        raise CTMaskNetError(f"{file}: {key} is {value}; expected {length} numbers")
    return np.array([_number(one, key, file) for one in value])


def _number(value: object, key: str, file: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    # Beyond a kilometre, or a rescale of a billion, lies damage.
    if not abs(number) < 1e9:
        raise CTMaskNetError(f"{file}: {key} is {value}; expected a number")
    return number
