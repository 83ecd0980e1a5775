"""What is known of one classified slice, and how a file's name tells its patient."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import NamedTuple

from ctmasknet.errors import CTMaskNetError


class SliceRecord(NamedTuple):
    """One slice of a data set, as it stands in the prepared json.

    ``file`` is relative to the image folder (``/`` between parts); ``label`` indexes the set's
    classes; ``body_box`` is (x0, y0, x1, y1) in px, x1 and y1 exclusive, or None.
    """

    file: str
    label: int
    patient: str
    scan: str
    slice: str
    body_box: tuple[int, int, int, int] | None = None


def part_below(root: str | os.PathLike, part: str) -> str:
    """``part``, a path relative to ``root`` or an absolute one below it, as a relative path without
    detours (``/`` between parts; links count as what they are called).

    Raises:
        CTMaskNetError: it lies outside ``root``; a set names its files, and copies are written, by
            the path below ``root``.
    """
    relative = os.path.relpath(os.path.join(root, part), root).replace(os.sep, "/")
    if relative.split("/")[0] == "..":
        raise CTMaskNetError(
            f"{part}: lies outside the folder of the images, {root}; give a folder above all of "
            "them with --images"
        )
    return relative


def compile_patient_pattern(pattern: str) -> re.Pattern:
    """Compile a regular expression that finds ``patient`` (and ``scan``, ``slice``) in a file's
    name.

    Raises:
        CTMaskNetError: not a regular expression, or one without the group ``(?P<patient>...)``.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CTMaskNetError(
            f"patient pattern {pattern!r}: not a regular expression ({error})"
        ) from None
    if "patient" not in compiled.groupindex:
        raise CTMaskNetError(
            f"patient pattern {pattern!r}: has no group named patient; write (?P<patient>...)"
        )
    return compiled


def match_patient(file: str, pattern: re.Pattern) -> tuple[str, str, str]:
    """Patient, scan and slice of ``file`` (relative, ``/`` between parts) by ``pattern``, which may
    match anywhere.

    Without a group ``scan`` the scan repeats the patient; without ``slice`` the slice is the file's
    stem.

    Raises:
        CTMaskNetError: the pattern does not match, or its group ``patient`` took no part in the
            match.
    """
    match = pattern.search(file)
    groups = match.groupdict() if match else {}
    patient = groups.get("patient")
    if not patient:
        raise CTMaskNetError(
            f"{file}: the patient pattern {pattern.pattern!r} finds no patient in this name"
        )
    return patient, groups.get("scan") or patient, groups.get("slice") or PurePosixPath(file).stem
