"""Files of a lesion set: pairs of image and mask, and the split a list says."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctmasknet.data.ct_files import find_files
from ctmasknet.data.natural import natural_key
from ctmasknet.data.patient_rules import IMAGE_SUFFIXES, PatientRule
from ctmasknet.data.splits import check_disjoint, check_split_name, read_list
from ctmasknet.errors import CTMaskNetError

MASK_SUFFIXES = (".png", ".tif", ".tiff")


@dataclass(frozen=True)
class LesionPair:
    """An image, its mask and its patient.

    ``key`` names the slice; ``file`` is the image's path relative to its folder.
    """

    key: str
    file: str
    image: Path
    mask: Path
    patient: str


def source_folders(
    source: str | os.PathLike | None,
    images: str | os.PathLike | None = None,
    masks: str | os.PathLike | None = None,
) -> tuple[Path, Path]:
    """The image and the mask folder: as given, else ``image`` or ``images``, ``mask`` or ``masks``
    in ``source``.

    Raises:
        CTMaskNetError: a folder is missing.
    """
    if source is not None and not Path(source).is_dir():
        raise CTMaskNetError(
            f"{source}: no such folder; --source names the folder with image/ and mask/"
        )
    found = []
    for given, name in ((images, "image"), (masks, "mask")):
        if given is not None:
            folder = Path(given)
        elif source is None:
            raise CTMaskNetError(f"{name}s: give --source, or both --images and --masks")
        else:
            folder = Path(source) / name
            if not folder.is_dir():
                folder = Path(source) / f"{name}s"
        if not folder.is_dir():
            wanted = given if given is not None else f"{source}/{name} (or {name}s)"
            raise CTMaskNetError(f"{wanted}: no such folder of {name}s; check the path")
        found.append(folder)
    return found[0], found[1]


def find_pairs(
    images: Path,
    masks: Path,
    rule: PatientRule,
    on_bad: Callable[[str, str], None] | None = None,
) -> list[LesionPair]:
    """Pair the images under ``images`` with the masks under ``masks``, sorted by slice.

    Args:
        images, masks: the folders; they may be one.
        rule: what names mean.
        on_bad: called with (file, reason) for an image without mask or the reverse, which is then
            left out; None: an error.

    Raises:
        CTMaskNetError: an image without mask or the reverse, a slice named twice, a name that does
            not parse, a group for a slice that is not there, or no image at all.
    """
    one_folder = images.resolve() == masks.resolve()
    image_suffixes = tuple(s for s in IMAGE_SUFFIXES if not one_folder or s not in MASK_SUFFIXES)
    image_of = files_by_key(images, image_suffixes, rule)
    mask_of = files_by_key(masks, MASK_SUFFIXES, rule)
    if not image_of and not mask_of:
        raise CTMaskNetError(
            f"{images}: the data set is empty; no file ends in {', '.join(image_suffixes)}"
        )
    alone = [
        (folder / file, f"no {wanted} of the same name in {other}")
        for folder, found, wanted, other, partners in (
            (images, image_of, "mask", masks, mask_of),
            (masks, mask_of, "image", images, image_of),
        )
        for key, file in found.items()
        if key not in partners
    ]
    if alone and on_bad is None:
        file, reason = alone[0]
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise CTMaskNetError(f"{file}: {reason}{more}; add the missing file or remove this one")
    for file, reason in alone:
        on_bad(str(file), reason)
    missing = sorted(set(rule.groups) - set(image_of))
    if missing:
        raise CTMaskNetError(
            f"groups: {missing[0]} is no image under {images}; correct the groups file"
        )
    return [
        LesionPair(
            key,
            image_of[key],
            images / image_of[key],
            masks / mask_of[key],
            rule.patient(image_of[key]),
        )
        for key in sorted(image_of.keys() & mask_of.keys(), key=lambda key: (natural_key(key), key))
    ]


def split_by_lists(
    pairs: Sequence[LesionPair],
    lists: Mapping[str, str | os.PathLike],
    rule: PatientRule,
    left_out: Collection[str] = (),
) -> dict[str, list[str]]:
    """The keys of each split as list files say. Slices on no list are left out.

    Args:
        pairs: of the data set.
        lists: split -> list file.
        rule: what the names in them mean.
        left_out: keys that lists may name too, which are of no pair.

    Raises:
        CTMaskNetError: a line that does not parse or names a file that is not there, a slice named
            twice, a patient in two splits; the message says file and line.
    """
    pair_of = {pair.key: pair for pair in pairs}
    line_of: dict[str, str] = {}
    result: dict[str, list[str]] = {}
    for split, path in lists.items():
        check_split_name(split)
        result[split] = []
        for number, line in read_list(path):
            where = f"{path}:{number}"
            try:
                key = rule.key(line)
            except CTMaskNetError as error:
                raise CTMaskNetError(f"{where}: {error}") from None
            if key in left_out:
                continue
            if key not in pair_of:
                raise CTMaskNetError(
                    f"{where}: {line} names no image of the data set; remove it or add the file"
                )
            if key in line_of:
                raise CTMaskNetError(
                    f"{where}: the slice {line} was already named at {line_of[key]}; remove one"
                )
            line_of[key] = where
            result[split].append(key)
        result[split].sort(key=natural_key)
    try:
        check_disjoint(
            {split: [pair_of[key].patient for key in keys] for split, keys in result.items()}
        )
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{', '.join(map(str, lists.values()))}: {error}") from None
    return result


def files_by_key(folder: Path, suffixes: tuple[str, ...], rule: PatientRule) -> dict[str, str]:
    """Relative path of each slice's file; linked folders count, each once, hidden ones do not."""
    found: dict[str, str] = {}
    for path in (Path(each.path) for each in find_files([folder])):
        if path.suffix.lower() not in suffixes:
            continue
        file = path.relative_to(folder).as_posix()
        try:
            key = rule.key(file)
        except CTMaskNetError as error:
            raise CTMaskNetError(
                f"{folder}: {error}; for other names give --patient-pattern, --groups or "
                "--patients each-file"
            ) from None
        if key in found:
            raise CTMaskNetError(
                f"{folder / file}: the slice {key} is named twice, also as "
                f"{folder / found[key]}; remove one"
            )
        found[key] = file
    return found
