"""Masks of a volume as pictures in a folder, one a slice: which is whose."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ctmasknet.data.ct_scan import CTScan
from ctmasknet.data.images import IMAGE_SUFFIXES
from ctmasknet.data.lesion_files import MASK_SUFFIXES
from ctmasknet.data.volumes import without_extension
from ctmasknet.errors import CTMaskNetError


def pictures_in(folder: Path) -> Iterable[Path]:
    """The pictures of a folder, not of its subfolders."""
    return (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def slice_masks(scan: CTScan, folder: Path, *, allow_spare: bool = False) -> list[Path | None]:
    """The mask picture of each slice of ``scan``; None where there is none.

    A picture is named by the number of its slice from the feet, from 0 (``0012.png``), or as the
    slice's DICOM file (``IM0012.png``).

    Args:
        scan: the volume.
        folder: of the pictures; those of the suffixes that masks may have count.
        allow_spare: pictures of no slice are no error, as long as none is found by its number. A
            slice that is missing does not change whose the others are then.

    Raises:
        CTMaskNetError: two pictures for one slice or two slices for one picture, by number and by
            file name; two pictures of one stem; a picture of no slice, for then slices are missing
            and the numbers may mean others.
    """
    by_stem: dict[str, Path] = {}
    for path in sorted(pictures_in(folder)):
        if path.suffix.lower() in MASK_SUFFIXES:
            other = by_stem.setdefault(path.stem, path)
            if other != path:
                raise CTMaskNetError(f"{other} and {path}: both are masks of one slice; remove one")
    masks: list[Path | None] = []
    slice_of: dict[Path, int] = {}
    numbered = False
    for index, one in enumerate(scan.slices):
        stems = [f"{index:04d}"]
        if one.frame is None:
            stems.append(without_extension(os.path.basename(one.file)))
        found = [by_stem[stem] for stem in dict.fromkeys(stems) if stem in by_stem]
        if len(found) > 1:
            raise CTMaskNetError(
                f"{one.file}: {found[0].name} is its mask by its number from the feet, and "
                f"{found[1].name} by its file name, in {folder}; name masks by numbers that no "
                "DICOM file has"
            )
        if found and found[0] in slice_of:
            other = scan.slices[slice_of[found[0]]].file
            raise CTMaskNetError(
                f"{found[0]}: is the mask of {other} or of {one.file}, of one by its number from "
                "the feet, of the other by its file name; name masks by numbers that no DICOM file "
                "has"
            )
        for path in found:
            slice_of[path] = index
            numbered |= path.stem == stems[0]
        masks.append(found[0] if found else None)
    spare = [path for path in by_stem.values() if path not in slice_of]
    if spare and (numbered or not allow_spare):
        raise CTMaskNetError(
            f"{spare[0]}: is the mask of no slice of {scan.slices[0].file} and the "
            f"{len(scan.slices) - 1} others of its volume; restore the slice or remove the mask"
        )
    return masks
