"""Which names belong together."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

#: What names of masks have behind the name of the case, and those of images that lie beside them.
MASK_ENDING = r"(?:[_.-](?:masks?|seg|segmentation|labels?|gt))"
_IMAGE_ENDING = r"(?:[_.-](?:0000|ct|im|img|images?|org))"
_ENDINGS = re.compile(rf"(?:{MASK_ENDING}|{_IMAGE_ENDING})$", re.IGNORECASE)
#: ... of a zip.
_OF_ZIP = re.compile(rf"(?:{MASK_ENDING}|{_IMAGE_ENDING})(?=\.zip(?:/|$))", re.IGNORECASE)
_OF_MASK = re.compile(rf"{MASK_ENDING}$", re.IGNORECASE)


def paired_names(images: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    """Key of an image -> key of the mask that has its name but for the ending or, where these are
    unique on both sides, the folder."""
    found: dict[str, str] = {}
    for name in (stem_of, base_of):
        left = [key for key in images if key not in found]
        spare = [key for key in masks if key not in found.values()]
        image_of, mask_of = (
            unique_names((name(key), key) for key in keys) for keys in (left, spare)
        )
        found |= {image_of[each]: mask_of[each] for each in image_of.keys() & mask_of.keys()}
    return found


def unique_names(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """name -> key, of the names that one key alone has."""
    pairs = list(pairs)
    count = Counter(name for name, _ in pairs)
    return {name: key for name, key in pairs if name and count[name] == 1}


def is_mask_name(name: str) -> bool:
    """Whether the ending of a name without extension is that of a mask."""
    return _OF_MASK.search(name) is not None


def stem_of(name: str) -> str:
    """A name without its ending; of a path in a zip, the zip's name without one too."""
    return _ENDINGS.sub("", _OF_ZIP.sub("", name))


def study_of(name: str) -> str:
    """The name, without ending, of the zip that a relative path leads into; "" for none."""
    head, ending, _ = stem_of(f"{name}/").partition(".zip/")
    return head if ending else ""


def base_of(name: str) -> str:
    """The stem without its folder; "" for words such as ``image`` that name no case."""
    base = os.path.basename(stem_of(name))
    return base if re.search("[0-9]", base) else ""
