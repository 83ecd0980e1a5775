"""Which files were meant: inputs walked, each file's kind told from its first bytes.

The order in which people read numbered names.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ctmasknet.ct.dicom_bytes import looks_like_dicom
from ctmasknet.ct.nifti import is_nifti_header
from ctmasknet.ct.pictures import IMAGE_SUFFIXES
from ctmasknet.ct.scan import UnsuitableFile, decoding
from ctmasknet.errors import CTMaskNetError


def natural_key(name: str) -> list:
    """A sort key that puts ``s2`` before ``s10``."""
    # Digits sit at odd places, so that a number is never compared with text.
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


_PICTURES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"II*\x00",
    b"MM\x00*",
    b"II+\x00",
    b"MM\x00+",
)
_HEAD_BYTES = 540
#: Names that promise a CT file: with other content they are damaged, not merely something else.
_CT_SUFFIXES = (*IMAGE_SUFFIXES, ".dcm", ".dicom", ".ima", ".nii", ".nii.gz")


@dataclass(frozen=True)
class FoundFile:
    """A file of one of the inputs.

    Attributes:
        path: as given, or the given folder joined with the rest.
        given: index of the input it was found by.
        alone: named itself, not found in a folder.
    """

    path: str
    given: int
    alone: bool


def find_files(inputs: Sequence[str | os.PathLike]) -> Iterator[FoundFile]:
    """Walk files and folders, each in natural order.

    Links are followed, to each folder of an input once. Names that begin with a dot are passed over
    inside folders. What cannot be walked is returned like a file; reading it tells why.
    """
    for given, item in enumerate(inputs):
        item = os.fspath(item)
        alone = not os.path.isdir(item)
        for path in [item] if alone else _walk(item, set()):
            yield FoundFile(path, given, alone)


def _walk(folder: str, visited: set[tuple[int, int]]) -> Iterator[str]:
    try:
        status = os.stat(folder)
        names = sorted(os.listdir(folder), key=natural_key)
    except OSError:
        yield folder
        return
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    paths = [os.path.join(folder, name) for name in names if not name.startswith(".")]
    yield from (path for path in paths if not os.path.isdir(path))
    for path in paths:
        if os.path.isdir(path):
            yield from _walk(path, visited)


def check_name(file: str) -> None:
    """Refuse a path that no UTF-8 file can hold, as every list of slices would have to.

    Raises:
        CTMaskNetError: such a path.
    """
    try:
        file.encode()
    except UnicodeEncodeError:
        raise CTMaskNetError(f"{file}: its name is no UTF-8 text; rename the file") from None


def kind_of(file: str) -> str:
    """``dicom``, ``nifti`` or ``image``, by content.

    Raises:
        UnsuitableFile: another kind of file, or no regular file.
        CTMaskNetError: missing, unreadable, empty, or not what its name promises.
    """
    with decoding(file):
        mode = os.stat(file).st_mode
        if stat.S_ISDIR(mode):
            os.listdir(file)  # only folders that cannot be listed come here; this says why
        regular = stat.S_ISREG(mode)  # reading from a pipe would wait for ever
        if regular:
            with open(file, "rb") as stream:
                head = stream.read(_HEAD_BYTES)
    if not regular:
        raise UnsuitableFile(f"{file}: not a regular file")
    if not head:
        raise CTMaskNetError(f"{file}: empty file; restore it or leave it out")
    if head[128:132] == b"DICM":  # first: the 128 bytes before it may be a TIFF header
        return "dicom"
    if head.startswith(_PICTURES) or (head.startswith(b"BM") and head[15:18] == b"\0\0\0"):
        return "image"
    if head.startswith(b"\x1f\x8b"):
        with decoding(file), gzip.open(file) as stream:
            inner = stream.read(_HEAD_BYTES)
        if is_nifti_header(inner):
            return "nifti"
    elif is_nifti_header(head):
        return "nifti"
    elif looks_like_dicom(head):
        return "dicom"
    if file.lower().endswith(_CT_SUFFIXES):
        raise CTMaskNetError(
            f"{file}: damaged, or not what its name says (its first bytes belong to no PNG, JPEG, "
            "TIFF, BMP, DICOM or NIfTI file)"
        )
    raise UnsuitableFile(f"{file}: no PNG, JPEG, TIFF, BMP, DICOM or NIfTI file")
