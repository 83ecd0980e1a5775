"""Small CT volumes with known pixels, written in every format that ctmasknet reads.

All hold the same upright volume, so that what is read back can be compared.
"""

from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
)

SPACING_MM = (2.0, 1.5, 5.0)  # between rows, columns, slices
ORIGIN_LPS_MM = (-30.0, -40.0, 100.0)  # centre of pixel (0, 0) of the lowest slice
SERIES = "1.2.826.0.1.3680043.8.498.1"
#: Upright (column, row, slice) index -> RAS mm.
AFFINE = np.array(
    [
        [-SPACING_MM[1], 0, 0, -ORIGIN_LPS_MM[0]],
        [0, -SPACING_MM[0], 0, -ORIGIN_LPS_MM[1]],
        [0, 0, SPACING_MM[2], ORIGIN_LPS_MM[2]],
        [0, 0, 0, 1],
    ]
)
#: All ways to lay three axes: 6 orders times 8 directions.
ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations(("LR", "PA", "IS"))
    for codes in itertools.product(*order)
]


def volume(slices: int = 4, rows: int = 40, columns: int = 48) -> np.ndarray:
    """(slices, rows, columns) int16 HU, feet to head, upright. Body in air with two lungs; bone 700
    at the spine (below), a marker of 300 on the patient's left (right in the image), and a slice's
    number in its corner: -1024 + index."""
    hu = np.full((slices, rows, columns), -1000, np.int16)
    hu[:, 6:36, 4:44] = 40
    hu[:, 12:28, 8:20] = -850
    hu[:, 12:28, 28:40] = -850
    hu[:, 30:34, 22:26] = 700
    hu[:, 18:22, 41:43] = 300
    hu[:, 14:26, 10:18] += np.random.default_rng(0).integers(-60, 60, (slices, 12, 8), np.int16)
    hu[:, 0, 0] = -1024 + np.arange(slices)
    return hu


def dicom(
    hu: np.ndarray,
    index: int = 0,
    *,
    transposed: bool = False,
    flip_rows: bool = False,
    flip_columns: bool = False,
    slope: float = 1,
    intercept: float = -1024,
    signed: bool = False,
    bits_stored: int = 16,
    z_mm: float | None = None,
) -> pydicom.FileDataset:
    """One CT slice as a DICOM data set.

    Args:
        hu: (H, W) int, upright.
        index: of the slice; decides position, InstanceNumber and SOP instance.
        transposed, flip_rows, flip_columns: how the pixels are stored; orientation and position say
            so. Flips come after transposing.
        z_mm: position instead of the one of ``index``.
    """
    data = pydicom.FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"{SERIES}.{index + 1}"
    data.Modality, data.PatientID, data.StudyInstanceUID = "CT", "P1", f"{SERIES}.0"
    data.SeriesInstanceUID, data.InstanceNumber = SERIES, index + 1
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.RescaleSlope, data.RescaleIntercept = str(slope), str(intercept)
    data.SliceThickness = "1"  # not the distance of slices, on purpose

    z_mm = ORIGIN_LPS_MM[2] + index * SPACING_MM[2] if z_mm is None else z_mm
    stored, axes, steps = hu, [np.array([1.0, 0, 0]), np.array([0, 1.0, 0])], list(SPACING_MM[:2])
    if transposed:
        stored, axes, steps = hu.T, axes[::-1], steps[::-1]
    position = np.array([*ORIGIN_LPS_MM[:2], z_mm])
    for axis, flip in ((0, flip_rows), (1, flip_columns)):
        if flip:  # axes: along a row, along a column; steps: between rows, between columns
            stored = np.flip(stored, axis)
            position = position + axes[1 - axis] * steps[axis] * (stored.shape[axis] - 1)
            axes[1 - axis] = -axes[1 - axis]
    data.ImageOrientationPatient = [*axes[0], *axes[1]]
    data.ImagePositionPatient = list(position)
    data.PixelSpacing = steps
    set_pixels(data, np.rint((stored - intercept) / slope), signed, bits_stored)
    return data


def set_pixels(
    data: Dataset, stored: np.ndarray, signed: bool = False, bits_stored: int = 16
) -> None:
    """Store (H, W) or (frames, H, W) values uncompressed, 16 bits allocated."""
    data.Rows, data.Columns = stored.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits_stored, bits_stored - 1
    data.PixelRepresentation = int(signed)
    data.PixelData = np.ascontiguousarray(stored).astype("<i2" if signed else "<u2").tobytes()
    data["PixelData"].VR = "OW"


def enhanced(hu: np.ndarray, order: list[int] | None = None) -> pydicom.FileDataset:
    """(slices, H, W) HU as one enhanced CT object; frames stored in ``order``, each with its own
    position and rescale intercept."""
    order = list(range(len(hu))) if order is None else order
    data = dicom(hu[0])
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = EnhancedCTImageStorage
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared = Dataset()
    for sequence, keys in (
        ("PlaneOrientationSequence", ["ImageOrientationPatient"]),
        ("PixelMeasuresSequence", ["PixelSpacing"]),
    ):
        item = Dataset()
        for key in keys:
            item[key] = data[key]
            del data[key]
        setattr(shared, sequence, [item])
    del data.ImagePositionPatient, data.RescaleSlope, data.RescaleIntercept
    data.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in order:
        plane, values, frame = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [*ORIGIN_LPS_MM[:2], ORIGIN_LPS_MM[2] + index * SPACING_MM[2]]
        values.RescaleSlope, values.RescaleType = "1", "HU"
        values.RescaleIntercept = str(-1024 - 10 * index)
        frame.PlanePositionSequence = [plane]
        frame.PixelValueTransformationSequence = [values]
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    data.NumberOfFrames = len(order)
    set_pixels(data, np.stack([hu[index] + 1024 + 10 * index for index in order]))
    return data


