"""Pairs that the user states: a CSV table, or a template of both names; and what an image without a
mask is."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import read_csv_rows
from ctmasknet.names import IMAGE_SUFFIXES
from ctmasknet.prepare.volumes import without_extension

#: What an image without a mask is: an error, left out, or free of lesions.
UNLABELLED = ("error", "skip", "normal")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairing:
    """How images find their masks.

    Args:
        rows: image -> (mask, "" for none; where that is said), relative paths; goes before names.
        template: of an image's and of its mask's relative path, with the same words in braces.
        unlabelled: one of :data:`UNLABELLED`.

    Raises:
        CTMaskNetError: a template without a word, with one that the image lacks, or twice one; an
            unknown ``unlabelled``.
    """

    rows: Mapping[str, tuple[str, str]] | None = None
    template: tuple[str, str] | None = None
    unlabelled: str = "error"

    def __post_init__(self) -> None:
        if self.unlabelled not in UNLABELLED:
            raise CTMaskNetError(
                f"`unlabelled` {self.unlabelled}: expected one of {', '.join(UNLABELLED)}"
            )
        if self.template is None:
            return
        image, mask = (re.findall(r"{(\w+)}", part) for part in self.template)
        if not image or not mask or len(set(image)) < len(image) or not set(mask) <= set(image):
            raise CTMaskNetError(
                f"`pairs` {'='.join(self.template)}: expected the image's and the mask's name with "
                "a word in braces, such as {case}_CT.nii.gz={case}_seg.nii.gz"
            )

    @property
    def is_stated(self) -> bool:
        return self.rows is not None or self.template is not None

    def masks_of(self, files: Sequence[str], root: Path, masks: Path) -> dict[str, Path | None]:
        """The mask of each of ``files`` that is an image by this pairing; None: it has none. A file
        that is another's mask is no image; the number of others that are none is logged.

        Args:
            files: paths relative to ``root``, with ``/``; of a DICOM series its folder.
            root, masks: the folders of images and masks.

        Raises:
            CTMaskNetError: a row whose image or mask is not there, two images of one mask.
        """
        found = (
            self._by_rows(files, masks) if self.rows is not None else self._by_name(files, masks)
        )
        used: dict[Path, str] = {}
        for file, mask in found.items():
            if mask is not None and (other := used.setdefault(mask.resolve(), file)) != file:
                raise CTMaskNetError(
                    f"{mask}: is by `pairs` the mask of {other} and of {file}; a mask is of one"
                )
        found = {file: mask for file, mask in found.items() if (root / file).resolve() not in used}
        others = [
            file for file in files if file not in found and (root / file).resolve() not in used
        ]
        if others:
            _LOGGER.warning(
                "%s: %d files left out, such as %s: no images by `pairs`",
                *(root, len(others), others[0]),
            )
        if not any(found.values()):
            raise CTMaskNetError(
                f"{root}: `pairs` finds no image with a mask in {masks}; correct it"
            )
        return found

    def _by_rows(self, files: Sequence[str], masks: Path) -> dict[str, Path | None]:
        by_stem: dict[str, list[str]] = {}
        for file in files:
            by_stem.setdefault(_stem(file), []).append(file)
        found: dict[str, Path | None] = {}
        for image, (mask, where) in self.rows.items():
            fitting = [image] if image in files else by_stem.get(_stem(image), [])
            if len(fitting) != 1:
                raise CTMaskNetError(f"{where}: {image} names no image, or several; correct it")
            if fitting[0] in found:
                raise CTMaskNetError(f"{where}: {image} is listed twice; remove one")
            path = masks / mask
            if mask and not path.exists():
                alike = [
                    one
                    for one in (path.parent.iterdir() if path.parent.is_dir() else ())
                    if _stem(one.name) == _stem(path.name)
                ]
                if len(alike) != 1:
                    raise CTMaskNetError(f"{where}: {path}: no such mask; correct the list")
                path = alike[0]
            found[fitting[0]] = path if mask else None
        return found

    def _by_name(self, files: Sequence[str], masks: Path) -> dict[str, Path | None]:
        image, mask = self.template
        parts = re.split(r"{(\w+)}", image)
        pattern = re.compile(
            "".join(
                f"(?P<{part}>[^/]+)" if index % 2 else re.escape(part)
                for index, part in enumerate(parts)
            )
        )
        found: dict[str, Path | None] = {}
        for file in files:
            if match := pattern.fullmatch(file):
                path = masks / re.sub(r"{(\w+)}", lambda word: match[word[1]], mask)
                found[file] = path if path.exists() else None
        return found


def read_pairing(text: str | None, unlabelled: str = "error") -> Pairing:
    """Read ``pairs.csv`` (columns ``image,mask``, a mask may be empty) or a template such as
    ``{case}_CT.nii.gz={case}_seg.nii.gz``; None: names tell.

    Raises:
        CTMaskNetError: another form; a CSV that cannot be read, without an image or with one twice.
    """
    if text is None:
        return Pairing(unlabelled=unlabelled)
    image, equals, mask = text.replace("\\", "/").partition("=")
    if equals and "{" in image:
        return Pairing(template=(image, mask), unlabelled=unlabelled)
    rows: dict[str, tuple[str, str]] = {}
    for number, row in read_csv_rows(text, ("image", "mask"), what="table of pairs"):
        where = f"{text}:{number}"
        image, mask = (_plain(row[name]) for name in ("image", "mask"))
        if not image:
            raise CTMaskNetError(f"{where}: names no image; fill it or remove the line")
        if image in rows:
            raise CTMaskNetError(f"{where}: {image} is listed twice, first at {rows[image][1]}")
        rows[image] = mask, where
    if not rows:
        raise CTMaskNetError(f"{text}: lists no image; leave `pairs` out")
    return Pairing(rows=rows, unlabelled=unlabelled)


def settle_unlabelled(
    unlabelled: Collection[str], labelled: int, root: Path, pairing: Pairing
) -> None:
    """Say how many images have no mask and what they count as.

    Raises:
        CTMaskNetError: no image has a mask.
    """
    if not unlabelled:
        return
    if not labelled:
        raise CTMaskNetError(
            f"{root}: none of the {len(unlabelled)} images has a mask, such as "
            f"{next(iter(unlabelled))}; check the names, or state them with `pairs`"
        )
    what = "slices without lesions" if pairing.unlabelled == "normal" else "left out"
    _LOGGER.warning(
        "%s: %d of %d images have no mask, such as %s: %s (`unlabelled` %s)",
        *(root, len(unlabelled), labelled + len(unlabelled), next(iter(unlabelled)), what),
        pairing.unlabelled,
    )


def _plain(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./").strip("/")


def _stem(file: str) -> str:
    base, ending = os.path.splitext(file)
    return base if ending.lower() in IMAGE_SUFFIXES else without_extension(file)
