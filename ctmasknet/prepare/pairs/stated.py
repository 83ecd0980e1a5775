"""Pairs that the user states: a CSV table, or a template of both names; and what an image without a
mask is."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctmasknet.csv_tables import read_csv_rows
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.pairs.by_class import mask_of_classes, tell_missing
from ctmasknet.prepare.pairs.kinds import MaskFile
from ctmasknet.prepare.volumes import stem_of_file

#: What an image without a mask is: an error, left out, or free of lesions.
UNLABELLED = ("error", "skip", "normal")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairing:
    """How images find their masks.

    Args:
        rows: image -> (class -> mask, "" for none; where that is said), relative paths; goes before
            names. The class "" is all classes.
        template: of an image's and of its mask's relative path, with the same words in braces.
        unlabelled: one of :data:`UNLABELLED`.
        classes: where each mask is of one class: class -> word in the names of its masks, which
            ``{class}`` stands for in a template.

    Raises:
        CTMaskNetError: a template without a word, with one that the image lacks, or twice one; an
            unknown ``unlabelled``.
    """

    rows: Mapping[str, tuple[Mapping[str, str], str]] | None = None
    template: tuple[str, str] | None = None
    unlabelled: str = "error"
    classes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.unlabelled not in UNLABELLED:
            raise CTMaskNetError(
                f"`unlabelled` {self.unlabelled}: expected one of {', '.join(UNLABELLED)}"
            )
        if self.template is None:
            return
        image, mask = (re.findall(r"{(\w+)}", part) for part in self.template)
        if self.classes:
            if "class" not in mask or "class" in image:
                raise CTMaskNetError(
                    f"`pairs` {'='.join(self.template)}: with `mask_classes` the mask's name has "
                    "the word {class}, such as {case}.png={class}/{case}.png"
                )
            mask = [word for word in mask if word != "class"]
        if not image or not mask or len(set(image)) < len(image) or not set(mask) <= set(image):
            raise CTMaskNetError(
                f"`pairs` {'='.join(self.template)}: expected the image's and the mask's name with "
                "a word in braces, such as {case}_CT.nii.gz={case}_seg.nii.gz"
            )

    @property
    def is_stated(self) -> bool:
        return self.rows is not None or self.template is not None

    def masks_of(self, files: Sequence[str], root: Path, masks: Path) -> dict[str, MaskFile | None]:
        """The mask of each of ``files`` that is an image by this pairing; None: it has none. A file
        that is another's mask is no image; the number of others that are none is logged.

        Args:
            files: paths relative to ``root``, with ``/``; of a DICOM series its folder.
            root, masks: the folders of images and masks.

        Raises:
            CTMaskNetError: a row whose image or mask is not there, two images of one mask.
        """
        find = self._by_rows if self.rows is not None else self._by_name
        of_class: dict[str, dict[str, Path]] = {}
        used: dict[Path, str] = {}
        for name in self.classes or ("",):
            for file, mask in find(files, masks, name).items():
                of_class.setdefault(file, {})
                if mask is None:
                    continue
                of_class[file][name] = mask
                if (other := used.setdefault(mask.resolve(), file)) != file:
                    raise CTMaskNetError(
                        f"{mask}: is by `pairs` the mask of {other} and of {file}; a mask is of one"
                    )
        found = {file: mask_of_classes(each) for file, each in of_class.items()}
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
        tell_missing(found.values(), self.classes, masks)
        return found

    def _by_rows(self, files: Sequence[str], masks: Path, name: str) -> dict[str, Path | None]:
        by_stem: dict[str, list[str]] = {}
        for file in files:
            by_stem.setdefault(stem_of_file(file), []).append(file)
        found: dict[str, Path | None] = {}
        for image, (mask_of, where) in self.rows.items():
            mask = mask_of[name]
            fitting = [image] if image in files else by_stem.get(stem_of_file(image), [])
            if len(fitting) != 1:
                raise CTMaskNetError(f"{where}: {image} names no image, or several; correct it")
            if fitting[0] in found:
                raise CTMaskNetError(f"{where}: {image} is listed twice; remove one")
            path = masks / mask
            if mask and not os.path.exists(path):
                alike = [
                    one
                    for one in (path.parent.iterdir() if os.path.isdir(path.parent) else ())
                    if stem_of_file(one.name) == stem_of_file(path.name)
                ]
                if len(alike) != 1:
                    raise CTMaskNetError(f"{where}: {path}: no such mask; correct the list")
                path = alike[0]
            found[fitting[0]] = path if mask else None
        return found

    def _by_name(self, files: Sequence[str], masks: Path, name: str) -> dict[str, Path | None]:
        image, mask = self.template
        mask = mask.replace("{class}", self.classes[name]) if name else mask
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
                found[file] = path if os.path.exists(path) else None
        return found


def read_pairing(
    text: str | None,
    unlabelled: str = "error",
    classes: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> Pairing:
    """Read ``pairs.csv`` (columns ``image,mask``, a mask may be empty; ``image`` and one column of
    each of ``classes`` where masks are of one class) or a template such as
    ``{case}_CT.nii.gz={case}_seg.nii.gz``; None: names tell. ``names``: column -> what the CSV file
    calls it.

    Raises:
        CTMaskNetError: another form; a CSV that cannot be read, without an image or with one twice.
    """
    classes = classes or {}
    if names and (text is None or "{" in text):
        raise CTMaskNetError("`columns`: is for `pairs` of a CSV file; leave it out")
    if text is None:
        return Pairing(unlabelled=unlabelled, classes=classes)
    image, equals, mask = text.replace("\\", "/").partition("=")
    if equals and "{" in image:
        return Pairing(template=(image, mask), unlabelled=unlabelled, classes=classes)
    rows: dict[str, tuple[dict[str, str], str]] = {}
    columns = dict(zip(classes, classes, strict=True)) or {"": "mask"}
    for number, row in read_csv_rows(
        text, ("image", *columns.values()), what="table of pairs", names=names or {}
    ):
        where = f"{text}:{number}"
        image = _plain(row["image"])
        if not image:
            raise CTMaskNetError(f"{where}: names no image; fill it or remove the line")
        if image in rows:
            raise CTMaskNetError(f"{where}: {image} is listed twice, first at {rows[image][1]}")
        rows[image] = {name: _plain(row[column]) for name, column in columns.items()}, where
    if not rows:
        raise CTMaskNetError(f"{text}: lists no image; leave `pairs` out")
    return Pairing(rows=rows, unlabelled=unlabelled, classes=classes)


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
