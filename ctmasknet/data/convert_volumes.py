"""Volumes and their label masks to lesion instances, and copies of the slices."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.data.label_masks import background_value, read_mask
from ctmasknet.data.lesion_files import LesionPair
from ctmasknet.data.mask_pictures import slice_masks
from ctmasknet.data.mask_volumes import MaskVolume, place_mask, read_mask_volume
from ctmasknet.data.masks_to_coco import Conversion, ConvertedSlice, lesions_of
from ctmasknet.data.volume_pairs import VolumePair
from ctmasknet.data.volumes import every_kth
from ctmasknet.data.window import Window
from ctmasknet.errors import CTMaskNetError


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
        return _picture_planes(pair, how, volumes)
    mask: MaskVolume = read_mask_volume(os.fspath(pair.mask), how.labels, volumes.segments)
    place_of = place_mask(scan, mask)

    def plane(index: int) -> np.ndarray:
        place = place_of[index]
        if place is None:
            return np.full(scan.slices[index].shape, background_value(how.labels), np.int32)
        return mask.plane(place)

    return plane


def _picture_planes(
    pair: VolumePair, how: Conversion, volumes: VolumeConversion
) -> Callable[[int], np.ndarray]:
    masks = slice_masks(pair.volume.scan, pair.mask, allow_spare=volumes.skip_bad)

    def plane(index: int) -> np.ndarray:
        one, path = pair.volume.scan.slices[index], masks[index]
        if path is None:
            own = "" if one.frame is not None else f" or {Path(one.file).stem}.png"
            raise CTMaskNetError(
                f"{one.file}: no mask of slice {index} in {pair.mask}; expected {index:04d}.png"
                f"{own}"
            )
        mask = read_mask(path, how.labels)
        if mask.shape != one.shape:
            raise CTMaskNetError(
                f"{one.file}: the slice is {one.shape[1]} x {one.shape[0]} px (width x height) "
                f"and its mask {path} is {mask.shape[1]} x {mask.shape[0]} px; they must be equal"
            )
        return mask

    return plane
