"""Prepared data sets on disk: where they stand, and their JSON files, read once, checked, and made
into dataset dicts; what their images contain, as one hash.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.structures import BoxMode

from ctmasknet.data.coco import checked_coco, is_number, read_coco
from ctmasknet.data.splits import SPLITS
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import has_control_character, read_json

#: Environment variable that names the root, as in Detectron2.
ROOT_VARIABLE = "DETECTRON2_DATASETS"
Stamp = tuple[int, int]
_SLICE_KEYS = {"file", "label", "patient", "scan", "slice"}
#: Parsed files with their stamps, so that registering and loading parse a file once.
_parsed: dict[str, tuple[Stamp, dict[str, Any]]] = {}
_THREADS = min(8, os.cpu_count() or 1)


def datasets_root(root: str | os.PathLike | None = None) -> Path:
    """The folder of all data sets: ``root``, else $DETECTRON2_DATASETS, else ``./datasets``."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or "datasets").expanduser()


def set_folder(root: Path, name: str) -> Path:
    """The folder of the prepared set ``name``.

    Raises:
        CTMaskNetError: ``name`` is no name of one folder; such a set would not be registered.
    """
    if name in ("", ".", "..") or "/" in name or os.sep in name or has_control_character(name):
        raise CTMaskNetError(f"set name {name!r}: give the name of one folder below {root}")
    return root / name


class SliceRecord(NamedTuple):
    """One slice of a data set, as it stands in the prepared json.

    ``file`` is relative to the image folder (``/`` between parts); ``label`` indexes the set's
    classes; ``body_box`` is (x0, y0, x1, y1) in px, x1 and y1 exclusive, or None.
    """

    file: str
    label: int
    patient: str
    scan: str
    slice: str
    body_box: tuple[int, int, int, int] | None = None


def part_below(root: str | os.PathLike, part: str) -> str:
    """``part``, a path relative to ``root`` or an absolute one below it, as a relative path without
    detours (``/`` between parts; links count as what they are called).

    Raises:
        CTMaskNetError: it lies outside ``root``; a set names its files, and copies are written, by
            the path below ``root``.
    """
    relative = os.path.relpath(os.path.join(root, part), root).replace(os.sep, "/")
    if relative.split("/")[0] == "..":
        raise CTMaskNetError(
            f"{part}: lies outside the folder of the images, {root}; give a folder above all of "
            "them with `images`"
        )
    return relative


