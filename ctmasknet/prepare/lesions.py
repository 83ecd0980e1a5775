"""A folder of slices and label masks becomes a prepared lesion set, written whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ctmasknet.classes import MASK_TYPES
from ctmasknet.data.bad_slices import REPORT, SOURCE, BadSlice, BadSlices
from ctmasknet.data.label_masks import mask_type_classes
from ctmasknet.data.patients import CNCB_LESIONS, numbering_of
from ctmasknet.data.prepared import split_of_patients
from ctmasknet.data.splits import SPLITS, split_patients
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import write_json
from ctmasknet.names import PatientRule
from ctmasknet.prepare.lesion_sources import (
    LesionSource,
    PictureSource,
    VolumeConversion,
    VolumeSource,
)
from ctmasknet.prepare.masks_to_coco import Conversion, ConvertedSlice, coco_document
from ctmasknet.prepare.staging import COPIES, check_copies_allowed, put_copies, staging_folder
from ctmasknet.prepare.volumes import volume_files

#: Lies in a folder of upright copies; a folder without it is never replaced.
COPIES_MARK = ".upright_copies"
_ANNOTATIONS = re.compile(rf"(?:summary_)?({'|'.join(MASK_TYPES)})(?:_({'|'.join(SPLITS)}))?\.json")


def prepare_lesions(
    images: Path,
    masks: Path,
    output: Path,
    *,
    rule: PatientRule,
    how: Conversion,
    shares: Mapping[str, float] | None = None,
    lists: Mapping[str, str | os.PathLike] | None = None,
    seed: int = 0,
    patient_ids: str | None = None,
    split_like: str | os.PathLike | None = None,
    workers: int = 1,
    progress: bool = True,
    volumes: VolumeConversion | None = None,
    bad: BadSlices | None = None,
) -> dict[str, dict[str, Any]]:
    """Write ``output/annotations/<mask type>_<split>.json`` and, unless the images are upright
    pictures, ``output/image/``.

    The images are pictures, or DICOM series and NIfTI volumes (any one makes it the latter), whose
    slices are copied through a window.

    Everything is read and checked before the first file takes its place. Files an earlier run left
    in ``output`` that do not fit this run (another split, other labels, another orientation) are
    removed.

    Args:
        images, masks: the two folders.
        output: folder of the data set, ``<root>/<name>``.
        rule: patients of the files.
        how: the conversion; its ``copies`` is set here.
        shares: shares of a seeded split that keeps patients whole and the lesions present in like
            proportion.
        lists: list file of each split; exactly one of ``shares`` and ``lists`` is given.
        seed: of the split by shares.
        patient_ids: name of the numbering of the patients; see
            :func:`ctmasknet.data.patients.numbering_of` for what is taken otherwise.
        split_like: folder of another prepared set of the same numbering; patients stay in the split
            that it has them in. With ``shares`` only.
        workers: number of processes.
        progress: show a progress bar.
        volumes: what is particular to volumes; its ``skip_bad`` is set here.
        bad: what to do with slices and volumes that cannot be used, as those of the set
            :data:`SOURCE`; default: the first one is an error. Where they are skipped,
            ``output/bad_slices.json`` lists them.

    Returns:
        For each mask type what was written; see :func:`summarize`.

    Raises:
        CTMaskNetError: bad input, or ``volumes`` asks something of pictures; nothing is changed in
            ``output`` then, but for the list of bad slices.
    """
    if bool(shares) == bool(lists):
        raise CTMaskNetError("split: give either shares or list files")
    for mask_type in how.mask_types:
        mask_type_classes(mask_type, how.labels)
    bad = bad or BadSlices({})
    window = None
    of_volumes = any(volume_files(images))
    by_name = rule.by_cncb_name and not of_volumes
    patient_ids = numbering_of(images, patient_ids, CNCB_LESIONS if by_name else None)
    if split_like is not None and not shares:
        raise CTMaskNetError("--split-like: lists state their split themselves; leave it out")
    placed = split_of_patients(split_like, patient_ids) if split_like is not None else None
    on_bad = functools.partial(bad.add, name=SOURCE) if bad.skip else None
    if of_volumes:
        volumes = replace(volumes or VolumeConversion(), skip_bad=bad.skip)
        window = volumes.window
        source: LesionSource = VolumeSource(images, masks, rule, volumes, how.orientation, on_bad)
    else:
        if volumes not in (None, VolumeConversion()):
            raise CTMaskNetError(
                f"{images}: holds no DICOM and no NIfTI; --window, --segment, --every and "
                "--keep-empty are for these, leave them out"
            )
        source = PictureSource(images, masks, rule, on_bad)
    if lists:
        source.read_lists(lists)
    copied = window is not None or not how.orientation.is_upright
    image_root = _image_root(images, output, copied)
    with staging_folder(output) as stage:
        if copied:
            how = replace(how, copies=stage / COPIES)
            how.copies.mkdir()
        converted = _converted(source.convert(how, workers, progress), bad)
        if bad.skip:
            bad.finish(output / REPORT)
        if lists:
            keys_of = source.in_splits(converted)
        else:
            keys_of = split_patients(
                {key: item.pair.patient for key, item in converted.items()},
                shares,
                seed,
                {key: item.lesions for key, item in converted.items()},
                placed,
            )
        splits = {split: [converted[key] for key in keys] for split, keys in keys_of.items()}
        for split, items in splits.items():
            if not items:
                raise CTMaskNetError(
                    f"{images}: no slice of split {split} can be used; mend them or leave it out"
                )
        made_by = {
            "labels": {str(value): name for value, name in sorted(how.labels.items())},
            "image_root": image_root,
            "patient_ids": patient_ids,
            "seed": seed if shares else None,
            "split": dict(shares) if shares else {name: Path(p).name for name, p in lists.items()},
            "orientation": asdict(how.orientation),
            "window_hu": None if window is None else [window.center_hu, window.width_hu],
        }
        summaries = _stage_annotations(stage / "annotations", splits, how, made_by, source.unlisted)
        _put_in_place(stage, output, made_by)
        if not bad.skip:
            bad.finish(output / REPORT)
    return summaries


def summarize(
    splits: Mapping[str, Sequence[ConvertedSlice]], mask_type: str, unlisted: int
) -> dict[str, Any]:
    """Images, patients, instances of each class, and images without any instance, of each split.

    Args:
        splits: slices of each split.
        mask_type: whose instances count.
        unlisted: images of the source that no list names.
    """
    table = {}
    for split, items in splits.items():
        counts = Counter(i["category_id"] for item in items for i in item.instances[mask_type])
        table[split] = {
            "images": len(items),
            "patients": len({item.pair.patient for item in items}),
            "instances": {
                name: counts[index] for index, name in enumerate(MASK_TYPES[mask_type], 1)
            },
            "images_without_instances": sum(not item.instances[mask_type] for item in items),
        }
    return {"mask_type": mask_type, "splits": table, "unlisted_images": unlisted}


def summary_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """The summaries of :func:`prepare_lesions` as a table for the terminal."""
    rows = [
        {
            "mask type": mask_type,
            "split": split,
            "images": row["images"],
            "patients": row["patients"],
            **row["instances"],
            "images without": row["images_without_instances"],
        }
        for mask_type, summary in summaries.items()
        for split, row in summary["splits"].items()
    ]
    names = [
        name for name in ("ggo", "consolidation", "lesion") if any(name in row for row in rows)
    ]
    order = ["mask type", "split", "images", "patients", *names, "images without"]
    return tabulate([[row.get(name, "-") for name in order] for row in rows], headers=order)


def _image_root(images: Path, output: Path, copied: bool) -> str:
    """Image folder as the annotations name it; a link inside ``output`` counts as inside."""
    folder, home = Path(os.path.abspath(images)), Path(os.path.abspath(output))
    if not copied:
        return folder.relative_to(home).as_posix() if folder.is_relative_to(home) else str(folder)
    check_copies_allowed(home, images, COPIES_MARK)
    return COPIES


def _converted(
    items: Iterable[ConvertedSlice | BadSlice], bad: BadSlices
) -> dict[str, ConvertedSlice]:
    """The slices by key, without bad ones."""
    found = {}
    with contextlib.closing(items):
        for item in items:
            if isinstance(item, BadSlice):
                bad.add(item.file, item.reason, SOURCE)
            else:
                found[item.pair.key] = item
    sound = {str(item.pair.image) for item in found.values()}
    bad.totals[SOURCE] = len(sound | bad.files(SOURCE).keys())
    return found


def _stage_annotations(
    folder: Path,
    splits: Mapping[str, Sequence[ConvertedSlice]],
    how: Conversion,
    made_by: Mapping[str, Any],
    unlisted: int,
) -> dict[str, dict[str, Any]]:
    summaries = {}
    for mask_type in how.mask_types:
        info = {
            "description": "Lesions of chest CT slices: connected components of label masks",
            "mask_type": mask_type,
            "min_area_px": how.min_area_px,
            **made_by,
        }
        for split, items in splits.items():
            write_json(folder / f"{mask_type}_{split}.json", coco_document(items, mask_type, info))
        summaries[mask_type] = summarize(splits, mask_type, unlisted)
        write_json(
            folder / f"summary_{mask_type}.json", {**summaries[mask_type], "info": info}, indent=1
        )
    return summaries


def _put_in_place(stage: Path, output: Path, made_by: Mapping[str, Any]) -> None:
    """Rename the staged files to their places and remove leftovers of other settings."""
    annotations = output / "annotations"
    annotations.mkdir(exist_ok=True)
    staged = {path.name for path in (stage / "annotations").iterdir()}
    stale = [
        path
        for path in annotations.iterdir()
        if path.name not in staged
        and _ANNOTATIONS.fullmatch(path.name)
        and not _fits(path, made_by, staged)
    ]
    put_copies(stage, output, COPIES_MARK, made_by["image_root"])
    for name in sorted(staged):
        (stage / "annotations" / name).replace(annotations / name)
    for path in stale:
        path.unlink()


def _fits(path: Path, made_by: Mapping[str, Any], staged: set[str]) -> bool:
    """Whether an older file may stay: it is of another mask type and of the same settings."""
    mask_type = _ANNOTATIONS.fullmatch(path.name)[1]
    if f"summary_{mask_type}.json" in staged:
        return False
    try:
        info = json.loads(path.read_text(encoding="utf-8"))["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(info, dict) and all(info.get(key) == value for key, value in made_by.items())
