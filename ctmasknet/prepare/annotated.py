"""COCO jsons of any annotation tool, with any categories, become a prepared lesion set."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from tabulate import tabulate

from ctmasknet.ct.find import find_files
from ctmasknet.ct.pictures import check_eight_bit
from ctmasknet.data.bad_slices import SOURCE, BadSlices
from ctmasknet.data.coco import checked_coco
from ctmasknet.data.patients import numbering_of
from ctmasknet.data.prepared import part_below, split_of_patients
from ctmasknet.data.splits import (
    check_disjoint,
    check_split_name,
    spelled_otherwise,
    split_patients,
    tell_spellings,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import check_writable, read_json
from ctmasknet.names import IMAGE_SUFFIXES, PatientRule
from ctmasknet.prepare.staging import writing_set

#: What Label Studio puts before an uploaded file's name.
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
_LOGGER = logging.getLogger(__name__)


def prepare_annotated(
    annotations: Mapping[str, str | os.PathLike],
    images: Path,
    output: Path,
    *,
    rule: PatientRule,
    shares: Mapping[str, float] | None = None,
    classes: Sequence[str] | None = None,
    crowds_are_lesions: bool = False,
    seed: int = 0,
    patient_ids: str | None = None,
    split_like: str | os.PathLike | None = None,
    strict: bool = False,
    bad: BadSlices | None = None,
) -> dict[str, dict[str, Any]]:
    """Write ``output/annotations/lesions_<split>.json`` from COCO jsons; images stay in place.

    Args:
        annotations: split -> file, or "" -> the one file that ``shares`` are dealt from.
        images: the folder of the pictures, searched with its subfolders for the names of the file.
        output: folder of the data set, ``<root>/<name>``.
        rule: patients of the pictures by their path, where an image states no ``patient``.
        shares: shares of a seeded split that keeps patients whole.
        classes: names of the categories to take, in their order; default: those that are used, in
            the order of their ids.
        crowds_are_lesions: annotations with ``iscrowd`` 1 are lesions, as CVAT writes masks that
            were drawn with its brush.
        seed: of the split by shares.
        patient_ids, split_like, strict: see :func:`ctmasknet.prepare.lesions.prepare_lesions`.
        bad: what to do with pictures that cannot be used, or have an annotation that cannot;
            default: the first is an error. Where they are skipped, ``output/bad_slices.json`` lists
            them.

    Returns:
        of each split ``images``, ``patients``, ``instances`` of each class and
        ``images_without_instances``.

    Raises:
        CTMaskNetError: bad input; nothing is written then.
    """
    if bool(shares) != ("" in annotations) or ("" in annotations and len(annotations) > 1):
        raise CTMaskNetError("`coco`: give one file with `split`, or a file of each split")
    if split_like is not None and not shares:
        raise CTMaskNetError("`split_like`: the files state their split themselves; leave it out")
    check_writable(output, folder=True, argument="output_root")
    numbering = numbering_of(images, patient_ids)
    placed = split_of_patients(split_like, numbering) if split_like is not None else None
    bad = bad or BadSlices({})
    pictures = _Pictures(images)
    found: dict[str, list[dict[str, Any]]] = {}
    names: list[str] = []
    for split, path in annotations.items():
        if split:
            check_split_name(split)
        found[split], new = _read(path, images, pictures, rule, bad)
        names += [name for name in new if name not in names]
    entries = [entry for each in found.values() for entry in each]
    _check_once(entries)
    kept = _classes(names, entries, classes, next(iter(annotations.values())))
    _tell_crowds(entries, crowds_are_lesions, next(iter(annotations.values())))
    patients = {entry["patient"] for entry in entries}
    tell_spellings(spelled_otherwise(patients | (placed or {}).keys()), output.name, strict)
    if shares:
        strata = {
            n: tuple(sorted({a["name"] for a in e["lesions"]})) for n, e in enumerate(entries)
        }
        of = split_patients(
            {n: e["patient"] for n, e in enumerate(entries)}, shares, seed, strata, placed
        )
        found = {split: [entries[n] for n in numbers] for split, numbers in of.items()}
    check_disjoint({split: {e["patient"] for e in each} for split, each in found.items()})
    counts = {}
    with writing_set(output, images, copied=False, mark=".annotated", bad=bad) as new_set:
        new_set.report_bad(str(images / entry["file"]) for entry in entries)
        info = {
            "description": "Lesions as annotated in COCO's form",
            "image_root": new_set.image_root,
            "patient_ids": numbering,
            "seed": seed if shares else None,
            "window_hu": None,
        }
        for split, each in found.items():
            document = _document(each, kept, info, crowds_are_lesions)
            counts[split] = _counts(document, kept)
            new_set.write(f"annotations/lesions_{split}.json", document)
        new_set.write("annotations/summary_lesions.json", {"splits": counts, "info": info}, 1)
        new_set.put_in_place(output.glob("annotations/lesions_*.json"))
    return counts


def annotated_table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """What :func:`prepare_annotated` returns as a table for the terminal."""
    classes = list(next(iter(counts.values()))["instances"])
    rows = [
        [split, c["images"], c["patients"], *c["instances"].values(), c["images_without_instances"]]
        for split, c in counts.items()
    ]
    return tabulate(rows, headers=["split", "images", "patients", *classes, "images without"])


class _Pictures:
    """The pictures below a folder, by what annotation tools may call them."""

    def __init__(self, root: Path):
        if not root.is_dir():
            raise CTMaskNetError(f"{root}: no such folder; give that of the pictures with `images`")
        self._root = root
        files = [part_below(root, os.path.abspath(one.path)) for one in find_files([root])]
        self._files = {file for file in files if file.lower().endswith(IMAGE_SUFFIXES)}
        self._by_name: dict[str, list[str]] = {}
        for file in sorted(self._files):
            self._by_name.setdefault(PurePosixPath(file).name, []).append(file)

    def find(self, stated: str, path: str | os.PathLike) -> str:
        """The picture below the folder that a json calls ``stated``: the longest end of its path
        that is there, else the one of its base name, without Label Studio's prefix too."""
        name = unquote(stated.replace("\\", "/").rpartition("?d=")[2])
        for candidate in dict.fromkeys([stated.replace("\\", "/"), name]):
            parts = [part for part in candidate.split("/") if part not in ("", ".", "..")]
            for start in range(len(parts)):
                if (end := "/".join(parts[start:])) in self._files:
                    return end
        base = name.rpartition("/")[2]
        for short in (base, _UPLOADED.sub("", base, count=1)):
            fitting = self._by_name.get(short, [])
            if len(fitting) > 1:
                raise CTMaskNetError(
                    f"{path}: {stated} fits {fitting[0]} and {fitting[1]} below {self._root}; "
                    "write the path below `images` into its file_name"
                )
            if fitting:
                return fitting[0]
        raise CTMaskNetError(
            f"{path}: its picture {stated} is not below {self._root}; complete the folder or "
            "correct `images`"
        )


