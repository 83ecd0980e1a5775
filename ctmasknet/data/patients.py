"""Patients that registered data sets share, wherever their ids can be compared.

An id such as ``17`` says who somebody is only within one numbering. A prepared set names its
numbering in ``info.patient_ids``; ids of two sets are compared where these names agree, and nowhere
else (``datasets/README.md``, "Leaks").
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ctmasknet.data.registry import dataset_dicts, parts_of, patients_of, source_of
from ctmasknet.data.splits import check_disjoint, spelled_otherwise, tell_spellings
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import read_json

logger = logging.getLogger(__name__)
#: Numbering of the CNCB lesion set, which is not that of the CNCB scans in COVIDx-CT: the lists say
#: so (``tests/data/test_patients.py``).
CNCB_LESIONS = "cncb_lesions"
COVIDX_CT = "covidx_ct"
#: What the numberings of phantoms begin with.
PHANTOM_IDS = "phantom-v"
#: Beside phantoms stands the recipe they were made by (see datasets/README.md).
PHANTOM_RECIPE = "phantom.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
#: Values of ``DATASETS.SHARED_PATIENTS``.
REFUSE, WARN, STRICT = "refuse", "warn", "strict"
#: Ends the message about a shared patient.
ADVICE = "or set DATASETS.SHARED_PATIENTS warn to go on all the same"


class Patients(NamedTuple):
    """The patients of a registered set.

    ``ids`` is None where its slices name no patient; ``numbering`` is the name the set states for
    them, None where it states none; ``source`` is the folder of the prepared set, ``""`` for
    others.
    """

    name: str
    ids: frozenset[str] | None
    numbering: str | None
    source: str

    @classmethod
    def of(cls, name: str) -> Patients:
        """Look a registered set up.

        Raises:
            CTMaskNetError: no such set, or it cannot be used.
        """
        ids, numbering = patients_of(name)
        return cls(name, ids if ids is None else frozenset(ids), numbering, source_of(name))

    def comparable(self, other: Patients) -> bool:
        """Whether equal ids mean the same person: both sets state one numbering, or neither states
        any and they were prepared as one."""
        if self.ids is None or other.ids is None:
            return False
        if self.numbering is None and other.numbering is None:
            return self.source == other.source
        return self.numbering == other.numbering

    @property
    def described(self) -> str:
        return f"{self.name} (ids: {self.numbering or 'not stated'})"


class Overlap(NamedTuple):
    """What is known of the patients that two sets share: their ids, or that nothing is.

    ``spelled`` pairs ids of the first and the second that may be one patient spelled otherwise
    (:func:`~ctmasknet.data.splits.spelled_otherwise`).
    """

    first: Patients
    second: Patients
    shared: list[str]
    comparable: bool
    spelled: list[tuple[str, str]]


def overlaps(names: Sequence[str]) -> list[Overlap]:
    """Every two of the named sets, held against each other; of joined sets every part against those
    of the other.

    Raises:
        CTMaskNetError: no such set, or it cannot be used.
    """
    sets = [list(map(Patients.of, parts_of(name))) for name in dict.fromkeys(names)]
    pairs = (itertools.product(*two) for two in itertools.combinations(sets, 2))
    return [
        Overlap(a, b, sorted(a.ids & b.ids), True, spelled_otherwise(a.ids, b.ids))
        if a.comparable(b)
        else Overlap(a, b, [], False, [])
        for a, b in dict.fromkeys(itertools.chain.from_iterable(pairs))
    ]


def check_patients_disjoint(names: Sequence[str], on_shared: str = REFUSE) -> None:
    """Check that no patient is in two of the named sets.

    Sets whose ids cannot be compared are named in the log, and so are ids that may be one patient
    spelled otherwise.

    Args:
        names: registered sets.
        on_shared: ``refuse`` raises, ``warn`` logs, ``strict`` raises for patients spelled
            otherwise too.

    Raises:
        CTMaskNetError: names the patient and both sets.
    """
    for overlap in overlaps(names):
        nameless = [part.name for part in overlap[:2] if part.ids is None]
        if nameless:
            logger.warning(
                "%s names no patients (no 'patient' in its dataset dicts), so nothing vouches "
                "that %s and %s share none; name them, or compare the pictures with "
                "datasets/check_leaks.py",
                *(" and ".join(nameless), overlap.first.name, overlap.second.name),
            )
        elif not overlap.comparable:
            log_not_comparable(overlap.first.described, overlap.second.described)
        if overlap.shared:
            try:
                check_disjoint({part.name: part.ids for part in overlap[:2]})
            except CTMaskNetError as error:
                report(f"{error}, {ADVICE}", on_shared)
        where = f"{overlap.first.name} and {overlap.second.name}"
        tell_spellings(
            overlap.spelled, where, on_shared == STRICT, "prepare the sets with one spelling"
        )


def check_held_out(
    train: Sequence[str], val: Sequence[str], test: Sequence[str], on_shared: str = REFUSE
) -> None:
    """Check that the sets of one run share no patient and no slice.

    A set may serve twice for validation and test, as the authors' lesion lists do. Validation on
    training slices would choose the model that has learnt them by heart; a test on them says how
    well they are learnt, and is no more than logged.

    Args:
        train, val, test: registered sets; of joined ones the parts are looked at.
        on_shared: see :func:`check_patients_disjoint`.

    Raises:
        CTMaskNetError: names the patient or slice and both sets.
    """
    train, val, test = (
        [part for name in names for part in parts_of(name)] for names in (train, val, test)
    )
    pairs = [(a, b) for b in (*val, *test) for a in train if b not in train]
    pairs += [(a, b) for a in val for b in test if b not in (*val, *train) and a not in train]
    for pair in dict.fromkeys(pairs):
        check_patients_disjoint(pair, on_shared)
    for held_out in dict.fromkeys((*val, *test)):
        key, on_same = ("VAL", on_shared) if held_out in val else ("TEST", WARN)
        for name in dict.fromkeys(train):
            if same := _same_slices(name, held_out):
                report(
                    f"DATASETS.TRAIN and DATASETS.{key} hold the same slices: {same}; name a set "
                    f"of other patients in DATASETS.{key}, {ADVICE}",
                    on_same,
                )


def _same_slices(first: str, second: str) -> str | None:
    """What two registered sets have in common, in words, whatever the names of their files."""
    if first == second:
        return f"{first} is in both"
    known = set(_files_of(first))
    shared = [path for file, path in _files_of(second).items() if file in known]
    if not shared:
        return None
    return f"{len(shared)} of {second} are in {first} too, such as {shared[0]}"


def _files_of(name: str) -> dict[tuple[int, int], str]:
    """File on the disk (device, inode) -> its path, of the images that are there."""
    files = {}
    for entry in dataset_dicts(name):
        with contextlib.suppress(OSError, KeyError):
            found = os.stat(entry["file_name"])
            files[found.st_dev, found.st_ino] = entry["file_name"]
    return files


def report(message: str, on_shared: str) -> None:
    """Raise :class:`CTMaskNetError`, or only log, as ``DATASETS.SHARED_PATIENTS`` says."""
    if on_shared != WARN:
        raise CTMaskNetError(message)
    logger.warning("%s", message)


def log_not_comparable(first: str, second: str) -> None:
    """Tell that nothing can be said about two sets, and what could be done."""
    logger.info(
        "Patients of %s and %s are not compared: their numberings differ or are not stated. Where "
        "they are one, prepare both with the same `patient_ids`; datasets/check_leaks.py compares "
        "the pictures.",
        first,
        second,
    )


def overlap_lines(found: Iterable[Overlap]) -> list[str]:
    """What :func:`overlaps` found, a line for every two sets."""
    lines = []
    for first, second, shared, comparable, spelled in found:
        nameless = [part.name for part in (first, second) if part.ids is None]
        if nameless:
            said = f"not compared ({' and '.join(nameless)} names none)"
        elif not comparable:
            ids = " and ".join(part.numbering or "not stated" for part in (first, second))
            said = f"not compared (ids: {ids})"
        elif shared:
            said = f"{len(shared)} shared: {first_few(shared)}"
        else:
            said = "none shared"
        if spelled:
            pairs = first_few(f"{one!r} and {other!r}" for one, other in spelled)
            said += f"; may be one, spelled otherwise: {pairs}"
        lines.append(f"patients of {first.name} and {second.name}: {said}")
    return lines


def first_few(values: Iterable[str], few: int = 3) -> str:
    """``"1, 2, 3 (and 4 more)"``."""
    values = sorted(values)
    more = f" (and {len(values) - few} more)" if len(values) > few else ""
    return ", ".join(values[:few]) + more


def numbering_of(
    images: str | os.PathLike, given: str | None = None, published: str | None = None
) -> str | None:
    """The name of the numbering that the patients of a set belong to.

    Args:
        images: folder of the images. Phantoms are known by the recipe in or above it: those of one
            seed are numbered together, and no number is in both of their sets.
        given: the user's word, which goes before everything else.
        published: the numbering that the file names are of, when they have a published set's form.

    Returns:
        None when nothing states it: such ids are comparable within the prepared set alone.

    Raises:
        CTMaskNetError: ``given`` is no name.
    """
    if given is not None:
        if not _NAME.fullmatch(given):
            raise CTMaskNetError(
                f"`patient_ids` {given!r}: use letters, digits, '_', '-' and '.' only"
            )
        return given
    recipe = phantom_recipe(images)
    if recipe is not None:
        return f"{PHANTOM_IDS}{recipe.get('version')}-seed{recipe.get('seed')}"
    return published


def phantom_recipe(images: str | os.PathLike) -> dict | None:
    """The recipe of the phantoms in a folder, or in the folder that holds it; None for others."""
    for folder in (Path(images), Path(images).parent):
        try:
            recipe = read_json(folder / PHANTOM_RECIPE)["recipe"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(recipe, dict):
            return recipe
    return None
