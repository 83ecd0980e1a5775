"""MetaImage (``.mha``, ``.mhd``) and NRRD (``.nrrd``, ``.nhdr``) as scans, through SimpleITK.

Neither states that values are HU; they are looked at as those of NIfTI are. An uncompressed
MetaImage is read slice by slice where its axial slices are stored one after the other, anything
else once as a whole (:func:`ctmasknet.ct.nifti.kept`).

The header's text is looked at before SimpleITK is: it takes a missing orientation for the identity,
passes over the slope of a MetaImage, and opens whatever file the header names.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctmasknet.ct.nifti import StoredVolume, kept, volume_scan
from ctmasknet.ct.orientation import upright
from ctmasknet.ct.scan import (
    MAX_EXPANSION,
    MAX_VOXELS,
    CTScan,
    Rescale,
    UnsuitableFile,
    check_claimed_size,
    decoding,
    max_expanded_bytes,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import has_control_character

ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
_META = re.compile(rb"\s*(ObjectType\s*=\s*Image|NDims\s*=|Comment\s*=)", re.IGNORECASE)
_HEADER_BYTES = 2**16
#: RAS from ITK's LPS.
_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: How many numbers an entry holds. SimpleITK takes another number for one that it cannot read, or
#: crashes.
_NUMBERS = {
    **dict.fromkeys(("ndims", "dimension", "headersize", "compresseddatasize"), 1),
    **dict.fromkeys(("binarydatapos", "elementnumberofchannels"), 1),
    **dict.fromkeys(("dimsize", "sizes", "elementspacing", "elementsize"), 3),
    **dict.fromkeys(("offset", "position", "origin", "centerofrotation"), 3),
    **dict.fromkeys(("transformmatrix", "rotation", "orientation"), 9),
}
_TRUTH = ("false", "true")
_TYPES = ("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "float", "double")
#: Words that an entry may hold, where it stands; values as text are nobody's CT.
_META_WORDS = {
    "binarydata": ("true",),
    "binarydatabyteordermsb": _TRUTH,
    "elementbyteordermsb": _TRUTH,
    "compresseddata": _TRUTH,
    "elementtype": tuple(f"met_{one}" for one in (*_TYPES, "long_long", "ulong_long")),
}
_NRRD_WORDS = {"encoding": ("raw", "gzip", "gz", "bzip2", "bz2"), "endian": ("little", "big")}
#: Of NRRD: spaces that ITK turns to its own.
_SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior")
_SPACES += ("lps", "ras", "las")


def is_itk_header(head: bytes) -> bool:
    """Whether bytes begin as MetaImage or NRRD does."""
    return head.startswith(b"NRRD000") or _META.match(head) is not None


@dataclass(frozen=True, kw_only=True)
class ITKVolume(StoredVolume):
    """One volume that SimpleITK reads.

    Attributes:
        data: the file that holds the voxels; ``stamp`` is its.
        sliced: one slice can be read without the others.
    """

    data: str
    sliced: bool

    def values(self, index: int) -> np.ndarray:
        """One slice.

        Args:
            index: along the stored slice axis.

        Returns:
            (H, W) float64, upright.

        Raises:
            CTMaskNetError: truncated, damaged, or changed since its header was read.
        """
        slice_axis = self.turn.axes[2]
        if self.sliced and slice_axis == 2:
            plane = self._read(index)[..., 0]
        else:
            plane = np.moveaxis(kept(self, self._read), slice_axis, 0)[index]
        return self.turn.plane(plane).astype(np.float64)

    def _read(self, index: int | None = None) -> np.ndarray:
        """Stored values, (i, j, k); of the slice ``index`` k is 1."""
        sitk = _simple_itk(self.file)
        with decoding(self.file):
            if _stamp(self.data) != self.stamp:
                raise CTMaskNetError(f"{self.file}: changed while it was read; read it again")
            reader = _reader(sitk, self.file)
            if index is not None:
                reader.SetExtractIndex((0, 0, index))
                reader.SetExtractSize((*self.shape[:2], 1))
            try:
                return sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
            except RuntimeError:  # of many lines, with the paths of ITK's own sources
                raise CTMaskNetError(
                    f"{self.file}: damaged or truncated, SimpleITK cannot read its voxels; restore "
                    "the file"
                ) from None


def _simple_itk(file: str):
    try:
        import SimpleITK
    except ImportError:
        raise CTMaskNetError(
            f"{file}: reading MetaImage and NRRD needs SimpleITK, which is not installed: "
            "pip install SimpleITK"
        ) from None
    return SimpleITK


def _reader(sitk, file: str):
    """An ``ImageFileReader`` that knows the header."""
    sitk.ProcessObject.GlobalWarningDisplayOff()
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.SetImageIO("NrrdImageIO" if _is_nrrd(file) else "MetaImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise CTMaskNetError(
            f"{file}: damaged, SimpleITK cannot read its header; restore the file"
        ) from None
    return reader


def _is_nrrd(file: str) -> bool:
    with open(file, "rb") as stream:
        return stream.read(4) == b"NRRD"


def _stamp(file: str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def _header(file: str) -> tuple[dict[str, str], int]:
    """Lines ``key = value`` (MetaImage) or ``key: value`` (NRRD), keys in small letters; where they
    end, bytes."""
    with decoding(file), open(file, "rb") as stream:
        text = stream.read(_HEADER_BYTES).decode("latin-1")
    is_nrrd = text.startswith("NRRD")
    found: dict[str, str] = {}
    end = 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        if is_nrrd and not line.strip():
            break
        key, separator, value = line.partition(":" if is_nrrd else "=")
        if separator and not line.startswith("#"):
            key = key.strip().lower()
            if key in found or has_control_character(value.strip()):
                raise CTMaskNetError(f"{file}: its header states {key[:40]!a} twice, or in no text")
            found[key] = value.strip()
        if key == "elementdatafile":
            break
    return found, end


def read_itk_volume(file: str, max_expansion: float = MAX_EXPANSION) -> ITKVolume:
    """Read and check the header; the voxels stay in the file.

    Args:
        file: MetaImage or NRRD; told apart by content.
        max_expansion: see :func:`ctmasknet.ct.scan.max_expanded_bytes`.

    Raises:
        UnsuitableFile: another number of dimensions than 3, colour, no stated orientation, oblique,
            voxels in several files or in another folder.
        CTMaskNetError: SimpleITK is not installed; damaged, truncated or impossible sizes.
    """
    sitk = _simple_itk(file)
    stated, end = _header(file)
    with decoding(file):
        is_nrrd = _is_nrrd(file)
    _check_numbers(file, stated, is_nrrd)
    (_check_nrrd if is_nrrd else _check_meta)(file, stated)
    data = _data_file(file, stated, is_nrrd)
    with decoding(file):
        stamp = _stamp(data)
        reader = _reader(sitk, file)
        shape, components = tuple(map(int, reader.GetSize())), reader.GetNumberOfComponents()
        pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        if len(shape) != 3:
            raise UnsuitableFile(f"{file}: has {len(shape)} dimensions; give one 3D volume")
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
        affine[:3, 3] = reader.GetOrigin()
    match = re.fullmatch(r"(8|16|32|64)-bit (?:(?:un)?signed integer|float)", pixel)
    if components != 1 or match is None:
        raise UnsuitableFile(f"{file}: holds {pixel}, no single number a voxel; give CT in HU")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and lengths.min() >= 1e-3 and lengths.max() <= 1e3):
        raise CTMaskNetError(f"{file}: its voxels are {lengths} mm large; the file is damaged")
    turn = upright(_FROM_LPS @ affine, shape, file)
    columns, rows, slices = turn.shape
    check_claimed_size(file, (rows, columns, slices))
    needed = math.prod(shape) * int(match[1]) // 8
    if needed > max_expanded_bytes(stamp[0], max_expansion):
        raise CTMaskNetError(
            f"{file}: claims to expand {needed / max(1, stamp[0]):.0f}-fold to {needed >> 20} MiB, "
            "as no CT does; the file is damaged"
        )
    compressed = is_nrrd or stated.get("compresseddata", "").lower() == "true"
    if not is_nrrd:  # SimpleITK would raise too, after lines of its own on the terminal
        wanted = int(_number(stated.get("compresseddatasize", "0"))) if compressed else needed
        held = stamp[0] - (end if data == file else 0)
        if held < wanted:
            raise CTMaskNetError(
                f"{file}: truncated, holds {max(0, held)} of {wanted} bytes of voxels; restore the "
                "file"
            )
    return ITKVolume(
        file=file, stamp=stamp, shape=shape, turn=turn, data=data, sliced=not compressed
    )


def _check_numbers(file: str, stated: dict[str, str], is_nrrd: bool) -> None:
    dimensions, sizes = ("dimension", "sizes") if is_nrrd else ("ndims", "dimsize")
    wanted = (
        dimensions,
        sizes,
        *(("encoding", "type") if is_nrrd else ("binarydata", "elementtype")),
    )
    for key in wanted:
        if key not in stated:
            raise CTMaskNetError(f"{file}: its header states no {key}; the file is damaged")
    if stated[dimensions] in ("1", "2", "4", "5"):
        raise UnsuitableFile(f"{file}: has {stated[dimensions]} dimensions; give one 3D volume")
    for key, count in _NUMBERS.items():
        numbers = (
            [_number(each) for each in stated[key].split()] if key in stated else [1.0] * count
        )
        sound = len(numbers) == count and np.isfinite(numbers).all()
        if not sound or (key in (dimensions, sizes) and any(each % 1 for each in numbers)):
            raise CTMaskNetError(
                f"{file}: {key} is {stated[key][:80]!a}; expected {count} numbers of a 3D volume"
            )
    if stated[dimensions] != "3":
        raise CTMaskNetError(f"{file}: {dimensions} is {stated[dimensions]!a}; the file is damaged")
    for key, words in (_NRRD_WORDS if is_nrrd else _META_WORDS).items():
        if stated.get(key, words[0]).lower() not in words:
            raise UnsuitableFile(
                f"{file}: {key} is {stated[key][:80]!a}; one of {', '.join(words)} is read"
            )
    # Sides are told apart once it is upright
    if math.prod(map(float, stated[sizes].split())) > MAX_VOXELS:
        raise CTMaskNetError(
            f"{file}: its header claims {stated[sizes]} voxels, more than the {MAX_VOXELS} read"
        )


def _check_meta(file: str, stated: dict[str, str]) -> None:
    if not {"transformmatrix", "rotation", "orientation"} & stated.keys():
        raise UnsuitableFile(
            f"{file}: states no orientation (TransformMatrix), so left and right are unknown"
        )
    slope = _number(stated.get("elementtointensityfunctionslope", "1"))
    offset = _number(stated.get("elementtointensityfunctionoffset", "0"))
    if (slope, offset) != (1, 0):
        raise UnsuitableFile(
            f"{file}: states a slope and offset of its values ({slope:g}, {offset:g}), which "
            "SimpleITK does not apply; store HU"
        )


def _check_nrrd(file: str, stated: dict[str, str]) -> None:
    if "space directions" not in stated or stated.get("space", "").lower() not in _SPACES:
        raise UnsuitableFile(
            f"{file}: states no orientation (space {stated.get('space', 'is missing')}; space "
            "directions), so left and right are unknown"
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _data_file(file: str, stated: dict[str, str], is_nrrd: bool) -> str:
    """Path of the file with the voxels: the header's own, or one beside it.

    Raises:
        UnsuitableFile: several files, or one in another folder.
        CTMaskNetError: the header does not end, or names a file that is missing.
    """
    if is_nrrd:
        name = stated.get("data file", stated.get("datafile", "LOCAL"))
    elif "elementdatafile" in stated:
        name = stated["elementdatafile"]
    else:
        raise CTMaskNetError(f"{file}: its header does not end (no ElementDataFile); damaged")
    if name.upper() == "LOCAL":
        return file
    if name.upper().startswith("LIST") or "%" in name:
        raise UnsuitableFile(
            f"{file}: its voxels lie in several files ({name}); store it as one .mha or .nrrd"
        )
    if re.search(r"[/\\]", name.removeprefix("./")) or name in ("", ".", ".."):
        raise UnsuitableFile(
            f"{file}: its voxels lie in another folder ({name!r}); put that file beside it, or "
            "store it as one .mha or .nrrd"
        )
    path = Path(file).parent / name
    if not os.path.isfile(path):
        raise CTMaskNetError(f"{file}: its voxels lie in {path}, which is missing; restore it")
    return str(path)


def read_itk_file(file: str, name: str, rescale: Rescale | None = None) -> CTScan:
    """One volume as a scan; arguments and errors as of
    :func:`ctmasknet.ct.nifti.read_nifti_file`, and those of :func:`read_itk_volume`."""
    scan = re.sub(r"\.\w+$", "", os.path.basename(file))
    return volume_scan(read_itk_volume(file), "itk", name, scan, rescale)
