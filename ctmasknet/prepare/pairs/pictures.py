"""Pictures and the pictures that are their masks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from ctmasknet.ct.find import check_name, find_files, natural_key
from ctmasknet.data.label_masks import MASK_SUFFIXES, files_by_key, named_by_key
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import ARRAY_SUFFIXES, IMAGE_SUFFIXES, PatientRule
from ctmasknet.prepare.pairs.by_class import files_of_classes, mask_of_classes, tell_missing
from ctmasknet.prepare.pairs.kinds import LesionPair, MaskFile
from ctmasknet.prepare.pairs.matching import is_mask_name, paired_names
from ctmasknet.prepare.pairs.stated import Pairing, settle_unlabelled
from ctmasknet.prepare.volumes import log_others, stem_of_file

_LOGGER = logging.getLogger(__name__)
_LOSSY = (".jpg", ".jpeg")
#: Masks are found by their names.
NAMES_TELL = Pairing()
#: What to do about images without a mask.
_CHOICE = ", or say with `unlabelled` skip or normal what images without a mask are"


def find_pairs(
    images: Path,
    masks: Path,
    rule: PatientRule,
    on_bad: Callable[[str, str], None] | None = None,
    pairing: Pairing = NAMES_TELL,
) -> list[LesionPair]:
    """Pair the images under ``images`` with the masks under ``masks``, sorted by slice.

    A mask has the name of its image, endings such as ``_mask`` and ``_ct`` aside; failing that, the
    same in another folder, where no other image has it. In one folder, pictures whose names end as
    those of masks are masks, or else all PNG and TIFF.

    Args:
        images, masks: the folders; they may be one.
        rule: what names mean.
        on_bad: called with (file, reason) for an image without mask or the reverse, which is then
            left out; None: an error.
        pairing: what the user states of masks.

    Raises:
        CTMaskNetError: an image without mask or the reverse, a slice named twice, a name that does
            not parse, a group for a slice that is not there, or no image at all.
    """
    if pairing.is_stated:
        return _stated_pairs(images, masks, rule, on_bad, pairing)
    find = _of_classes if pairing.classes else _of_all_classes
    image_of, mask_of, spare = find(images, masks, rule, pairing)
    unlabelled = [key for key in image_of if key not in mask_of]
    if pairing.unlabelled != "error":
        files = [image_of[key] for key in unlabelled]
        settle_unlabelled(files, len(image_of.keys() & mask_of.keys()), images, pairing)
        if pairing.unlabelled == "skip":
            image_of = {key: file for key, file in image_of.items() if key not in unlabelled}
        else:
            mask_of |= dict.fromkeys(unlabelled)
        unlabelled = []
    alone = [(images / image_of[key], f"no mask of the same name in {masks}") for key in unlabelled]
    alone += [
        (
            images / image_of[key],
            f"its mask {mask} is a JPEG, which cannot hold labels; store it as PNG",
        )
        for key, mask in mask_of.items()
        if isinstance(mask, Path) and mask.suffix.lower() in _LOSSY
    ]
    alone += [(masks / file, f"no image of the same name in {images}") for file in spare]
    if alone and on_bad is None:
        file, reason = alone[0]
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        choice = "" if not reason.startswith("no mask") else _CHOICE
        raise CTMaskNetError(
            f"{file}: {reason}{more}; add the missing file or remove this one{choice}"
        )
    for file, reason in alone:
        on_bad(str(file), reason)
    left_out = {file for file, _ in alone}
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
            mask_of[key],
            rule.read(image_of[key]).patient,
        )
        for key in sorted(image_of.keys() & mask_of.keys(), key=lambda key: (natural_key(key), key))
        if images / image_of[key] not in left_out
    ]


def _of_all_classes(
    images: Path, masks: Path, rule: PatientRule, pairing: Pairing
) -> tuple[dict[str, str], dict[str, MaskFile], list[str]]:
    """Slice -> image, relative to its folder; slice -> mask; masks, relative to theirs, of none."""
    one_folder = images.resolve() == masks.resolve()
    if one_folder and (found := _by_endings(images)):
        image_of, mask_of = (named_by_key(images, {f: f for f in each}, rule) for each in found)
    else:
        suffixes = tuple(s for s in IMAGE_SUFFIXES if not one_folder or s not in MASK_SUFFIXES)
        image_of = files_by_key(images, suffixes, rule)
        mask_of = files_by_key(masks, MASK_SUFFIXES, rule)
        if not image_of and not mask_of:
            raise CTMaskNetError(
                f"{images}: the data set is empty; no file ends in {', '.join(suffixes)}"
            )
    log_others(images, (each.path for each in find_files([images])), IMAGE_SUFFIXES)
    if not one_folder:
        log_others(masks, (each.path for each in find_files([masks])), MASK_SUFFIXES)
    _pair_names(image_of, mask_of)
    found = {key: masks / file for key, file in mask_of.items() if key in image_of}
    if not one_folder:
        with contextlib.suppress(CTMaskNetError):
            lossy = files_by_key(masks, _LOSSY, rule)
            found = {key: masks / lossy[key] for key in lossy if key in image_of} | found
    return image_of, found, [file for key, file in mask_of.items() if key not in image_of]


def _of_classes(
    images: Path, masks: Path, rule: PatientRule, pairing: Pairing
) -> tuple[dict[str, str], dict[str, MaskFile], list[str]]:
    """As :func:`_of_all_classes`, of masks of one class each."""
    files = _pictures(masks)
    named = files_of_classes(files, pairing.classes)
    taken = {(masks / file).resolve() for of_class in named.values() for file in of_class}
    others = [file for file in files if (masks / file).resolve() not in taken]
    if others and images.resolve() not in (masks.resolve(), *masks.resolve().parents):
        _LOGGER.warning(
            "%s: %d pictures left out, such as %s: their names say no class of `mask_classes`",
            *(masks, len(others), others[0]),
        )
    image_files = [f for f in _pictures(images) if (images / f).resolve() not in taken]
    if not image_files:
        raise CTMaskNetError(f"{images}: holds no picture that is no mask; check `images`")
    image_of = named_by_key(images, {file: file for file in image_files}, rule)
    found: dict[str, dict[str, Path]] = {}
    spare: list[str] = []
    for name, name_of in named.items():
        mask_of = named_by_key(masks, name_of, rule)
        _pair_names(image_of, mask_of)
        for key, file in mask_of.items():
            if key in image_of:
                found.setdefault(key, {})[name] = masks / file
            else:
                spare.append(file)
    masks_of = {key: mask_of_classes(each) for key, each in found.items()}
    tell_missing(masks_of.values(), pairing.classes, masks)
    return image_of, masks_of, spare


def _pair_names(image_of: dict[str, str], mask_of: dict[str, str]) -> None:
    """Let masks have the keys of their images."""
    image_keys = [key for key in image_of if key not in mask_of]
    for key, other in paired_names(
        image_keys, [key for key in mask_of if key not in image_of]
    ).items():
        mask_of[key] = mask_of.pop(other)


def _by_endings(folder: Path) -> tuple[list[str], list[str]] | None:
    """Images and masks of one folder, where endings of names say which are masks."""
    files = _pictures(folder)
    image_stems = {stem_of_file(f) for f in files if not f.lower().endswith(MASK_SUFFIXES)}
    masks = {f for f in files if f.lower().endswith(MASK_SUFFIXES)}
    masks = {f for f in masks if is_mask_name(stem_of_file(f)) or stem_of_file(f) in image_stems}
    if not any(is_mask_name(stem_of_file(file)) for file in masks):
        return None
    return [file for file in files if file not in masks], [file for file in files if file in masks]


def _pictures(folder: Path) -> list[str]:
    files = (Path(each.path) for each in find_files([folder]))
    suffixes = (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)
    return [p.relative_to(folder).as_posix() for p in files if p.suffix.lower() in suffixes]


def _stated_pairs(
    images: Path,
    masks: Path,
    rule: PatientRule,
    on_bad: Callable[[str, str], None] | None,
    pairing: Pairing,
) -> list[LesionPair]:
    files = _pictures(images)
    pairs: dict[str, LesionPair] = {}
    found = pairing.masks_of(files, images, masks)
    unlabelled = [file for file, mask in found.items() if mask is None]
    if pairing.unlabelled != "error":
        settle_unlabelled(unlabelled, len(found) - len(unlabelled), images, pairing)
    for file, mask in found.items():
        check_name(str(images / file))
        if mask is None and pairing.unlabelled == "error":
            reason = f"no mask in {masks} by `pairs`"
            if on_bad is None:
                raise CTMaskNetError(f"{images / file}: {reason}; add it{_CHOICE}")
            on_bad(str(images / file), reason)
        elif mask is not None or pairing.unlabelled == "normal":
            key = rule.key(file)
            if key in pairs:
                raise CTMaskNetError(
                    f"{images / file}: the slice {key} is named twice, also as {pairs[key].image}"
                )
            pairs[key] = LesionPair(key, file, images / file, mask, rule.read(file).patient)
    return sorted(pairs.values(), key=lambda pair: (natural_key(pair.key), pair.key))
