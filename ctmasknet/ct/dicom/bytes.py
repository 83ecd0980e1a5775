"""Bytes of DICOM files: headers and single frames, read so that a damaged file costs nothing.

Everything is read through a memory map, whose reads end with the file whatever length an element
claims, and only once the claimed sizes have been checked: the header's, and those that a compressed
frame states itself (:func:`codestream_size`), by which decoders allocate.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_partial
from pydicom.pixels import pixel_array
from pydicom.tag import BaseTag, Tag

from ctmasknet.ct.pictures import check_scans
from ctmasknet.ct.scan import (
    CHUNK_BYTES,
    UnsuitableFile,
    check_claimed_size,
    decoding,
    max_expanded_bytes,
    unpacking,
)
from ctmasknet.errors import CTMaskNetError

_FILLING = re.compile(rb"\xff+")
#: A file's meta group lies within its first bytes.
_META_BYTES = 2**16
#: What is read of a header; everything else is passed over.
_KEYWORDS = (
    *("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality"),
    *("InstanceNumber", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "GantryDetectorTilt"),
    *("ImagePositionPatient", "ImageOrientationPatient", "SliceLocationVector"),
    *("NumberOfFrames", "GridFrameOffsetVector", "Rows", "Columns", "PixelSpacing"),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleIntercept", "RescaleSlope", "RescaleType"),
    *("ConvolutionKernel", "SliceThickness", "SeriesDescription", "SeriesNumber"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
#: Reads that a header may take whatever the file's size, and bytes that allow one more: far above
#: what an enhanced CT of thousands of frames takes.
_READS, _BYTES_A_READ = 100_000, 50
#: Items of sequences that a file may hold whatever its size, and bytes that allow one more.
_ITEMS, _BYTES_AN_ITEM = 20_000, 200
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
#: Objects that lie beside CT in an archive, by their Modality.
_WITHOUT_IMAGE = {
    "RTSTRUCT": "contours of regions",
    "RTPLAN": "a plan of radiation",
    "SR": "a report",
    "KO": "a selection of images",
    "PR": "how images were shown",
    "REG": "a registration",
}
_UNDEFINED_LENGTH = 0xFFFFFFFF
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file begins as DICOM does.

    Args:
        head: its first 132 bytes or more. Files without the preamble begin with an element of group
            0002 or 0008, in either byte order.
    """
    if head[128:132] == b"DICM":
        return True
    if head[:2] in (b"\x02\x00", b"\x08\x00"):
        element, length = head[3:4], int.from_bytes(head[4:8], "little")
        return element == b"\x00" and (bool(re.match(rb"[A-Z]{2}", head[4:6])) or length < 1024)
    return head[:3] == b"\x00\x08\x00" and bool(re.match(rb"[A-Z]{2}", head[4:6]))


def read_header(file: str, check: Callable[[Dataset, str], None]) -> Dataset:
    """Read what :data:`_KEYWORDS` names, without pixels, and check that the pixels are there.

    Args:
        file: path.
        check: called with header and file before the pixels are looked for, so that an object of
            another kind is refused as that, whatever else is wrong with it.

    Returns:
        the data set; ``file_meta.TransferSyntaxUID`` is set, guessed where the file states none.

    Raises:
        UnsuitableFile: an object without an image.
        CTMaskNetError: damaged, truncated, or impossible sizes; what ``check`` raises.
    """
    with decoding(file), _opened(file) as stream:
        header = pydicom.dcmread(
            stream, stop_before_pixels=True, force=True, specific_tags=[*_KEYWORDS, *_OFFSETS]
        )
        _check_items(header, stream)
        header.file_meta.TransferSyntaxUID = _transfer_syntax(header)
        begin, end = stream.tell(), len(stream)
        order = "little" if header.file_meta.TransferSyntaxUID.is_little_endian else "big"
        tag = [int.from_bytes(stream.read(2), order) for _ in range(2)]
        modality = header.get("Modality") or "no modality"
        compressed = header.file_meta.TransferSyntaxUID.is_compressed
        fragments = _count_fragments(stream, end) if compressed and tag[0] == 0x7FE0 else 0
    if tag != [0x7FE0, 0x0010]:
        if _is_cut(file):
            raise CTMaskNetError(f"{file}: truncated, ends before its pixels; restore the file")
        if header.file_meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
            raise UnsuitableFile(
                f"{file}: holds no image, only the list of a disc's files; give the folder it is in"
            )
        what = _WITHOUT_IMAGE.get(modality, "no image")
        raise UnsuitableFile(f"{file}: holds no image ({modality}, {what}); give CT slices")
    with decoding(file):
        check(header, file)
        size = [int(header.get(key) or 0) for key in ("Rows", "Columns")]
        frames = int(header.get("NumberOfFrames") or 1)
        pixel_bytes = int(header.get("BitsAllocated") or 0) // 8
    check_claimed_size(file, (*size, frames))
    needed = size[0] * size[1] * frames * pixel_bytes
    if compressed and fragments < frames:
        raise CTMaskNetError(
            f"{file}: truncated, holds {fragments} whole fragments for {frames} compressed frames; "
            "restore the file"
        )
    if not compressed and end - begin < needed:
        raise CTMaskNetError(
            f"{file}: truncated, holds {end - begin} of {needed} bytes of pixels; restore the file"
        )
    return header


