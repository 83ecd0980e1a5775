"""A folder of slices and label masks becomes a prepared lesion set, written whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ctmasknet.classes import MASK_TYPES
from ctmasknet.ct.scan import GREY
from ctmasknet.ct.sidecar import any_stated_rescale
from ctmasknet.data.bad_slices import SOURCE, BadSlice, BadSlices
from ctmasknet.data.label_masks import mask_type_classes
from ctmasknet.data.patients import CNCB_LESIONS, numbering_of
from ctmasknet.data.prepared import split_of_patients
from ctmasknet.data.splits import (
    SPLITS,
    spelled_otherwise,
    split_patients,
    tell_numbered,
    tell_spellings,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import check_writable, read_json
from ctmasknet.names import PatientRule
from ctmasknet.prepare.masks_to_coco import (
    Conversion,
    ConvertedSlice,
    coco_document,
    convert_slices,
)
from ctmasknet.prepare.pairs import (
    LesionPair,
    VolumePair,
    find_pairs,
    find_volume_pairs,
    split_by_lists,
)
from ctmasknet.prepare.pairs.pictures import NAMES_TELL
from ctmasknet.prepare.pairs.stated import Pairing
from ctmasknet.prepare.pairs.zips import unzipping
from ctmasknet.prepare.staging import least_bytes, writing_set
from ctmasknet.prepare.volumes import holds_volumes, without_extension

_LOGGER = logging.getLogger(__name__)
#: Lies in a folder of upright copies; a folder without it is never replaced.
_COPIES_MARK = ".upright_copies"
_ANNOTATIONS = re.compile(rf"(?:summary_)?({'|'.join(MASK_TYPES)})(?:_({'|'.join(SPLITS)}))?\.json")


@unzipping
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
    bad: BadSlices | None = None,
    strict: bool = False,
    pairing: Pairing = NAMES_TELL,
    one_series: bool = True,
    copied: bool = False,
) -> dict[str, dict[str, Any]]:
    """Write ``output/annotations/<mask type>_<split>.json`` and, unless the images are upright
    pictures, ``output/image/``.

    The images are pictures, or DICOM series and NIfTI volumes (any one makes it the latter), whose
    slices are copied through a window, as are pictures with a rescale.

    Everything is read and checked before the first file takes its place. Files an earlier run left
    in ``output`` that do not fit this run (another split, other labels, another orientation) are
    removed.

    Args:
        images, masks: the two folders; each may be a zip, a folder in one, or hold zips.
        output: folder of the data set, ``<root>/<name>``.
        rule: patients of the files.
        how: the conversion; its ``copies`` and ``skip_bad`` are set here.
        shares: shares of a seeded split that keeps patients whole and the lesions present in like
            proportion.
        lists: list file of each split, naming pictures or volumes, or what
            :func:`ctmasknet.data.splits.read_folds` gives; exactly one of ``shares`` and ``lists``
            is given.
        seed: of the split by shares.
        patient_ids: name of the numbering of the patients; see
            :func:`ctmasknet.data.patients.numbering_of` for what is taken otherwise.
        split_like: folder of another prepared set of the same numbering; patients stay in the split
            that it has them in. With ``shares`` only.
        workers: number of processes.
        progress: show a progress bar.
        bad: what to do with slices and volumes that cannot be used, as those of the set
            :data:`SOURCE`; default: the first one is an error. Where they are skipped,
            ``output/bad_slices.json`` lists them.
        strict: patients that may be one, spelled otherwise, are an error.
        pairing: what the user states of masks; default: their names tell.
        one_series: of a study with several DICOM series that one which counts, of those with masks;
            else, and where lists or pairs are stated, all of them.
        copied: pictures are copied too; always where they lie in zips.

    Returns:
        For each mask type ``mask_type``, ``unlisted_images`` (images that no list names) and
        ``splits``: of each split ``images``, ``patients``, ``instances`` of each class, and
        ``images_without_instances``.

    Raises:
        CTMaskNetError: bad input, or ``how`` asks of pictures what only volumes have, or the
            reverse; nothing is changed in ``output`` then, but for the list of bad slices.
    """
    if bool(shares) == bool(lists):
        raise CTMaskNetError("split: give either shares or list files")
    for mask_type in how.mask_types:
        mask_type_classes(mask_type, how.labels)
    check_writable(output, folder=True, argument="output_root")
    of_volumes = holds_volumes(images)
    by_name = rule.by_name and not of_volumes
    patient_ids = numbering_of(images, patient_ids, CNCB_LESIONS if by_name else None)
    if split_like is not None and not shares:
        raise CTMaskNetError("`split_like`: lists state their split themselves; leave it out")
    placed = split_of_patients(split_like, patient_ids) if split_like is not None else None
    if of_volumes and not how.orientation.is_upright:
        raise CTMaskNetError(
            f"{images}: DICOM and NIfTI state how they lie; leave `transpose` and `flip` out"
        )
    if not of_volumes and how.needs_volumes:
        raise CTMaskNetError(
            f"{images}: holds no DICOM and no NIfTI; `window`, `segment`, `every`, `keep_empty` "
            "and `axes` are for these, leave them out"
        )
    pairs, listed, unlisted = _find(
        images, masks, rule, lists or {}, of_volumes, bad, how, pairing, one_series
    )
    tell_numbered(pair.key for pair in pairs if pair.patient == pair.key)
    known = {pair.patient for pair in pairs}
    tell_spellings(spelled_otherwise(known | (placed or {}).keys()), output.name, strict)
    windowed = how.rescale not in (None, GREY)
    windowed |= of_volumes and any(not pair.volume.is_grey for pair in pairs)
    stated = not of_volumes and any_stated_rescale(pair.image for pair in pairs)
    windowed |= stated
    copied |= of_volumes or how.rescale is not None or stated or not how.orientation.is_upright
    kind = {"copied": copied, "mark": _COPIES_MARK}
    if of_volumes:
        slices = (one for pair in pairs for one in pair.volume.scan.slices[:: how.every])
        needed = min(1.0, how.keep_empty) * least_bytes(one.shape for one in slices)
    else:
        needed = least_bytes(pictures=(pair.image for pair in pairs)) if copied else 0.0
    with writing_set(output, images, **kind, bad=bad, copies_bytes=needed) as new:
        how = replace(how, copies=new.copies, skip_bad=bad.skip)
        converted: dict[str, ConvertedSlice] = {}
        with contextlib.closing(convert_slices(pairs, how, workers, progress=progress)) as slices:
            for item in slices:
                if isinstance(item, BadSlice):
                    bad.add(item.file, item.reason, SOURCE)
                else:
                    converted[item.key] = item
        new.report_bad(str(item.image) for item in converted.values())
        _tell_overlap(converted.values())
        if of_volumes and lists:
            split_of = {name: split for split, names in listed.items() for name in names}
            keys_of = {split: [] for split in listed}
            for key in converted:
                keys_of[split_of[os.path.dirname(key)]].append(key)
        elif lists:
            keys_of = {
                split: [n for n in names if n in converted] for split, names in listed.items()
            }
        else:
            keys_of = split_patients(
                {key: item.patient for key, item in converted.items()},
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
        _tell_without_lesions(splits, how, images)
        made_by = {
            "labels": {str(value): name for value, name in sorted(how.labels.items())},
            "image_root": new.image_root,
            "patient_ids": patient_ids,
            "seed": seed if shares else None,
            "split": dict(shares)
            if shares
            else {name: os.path.basename(str(p)) for name, p in lists.items()},
            "orientation": asdict(how.orientation),
            **_masks_by(how, pairing),
            "window_hu": [how.window.center_hu, how.window.width_hu] if windowed else None,
        }
        if how.rescale is not None:
            made_by["rescale"] = how.rescale if how.rescale == GREY else list(how.rescale)
        summaries = {}
        for mask_type in how.mask_types:
            info = {
                "description": "Lesions of chest CT slices: connected components of label masks",
                "mask_type": mask_type,
                "min_area_px": how.min_area_px,
                **made_by,
            }
            for split, items in splits.items():
                document = coco_document(items, mask_type, info)
                new.write(f"annotations/{mask_type}_{split}.json", document)
            counts = {split: _counts(items, mask_type) for split, items in splits.items()}
            summary = {"mask_type": mask_type, "splits": counts, "unlisted_images": unlisted}
            new.write(f"annotations/summary_{mask_type}.json", {**summary, "info": info}, indent=1)
            summaries[mask_type] = summary
        new.put_in_place(_outdated(output, how.mask_types, made_by))
    return summaries


def lesion_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """The summaries of :func:`prepare_lesions` as a table for the terminal."""
    found = {name for mask_type in summaries for name in MASK_TYPES[mask_type]}
    names = [name for name in ("ggo", "consolidation", "lesion") if name in found]
    rows = [
        [
            *(mask_type, split, row["images"], row["patients"]),
            *(row["instances"].get(name, "-") for name in names),
            row["images_without_instances"],
        ]
        for mask_type, summary in summaries.items()
        for split, row in summary["splits"].items()
    ]
    heads = ["mask type", "split", "images", "patients", *names, "images without"]
    return tabulate(rows, headers=heads)


def _find(
    images: Path,
    masks: Path,
    rule: PatientRule,
    lists: Mapping[str, str | os.PathLike],
    of_volumes: bool,
    bad: BadSlices,
    how: Conversion,
    pairing: Pairing,
    one_series: bool,
) -> tuple[list[LesionPair] | list[VolumePair], dict[str, list[str]], int]:
    """The pairs, of those that lists name if there are any; their keys of each split; the number of
    images that no list names."""
    left_out: set[str] = set()

    def note(file: str, reason: str) -> None:
        folder = images if of_volumes or Path(file).is_relative_to(images) else masks
        name = os.path.relpath(file, folder).replace(os.sep, "/")
        if of_volumes:
            left_out.update((without_extension(name), os.path.dirname(name)))
        else:
            left_out.add(rule.key(name))
        bad.add(file, reason, SOURCE)

    def volume_key(line: str) -> str:
        return without_extension(line.replace("\\", "/").strip("/"))

    on_bad = note if bad.skip else None
    if of_volumes:
        given = how.rescale, pairing, how.axes, one_series and not lists
        pairs = find_volume_pairs(images, masks, rule, on_bad, *given)
    else:
        pairs = find_pairs(images, masks, rule, on_bad, pairing)
    if how.instances is not None and not left_out:
        how.instances.check_images([p.key if of_volumes else p.file for p in pairs if p.mask])
    if not lists:
        return pairs, {}, 0
    listed = split_by_lists(pairs, lists, volume_key if of_volumes else rule.key, left_out)
    names = {name for names in listed.values() for name in names}
    rest = [pair for pair in pairs if pair.key not in names]
    unlisted = sum(len(pair.volume.scan.slices) if of_volumes else 1 for pair in rest)
    return [pair for pair in pairs if pair.key in names], listed, unlisted


def _masks_by(how: Conversion, pairing: Pairing) -> dict[str, Any]:
    """What the masks held, where it was not label values, as the set states it."""
    found: dict[str, Any] = {}
    if pairing.classes:
        found["mask_classes"] = dict(pairing.classes)
    if how.colors is not None:
        found["colors"] = {f"#{code:06x}": name for code, name in sorted(how.colors.items())}
    if how.instances is not None:
        found["instances"] = Path(how.instances.file).name
    return found


def _tell_overlap(slices: Iterable[ConvertedSlice]) -> None:
    several = [item for item in slices if item.overlap_px]
    if several:
        _LOGGER.warning(
            "%d px of %d slices, such as %s, are in masks of two classes or more; consolidation "
            "counts before GGO, lesion and lung",
            *(sum(item.overlap_px for item in several), len(several), several[0].key),
        )


def _tell_without_lesions(
    splits: Mapping[str, Sequence[ConvertedSlice]], how: Conversion, images: Path
) -> None:
    """Warn of what nothing can be learnt from."""
    for mask_type in how.mask_types:
        empty = [
            split
            for split, items in splits.items()
            if not any(item.instances[mask_type] for item in items)
        ]
        if not empty:
            continue
        names = MASK_TYPES[mask_type]
        marked = sum(
            "lesion" in names or not set(names).isdisjoint(item.lesions)
            for split in empty
            for item in splits[split]
            if item.lesions
        )
        why = (
            f"the lesions of {marked} slices are of {how.min_area_px} px or less each "
            "(`min_area_px` keeps smaller ones)"
            if marked
            else "no mask has any"
        )
        _LOGGER.warning(
            "%s: no lesion of mask type %s in %s, so nothing can be learnt or measured there: %s",
            *(images, mask_type, ", ".join(empty), why),
        )


def _counts(slices: Sequence[ConvertedSlice], mask_type: str) -> dict[str, Any]:
    counts = Counter(i["category_id"] for item in slices for i in item.instances[mask_type])
    return {
        "images": len(slices),
        "patients": len({item.patient for item in slices}),
        "instances": {name: counts[index] for index, name in enumerate(MASK_TYPES[mask_type], 1)},
        "images_without_instances": sum(not item.instances[mask_type] for item in slices),
    }


def _outdated(output: Path, mask_types: Collection[str], made_by: Mapping[str, Any]) -> list[Path]:
    """Files of an earlier run, but for those of another mask type and of the same settings."""
    found = []
    for path in output.glob("annotations/*.json"):
        match = _ANNOTATIONS.fullmatch(path.name)
        if match and (match[1] in mask_types or not _is_made_by(path, made_by)):
            found.append(path)
    return found


def _is_made_by(path: Path, made_by: Mapping[str, Any]) -> bool:
    try:
        info = read_json(path)["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(info, dict) and all(info.get(key) == value for key, value in made_by.items())