def _read(
    path: str | os.PathLike, images: Path, pictures: _Pictures, rule: PatientRule, bad: BadSlices
) -> tuple[list[dict[str, Any]], list[str]]:
    """The images of a file with their lesions, and the names of its categories by id."""
    try:
        raw = read_json(path)
    except (OSError, ValueError) as error:
        raise CTMaskNetError(f"{path}: cannot be read as JSON ({error}); check the path") from None
    if isinstance(raw, dict) and isinstance(raw.get("images"), list):
        of = images, pictures, path, bad.skip
        raw = {**raw, "images": [_with_sides(image, *of) for image in raw["images"]]}

    def note(file: str, reason: str) -> None:
        bad.add(str(images / file), reason.removeprefix(f"{images / file}: "), SOURCE)

    document = checked_coco(raw, path, note if bad.skip else None)
    name_of = {c["id"]: c["name"] for c in sorted(document["categories"], key=lambda c: c["id"])}
    lesions: dict[int, list[dict[str, Any]]] = {}
    for item in document["annotations"]:
        lesions.setdefault(item["image_id"], []).append(
            {**item, "name": name_of[item["category_id"]]}
        )
    entries = []
    for image in sorted(document["images"], key=lambda image: image["id"]):
        try:
            file = pictures.find(image["file_name"], path)
            sides = _checked_sides(images / file, image, path)
        except CTMaskNetError as error:
            if not bad.skip:
                raise
            note(image["file_name"], str(error))
            continue
        patient = image.get("patient")
        patient = rule.read(file).patient if patient in (None, "") else str(patient)
        kept = {"file": file, "height": sides[0], "width": sides[1], "patient": patient}
        entries.append({**kept, "lesions": lesions.get(image["id"], [])})
    if not entries:
        what = "it has no images" if not document["images"] else "none of its images can be used"
        raise CTMaskNetError(f"{path}: {what}; export them with their annotations")
    return entries, list(name_of.values())


