"""Patients that registered data sets share, wherever their ids can be compared."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ctmasknet.data.datasets import patients_of, source_of
from ctmasknet.data.splits import check_disjoint
from ctmasknet.errors import CTMaskNetError

logger = logging.getLogger(__name__)

#: Values of ``DATASETS.SHARED_PATIENTS``.
REFUSE, WARN = "refuse", "warn"

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
    """What is known of the patients that two sets share: their ids, or that nothing is."""

    first: Patients
    second: Patients
    shared: list[str]
    comparable: bool


def overlaps(names: Sequence[str]) -> list[Overlap]:
    """Every two of the named sets, held against each other.

    Raises:
        CTMaskNetError: no such set, or it cannot be used.
    """
    sets = [Patients.of(name) for name in dict.fromkeys(names)]
    return [
        Overlap(a, b, sorted(a.ids & b.ids), True) if a.comparable(b) else Overlap(a, b, [], False)
        for a, b in itertools.combinations(sets, 2)
    ]


def check_patients_disjoint(names: Sequence[str], on_shared: str = REFUSE) -> None:
    """Check that no patient is in two of the named sets.

    Sets whose ids cannot be compared are named in the log.

    Args:
        names: registered sets.
        on_shared: ``refuse`` raises, ``warn`` logs.

    Raises:
        CTMaskNetError: names the patient and both sets.
    """
    for overlap in overlaps(names):
        if not overlap.comparable:
            log_not_comparable(overlap.first.described, overlap.second.described)
        if overlap.shared:
            try:
                check_disjoint({part.name: part.ids for part in overlap[:2]})
            except CTMaskNetError as error:
                report(f"{error}, {ADVICE}", on_shared)


def check_held_out(
    train: Sequence[str], val: Sequence[str], test: Sequence[str], on_shared: str = REFUSE
) -> None:
    """Check that the sets of one run share no patient.

    A set may serve twice, for validation and for test as the authors' lesion lists do, or to see
    how well the training slices are learnt.

    Args:
        train, val, test: registered sets.
        on_shared: see :func:`check_patients_disjoint`.

    Raises:
        CTMaskNetError: names the patient and both sets.
    """
    pairs = [(a, b) for b in (*val, *test) for a in train if b not in train]
    pairs += [(a, b) for a in val for b in test if b not in (*val, *train) and a not in train]
    for pair in dict.fromkeys(pairs):
        check_patients_disjoint(pair, on_shared)


def report(message: str, on_shared: str) -> None:
    """Raise :class:`CTMaskNetError`, or only log, as ``DATASETS.SHARED_PATIENTS`` says."""
    if on_shared != WARN:
        raise CTMaskNetError(message)
    logger.warning("%s", message)


def log_not_comparable(first: str, second: str) -> None:
    """Tell that nothing can be said about two sets, and what could be done."""
    logger.info(
        "Patients of %s and %s are not compared: their numberings differ or are not stated. Where "
        "they are one, prepare both with the same --patient-ids; datasets/check_leaks.py compares "
        "the pictures.",
        first,
        second,
    )


def overlap_lines(found: Iterable[Overlap]) -> list[str]:
    """What :func:`overlaps` found, a line for every two sets."""
    lines = []
    for first, second, shared, comparable in found:
        if not comparable:
            ids = " and ".join(part.numbering or "not stated" for part in (first, second))
            said = f"not compared (ids: {ids})"
        elif shared:
            said = f"{len(shared)} shared: {first_few(shared)}"
        else:
            said = "none shared"
        lines.append(f"patients of {first.name} and {second.name}: {said}")
    return lines


def first_few(values: Iterable[str], few: int = 3) -> str:
    """``"1, 2, 3 (and 4 more)"``."""
    values = sorted(values)
    more = f" (and {len(values) - few} more)" if len(values) > few else ""
    return ", ".join(values[:few]) + more
