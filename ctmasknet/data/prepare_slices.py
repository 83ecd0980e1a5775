"""From lists or class folders to a prepared set of slices: the whole of
``prepare_covidx_ct.py``."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctmasknet.data.bad_slices import SOURCE, BadSlices
from ctmasknet.data.class_folders import read_class_folders, split_records
from ctmasknet.data.classes import IMAGE_CLASSES
from ctmasknet.data.command_words import parse_assignments
from ctmasknet.data.covidx_ct import (
    find_standard_lists,
    read_slice_lists,
    resolve_images,
)
from ctmasknet.data.patient_ids import COVIDX_CT, numbering_of
from ctmasknet.data.prepared_json import split_of_patients
from ctmasknet.data.root import set_folder
from ctmasknet.data.slice_records import SliceRecord
from ctmasknet.data.slice_sets import sample_per_class, write_slice_set
from ctmasknet.data.slice_volumes import (
    class_folders_hold_volumes,
    read_class_volumes,
    read_volume_list,
)
from ctmasknet.data.volumes import Volume
from ctmasknet.data.window import Window
from ctmasknet.errors import CTMaskNetError


def prepare_slices(
    root: str | os.PathLike,
    name: str,
    *,
    images: str | os.PathLike | None = None,
    source: str | os.PathLike | None = None,
    lists: Mapping[str, str | os.PathLike] | None = None,
    class_folders: Mapping[str, Sequence[str]] | None = None,
    shares: Mapping[str, float] | None = None,
    patient_pattern: re.Pattern | None = None,
    sample: Mapping[str, int] | None = None,
    per_class: int | None = None,
    seed: int = 0,
    patient_ids: str | None = None,
    split_like: str | os.PathLike | None = None,
    grey_window: tuple[int, int] | None = None,
    verify: bool = False,
    workers: int = 1,
    volume_list: str | os.PathLike | None = None,
    classes: Sequence[str] | None = None,
    window: Window | None = None,
    every: int = 1,
    bad: BadSlices | None = None,
) -> dict[str, Any]:
    """Prepare a set of classified slices below ``root/name``.

    The slices come from class folders (pictures, or DICOM series and NIfTI volumes), from a CSV
    list of volumes, from the given lists, or from the standard lists in ``source`` (``root/name``
    when nothing is given).

    Args:
        root: the root of the data sets (``$DETECTRON2_DATASETS``).
        name: of the set; it gets registered as ``<name>_<split>``.
        images: the folder of the images (class folders: the folder above them).
        source: a folder with the standard COVIDx-CT lists and, unless ``images`` is given, the
            images.
        lists: split -> list file.
        class_folders: class name -> folders below ``images``, in the order of the labels.
        shares: split -> share of the patients; for class folders and CSV lists without splits.
        patient_pattern: finds the patient in a file's name.
        sample: split -> number of slices a class to draw; an error when a class has fewer.
        per_class: largest number of slices a class in every split without a ``sample`` of its own.
        seed: of the split and the samples.
        volume_list: CSV list (:func:`~ctmasknet.data.slice_volumes.read_volume_list`).
        classes: names of its classes, in the order of the labels.
        window: HU window, for volumes only.
        every: of a volume every so many slices is taken; for volumes only.
        bad: what to do with slices and volumes that cannot be used; default: the first one is an
            error. Where they are skipped, every image is decoded, and ``bad_slices.json`` beside
            the set lists them.
        patient_ids: name of the numbering of the patients; see
            :func:`ctmasknet.data.patient_ids.numbering_of` for what is taken otherwise.
        split_like: folder of another prepared set of the same numbering; patients stay in the split
            that it has them in. With ``shares`` only.
        grey_window, verify, workers: as for :func:`~ctmasknet.data.slice_sets.write_slice_set`.

    Returns:
        the summary, as in ``root/name/slices_summary.json``.

    Raises:
        CTMaskNetError: bad input of any kind; nothing has been written then.
    """
    home = set_folder(Path(root), name)
    bad = bad or BadSlices({})
    on_bad = functools.partial(bad.add, name=SOURCE) if bad.skip else None
    placed = None
    if split_like is not None:
        if not shares or not (images or volume_list):
            raise CTMaskNetError("--split-like: goes with --split and the folder of the images")
        numbering = numbering_of(images or Path(volume_list).parent, patient_ids)
        placed = split_of_patients(split_like, numbering)
    if classes and not volume_list:
        raise CTMaskNetError("--classes: names the classes of a --volume-list; leave it out")
    volumes: dict[str, tuple[Volume, int]] = {}
    if volume_list:
        if lists or source or class_folders:
            raise CTMaskNetError(
                "--volume-list: does not go together with --list, --source or --class-folder"
            )
        images = images or Path(volume_list).parent
        classes, found = read_volume_list(
            volume_list, images, classes, patient_pattern, every, on_bad
        )
        if bool(shares) == bool(found.split_of):
            raise CTMaskNetError(
                f"{volume_list}: needs either a column split or --split, such as train:0.8,test:0.2"
            )
        volumes = found.slices
        splits = split_records(found.records, shares, seed, placed) if shares else found.splits()
        description = f"slices of {Path(volume_list).name}"
    elif class_folders:
        if images is None or not shares:
            raise CTMaskNetError(
                "--class-folder: needs --images DIR and --split, such as train:0.8,test:0.2"
            )
        if lists or source:
            raise CTMaskNetError("--class-folder: does not go together with --list or --source")
        classes = list(class_folders)
        if class_folders_hold_volumes(images, class_folders):
            found = read_class_volumes(images, class_folders, patient_pattern, every, on_bad)
            records, volumes = found.records, found.slices
        else:
            records = read_class_folders(images, class_folders, patient_pattern)
        splits = split_records(records, shares, seed, placed)
        description = f"slices by class folder below {Path(images).name}"
    else:
        if shares:
            raise CTMaskNetError("--split: lists state their split themselves; leave it out")
        if not lists:
            lists, beside_lists = find_standard_lists(source or home)
            images = images or beside_lists
        elif images is None:
            raise CTMaskNetError("--list: needs the folder of the images, --images DIR")
        classes = list(IMAGE_CLASSES)
        splits = resolve_images(read_slice_lists(lists, patient_pattern), images, on_bad)
        description = "slices of " + ", ".join(Path(path).name for path in lists.values())

    if not volumes and (window is not None or every != 1):
        raise CTMaskNetError(
            f"{images}: the slices are pictures; --window and --every are for DICOM and NIfTI "
            "volumes, leave them out (pictures have --grey-window)"
        )
    by_name = not (class_folders or volume_list or patient_pattern)
    splits = _sampled(splits, classes, sample or {}, per_class, seed)
    return write_slice_set(
        root,
        name,
        splits,
        classes,
        images,
        description=description,
        seed=seed,
        patient_ids=numbering_of(images, patient_ids, COVIDX_CT if by_name else None),
        grey_window=grey_window,
        verify=verify,
        workers=workers,
        volumes=volumes,
        window=window or Window(),
        bad=bad,
    )


def parse_class_folders(values: Sequence[str]) -> dict[str, list[str]]:
    """``["normal=ct0", "covid=ct1,ct2"]`` -> ``{"normal": ["ct0"], "covid": ["ct1", "ct2"]}``."""
    assigned = parse_assignments(values, "--class-folder")
    return {name: [part for part in text.split(",") if part] for name, text in assigned.items()}


def parse_counts(values: Sequence[str], option: str) -> dict[str, int]:
    """``["train=1000"]`` -> ``{"train": 1000}``.

    Raises:
        CTMaskNetError: not a positive whole number; it names ``option``.
    """
    counts = {}
    for name, text in parse_assignments(values, option).items():
        if not text.isdecimal() or int(text) < 1:
            raise CTMaskNetError(f"{option} {name}={text}: expected a whole number of at least 1")
        counts[name] = int(text)
    return counts


def parse_grey_window(text: str) -> tuple[int, int]:
    """``"20,110"`` -> ``(20, 110)``, 8-bit grey levels.

    Raises:
        CTMaskNetError: another form, or not 0 <= LOW < HIGH <= 255.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise CTMaskNetError(f"--grey-window {text}: expected LOW,HIGH, two 8-bit grey levels")
    low, high = map(int, parts)
    if not low < high <= 255:
        raise CTMaskNetError(f"--grey-window {text}: expected 0 <= LOW < HIGH <= 255")
    return low, high


def _sampled(
    splits: Mapping[str, list[SliceRecord]],
    classes: Sequence[str],
    sample: Mapping[str, int],
    per_class: int | None,
    seed: int,
) -> dict[str, list[SliceRecord]]:
    for split in sample:
        if split not in splits:
            raise CTMaskNetError(
                f"--sample {split}: there is no such split; there are {', '.join(splits)}"
            )
    sampled = {}
    for split, records in splits.items():
        count = sample.get(split, per_class)
        if count is not None:
            records = sample_per_class(
                records, classes, count, seed, split, allow_fewer=split not in sample
            )
        sampled[split] = records
    return sampled