def check_items(file: str) -> None:
    """Refuse a file whose sequences would take pydicom long, before it is read without a bound.

    Raises:
        CTMaskNetError: so many items or elements as no object of its size has; it is damaged.
    """
    with decoding(file), _opened(file) as stream:
        _check_items(pydicom.dcmread(stream, stop_before_pixels=True, force=True), stream)


def _check_items(header: Dataset, stream: _Mapped) -> None:
    """Sequences of a stated length are parsed when they are first asked for, past all counting."""
    raw = [one.value for one in map(header.get_item, list(header.keys())) if one.is_raw]
    found = sum(one.count(tag) for one in raw if one for tag in _ITEM_TAGS)
    if found > _ITEMS + len(stream) // _BYTES_AN_ITEM:
        stream.reads_left = -1
        raise ValueError("too many items")


def read_frame(file: str, frame: int, transfer_syntax: str) -> np.ndarray:
    """Decode one frame.

    Args:
        file: read anew.
        frame: from 0.
        transfer_syntax: UID, as :func:`read_header` found it.

    Returns:
        (rows, columns) stored values, integer, unused high bits cleared.

    Raises:
        CTMaskNetError: it cannot be decoded, or its compressed stream has another size than the
            header says.
    """
    with decoding(file), _opened(file) as stream:
        if uid.UID(transfer_syntax).is_encapsulated:
            _check_codestream(file, stream, frame)
            stream.seek(0)
        # pylibjpeg's RLE decoder panics on damaged runs, past every except; pydicom's raises.
        plugin = "pydicom" if transfer_syntax == uid.RLELossless else ""
        return pixel_array(
            stream,
            index=frame,
            raw=True,
            transfer_syntax_uid=transfer_syntax,
            decoding_plugin=plugin,
        )


@contextlib.contextmanager
def _opened(file: str) -> Iterator[mmap.mmap]:
    """The file, or the data set that a deflated file inflates to, as a stream whose reads end with
    it."""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(open(file, "rb"))
        mapped = stack.enter_context(_mapped(stream))
        begin = _deflated_begin(file, mapped)
        if begin is not None:
            stream.seek(begin)
            with unpacking(file):
                inflated = stack.enter_context(tempfile.TemporaryFile())
            _inflate(file, stream, inflated)
            mapped = stack.enter_context(_mapped(inflated))
        try:
            yield mapped
        except Exception:
            if mapped.reads_left >= 0:
                raise
            raise CTMaskNetError(
                f"{file}: holds more elements than a CT of its size does; leave it out"
            ) from None


class _Mapped(mmap.mmap):
    """A file whose elements are counted: each is some reads, and takes pydicom microseconds, so
    that a small file of a million empty items would take minutes."""

    reads_left = 0

    def read(self, *size: int | None) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise ValueError("too many elements")
        return super().read(*size)


