"""One interface to CT in any format: read_scans."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ctmasknet.data.ct_dicom import dicom_scans, read_dicom_file
from ctmasknet.data.ct_pictures import picture_scans, read_picture_file
from ctmasknet.data.ct_scan import CTScan, CTSlice, Report
from ctmasknet.errors import CTMaskNetError

__all__ = ["CTScan", "CTSlice", "read_scans"]


def read_scans(
    inputs: Sequence[str | os.PathLike],
    *,
    on_bad: Report | None = None,
    rescale: tuple[float, float] | None = None,
    verify: bool = False,
) -> list[CTScan]:
    """Find the scans in files and folders (any depth). Headers are read, pixels are not.

    Args:
        inputs: files and folders.
        on_bad: called with (file, reason) for each bad file, which is then skipped; None: the first
            bad file raises.
        rescale: (slope, intercept) to HU of pictures with more than 8 bits a pixel; such pictures
            state none themselves.
        verify: also decode every slice once, so that damage that only decoding shows is found
            here and not when a slice is used.

    Raises:
        CTMaskNetError: one line that names the file.
    """
    pictures, dicom = [], []
    for file in _files(inputs):
        try:
            with open(file, "rb") as stream:
                head = stream.read(132)
            if head[128:] == b"DICM":
                dicom += read_dicom_file(file, file)
            else:
                pictures += read_picture_file(file, file, rescale)
        except CTMaskNetError as error:
            if on_bad is None:
                raise
            on_bad(file, str(error))
    return [*picture_scans(pictures), *dicom_scans(dicom)]


def _files(inputs: Sequence[str | os.PathLike]) -> list[str]:
    found = []
    for item in inputs:
        item = os.fspath(item)
        if os.path.isdir(item):
            for folder, folders, files in os.walk(item):
                folders.sort()
                found += [os.path.join(folder, file) for file in sorted(files)]
        else:
            found.append(item)
    return found
