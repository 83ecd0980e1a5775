"""From lists or class folders to a prepared set of slices: the whole of
``prepare_covidx_ct.py``.

Prepared sets of classified slices: sample, count, write
``<root>/<name>/slices/<split>.json``.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from zlib import crc32

import numpy as np
from tabulate import tabulate

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.ct.pictures import find_unreadable, raise_problems, write_in_grey_window
from ctmasknet.ct.scan import Window
from ctmasknet.data.bad_slices import REPORT, SOURCE, BadSlices
from ctmasknet.data.patients import COVIDX_CT, numbering_of
from ctmasknet.data.prepared import SliceRecord, set_folder, split_of_patients
from ctmasknet.data.splits import SPLITS
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import write_json
from ctmasknet.prepare.arguments import parse_assignments
from ctmasknet.prepare.lists import (
    find_standard_lists,
    read_class_folders,
    read_slice_lists,
    resolve_images,
    split_records,
)
from ctmasknet.prepare.slice_volumes import (
    class_folders_hold_volumes,
    read_class_volumes,
    read_volume_list,
)
from ctmasknet.prepare.staging import COPIES, check_copies_allowed, put_copies, staging_folder
from ctmasknet.prepare.volumes import Volume, write_copies

SUMMARY = "slices_summary.json"
#: Lies in a folder of copies; a folder without it is never replaced.
COPIES_MARK = ".windowed_copies"
Splits = Mapping[str, Sequence[SliceRecord]]


def sample_per_class(
    records: Sequence[SliceRecord],
    classes: Sequence[str],
    count: int,
    seed: int,
    split: str,
    allow_fewer: bool = False,
) -> list[SliceRecord]:
    """Draw ``count`` slices of every class at random, without replacement, the order of ``records``
    kept.

    Args:
        seed: together with the split's name it fixes the draw, so a split's sample does not depend
            on which other splits there are.
        split: the split's name, also for the error.
        allow_fewer: take all slices of a class that has fewer.

    Raises:
        CTMaskNetError: ``count`` below 1, or a class with fewer slices (named) unless
            ``allow_fewer``.
    """
    if count < 1:
        raise CTMaskNetError(
            f"{split}: cannot sample {count} slices a class; give a number of at least 1"
        )
    rng = np.random.default_rng([seed, crc32(split.encode())])
    chosen: list[int] = []
    for label, class_name in enumerate(classes):
        members = [index for index, record in enumerate(records) if record.label == label]
        if len(members) < count and not allow_fewer:
            raise CTMaskNetError(
                f"{split}: class {class_name} has {len(members)} slices, {count} were asked for; "
                f"sample at most {len(members)} or take more slices in"
            )
        chosen += (
            rng.choice(members, min(count, len(members)), replace=False).tolist() if members else []
        )
    return [records[index] for index in sorted(chosen)]


def summarise(splits: Splits, classes: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
    """Count, for every split, slices, patients and scans of every class and of ``all`` together."""
    summary = {}
    for split, records in splits.items():
        groups = {name: [r for r in records if r.label == k] for k, name in enumerate(classes)}
        summary[split] = {
            name: {
                "slices": len(group),
                "patients": len({r.patient for r in group}),
                "scans": len({(r.patient, r.scan) for r in group}),
            }
            for name, group in [*groups.items(), ("all", list(records))]
        }
    return summary


def summary_table(summary: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """The counts of :func:`summarise` as a table to print."""
    rows = [
        (split, name, counts["slices"], counts["patients"], counts["scans"])
        for split, groups in summary.items()
        for name, counts in groups.items()
    ]
    return tabulate(rows, headers=("split", "class", "slices", "patients", "scans"), intfmt=",")


def write_slice_set(
    root: str | os.PathLike,
    name: str,
    splits: Splits,
    classes: Sequence[str],
    image_root: str | os.PathLike,
    *,
    description: str,
    seed: int,
    patient_ids: str | None = None,
    grey_window: tuple[int, int] | None = None,
    verify: bool = False,
    workers: int = 1,
    volumes: Mapping[str, tuple[Volume, int]] | None = None,
    window: Window | None = None,
    bad: BadSlices | None = None,
) -> dict[str, Any]:
    """Write a prepared set, all of it or nothing; the splits an earlier run wrote for ``name`` go.

    Args:
        root: the root of the data sets (``$DETECTRON2_DATASETS``); the set is ``root/name``.
        splits: split -> its records, files relative to ``image_root``.
        classes: class names in the order of the labels.
        image_root: where the images are. They stay there unless ``grey_window`` is given.
        description: one line for the json.
        seed: recorded in the json.
        patient_ids: name of the numbering of the patients, recorded in the json.
        grey_window: (low, high) 8-bit grey levels: contrast-stretched PNG copies go to
            ``root/name/image`` (:func:`~ctmasknet.ct.pictures.write_in_grey_window`), and the json
            names these.
        verify: decode every image first (copying does so anyway); otherwise headers are read.
        workers: number of processes.
        volumes: where the slices are not pictures: of each record's file, which is to be written,
            the volume and the slice's index.
        window: HU to grey levels, for these.
        bad: what to do with slices that cannot be read, as those of the set :data:`SOURCE`; where
            they are skipped, ``root/name/bad_slices.json`` lists them.

    Returns:
        the summary that is also written to ``root/name/slices_summary.json``.

    Raises:
        CTMaskNetError: no slice in a split; unreadable images; two sources of one copy; a folder
            ``image`` that is in the way.
    """
    _check_not_empty(name, splits)
    bad = bad or BadSlices({})
    target = Path(root) / name
    image_root = Path(os.path.abspath(image_root))  # links stay: the set may move with them
    files = [record.file for records in splits.values() for record in records]
    if volumes and grey_window is not None:
        raise CTMaskNetError("--grey-window: is for 8-bit pictures; volumes have --window")
    if volumes or grey_window is not None:
        check_copies_allowed(target, image_root, COPIES_MARK)
    copy_of = _copy_names(files) if grey_window is not None else {}

    info = {
        "description": description,
        "image_root": COPIES if volumes or grey_window else _relative_inside(image_root, target),
        "patient_ids": patient_ids,
        "seed": seed,
        "grey_window": list(grey_window) if grey_window else None,
        "window_hu": [window.center_hu, window.width_hu] if volumes else None,
    }
    with staging_folder(target) as staging:
        copies = staging / COPIES
        if volumes:
            chosen = {file: volumes[file] for file in files}
            problems = write_copies(chosen, copies, window, workers, skip_bad=bad.skip)
        elif grey_window is not None:
            targets = {str(image_root / file): str(copies / copy_of[file]) for file in files}
            problems = write_in_grey_window(targets, grey_window, workers, skip_bad=bad.skip)
        else:
            # Without headers, what is no picture would be met hours into a training only.
            paths = [image_root / file for file in files]
            problems = find_unreadable(paths, workers, headers_only=not (verify or bad.skip))
            if not bad.skip:
                raise_problems(list(problems.values()), len(files))
        splits = _without_bad(splits, problems, bad, image_root, volumes or {})
        if bad.skip:
            bad.finish(target / REPORT)
        _check_not_empty(name, splits)
        if copy_of:
            splits = {k: [r._replace(file=copy_of[r.file]) for r in v] for k, v in splits.items()}
        summary = {"info": info, "classes": list(classes), "splits": summarise(splits, classes)}
        for split, records in splits.items():
            slices = [record._asdict() for record in records]
            value = {"info": info, "classes": list(classes), "slices": slices}
            write_json(staging / "slices" / f"{split}.json", value)
        write_json(staging / SUMMARY, summary, indent=1)
        _move_in_place(staging, target, info["image_root"])
        if not bad.skip:
            bad.finish(target / REPORT)
    return summary


def _check_not_empty(name: str, splits: Splits) -> None:
    for split, records in splits.items():
        if not records:
            raise CTMaskNetError(
                f"{name}: split {split} has no slice; give it more patients or leave it out"
            )


def _without_bad(
    splits: Splits,
    problems: Mapping[str, str],
    bad: BadSlices,
    image_root: Path,
    volumes: Mapping[str, tuple[Volume, int]],
) -> dict[str, list[SliceRecord]]:
    """The records without those that ``problems`` names, by image or, for volumes, by copy; ``bad``
    is told of these, and of the number of files."""
    kept: dict[str, list[SliceRecord]] = {}
    sound: set[str] = set()
    for split, records in splits.items():
        kept[split] = []
        for record in records:
            file = place = str(image_root / record.file)
            if volumes:
                volume, index = volumes[record.file]
                file, place = volume.scan.slices[index].file, record.file
            if place in problems:
                bad.add(file, problems[place].removeprefix(f"{file}: "), SOURCE)
            else:
                kept[split].append(record)
                sound.add(file)
    bad.totals[SOURCE] = len(sound | bad.files(SOURCE).keys())
    return kept


def _move_in_place(staging: Path, target: Path, image_root: str) -> None:
    put_copies(staging, target, COPIES_MARK, image_root)
    (target / "slices").mkdir(exist_ok=True)
    for split in SPLITS:
        if (staging / "slices" / f"{split}.json").is_file():
            os.replace(staging / "slices" / f"{split}.json", target / "slices" / f"{split}.json")
        else:  # of an earlier run: its patients may be in another split now
            (target / "slices" / f"{split}.json").unlink(missing_ok=True)
    os.replace(staging / SUMMARY, target / SUMMARY)


def _copy_names(files: Sequence[str]) -> dict[str, str]:
    names = {file: str(PurePosixPath(file).with_suffix(".png")) for file in files}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        first, second = [file for file in names if names[file] == twice[0]][:2]
        raise CTMaskNetError(
            f"{first} and {second}: both would be copied to {twice[0]}; rename one of them"
        )
    return names


def _relative_inside(folder: Path, target: Path) -> str:
    target = Path(os.path.abspath(target))
    return folder.relative_to(target).as_posix() if folder.is_relative_to(target) else str(folder)


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
        volume_list: CSV list (:func:`~ctmasknet.prepare.slice_volumes.read_volume_list`).
        classes: names of its classes, in the order of the labels.
        window: HU window, for volumes only.
        every: of a volume every so many slices is taken; for volumes only.
        bad: what to do with slices and volumes that cannot be used; default: the first one is an
            error. Where they are skipped, every image is decoded, and ``bad_slices.json`` beside
            the set lists them.
        patient_ids: name of the numbering of the patients; see
            :func:`ctmasknet.data.patients.numbering_of` for what is taken otherwise.
        split_like: folder of another prepared set of the same numbering; patients stay in the split
            that it has them in. With ``shares`` only.
        grey_window, verify, workers: as for :func:`~ctmasknet.prepare.slices.write_slice_set`.

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
