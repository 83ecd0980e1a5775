"""Prepared sets of classified slices: sample, count, write
``<root>/<name>/slices/<split>.json``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from zlib import crc32

import numpy as np
from tabulate import tabulate

from ctmasknet.data.bad_slices import REPORT, SOURCE, BadSlices
from ctmasknet.data.images import find_unreadable, raise_problems, write_in_grey_window
from ctmasknet.data.slice_records import SliceRecord
from ctmasknet.data.splits import SPLITS
from ctmasknet.data.staging import COPIES, check_copies_allowed, put_copies, staging_folder
from ctmasknet.data.volumes import Volume, write_copies
from ctmasknet.data.window import Window
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import write_json

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
            ``root/name/image`` (:func:`~ctmasknet.data.images.write_in_grey_window`), and the json
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
