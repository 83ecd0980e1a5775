"""Volumes and their label masks: which belong together, and whose they are."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ctmasknet.data.ct_files import kind_of
from ctmasknet.data.dicom_seg_masks import seg_series
from ctmasknet.data.mask_pictures import pictures_in
from ctmasknet.data.natural import natural_key
from ctmasknet.data.patient_rules import PatientRule
from ctmasknet.data.volumes import Volume, find_volumes, volume_files, without_extension
from ctmasknet.errors import CTMaskNetError

#: What names of masks, and of nnU-Net's images, have behind the name of the case.
_ENDINGS = re.compile(r"[_.-](?:masks?|seg|segmentation|labels?|gt|0000)$", re.IGNORECASE)


@dataclass(frozen=True)
class VolumePair:
    """A volume, its mask and its patient.

    Attributes:
        volume: of the scan.
        mask: a NIfTI or DICOM-SEG file, or a folder with one picture a slice (see
            :func:`find_volume_pairs`).
        patient: whose it is.
    """

    volume: Volume
    mask: Path
    patient: str


def find_volume_pairs(
    images: Path,
    masks: Path,
    rule: PatientRule,
    on_bad: Callable[[str, str], None] | None = None,
) -> list[VolumePair]:
    """Pair the volumes under ``images`` with the masks under ``masks``, in natural order.

    The two may be one folder. A DICOM-SEG belongs to the series it references. Any other mask, and
    a SEG whose series is not there (as when its volume was converted to NIfTI), belongs to the
    volume of the same relative path without extension, endings such as ``_mask`` or ``_seg`` aside;
    failing that, to the only volume of the folder of the same relative path. Masks may also be
    pictures in a folder of the volume's name
    (:func:`~ctmasknet.data.mask_pictures.slice_masks`).

    Raises:
        CTMaskNetError: a volume without a mask or the reverse, two masks of one volume, a SEG whose
            name is that of another series than it references, an unknown patient; damaged files
            unless ``on_bad`` takes them.
    """
    rule = replace(rule, groups={without_extension(k): who for k, who in rule.groups.items()})
    bad: dict[str, str] = {}

    def note(file: str, reason: str) -> None:
        bad.setdefault(os.path.realpath(file), os.path.relpath(file, images))
        on_bad(file, reason)

    report = note if on_bad else None
    volumes = find_volumes(images, on_bad=report)
    used = {os.path.realpath(one.file) for volume in volumes for one in volume.scan.slices}
    one_folder = images.resolve() == masks.resolve()
    files = [
        Path(file)
        for file in volume_files(masks)
        if os.path.realpath(file) not in used | bad.keys() and _is_mask(file, one_folder, report)
    ]
    mask_of = _matched(volumes, files, masks, {_stem(without_extension(f)) for f in bad.values()})
    pairs = []
    for volume in volumes:
        mask = mask_of.get(volume.key) or _picture_folder(masks, volume)
        if mask is None:
            if on_bad is None:
                raise CTMaskNetError(_without_mask(volume, masks))
            for file in dict.fromkeys(one.file for one in volume.scan.slices):
                on_bad(file, _without_mask(volume, masks).partition(": ")[2])
            continue
        pairs.append(VolumePair(volume, mask, _patient(volume, rule)))
    missing = sorted(set(rule.groups) - {volume.key for volume in volumes})
    if missing and not bad:
        raise CTMaskNetError(
            f"groups: {missing[0]} is no volume under {images}; correct the groups file"
        )
    return pairs


def _is_mask(file: str, others: bool, on_bad: Callable[[str, str], None] | None) -> bool:
    """Whether a file is NIfTI or DICOM-SEG; ``others``: there may be other DICOM beside the
    masks."""
    try:
        if kind_of(file) == "nifti" or seg_series(file) is not None:
            return True
        if not others:
            raise CTMaskNetError(f"{file}: DICOM, but no DICOM-SEG; remove it or restore the mask")
    except CTMaskNetError as error:
        if on_bad is None:
            raise
        on_bad(file, str(error).removeprefix(f"{file}: "))
    return False


def _matched(
    volumes: Sequence[Volume], files: Sequence[Path], root: Path, bad: set[str]
) -> dict[str, Path]:
    """Key of a volume -> its mask file; masks of volumes in ``bad`` (stems) are left out."""
    by_scan = {volume.scan.scan: volume.key for volume in volumes}
    by_stem = _unique((_stem(volume.key), volume.key) for volume in volumes)
    folder = {volume.key: _folder_of(volume) for volume in volumes}
    by_folder = _unique((folder[volume.key], volume.key) for volume in volumes)
    kind_of_volume = {volume.key: volume.scan.kind for volume in volumes}
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda path: natural_key(str(path))):
        name = without_extension(file.relative_to(root).as_posix())
        series = seg_series(os.fspath(file)) or ""
        key = (
            by_scan.get(series)
            or (name if name in folder else None)
            or by_stem.get(_stem(name))
            or by_folder.get(name)
            or by_folder.get(os.path.dirname(name))
        )
        if key is None and (
            _stem(name) in bad or os.path.dirname(name) in map(os.path.dirname, bad)
        ):
            continue
        if key is None:
            raise CTMaskNetError(
                f"{file}: no volume of the same name; add the volume or remove this mask"
            )
        if series and series not in by_scan and kind_of_volume[key] == "dicom":
            raise CTMaskNetError(
                f"{file}: is the mask of the series {series}, which is not among the volumes, and "
                f"has the name of another, {key}; add that series or remove this mask"
            )
        if key in found:
            raise CTMaskNetError(
                f"{found[key]} and {file}: both are masks of the volume {key}; remove one"
            )
        found[key] = file
    return found


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """name -> key, of the names that one key alone has."""
    pairs = list(pairs)
    count = Counter(name for name, _ in pairs)
    return {name: key for name, key in pairs if name and count[name] == 1}


def _folder_of(volume: Volume) -> str:
    """Relative folder of its file; of a series, whose key is a folder, that folder."""
    alone = len({one.file for one in volume.scan.slices}) == 1
    return os.path.dirname(volume.key) if alone else volume.key


def _stem(name: str) -> str:
    return _ENDINGS.sub("", name)


def _picture_folder(masks: Path, volume: Volume) -> Path | None:
    folder = masks / volume.key
    return folder if folder.is_dir() and any(pictures_in(folder)) else None


def _without_mask(volume: Volume, masks: Path) -> str:
    return (
        f"{volume.scan.slices[0].file}: no mask for the volume {volume.key} in {masks}; name it "
        f"{volume.key}.nii.gz, or put it into a folder of that name"
    )


def _patient(volume: Volume, rule: PatientRule) -> str:
    """Arguments go before what the file states."""
    if volume.key in rule.groups or rule.pattern is not None or rule.each_file:
        return rule.patient(volume.key)
    if volume.scan.patient:
        return volume.scan.patient
    raise CTMaskNetError(
        f"{volume.scan.slices[0].file}: states no patient; give --patient-pattern or --groups, or "
        "--patients each-file where each volume is a patient of its own"
    )
