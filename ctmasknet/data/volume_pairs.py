"""Volumes and their label masks: which belong together, whose they are, and their lesions."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.data.ct_files import kind_of
from ctmasknet.data.dicom_seg_masks import seg_series
from ctmasknet.data.images import IMAGE_SUFFIXES
from ctmasknet.data.label_masks import read_mask
from ctmasknet.data.lesion_files import LesionPair, PatientRule
from ctmasknet.data.mask_volumes import MaskVolume, place_mask, read_mask_volume
from ctmasknet.data.masks_to_coco import Conversion, ConvertedSlice, lesions_of
from ctmasknet.data.natural import natural_key
from ctmasknet.data.volumes import Volume, every_kth, find_volumes, volume_files, without_extension
from ctmasknet.data.window import Window
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


@dataclass(frozen=True)
class VolumeConversion:
    """What is particular to volumes in a :class:`~ctmasknet.data.masks_to_coco.Conversion`.

    Args:
        window: HU to grey levels.
        segments: label name of a DICOM-SEG's segment, by number, label or coded meaning.
        every: every so many slices is taken.
        keep_empty: share (0..1) of those without a lesion that is kept, evenly spread.
        skip_bad: a volume that cannot be converted becomes a
            :class:`~ctmasknet.data.bad_slices.BadSlice`.
    """

    window: Window = field(default_factory=Window)
    segments: Mapping[str, str] = field(default_factory=dict)
    every: int = 1
    keep_empty: float = 1.0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        every_kth(1, self.every)
        if not 0 <= self.keep_empty <= 1:
            raise CTMaskNetError(f"--keep-empty {self.keep_empty:g}: give a share of 0 to 1")


def find_volume_pairs(
    images: Path,
    masks: Path,
    rule: PatientRule,
    on_bad: Callable[[str, str], None] | None = None,
) -> list[VolumePair]:
    """Pair the volumes under ``images`` with the masks under ``masks``, in natural order.

    The two may be one folder. A DICOM-SEG belongs to the series it references. Any other mask
    belongs to the volume of the same relative path without extension, endings such as ``_mask`` or
    ``_seg`` aside; failing that, to the only volume of the folder of the same relative path. Masks
    may also be pictures, one a slice: ``<volume>/<slice>.png``, where ``<slice>`` is the number of
    the slice from the feet, from 0 (``0012``), or the stem of its DICOM file.

    Raises:
        CTMaskNetError: a volume without a mask or the reverse, two masks of one volume, an unknown
            patient; damaged files unless ``on_bad`` takes them.
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


def convert_volume(
    pair: VolumePair, how: Conversion, volumes: VolumeConversion
) -> list[ConvertedSlice | BadSlice]:
    """Choose a volume's slices, find their lesions and write their copies to ``how.copies``.

    Raises:
        CTMaskNetError: damaged; volume and mask disagree; an unknown mask value.
    """
    try:
        return _convert(pair, how, volumes)
    except CTMaskNetError as error:
        if not volumes.skip_bad:
            raise
        files = dict.fromkeys(one.file for one in pair.volume.scan.slices)
        return [BadSlice.from_error(file, error) for file in files]


def _convert(
    pair: VolumePair, how: Conversion, volumes: VolumeConversion
) -> list[ConvertedSlice | BadSlice]:
    scan = pair.volume.scan
    plane_of = _planes(pair, how, volumes)
    found: dict[int, ConvertedSlice] = {}
    for index in every_kth(len(scan.slices), volumes.every):
        name = pair.volume.copy_name(index)
        mask = plane_of(index)
        lesions, instances = lesions_of(mask, how)
        found[index] = ConvertedSlice(
            pair=LesionPair(
                name.removesuffix(".png"),
                name,
                Path(scan.slices[index].file),
                pair.mask,
                pair.patient,
            ),
            file=name,
            height=mask.shape[0],
            width=mask.shape[1],
            lesions=lesions,
            instances=instances,
            scan=scan.scan,
        )
    empty = [index for index, item in found.items() if not item.lesions]
    kept = round(volumes.keep_empty * len(empty))
    dropped = set(empty) - {empty[place * len(empty) // kept] for place in range(kept)}
    chosen = {index: item for index, item in found.items() if index not in dropped}
    for index in chosen:
        try:
            pair.volume.write_copy(index, how.copies, volumes.window)
        except CTMaskNetError as error:
            if not volumes.skip_bad:
                raise
            chosen[index] = BadSlice.from_error(scan.slices[index].file, error)
    return list(chosen.values())


def _planes(
    pair: VolumePair, how: Conversion, volumes: VolumeConversion
) -> Callable[[int], np.ndarray]:
    """Slice index -> (H, W) mask values."""
    scan = pair.volume.scan
    if pair.mask.is_dir():
        return lambda index: _picture_mask(pair, index, how)
    mask: MaskVolume = read_mask_volume(os.fspath(pair.mask), how.labels, volumes.segments)
    place_of = place_mask(scan, mask)
    nothing = min((v for v, name in how.labels.items() if name == "background"), default=0)

    def plane(index: int) -> np.ndarray:
        place = place_of[index]
        if place is None:
            return np.full(scan.slices[index].shape, nothing, np.int32)
        return mask.plane(place)

    return plane


def _picture_mask(pair: VolumePair, index: int, how: Conversion) -> np.ndarray:
    one = pair.volume.scan.slices[index]
    stems = (f"{index:04d}", without_extension(os.path.basename(one.file)))
    for path in (pair.mask / f"{stem}.png" for stem in stems):
        if path.is_file():
            mask = read_mask(path, how.labels)
            if mask.shape != one.shape:
                raise CTMaskNetError(
                    f"{one.file}: the slice is {one.shape[1]} x {one.shape[0]} px (width x height) "
                    f"and its mask {path} is {mask.shape[1]} x {mask.shape[0]} px; they must be "
                    "equal"
                )
            return mask
    raise CTMaskNetError(
        f"{one.file}: no mask of slice {index} in {pair.mask}; expected {stems[0]}.png or "
        f"{stems[1]}.png"
    )


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
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda path: natural_key(str(path))):
        name = without_extension(file.relative_to(root).as_posix())
        key = (
            by_scan.get(seg_series(os.fspath(file)) or "")
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
    return folder if folder.is_dir() and any(_pictures(folder)) else None


def _pictures(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


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
