"""Which files are the input: the one walk over files and folders, in the order in which people read
numbered names, and each file's kind told from its first bytes."""

from __future__ import annotations

import gzip
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ctmasknet.ct.archive import is_archive
from ctmasknet.ct.arrays import NPY_MAGIC
from ctmasknet.ct.dicom.bytes import looks_like_dicom
from ctmasknet.ct.dicom.disc import files_of_disc, is_disc_list
from ctmasknet.ct.itk import ITK_SUFFIXES, is_itk_header
from ctmasknet.ct.nifti import is_nifti_header
from ctmasknet.ct.pictures import is_picture_header
from ctmasknet.ct.scan import UnsuitableFile, decoding
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import has_control_character
from ctmasknet.names import ARRAY_SUFFIXES, IMAGE_SUFFIXES

_HEAD_BYTES = 540
#: Names that promise a CT file: with other content they are damaged, not merely something else.
_CT_SUFFIXES = (*IMAGE_SUFFIXES, ".dcm", ".dicom", ".ima", ".nii", ".nii.gz", *ITK_SUFFIXES)
_CT_SUFFIXES += ARRAY_SUFFIXES


def natural_key(name: str) -> list:
    """A sort key that puts ``s2`` before ``s10``."""
    # Digits sit at odd indices, so that a number is never compared with text.
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


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
    """The files of inputs: the one meaning of "which files were given".

    Inputs come in the order given. A folder's own files come in natural order
    (:func:`natural_key`), then those of its folders, to any depth; so the files of a folder and
    what lies below it follow each other. Names that begin with a dot are passed over inside
    folders. Links are followed, to each folder of an input once; the same file may still come
    twice, by a link to it or from two inputs (compare ``os.path.realpath``). Of a DICOMDIR come the
    files that it names, or those of its folder where it is damaged. What cannot be looked
    at, a folder included, is returned like a file: reading it (:func:`kind_of`) tells why.

    Args:
        inputs: files and folders. None is opened, folders are listed when their turn comes.
    """
    for given, item in enumerate(inputs):
        item = os.fspath(item)
        if is_disc_list(item) and os.path.isfile(item):
            listed = files_of_disc(item)
            if listed is not None:
                yield from (FoundFile(path, given, False) for path in listed)
                continue
            item = os.path.dirname(item) or "."
        if not os.path.isdir(item):
            yield FoundFile(item, given, True)
            continue
        visited: set[tuple[int, int]] = set()
        folders = [item]  # no recursion: folders may be nested deeper than Python's calls
        while folders:
            folder = folders.pop()
            try:
                status = os.stat(folder)
                files, inner = list_folder(folder)
            except OSError:
                files, inner = [folder], []
            else:
                identity = status.st_dev, status.st_ino
                if identity in visited:
                    continue
                visited.add(identity)
            yield from (FoundFile(path, given, False) for path in files)
            folders += reversed(inner)


def list_folder(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """The paths of the files in a folder and of the folders in it, as :func:`find_files` sees them:
    each in natural order, without names that begin with a dot, links as what they lead to. A link
    that leads nowhere is a file.

    Raises:
        OSError: the folder cannot be listed.
    """
    with os.scandir(folder) as entries:
        found = sorted(
            (entry for entry in entries if not entry.name.startswith(".")),
            key=lambda entry: (natural_key(entry.name), entry.name),
        )
    files: list[str] = []
    folders: list[str] = []
    for entry in found:
        # DirEntry.is_dir raises at a link that leads to itself
        is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
        (folders if is_folder else files).append(entry.path)
    return files, folders


def check_name(file: str) -> None:
    """Refuse a path that no line of a UTF-8 file can hold, as every list of slices would have to.

    Raises:
        CTMaskNetError: such a path.
    """
    try:
        file.encode()
    except UnicodeEncodeError:
        raise CTMaskNetError(f"{file}: its name is no UTF-8 text; rename the file") from None
    if has_control_character(file):
        raise CTMaskNetError(
            f"{shown_name(file)}: its name holds a line break or another control character; rename "
            "the file"
        )


def shown_name(file: str) -> str:
    """A path as a message of one line can show it."""
    return ascii(file) if has_control_character(file) else file


def kind_of(file: str) -> str:
    """``dicom``, ``nifti``, ``itk`` (MetaImage, NRRD), ``array`` (NumPy) or ``image``, by content;
    ``zip`` by name.

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
    if head and is_archive(file):
        return "zip"
    if not head:
        raise CTMaskNetError(f"{file}: empty file; restore it or leave it out")
    if head[128:132] == b"DICM":  # first: the 128 bytes before it may be a TIFF header
        return "dicom"
    if is_picture_header(head):
        return "image"
    if is_itk_header(head):
        return "itk"
    if head.startswith((NPY_MAGIC, b"PK\3\4", b"PK\5\6")) and (
        head.startswith(NPY_MAGIC) or file.lower().endswith(".npz")
    ):
        return "array"
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
            "TIFF, BMP, DICOM or NIfTI file, nor to MetaImage or NRRD)"
        )
    raise UnsuitableFile(
        f"{file}: no PNG, JPEG, TIFF, BMP, DICOM or NIfTI file, nor MetaImage or NRRD"
    )