def save(data: pydicom.FileDataset, path: Path) -> Path:
    """Write a data set as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def dicom_series(folder: Path, hu: np.ndarray, **kwargs) -> Path:
    """One file a slice; names run against the positions."""
    for index, plane in enumerate(hu):
        save(dicom(plane, index, **kwargs), folder / f"{len(hu) - index}.dcm")
    return folder


def jpeg_dicom(hu: np.ndarray) -> pydicom.FileDataset:
    """8 stored bits in a JPEG baseline stream; slope 8."""
    data = dicom(hu)
    stream = io.BytesIO()
    stored = np.clip((hu + 1024) // 8, 0, 255).astype(np.uint8)
    Image.fromarray(stored).save(stream, "JPEG", quality=95)
    data.RescaleSlope = "8"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    return _encapsulated(data, stream.getvalue(), JPEGBaseline8Bit)


def lossless_jpeg_dicom(hu: np.ndarray) -> pydicom.FileDataset:
    """16 stored bits in a lossless JPEG stream (process 14, first-order prediction), which CT
    scanners use most. No library at hand writes it."""
    stored = (hu.astype(np.int32) + 1024).astype(np.uint16)
    return _encapsulated(dicom(hu), _lossless_jpeg(stored), JPEGLosslessSV1)


def _encapsulated(data: pydicom.FileDataset, stream: bytes, syntax: str) -> pydicom.FileDataset:
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([stream])
    data["PixelData"].VR = "OB"
    return data


def _lossless_jpeg(values: np.ndarray) -> bytes:
    """ISO 10918-1 annex H: each value's difference from its left neighbour (the first of a line
    from the one above, the very first from 2^15), as a code for its bit length and the bits."""
    values = values.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << 15
    bits = []
    for difference in ((values - predicted + 2**15) % 2**16 - 2**15).ravel().tolist():
        length = abs(difference).bit_length()
        bits.append(f"{length:05b}")  # the code of a length is the length itself, in 5 bits
        if 0 < length < 16:
            bits.append(
                f"{difference if difference > 0 else difference + 2**length - 1:0{length}b}"
            )
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    entropy = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
    rows, columns = values.shape
    huffman = bytes([0, 0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    segments = (
        (0xC3, struct.pack(">BHHBBBB", 16, rows, columns, 1, 1, 0x11, 0)),
        (0xC4, huffman),
        (0xDA, bytes([1, 1, 0, 1, 0, 0])),
    )
    head = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body
        for marker, body in segments
    )
    return b"\xff\xd8" + head + entropy + b"\xff\xd9"


def nifti(
    hu: np.ndarray, codes: str = "LPS", dtype: str = "<i2", version: int = 1
) -> nib.Nifti1Image:
    """(slices, H, W) HU as NIfTI whose stored axes run towards ``codes``."""
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    image = kind(hu.transpose(2, 1, 0).astype(dtype), AFFINE)
    image.header.set_xyzt_units("mm")
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    return image.as_reoriented(ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(codes)))


def damage_seeds(folder: Path) -> list[Path]:
    """One sound file of every kind, to be damaged."""
    hu = volume(3)
    grey = np.clip((hu[1] + 1350) // 6, 0, 255).astype(np.uint8)
    plain = Image.fromarray(grey)
    pictures = {
        "grey.png": plain,
        "rgba.png": plain.convert("RGBA"),
        "palette.png": plain.convert("P"),
        "grey16.png": Image.fromarray((hu[1] + 1024).astype(np.uint16)),
        "grey.jpg": plain,
        "rgb.tif": plain.convert("RGB"),
        "grey.bmp": plain,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(folder / name)
    plain.save(folder / "progressive.jpg", progressive=True)
    plain.save(folder / "packed.tif", compression="tiff_adobe_deflate")
    plain.save(folder / "pages.tif", save_all=True, append_images=[plain, plain])
    data_sets = {
        "plain": dicom(hu[1], 1),
        "enhanced": enhanced(hu),
        "jpeg": jpeg_dicom(hu[1]),
        "lossless": lossless_jpeg_dicom(hu[1]),
    }
    for name, uid in (("rle", pydicom.uid.RLELossless), ("jpeg2000", pydicom.uid.JPEG2000Lossless)):
        data_sets[name] = dicom(hu[1], 1)
        data_sets[name].compress(uid, generate_instance_uid=False)
    data_sets["deflated"] = dicom(hu[1], 1)
    data_sets["deflated"].file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data_sets["jpegls"] = as_ct("MR_small_jpeg_ls_lossless.dcm")
    for name, data in data_sets.items():
        save(data, folder / f"{name}.dcm")
    for name, image in {
        "plain.nii": nifti(hu),
        "packed.nii.gz": nifti(hu),
        "sagittal.nii": nifti(hu, "SAR"),
        "second.nii.gz": nifti(hu, dtype=">f4", version=2),
    }.items():
        nib.save(image, folder / name)
    return sorted(folder.iterdir())


def as_ct(name: str) -> pydicom.FileDataset:
    """One of pydicom's test files, told to be axial CT."""
    data = pydicom.dcmread(pydicom.data.get_testdata_file(name, download=False))
    data.Modality, data.SOPClassUID = "CT", CTImageStorage
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = [0, 0, 0]
    data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
    return data
