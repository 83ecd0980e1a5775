"""Pictures and the pictures that are their masks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from ctmasknet.ct.find import check_name, find_files, natural_key
from ctmasknet.data.label_masks import MASK_SUFFIXES, files_by_key
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import IMAGE_SUFFIXES, PatientRule
from ctmasknet.prepare.pairs.kinds import LesionPair
from ctmasknet.prepare.pairs.matching import paired_names
from ctmasknet.prepare.pairs.stated import Pairing, settle_unlabelled
from ctmasknet.prepare.volumes import log_others

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
    same in another folder, where no other image has it.

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
    one_folder = images.resolve() == masks.resolve()
    if pairing.is_stated:
        return _stated_pairs(images, masks, rule, on_bad, pairing)
    image_suffixes = tuple(s for s in IMAGE_SUFFIXES if not one_folder or s not in MASK_SUFFIXES)
    image_of = files_by_key(images, image_suffixes, rule)
    mask_of = files_by_key(masks, MASK_SUFFIXES, rule)
    if not image_of and not mask_of:
        raise CTMaskNetError(
            f"{images}: the data set is empty; no file ends in {', '.join(image_suffixes)}"
        )
    log_others(images, (each.path for each in find_files([images])), IMAGE_SUFFIXES)
    if not one_folder:
        log_others(masks, (each.path for each in find_files([masks])), MASK_SUFFIXES)
    image_keys = [key for key in image_of if key not in mask_of]
    for key, other in paired_names(
        image_keys, [key for key in mask_of if key not in image_of]
    ).items():
        mask_of[key] = mask_of.pop(other)
    lossy: dict[str, str] = {}
    if not one_folder:
        with contextlib.suppress(CTMaskNetError):
            lossy = files_by_key(masks, (".jpg", ".jpeg"), rule)
    unlabelled = [key for key in image_of if key not in mask_of and key not in lossy]
    if pairing.unlabelled != "error":
        files = [image_of[key] for key in unlabelled]
        settle_unlabelled(files, len(image_of.keys() & mask_of.keys()), images, pairing)
        if pairing.unlabelled == "skip":
            image_of = {key: file for key, file in image_of.items() if key not in unlabelled}
        else:
            mask_of |= dict.fromkeys(unlabelled, "")
    alone = [
        (
            folder / file,
            f"its mask {masks / lossy[key]} is a JPEG, which cannot hold labels; store it as PNG"
            if wanted == "mask" and key in lossy
            else f"no {wanted} of the same name in {other}",
        )
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
        choice = "" if not reason.startswith("no mask") else _CHOICE
        raise CTMaskNetError(
            f"{file}: {reason}{more}; add the missing file or remove this one{choice}"
        )
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
            masks / mask_of[key] if mask_of[key] else None,
            rule.read(image_of[key]).patient,
        )
        for key in sorted(image_of.keys() & mask_of.keys(), key=lambda key: (natural_key(key), key))
    ]


def _stated_pairs(
    images: Path,
    masks: Path,
    rule: PatientRule,
    on_bad: Callable[[str, str], None] | None,
    pairing: Pairing,
) -> list[LesionPair]:
    files = [
        Path(each.path).relative_to(images).as_posix()
        for each in find_files([images])
        if each.path.lower().endswith(IMAGE_SUFFIXES)
    ]
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
