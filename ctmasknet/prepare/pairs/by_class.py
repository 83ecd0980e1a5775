"""Masks of one class a file: which class a name says, and whose they are."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ctmasknet.data.label_masks import label_values
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.masks.planes import ClassMasks
from ctmasknet.prepare.pairs.kinds import MaskFile
from ctmasknet.prepare.pairs.matching import MASK_ENDING
from ctmasknet.prepare.volumes import stem_of_file

_LOGGER = logging.getLogger(__name__)


def parse_mask_classes(text: str | None) -> dict[str, str]:
    """Read ``ggo,consolidation``, or ``ggo=GG,consolidation=cons`` where names have other words.

    Returns:
        class -> word in the names of its masks; none for None.

    Raises:
        CTMaskNetError: an unknown class, none of lesions, a class or word given twice.
    """
    if text is None:
        return {}
    words: dict[str, str] = {}
    for part in text.split(","):
        name, equals, word = (each.strip() for each in part.partition("="))
        if name in words or (word or name).lower() in (each.lower() for each in words.values()):
            raise CTMaskNetError(f"`mask_classes` {text}: {part.strip()} is given twice")
        words[name] = word if equals and word else name
    try:
        label_values(words)
    except CTMaskNetError as error:
        raise CTMaskNetError(f"`mask_classes` {text}: {error}") from None
    return words


def files_of_classes(files: Iterable[str], classes: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """class -> file -> its name without the class, of the files that are masks of a class by the
    ending of their name (``case_ggo.png``), their name (``case/ggo.png``) or a folder
    (``ggo/case.png``).

    Args:
        files: paths relative to the folder of masks, with ``/``.
        classes: class -> word in the names.

    Raises:
        CTMaskNetError: a name that says two classes.
    """
    found: dict[str, dict[str, str]] = {name: {} for name in classes}
    class_of: dict[str, str] = {}
    for file in files:
        for name, word in classes.items():
            if (without := _without(file, word)) is None:
                continue
            if file in class_of:
                raise CTMaskNetError(
                    f"{file}: is by its name a mask of {class_of[file]} and of {name}; rename it"
                )
            class_of[file] = name
            found[name][file] = without
    return found


def mask_of_classes(files: Mapping[str, Path]) -> MaskFile | None:
    """What class -> file makes: a mask, "" being all classes; None: there is none."""
    if not files:
        return None
    return files[""] if "" in files else ClassMasks(dict(files))


def tell_missing(masks: Iterable[MaskFile | None], classes: Iterable[str], root: Path) -> None:
    """Log how many images have masks of some classes and none of another.

    Raises:
        CTMaskNetError: a class has no mask at all.
    """
    found = [mask for mask in masks if isinstance(mask, ClassMasks)]
    for name in classes if found else ():
        lack = [mask for mask in found if name not in mask.files]
        if len(lack) == len(found):
            raise CTMaskNetError(
                f"{root}: no mask is of the class {name} by its ending or folder; correct the "
                "names, or leave it out of `mask_classes`"
            )
        if lack:
            _LOGGER.warning(
                "%s: %d of %d images with masks have none of %s, such as that of %s: it has no px "
                "there",
                *(root, len(lack), len(found), name, next(iter(lack[0].files.values()))),
            )


def _without(file: str, word: str) -> str | None:
    stem = stem_of_file(file)
    ending = file[len(stem) :]
    *folders, base = stem.split("/")
    word = word.lower()
    if folders and base.lower() == word:
        return "/".join(folders) + ending
    pattern = rf"[_. -]{re.escape(word)}(?={MASK_ENDING}?$)"
    if match := re.search(pattern, base, re.IGNORECASE):
        base = base[: match.start()] + base[match.end() :]
        return "/".join((*folders, base)) + ending if base else None
    for index, folder in enumerate(folders):
        if folder.lower() == word:
            return "/".join((*folders[:index], *folders[index + 1 :], base)) + ending
    return None


def picture_folders(root: Path, key: str, word: str) -> list[Path]:
    """Where pictures of a class of a volume may lie."""
    folder, name = os.path.split(key)
    return [root / word / key, root / key / word, root / folder / f"{name}_{word}"]
