"""From lists or class folders to a prepared set of slices: the whole of
``prepare_covidx_ct.py``.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from zlib import crc32

import numpy as np
from tabulate import tabulate

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.ct.arrays import Axes
from ctmasknet.ct.pictures import find_unreadable, raise_problems, write_in_grey_window
from ctmasknet.ct.scan import GREY, Rescale, Window, as_rescale
from ctmasknet.ct.sidecar import any_stated_rescale
from ctmasknet.data.bad_slices import SOURCE, BadSlices
from ctmasknet.data.patients import COVIDX_CT, numbering_of
from ctmasknet.data.prepared import SliceRecord, set_folder, split_of_patients
from ctmasknet.data.splits import (
    SPLITS,
    spelled_otherwise,
    split_patients,
    tell_numbered,
    tell_spellings,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import check_writable
from ctmasknet.prepare.class_lists import rows_of_class_folders, rows_of_class_lists
from ctmasknet.prepare.classified import (
    ClassifiedSlices,
    check_rows_tell_patients,
    read_class_folders,
    read_volume_list,
    take_rows,
)
from ctmasknet.prepare.lists import (
    choose_listed,
    count_unlisted,
    find_standard_lists,
    read_slice_lists,
    resolve_images,
)
from ctmasknet.prepare.metadata import find_metadata
from ctmasknet.prepare.staging import least_bytes, writing_set
from ctmasknet.prepare.volumes import Volume, write_copies, write_deep_copies

#: Lies in a folder of copies; a folder without it is never replaced.
_COPIES_MARK = ".windowed_copies"
Splits = Mapping[str, Sequence[SliceRecord]]


def prepare_slices(
    root: str | os.PathLike,
    name: str,
    *,
    images: str | os.PathLike | None = None,
    source: str | os.PathLike | None = None,
    lists: Mapping[str, str | os.PathLike] | None = None,
    class_folders: Mapping[str, Sequence[str]] | None = None,
    class_lists: Mapping[str, Sequence[tuple[str, str | os.PathLike]]] | None = None,
    shares: Mapping[str, float] | None = None,
    patient_pattern: str | None = None,
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
    rescale: Rescale | None = None,
    one_series: bool = True,
    axes: Axes | None = None,
    columns: Mapping[str, str] | None = None,
    bad: BadSlices | None = None,
    strict: bool = False,
    metadata: str | None = None,
    exclude: str | os.PathLike | None = None,
    only_slices: str | os.PathLike | None = None,
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
        class_folders: class name -> folders below ``images``, in the order of the labels. With
            ``lists`` these name the files of each split, and the folder says the class.
        class_lists: class name -> (split or "", list of names) of each of its lists, in the order
            of the labels.
        shares: split -> share of the patients; where nothing states the splits.
        patient_pattern: regular expression that finds the patient in a file's name; see
            :class:`~ctmasknet.names.PatientRule`.
        sample: split -> number of slices a class to draw; an error when a class has fewer.
        per_class: largest number of slices a class in every split without a ``sample`` of its own.
        seed: of the split and the samples.
        volume_list: CSV list (:func:`~ctmasknet.prepare.classified.read_volume_list`).
        columns: column of ``volume_list`` -> what the list calls it.
        classes: names of its classes, in the order of the labels.
        window: HU window, for volumes and for pictures with a ``rescale`` only.
        rescale: to HU, or that values are grey levels, of volumes that are not in HU (see
            :func:`ctmasknet.ct.read.read_scans`) and of pictures, all of more than 8 bits then, of
            which 8-bit copies are written.
        one_series: of a study with several DICOM series, the one that counts; else all of them.
        axes: of NumPy's arrays, see :func:`ctmasknet.ct.read.read_scans`.
        every: of a volume every so many slices is taken; for volumes only.
        patient_ids, split_like, workers, bad: as for
            :func:`ctmasknet.prepare.lesions.prepare_lesions`. Where bad slices are skipped, every
            image is decoded.
        grey_window: (low, high) 8-bit grey levels of pictures: contrast-stretched PNG copies go to
            ``root/name/image`` (:func:`~ctmasknet.ct.pictures.write_in_grey_window`), and the json
            names these.
        strict: patients that may be one, spelled otherwise, are an error.
        metadata: of lists: CSV file with what is known of the patients
            (:class:`~ctmasknet.prepare.metadata.PatientMetadata`); default: ``metadata.csv`` beside
            lists or images, where it is; ``none`` for no metadata.
        exclude: of lists: file of scans to leave out, lines ``class scan`` (CNCB's exclude list).
        only_slices: of lists: CSV file with a column ``imgpath`` (CNCB's slices with lesions); of
            the classes that it names only these slices are taken.
        verify: decode every image first (copying does so anyway); otherwise headers are read.

    Returns:
        the summary, as in ``root/name/slices_summary.json``, and ``unlisted_images``: how many
        pictures beside those of the lists no list names; ``excluded_slices``.

    Raises:
        CTMaskNetError: bad input of any kind; nothing has been written then.
    """
    home = set_folder(Path(root), name)
    check_writable(home, folder=True, argument="output_root")
    bad = bad or BadSlices({})
    on_bad = functools.partial(bad.add, name=SOURCE) if bad.skip else None
    how = on_bad, rescale, one_series, axes
    placed = None
    if split_like is not None:
        if not shares or not (images or volume_list):
            raise CTMaskNetError("`split_like`: goes with `split` and the folder of the images")
        numbering = numbering_of(images or Path(volume_list).parent, patient_ids)
        placed = split_of_patients(split_like, numbering)
    for argument, value in {"classes": classes, "columns": columns}.items():
        if value and not volume_list:
            raise CTMaskNetError(
                f"`{argument}`: names the {argument} of a `volume_list`; leave it out"
            )
    volumes: dict[str, tuple[Volume, int]] = {}
    unlisted = excluded = 0
    known_of: dict[str, dict[str, str]] = {}
    for_lists = {"metadata": metadata, "exclude": exclude, "only_slices": only_slices}
    for argument, value in for_lists.items():
        if value is not None and (volume_list or class_folders or class_lists):
            raise CTMaskNetError(f"`{argument}`: is for COVIDx-CT lists; leave it out")
    if volume_list:
        if lists or source or class_folders or class_lists:
            raise CTMaskNetError(
                "`volume_list`: does not go together with `list`, `source`, `class_folder` or "
                "`class_list`"
            )
        images = images or Path(volume_list).parent
        classes, found = read_volume_list(
            volume_list, images, classes, patient_pattern, every, *how, columns
        )
        needed = "needs either a column split"
        splits = _split_rows(found, volume_list, needed, shares, seed, placed)
        volumes = found.volumes
        description = f"slices of {Path(volume_list).name}"
    elif class_lists or (class_folders and lists):
        if images is None or source:
            raise CTMaskNetError("`class_list`: needs `images` DIR, and no `source`")
        if class_lists and (class_folders or lists):
            raise CTMaskNetError(
                "`class_list`: does not go together with `class_folder` or `list`; write "
                "SPLIT:CLASS=FILE for lists of one split"
            )
        if class_lists:
            classes, rows = rows_of_class_lists(images, class_lists)
        else:
            classes, rows = rows_of_class_folders(images, class_folders, lists)
        named = ", ".join(dict.fromkeys(Path(where.rpartition(":")[0]).name for where, _ in rows))
        found = take_rows(named, rows, images, classes, patient_pattern, every, *how)
        needed = "give either lists of each split"
        splits = _split_rows(found, named, needed, shares, seed, placed)
        volumes = found.volumes
        description = f"slices of {named}"
    elif class_folders:
        if images is None or not shares:
            raise CTMaskNetError(
                "`class_folder`: needs `images` DIR and `split`, such as train:0.8,test:0.2"
            )
        if source:
            raise CTMaskNetError("`class_folder`: does not go together with `source`")
        classes = list(class_folders)
        found = read_class_folders(images, class_folders, patient_pattern, every, *how)
        volumes = found.volumes
        splits = split_records(found.records, shares, seed, placed)
        description = f"slices by class folder below {Path(images).name}"
    else:
        if shares:
            raise CTMaskNetError("`split`: lists state their split themselves; leave it out")
        if not lists:
            lists, beside_lists = find_standard_lists(source or home)
            images = images or beside_lists
        elif images is None:
            raise CTMaskNetError("`list`: needs the folder of the images, `images` DIR")
        classes = list(IMAGE_CLASSES)
        listed = read_slice_lists(lists, patient_pattern)
        beside = [*dict.fromkeys(Path(path).parent for path in lists.values()), images]
        if (of_patients := find_metadata(metadata, beside)) is not None:
            known_of = of_patients.of(listed)
        chosen = choose_listed(listed, exclude, only_slices)
        excluded = sum(map(len, listed.values())) - sum(map(len, chosen.values()))
        splits = resolve_images(chosen, images, on_bad)
        unlisted = count_unlisted(splits, images)
        description = "slices of " + ", ".join(Path(path).name for path in lists.values())

    if not volumes and ((window is not None and rescale in (None, GREY)) or every != 1):
        raise CTMaskNetError(
            f"{images}: the slices are pictures; `window` and `every` are for DICOM and NIfTI "
            "volumes, leave them out (8-bit pictures have `grey_window`, deeper ones `rescale`)"
        )
    if rescale is not None and grey_window is not None:
        raise CTMaskNetError(
            "`grey_window`: is for 8-bit pictures, `rescale` for deeper ones; leave one of them out"
        )
    records = [record for each in splits.values() for record in each]
    own_classes = bool(class_folders or class_lists or volume_list)
    if own_classes and patient_pattern is None:
        key_of = os.path.dirname if volumes else lambda file: os.path.splitext(file)[0]
        tell_numbered(r.patient for r in records if r.patient == key_of(r.file))
    known = {record.patient for record in records}
    tell_spellings(spelled_otherwise(known | (placed or {}).keys()), name, strict)
    by_name = not (own_classes or patient_pattern)
    splits = _sampled(splits, classes, sample or {}, per_class, seed)
    window = window or Window()
    windowed = rescale not in (None, GREY) or any(not each.is_grey for each, _ in volumes.values())
    info = {
        "description": description,
        "image_root": os.fspath(images),
        "patient_ids": numbering_of(images, patient_ids, COVIDX_CT if by_name else None),
        "seed": seed,
        "grey_window": list(grey_window) if grey_window else None,
        "window_hu": [window.center_hu, window.width_hu] if windowed else None,
    }
    if known_of:
        info["metadata"] = known_of
    if rescale is not None:
        info["rescale"] = rescale if rescale == GREY else list(rescale)
    summary = _write(home, splits, list(classes), info, volumes, window, bad, verify, workers)
    return {**summary, "unlisted_images": unlisted, "excluded_slices": excluded}