def _checked_sides(
    file: Path, image: Mapping[str, Any], path: str | os.PathLike
) -> tuple[int, int]:
    sides = check_eight_bit(file)
    if sides != (image["height"], image["width"]):
        raise CTMaskNetError(
            f"{file}: is {sides[1]} x {sides[0]} px, but {path} says "
            f"{image['width']} x {image['height']}; give the pictures that were annotated"
        )
    return sides


def _with_sides(
    image: Any, images: Path, pictures: _Pictures, path: str | os.PathLike, skip: bool
) -> Any:
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
        return image  # whoever checks it says so
    if image.get("height") is not None and image.get("width") is not None:
        return image
    try:
        height, width = check_eight_bit(images / pictures.find(image["file_name"], path))
    except CTMaskNetError:
        if not skip:
            raise
        return image  # whoever checks it names the picture
    return {**image, "height": height, "width": width}


def _check_once(entries: Sequence[Mapping[str, Any]]) -> None:
    twice = [file for file, n in Counter(entry["file"] for entry in entries).items() if n > 1]
    if twice:
        raise CTMaskNetError(
            f"{twice[0]}: two images of the annotations are this picture; keep one of them"
        )


def _classes(
    names: Sequence[str],
    entries: Sequence[Mapping[str, Any]],
    chosen: Sequence[str] | None,
    path: str | os.PathLike,
) -> list[str]:
    used = {lesion["name"] for entry in entries for lesion in entry["lesions"]}
    if chosen:
        missing = sorted(used - set(chosen))
        if missing or len(set(chosen)) < len(chosen):
            raise CTMaskNetError(
                f"`classes` {','.join(chosen)}: name each category once; {path} also has lesions "
                f"of {', '.join(missing) or 'none'}"
            )
        return list(chosen)
    if not used:
        raise CTMaskNetError(f"{path}: it has no annotation; nothing could be learnt from it")
    unused = [name for name in names if name not in used]
    if unused:
        _LOGGER.warning(
            "%s: no lesion is of %s; left out (`classes` keeps them)", path, ", ".join(unused)
        )
    return [name for name in names if name in used]


def _tell_crowds(
    entries: Sequence[Mapping[str, Any]], are_lesions: bool, path: str | os.PathLike
) -> None:
    crowd = [lesion["iscrowd"] for entry in entries for lesion in entry["lesions"]]
    if not any(crowd) or are_lesions:
        return
    message = (
        f"{path}: {sum(crowd)} of {len(crowd)} annotations are crowds (iscrowd 1), which training "
        "leaves out; CVAT writes so what was drawn with its brush: `crowds` lesion takes them as "
        "lesions"
    )
    if all(crowd):
        raise CTMaskNetError(message)
    _LOGGER.warning("%s", message)


def _document(
    entries: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    info: Mapping[str, Any],
    crowds_are_lesions: bool,
) -> dict[str, Any]:
    ids = {name: number for number, name in enumerate(classes, 1)}
    images, annotations = [], []
    for number, entry in enumerate(entries, 1):
        image = {key: entry[key] for key in ("height", "width", "patient")}
        images.append({"id": number, "file_name": entry["file"], **image})
        for lesion in entry["lesions"]:
            kept = {
                k: lesion[k] for k in ("bbox", "area", "iscrowd", "segmentation") if k in lesion
            }
            kept["iscrowd"] = 0 if crowds_are_lesions else kept["iscrowd"]
            of = {"image_id": number, "category_id": ids[lesion["name"]]}
            annotations.append({"id": len(annotations) + 1, **of, **kept})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {
        "info": dict(info),
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _counts(document: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    of = Counter(item["category_id"] for item in document["annotations"])
    with_any = {item["image_id"] for item in document["annotations"]}
    return {
        "images": len(document["images"]),
        "patients": len({image["patient"] for image in document["images"]}),
        "instances": {name: of[number] for number, name in enumerate(classes, 1)},
        "images_without_instances": len(document["images"]) - len(with_any),
    }
