"""Several sets as one, called ``a+b``: their metadata and dataset dicts.

Patients of two parts are compared by id where both state one numbering, or where both state none
and were prepared as one set. Else ids get the part's numbering or set in front: ``17`` here and
``17`` there are two people.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ctmasknet.errors import CTMaskNetError

#: Stands between the names of the parts.
JOIN = "+"
_CLASSES = ("thing_classes", "image_classes")
_SOURCE = "source"
_LOGGER = logging.getLogger(__name__)


class Part(NamedTuple):
    """A registered set, its metadata, and the folder of the prepared set ("" for others)."""

    name: str
    metadata: Mapping[str, Any]
    folder: str

    @property
    def numbering(self) -> str | None:
        return self.metadata.get("patient_ids")

    @property
    def people(self) -> tuple[str, str]:
        """Equal for parts whose equal ids are one person."""
        if self.numbering:
            return "ids", self.numbering
        return ("folder", self.folder) if self.folder else ("set", self.name)

    @property
    def source(self) -> str:
        """What the part is called where its slices state no source of their own."""
        return Path(self.folder).name or self.name


def names_of_parts(name: str) -> list[str]:
    """``a+b`` -> ``["a", "b"]``; of a single set its name.

    Raises:
        CTMaskNetError: a part without a name, or one twice.
    """
    names = name.split(JOIN)
    twice = [part for part in names if names.count(part) > 1]
    if not all(names) or twice:
        fault = f"{twice[0]} is in it twice" if twice and twice[0] else "a part has no name"
        raise CTMaskNetError(f"data set {name!r}: {fault}; join sets as in a{JOIN}b")
    return names


def joined_metadata(name: str, parts: Sequence[Part]) -> dict[str, Any]:
    """The metadata of the joined set.

    Raises:
        CTMaskNetError: the parts are of unlike tasks, classes or windows.
    """
    first, *others = parts
    for part in parts:
        if not any(part.metadata.get(key) for key in _CLASSES):
            raise CTMaskNetError(
                f"data set {name}: {part.name} has neither thing_classes nor image_classes, so "
                "there is nothing to join it by; leave it out"
            )
    for key in _CLASSES:
        wanted = first.metadata.get(key)
        for part in others:
            found = part.metadata.get(key)
            if (wanted is None) != (found is None):
                raise CTMaskNetError(
                    f"data set {name}: of {first.name} and {part.name} one is of lesions and one "
                    "of classes of slices; join sets of one task"
                )
            if wanted is not None and list(wanted) != list(found):
                raise CTMaskNetError(
                    f"data set {name}: {part.name} has the classes {', '.join(found)}, but "
                    f"{first.name} {', '.join(wanted)}; prepare both with the same classes in the "
                    "same order"
                )
    windows = {part.name: _window(part) for part in parts if _window(part)}
    if len(set(windows.values())) > 1:
        told = ", ".join(f"{one} {window}" for one, window in windows.items())
        raise CTMaskNetError(
            f"data set {name}: its parts were written through unlike windows (center, width in "
            f"HU: {told}); prepare all with one `window`"
        )
    if windows and len(windows) < len(parts):
        unknown = [part.name for part in parts if part.name not in windows]
        _LOGGER.warning(
            "data set %s: %s %s no window, and %s was written through %s (center, width in HU); "
            "datasets/measure_window.py measures whether grey levels mean the same",
            *(name, " and ".join(unknown), "states" if len(unknown) == 1 else "state"),
            *next(iter(windows.items())),
        )
    people = {part.people for part in parts}
    mask_types = {part.metadata.get("mask_type") for part in parts}
    lesions, classes = (first.metadata.get(key) for key in _CLASSES)
    metadata = {
        "evaluator_type": "ct_lesions" if lesions else "ct_slices",
        "parts": [part.name for part in parts],
        "patient_ids": first.numbering if len(people) == 1 else None,
        "window_hu": next(
            (part.metadata["window_hu"] for part in parts if part.name in windows), None
        ),
    }
    if classes:
        metadata["image_classes"] = list(classes)
    if lesions:
        metadata["thing_classes"] = list(lesions)
        metadata["thing_dataset_id_to_contiguous_id"] = {i + 1: i for i in range(len(lesions))}
        metadata["mask_type"] = mask_types.pop() or "" if len(mask_types) == 1 else ""
        if "thing_colors" in first.metadata:
            metadata["thing_colors"] = list(first.metadata["thing_colors"])
    return metadata


def joined_dicts(
    name: str, parts: Sequence[Part], dicts: Sequence[Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """The dataset dicts of all parts, part by part.

    ``image_id`` is of a lesion set the place, from 1; of a slice set the path below the folder that
    all images are in. ``patient`` is told apart as the module says. ``metadata`` of slices have a
    ``source``: their own, or the part's set.

    Args:
        name: of the joined set.
        parts: the sets.
        dicts: the dataset dicts of each.

    Raises:
        CTMaskNetError: parts share a slice.
    """
    lesions = bool(parts[0].metadata.get("thing_classes"))
    found: list[dict[str, Any]] = []
    folders: dict[str, str] = {}
    homes: dict[tuple[str, str], str] = {}
    known: dict[str, dict[str, str]] = {}
    for part, prefix, entries in zip(parts, _prefixes(parts), dicts, strict=True):
        for entry in entries:
            folder, base = os.path.split(entry["file_name"])
            file = folders.setdefault(folder, os.path.abspath(folder)), base
            home = homes.setdefault(file, part.name)
            if home != part.name:
                raise CTMaskNetError(
                    f"data set {name}: {home} and {part.name} both hold {entry['file_name']}; join "
                    "sets that share no slice"
                )
            entry = dict(entry)
            if "patient" in entry:
                entry["patient"] = f"{prefix}{entry['patient']}"
            if not lesions:
                own = entry.get("metadata") or {}
                own = own if own.get(_SOURCE) else {**own, _SOURCE: part.source}
                # A patient has one row of metadata, in whichever parts
                patient = entry.get("patient")
                entry["metadata"] = own if patient is None else known.setdefault(patient, own)
            found.append(entry)
    root = os.path.commonpath(folders.values()) if folders else ""
    below = {folder: os.path.relpath(full, root) for folder, full in folders.items()}
    for number, entry in enumerate(found, start=1):
        folder, base = os.path.split(entry["file_name"])
        path = os.path.normpath(os.path.join(below[folder], base)).replace(os.sep, "/")
        entry["image_id"] = number if lesions else path
    return found


def _window(part: Part) -> str | None:
    window = part.metadata.get("window_hu")
    return None if window is None else "{:g},{:g}".format(*map(float, window))


def _prefixes(parts: Sequence[Part]) -> list[str]:
    """What the ids of each part's patients begin with; nothing where all parts are of one source of
    people."""
    if len({part.people for part in parts}) == 1:
        return ["" for _ in parts]
    called: dict[tuple[str, str], str] = {}
    for part in parts:
        label = part.numbering or part.source
        called.setdefault(part.people, part.name if label in called.values() else label)
    return [f"{called[part.people]}:" for part in parts]