def _split_rows(
    found: ClassifiedSlices,
    name: str | os.PathLike,
    needed: str,
    shares: Mapping[str, float] | None,
    seed: int,
    placed: Mapping[str, str] | None,
) -> Splits:
    """The splits of rows: as they state themselves, or by ``shares``."""
    if bool(shares) == any(found.split_of):
        raise CTMaskNetError(f"{name}: {needed} or `split`, such as train:0.8,test:0.2")
    check_rows_tell_patients(name, found.unknown)
    return split_records(found.records, shares, seed, placed) if shares else found.splits()


def split_records(
    records: Sequence[SliceRecord],
    shares: Mapping[str, float],
    seed: int,
    placed: Mapping[str, str] | None = None,
) -> dict[str, list[SliceRecord]]:
    """Split by whole patients, with every class in the same shares; arguments as of
    :func:`~ctmasknet.data.splits.split_patients`."""
    split = split_patients(
        {item: record.patient for item, record in enumerate(records)},
        shares,
        seed,
        strata={item: record.label for item, record in enumerate(records)},
        placed=placed,
    )
    return {name: [records[item] for item in members] for name, members in split.items()}


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


def count_slices(splits: Splits, classes: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
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


def slice_table(summary: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """The counts of :func:`count_slices` as a table to print."""
    rows = [
        (split, name, counts["slices"], counts["patients"], counts["scans"])
        for split, groups in summary.items()
        for name, counts in groups.items()
    ]
    return tabulate(rows, headers=("split", "class", "slices", "patients", "scans"), intfmt=",")


def _write(
    target: Path,
    splits: Splits,
    classes: list[str],
    info: Mapping[str, Any],
    volumes: Mapping[str, tuple[Volume, int]],
    window: Window,
    bad: BadSlices,
    verify: bool,
    workers: int,
) -> dict[str, Any]:
    """Check or copy the images, and write the set; ``info``: as it is written, but for the folder
    of the images, which is the one given, and ``metadata`` of the patients;
    ``volumes``: where the slices are not pictures, of each record's file, which is to be written,
    the volume and the slice's index."""
    _check_not_empty(target.name, splits)
    known_of = info.get("metadata", {})
    info = {key: value for key, value in info.items() if key != "metadata"}
    grey_window, rescale = info["grey_window"], as_rescale(info.get("rescale"))
    # Links stay: the set may move with them
    image_root = Path(os.path.abspath(info["image_root"]))
    files = [record.file for records in splits.values() for record in records]
    if volumes and grey_window is not None:
        raise CTMaskNetError("`grey_window`: is for 8-bit pictures; volumes have `window`")
    paths = [] if volumes else [f"{image_root}/{file}" for file in files]
    deep = not volumes and (rescale is not None or any_stated_rescale(paths))
    if deep and grey_window is not None:
        raise CTMaskNetError(
            "`grey_window`: is for 8-bit pictures, and a rescale is stated beside these; leave it "
            "out, or remove that file"
        )
    is_changed = grey_window is not None or deep
    copied = bool(volumes) or is_changed
    copy_of = _copy_names(files) if is_changed else {}
    taken = [volumes[file] for file in files] if volumes else []
    shapes = (volume.scan.slices[index].shape for volume, index in taken)
    pictures = () if taken else (image_root / file for file in files)
    needed = least_bytes(shapes, pictures) if copied else 0.0
    kind = {"copied": copied, "mark": _COPIES_MARK, "copies_bytes": needed}
    with writing_set(target, image_root, **kind, bad=bad) as new:
        if volumes:
            chosen = {file: volumes[file] for file in files}
            problems = write_copies(chosen, new.copies, window, workers, skip_bad=bad.skip)
        elif is_changed:
            targets = {str(image_root / file): str(new.copies / copy_of[file]) for file in files}
            write = functools.partial(write_in_grey_window, targets, grey_window)
            if deep:
                write = functools.partial(write_deep_copies, targets, window, rescale)
            problems = write(workers, skip_bad=bad.skip)
        else:
            # Without headers, what is no picture would be met hours into a training only.
            problems = find_unreadable(paths, workers, headers_only=not (verify or bad.skip))
            if not bad.skip:
                raise_problems(list(problems.values()), len(files))
        kept: dict[str, list[SliceRecord]] = {split: [] for split in splits}
        sound: set[str] = set()
        for split, records in splits.items():
            for record in records:
                file = at = f"{image_root}/{record.file}"
                if volumes:
                    volume, index = volumes[record.file]
                    file, at = volume.scan.slices[index].file, record.file
                if at in problems:
                    bad.add(file, problems[at].removeprefix(f"{file}: "), SOURCE)
                else:
                    kept[split].append(
                        record._replace(file=copy_of[record.file]) if copy_of else record
                    )
                    sound.add(file)
        new.report_bad(sound)
        _check_not_empty(target.name, kept)
        if deep and rescale is None:  # stated beside the pictures
            info = {**info, "window_hu": [window.center_hu, window.width_hu]}
        info = {**info, "image_root": new.image_root}
        summary = {"info": info, "classes": classes, "splits": count_slices(kept, classes)}
        for split, records in kept.items():
            slices = [record._asdict() for record in records]
            document = {"info": info, "classes": classes, "slices": slices}
            here = dict.fromkeys(record.patient for record in records)
            if metadata := {patient: known_of[patient] for patient in here if patient in known_of}:
                document["patients"] = metadata
            new.write(f"slices/{split}.json", document)
        new.write("slices_summary.json", summary, indent=1)
        # Of an earlier run: its patients may be in another split now
        new.put_in_place(target / "slices" / f"{split}.json" for split in SPLITS)
    return summary


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
                f"`sample` {split}: there is no such split; there are {', '.join(splits)}"
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


def _check_not_empty(name: str, splits: Splits) -> None:
    for split, records in splits.items():
        if not records:
            raise CTMaskNetError(
                f"{name}: split {split} has no slice; give it more patients or leave it out"
            )


def _copy_names(files: Sequence[str]) -> dict[str, str]:
    names = {file: str(PurePosixPath(file).with_suffix(".png")) for file in files}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        first, second = [file for file in names if names[file] == twice[0]][:2]
        raise CTMaskNetError(
            f"{first} and {second}: both would be copied to {twice[0]}; rename one of them"
        )
    return names
