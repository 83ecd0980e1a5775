"""Where a lesion set comes from: pictures with masks, or volumes with masks.

Volumes and their label masks to lesion instances, and copies of the slices.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from ctmasknet.ct.scan import Window
from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.data.label_masks import Orientation, background_value, read_mask
from ctmasknet.data.splits import check_disjoint, check_split_name, read_list
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import PatientRule
from ctmasknet.prepare.mask_volumes import MaskVolume, place_mask, read_mask_volume
from ctmasknet.prepare.masks_to_coco import Conversion, ConvertedSlice, convert_slices, lesions_of
from ctmasknet.prepare.pairs import (
    LesionPair,
    VolumePair,
    find_pairs,
    find_volume_pairs,
    slice_masks,
    split_by_lists,
)
from ctmasknet.prepare.volumes import every_kth, without_extension
from ctmasknet.workers import map_in_processes


@dataclass(frozen=True)
class VolumeConversion:
    """What is particular to volumes in a :class:`~ctmasknet.prepare.masks_to_coco.Conversion`.

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


Lists = Mapping[str, str | os.PathLike]


class LesionSource(Protocol):
    """Pairs of image and mask.

    Attributes:
        unlisted: slices that no list names, once :meth:`read_lists` was called.
    """

    unlisted: int

    def read_lists(self, lists: Lists) -> None:
        """Take in what each split's list names; the rest is left out."""

    def convert(
        self, how: Conversion, workers: int, progress: bool
    ) -> Iterator[ConvertedSlice | BadSlice]:
        """Convert what is listed, or everything."""

    def in_splits(self, converted: Mapping[str, ConvertedSlice]) -> dict[str, list[str]]:
        """Split -> keys of the slices converted, as the lists say."""


class PictureSource:
    """8-bit pictures and masks of the same names; see
    :func:`~ctmasknet.prepare.pairs.find_pairs`."""

    def __init__(
        self,
        images: Path,
        masks: Path,
        rule: PatientRule,
        on_bad: Callable[[str, str], None] | None,
    ):
        self._left_out: set[str] = set()

        def note(file: str, reason: str) -> None:
            folder = images if Path(file).is_relative_to(images) else masks
            self._left_out.add(rule.key(Path(file).relative_to(folder).as_posix()))
            on_bad(file, reason)

        self.pairs = find_pairs(images, masks, rule, note if on_bad else None)
        self.unlisted = 0
        self._rule = rule
        self._skip_bad = on_bad is not None
        self._keys_of: dict[str, list[str]] = {}

    def read_lists(self, lists: Lists) -> None:
        self._keys_of = split_by_lists(self.pairs, lists, self._rule, self._left_out)
        listed = {key for keys in self._keys_of.values() for key in keys}
        self.unlisted = len(self.pairs) - len(listed)
        self.pairs = [pair for pair in self.pairs if pair.key in listed]

    def convert(
        self, how: Conversion, workers: int, progress: bool
    ) -> Iterator[ConvertedSlice | BadSlice]:
        slices = convert_slices(self.pairs, how, workers, skip_bad=self._skip_bad)
        bar = tqdm(slices, total=len(self.pairs), desc="masks", unit="slice", disable=not progress)
        yield from bar

    def in_splits(self, converted: Mapping[str, ConvertedSlice]) -> dict[str, list[str]]:
        return {
            split: [key for key in keys if key in converted]
            for split, keys in self._keys_of.items()
        }


class VolumeSource:
    """DICOM series and NIfTI volumes; see
    :func:`~ctmasknet.prepare.pairs.find_volume_pairs`. Lists name volumes."""

    def __init__(
        self,
        images: Path,
        masks: Path,
        rule: PatientRule,
        volumes: VolumeConversion,
        orientation: Orientation,
        on_bad: Callable[[str, str], None] | None,
    ):
        if not orientation.is_upright:
            raise CTMaskNetError(
                f"{images}: DICOM and NIfTI state how they lie; leave --transpose and --flip out"
            )
        self.unlisted = 0
        self._bad: set[str] = set()  # volumes and folders of bad files

        def note(file: str, reason: str) -> None:
            name = without_extension(os.path.relpath(file, images).replace(os.sep, "/"))
            self._bad |= {name, os.path.dirname(name)}
            on_bad(file, reason)

        self.pairs = find_volume_pairs(images, masks, rule, note if on_bad else None)
        self._volumes = volumes
        self._split_of: dict[str, str] = {}
        self._splits: list[str] = []

    def read_lists(self, lists: Lists) -> None:
        known = {pair.volume.key: pair for pair in self.pairs}
        for split, path in lists.items():
            check_split_name(split)
            self._splits.append(split)
            for number, line in read_list(path):
                key = without_extension(line.replace("\\", "/").strip("/"))
                if key not in known and key in self._bad:
                    continue
                if key not in known:
                    raise CTMaskNetError(
                        f"{path}:{number}: {line} names no volume of the data set; remove it or "
                        f"add the volume (volumes are named such as {next(iter(known), 'case_7')})"
                    )
                if key in self._split_of:
                    raise CTMaskNetError(f"{path}:{number}: {line} is listed twice; remove one")
                self._split_of[key] = split
        patients = {split: set() for split in self._splits}
        for key, split in self._split_of.items():
            patients[split].add(known[key].patient)
        check_disjoint(patients)
        rest = [pair for pair in self.pairs if pair.volume.key not in self._split_of]
        self.unlisted = sum(len(pair.volume.scan.slices) for pair in rest)
        self.pairs = [pair for pair in self.pairs if pair.volume.key in self._split_of]

    def convert(
        self, how: Conversion, workers: int, progress: bool
    ) -> Iterator[ConvertedSlice | BadSlice]:
        convert = functools.partial(convert_volume, how=how, volumes=self._volumes)
        # A volume at a time: a compressed one is unpacked by the process that reads its slices.
        found = map_in_processes(convert, self.pairs, workers, chunksize=1)
        for slices in tqdm(
            found, total=len(self.pairs), desc="volumes", unit="volume", disable=not progress
        ):
            yield from slices

    def in_splits(self, converted: Mapping[str, ConvertedSlice]) -> dict[str, list[str]]:
        keys_of: dict[str, list[str]] = {split: [] for split in self._splits}
        for key in converted:
            keys_of[self._split_of[os.path.dirname(key)]].append(key)
        return keys_of
