"""DICOMDIR: the list of the files of a disc or archive."""

from __future__ import annotations

import os

import pydicom

from ctmasknet.ct.dicom.bytes import check_items
from ctmasknet.ct.scan import decoding
from ctmasknet.errors import CTMaskNetError

#: A list is some hundred bytes a file; larger ones are not read.
_MAX_BYTES = 2**26


def is_disc_list(file: str) -> bool:
    """Whether a file bears the name that the standard gives the list, and no other file has."""
    return os.path.basename(file).upper() == "DICOMDIR"


def files_of_disc(file: str) -> list[str] | None:
    """The files that a DICOMDIR names, in its order.

    Args:
        file: path of the DICOMDIR.

    Returns:
        their paths, there or not; None where the list is damaged, names nothing, or names what does
        not lie below its own folder. Its folder's files tell then.
    """
    folder = os.path.dirname(file)
    above = os.path.realpath(folder or ".")
    try:
        with decoding(file):
            if os.path.getsize(file) > _MAX_BYTES:
                return None
            check_items(file)
            records = pydicom.dcmread(file).DirectoryRecordSequence
            named = [one.ReferencedFileID for one in records if "ReferencedFileID" in one]
            parts = [[one] if isinstance(one, str) else list(map(str, one)) for one in named if one]
    except CTMaskNetError:
        return None
    found = []
    for each in parts:
        if any(part in ("", ".", "..") or set(part) & {"/", "\\", "\0", ":"} for part in each):
            return None
        path = os.path.join(folder, *each)
        if os.path.commonpath([above, os.path.realpath(path)]) != above:
            return None
        found.append(path)
    return found or None