def _mapped(stream: BinaryIO) -> _Mapped:
    mapped = _Mapped(stream.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.reads_left = _READS + len(mapped) // _BYTES_A_READ
    return mapped


def _inflate(file: str, source: BinaryIO, target: BinaryIO) -> None:
    """Inflate piece by piece, and no further than a CT can expand. pydicom alone would inflate all
    of it into memory."""
    left = max_expanded_bytes(os.path.getsize(file))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while (piece := inflater.unconsumed_tail or source.read(CHUNK_BYTES)) and not inflater.eof:
        inflated = inflater.decompress(piece, CHUNK_BYTES)
        with unpacking(file):
            target.write(inflated)
            target.flush()
        left -= len(inflated)
        if left < 0:
            raise CTMaskNetError(f"{file}: inflates further than any CT does; the file is damaged")


def _deflated_begin(file: str, mapped: mmap.mmap) -> int | None:
    """Where a deflated data set begins; None for any other file."""
    deflated = uid.DeflatedExplicitVRLittleEndian
    if mapped.find(deflated.encode(), 0, _META_BYTES) < 0:
        return None
    meta = pydicom.filereader.read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") != deflated:
        return None
    if "FileMetaInformationGroupLength" not in meta:
        raise CTMaskNetError(f"{file}: deflated, and states no length of its file meta group")
    return 144 + meta.FileMetaInformationGroupLength


def _transfer_syntax(header: pydicom.FileDataset) -> uid.UID:
    stated = header.file_meta.get("TransferSyntaxUID")
    if stated:
        return uid.UID(stated)
    implicit, little = header.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _is_cut(file: str) -> bool:
    """Whether a file without pixels ends within an element, or before the first."""
    last = (0, 0)  # where its value begins, and its length

    with decoding(file), _opened(file) as stream:

        def note(tag: BaseTag, vr: str | None, length: int) -> bool:
            nonlocal last
            last = stream.tell(), length
            return False

        # With a tag to look for, all other values are passed over, however large.
        read_partial(stream, stop_when=note, force=True, specific_tags=[Tag("SOPClassUID")])
        # A sequence of undefined length was read to its end, or its reader would have raised.
        return last[1] != _UNDEFINED_LENGTH and sum(last) != len(stream)


def _count_fragments(stream: BinaryIO, end: int) -> int:
    """How many whole fragments of compressed frames lie between a pixel data tag and ``end``."""
    stream.seek(8, io.SEEK_CUR)  # VR and length
    count = -1  # the offset table comes first
    while len(head := stream.read(8)) == 8:
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) != (0xFFFE, 0xE000) or stream.tell() + length > end:
            break
        stream.seek(length, io.SEEK_CUR)
        count += 1
    return max(0, count)


def codestream_size(encoded: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, channels) that a JPEG, JPEG-LS or JPEG 2000 stream claims, else None."""
    begin = encoded.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000: start, then SIZ
    if begin >= 0 and not encoded.startswith(b"\xff\xd8"):
        right, bottom, left, top = struct.unpack(">4I", encoded[begin + 8 : begin + 24])
        return bottom - top, right - left, struct.unpack(">H", encoded[begin + 40 : begin + 42])[0]
    if not encoded.startswith(b"\xff\xd8"):
        return None
    offset = 2
    while True:
        marker, length = struct.unpack(">HH", encoded[offset : offset + 4])
        if marker == 0xFFFF:  # any number of such bytes may fill up before a marker
            offset = _FILLING.match(encoded, offset).end() - 1
            continue
        # Start of frame: C0..CF but C4, C8 and CC, which mean other things; F7 is JPEG-LS.
        if marker == 0xFFF7 or (0xFFC0 <= marker <= 0xFFCF and marker & 0xF not in (4, 8, 12)):
            rows, columns, channels = struct.unpack(">HHB", encoded[offset + 5 : offset + 10])
            return rows, columns, channels
        offset += 2 + length


def _check_codestream(file: str, stream: BinaryIO, frame: int) -> None:
    """Refuse a compressed frame whose own header claims another size: decoders allocate by it."""
    header = pydicom.dcmread(
        stream,
        stop_before_pixels=True,
        force=True,
        specific_tags=["Rows", "Columns", "NumberOfFrames", *_OFFSETS],
    )
    stream.seek(12, io.SEEK_CUR)  # tag, VR and length of the pixel data
    offsets = tuple(header[key].value for key in _OFFSETS if key in header)
    encoded = get_frame(
        stream,
        frame,
        extended_offsets=offsets if len(offsets) == 2 else None,
        number_of_frames=int(header.get("NumberOfFrames") or 1),
    )
    check_scans(file, encoded)
    claimed = codestream_size(encoded)
    stated = (int(header.Rows), int(header.Columns), 1)
    if claimed is not None and claimed != stated:
        raise CTMaskNetError(
            f"{file}: frame {frame} is compressed as {claimed[0]} x {claimed[1]} px with "
            f"{claimed[2]} channels, the header says {stated[0]} x {stated[1]} with 1; the file is "
            "damaged"
        )
