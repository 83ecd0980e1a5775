"""Where a lesion set comes from: pictures with masks, or volumes with masks."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.data.convert_volumes import VolumeConversion, convert_volume
from ctmasknet.data.label_masks import Orientation
from ctmasknet.data.lesion_files import find_pairs, split_by_lists
from ctmasknet.data.masks_to_coco import Conversion, ConvertedSlice, convert_slices
from ctmasknet.data.patient_rules import PatientRule
from ctmasknet.data.splits import check_disjoint, check_split_name, read_list
from ctmasknet.data.volume_pairs import find_volume_pairs
from ctmasknet.data.volumes import without_extension
from ctmasknet.data.workers import map_in_processes
from ctmasknet.errors import CTMaskNetError

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
    :func:`~ctmasknet.data.lesion_files.find_pairs`."""

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
    :func:`~ctmasknet.data.volume_pairs.find_volume_pairs`. Lists name volumes."""

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