def stamp(path: str | os.PathLike) -> Stamp | None:
    """Time of change (ns) and size of a file; None when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def read_lesions(json_file: str) -> dict[str, Any]:
    """The COCO document of a prepared lesion set, cut down to ``info``, ``categories`` and the
    ``patients`` by image id.

    Raises:
        CTMaskNetError: the file is missing or no such document.
    """
    return _read(json_file, _lesion_header)


def read_slices(json_file: str) -> dict[str, Any]:
    """The document of a prepared slice set; treat it as read-only.

    Raises:
        CTMaskNetError: the file is missing or no such document.
    """
    return _read(json_file, _checked_slices)


def image_root(
    json_file: str, document: dict[str, Any], given: str | os.PathLike | None = None
) -> str:
    """Absolute image folder: ``given``, else ``info.image_root``, relative to the data set's
    folder.

    Raises:
        CTMaskNetError: neither states it.
    """
    stated = document["info"].get("image_root")
    if given is None and not isinstance(stated, str):
        raise CTMaskNetError(f"{json_file}: info.image_root is missing; prepare the set again")
    home = Path(json_file).parent.parent
    return os.path.abspath(given if given is not None else home / stated)


def patients(json_file: str) -> set[str]:
    """The patients of a prepared set of either kind.

    Raises:
        CTMaskNetError: the file is missing or broken.
    """
    document = _read(json_file, _checked)
    if "slices" in document:
        return {item["patient"] for item in document["slices"]}
    return set(document["patients"].values())


def split_of_patients(folder: str | os.PathLike, numbering: str | None) -> dict[str, str]:
    """The split of every patient of a prepared set, whichever task it is for.

    Args:
        folder: of the set, ``<root>/<name>``.
        numbering: name of the numbering that the patients must be of.

    Raises:
        CTMaskNetError: no prepared set there, a broken one, one of another numbering or of none, or
            a patient in two of its splits.
    """
    found: dict[str, str] = {}
    folder = Path(os.path.abspath(folder))
    for path in sorted([*folder.glob("annotations/*.json"), *folder.glob("slices/*.json")]):
        split = path.stem.rpartition("_")[2]
        if split not in SPLITS:
            continue
        stated = _read(str(path), _checked)["info"].get("patient_ids")
        if stated is None or stated != numbering:
            raise CTMaskNetError(
                f"{path}: its patients are numbered by {stated or 'nothing stated'}, those of the "
                f"new set by {numbering or 'nothing stated'}; where the ids are of the same "
                "persons, prepare both with one `patient_ids`"
            )
        for patient in patients(str(path)):
            if found.setdefault(patient, split) != split:
                raise CTMaskNetError(
                    f"{folder}: patient {patient} is in two splits, {found[patient]} and {split}; "
                    "prepare the set again"
                )
    if not found:
        raise CTMaskNetError(f"{folder}: holds no prepared data set; name one below the root")
    return found


def load_lesions(json_file: str, root: str) -> list[dict[str, Any]]:
    """Detectron2's dataset dicts of a COCO file plus the ``patient`` of each image, by image id.

    Raises:
        CTMaskNetError: the file is missing or broken, or the images are not where it says.
    """
    patients = read_lesions(json_file)["patients"]
    document = read_coco(json_file)
    class_of = {id_: k for k, id_ in enumerate(sorted(c["id"] for c in document["categories"]))}
    lesions: dict[int, list[dict[str, Any]]] = {}
    for item in document["annotations"]:
        lesion = {key: item[key] for key in ("iscrowd", "bbox", "segmentation") if key in item}
        lesion |= {"category_id": class_of[item["category_id"]], "bbox_mode": BoxMode.XYWH_ABS}
        lesions.setdefault(item["image_id"], []).append(lesion)
    dicts = [
        {
            "file_name": os.path.join(root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": lesions.get(image["id"], []),
            "patient": patients[image["id"]],
        }
        for image in sorted(document["images"], key=lambda image: image["id"])
    ]
    _check_images(json_file, root, dicts)
    return dicts


def load_slices(json_file: str, root: str) -> list[dict[str, Any]]:
    """Dataset dicts of a slice file: ``file_name``, ``image_id``, ``label``, ``patient``, ``scan``,
    ``slice``, ``body_box``, and ``metadata`` (column -> text) where the set knows its patients;
    those of one patient are one object.

    Raises:
        CTMaskNetError: the file is missing or broken, or the images are not where it says.
    """
    document = read_slices(json_file)
    known = document.get("patients", {})
    dicts = [
        {
            "file_name": os.path.join(root, item["file"]),
            "image_id": item["file"],
            **{key: item[key] for key in ("label", "patient", "scan", "slice")},
            "body_box": list(item["body_box"]) if item.get("body_box") else None,
            **({"metadata": known[item["patient"]]} if item["patient"] in known else {}),
        }
        for item in document["slices"]
    ]
    _check_images(json_file, root, dicts)
    return dicts


def _read(json_file: str, check) -> dict[str, Any]:
    now = stamp(json_file)
    if now is None:
        raise CTMaskNetError(
            f"{json_file}: no such file; prepare the data set (see datasets/README.md)"
        )
    if _parsed.get(json_file, (None,))[0] == now:
        return _parsed[json_file][1]
    try:
        document = read_json(json_file)
    except (OSError, ValueError) as error:
        raise _broken(json_file, str(error)) from None
    if isinstance(document, dict) and "images" in document:
        document.setdefault("info", {})  # annotated by hand
    if not isinstance(document, dict) or not isinstance(document.get("info"), dict):
        raise _broken(json_file, "it has no 'info'")
    _check_info(json_file, document["info"])
    document = check(json_file, document)
    _parsed[json_file] = now, document
    return document


def _checked(json_file: str, document: dict[str, Any]) -> dict[str, Any]:
    check = _checked_slices if "slices" in document else _lesion_header
    return check(json_file, document)


def _check_info(json_file: str, info: dict[str, Any]) -> None:
    for key in ("mask_type", "patient_ids"):
        if not isinstance(info.get(key), str | None):
            raise _broken(json_file, f"info.{key} is {info[key]!r:.40}, not text")
    window = info.get("window_hu")
    if window is not None and not (
        isinstance(window, list) and len(window) == 2 and all(map(is_number, window))
    ):
        raise _broken(json_file, f"info.window_hu is {window!r:.40}, not [center, width] in HU")


def _lesion_header(json_file: str, document: dict[str, Any]) -> dict[str, Any]:
    found = document.get("annotations")
    found = found if isinstance(found, list) else []
    ids = [item.get("id") for item in found if isinstance(item, dict)]
    document = checked_coco(document, json_file)
    # Numbered anew where they are used, but Detectron2's evaluator also indexes the file as it is
    if not all(isinstance(id_, str | int | float) for id_ in ids):
        raise CTMaskNetError(f"{json_file}: an annotation has no id; number all of them from 1")
    for image in document["images"]:
        if not is_id(image.get("patient")):
            raise CTMaskNetError(
                f"{json_file}: image {image['id']} ({image['file_name']}) states no 'patient'; add "
                "one to every image, that patients can be kept apart"
            )
    return {
        "info": document["info"],
        "categories": [{"id": c["id"], "name": c["name"]} for c in document["categories"]],
        "patients": {image["id"]: str(image["patient"]) for image in document["images"]},
    }


def is_id(value: Any) -> bool:
    """Whether a patient, scan or slice can be called so: text, or a whole number."""
    return type(value) is int or (
        isinstance(value, str) and value != "" and not has_control_character(value)
    )


def _checked_slices(json_file: str, document: dict[str, Any]) -> dict[str, Any]:
    classes, slices = document.get("classes"), document.get("slices")
    if not isinstance(classes, list) or not classes or not isinstance(slices, list):
        raise _broken(json_file, "it lacks 'classes' or 'slices'")
    if not all(isinstance(name, str) and name for name in classes):
        raise _broken(json_file, f"its classes are {classes!r:.60}, no names")
    known = document.get("patients", {})
    if not isinstance(known, dict) or not all(
        isinstance(row, dict) and all(isinstance(value, str) for value in row.values())
        for row in known.values()
    ):
        raise _broken(json_file, "its 'patients' are no texts by patient and column")
    labels = range(len(classes))
    for index, item in enumerate(slices):
        if not isinstance(item, dict) or not item.keys() >= _SLICE_KEYS:
            raise _broken(
                json_file, f"slices[{index}] lacks one of {', '.join(sorted(_SLICE_KEYS))}"
            )
        if not isinstance(item["label"], int) or item["label"] not in labels:
            raise _broken(
                json_file,
                f"slices[{index}] has the label {item['label']!r:.40}, of {len(classes)} classes",
            )
        if not all(is_id(item[key]) for key in ("file", "patient", "scan", "slice")):
            raise _broken(
                json_file, f"slices[{index}] has a file, patient, scan or slice that is no name"
            )
        item.update({key: str(item[key]) for key in ("file", "patient", "scan", "slice")})
        box = item.get("body_box")
        if box and not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
            raise _broken(json_file, f"slices[{index}] has the body_box {box!r:.40}")
    return document


def _check_images(json_file: str, root: str, dicts: list[dict[str, Any]]) -> None:
    if not os.path.isdir(root):
        raise CTMaskNetError(
            f"{json_file}: its image folder {root} is missing; restore it, or prepare the set again"
        )
    # First and last file tell whether the folder is the right one; looking up every one of
    # 100,000 would take longer than loading. One that is missing is found when it is read.
    some = [*dicts[:1], *dicts[-1:]]
    if dicts and not any(os.path.isfile(entry["file_name"]) for entry in some):
        raise CTMaskNetError(
            f"{json_file}: image {dicts[0]['file_name']} is missing; restore it, or prepare the "
            "set again"
        )


def _broken(json_file: str, reason: str) -> CTMaskNetError:
    return CTMaskNetError(f"{json_file}: broken data set file ({reason}); prepare the set again")


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, computed again only when its size or time of change differ.

    Raises:
        CTMaskNetError: the file is missing or unreadable.
    """
    path = os.fspath(path)
    try:
        status = os.stat(path)
        return _digest(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise CTMaskNetError(
            f"{path}: cannot be read ({error.strerror}); check the folder of the images"
        ) from error


def content_sha256(
    dicts: Iterable[Mapping[str, Any]],
    fields: Sequence[str] = (),
    *,
    allow_unreadable: bool = False,
) -> str:
    """SHA-256 over the bytes of all images of a data set, in its order, wherever they lie.

    Args:
        dicts: the dataset dicts.
        fields: entries of them that count too, such as ``label``.
        allow_unreadable: an image that is missing or unreadable counts as just that.

    Raises:
        CTMaskNetError: an image is missing or unreadable.
    """
    dicts = list(dicts)
    digest_of = _sha256_or_none if allow_unreadable else file_sha256
    total = hashlib.sha256()
    # Reading and hashing both release the interpreter.
    with ThreadPoolExecutor(_THREADS) as pool:
        for entry, digest in zip(
            dicts, pool.map(digest_of, (entry["file_name"] for entry in dicts)), strict=True
        ):
            more = [entry.get(field) for field in fields]
            total.update(json.dumps([digest, *more]).encode())
    return total.hexdigest()


def _sha256_or_none(path: str) -> str | None:
    try:
        return file_sha256(path)
    except CTMaskNetError:
        return None


@functools.lru_cache(maxsize=200_000)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()
