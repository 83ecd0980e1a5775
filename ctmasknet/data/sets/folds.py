"""Folds of a set, called ``a@1of5seed0`` (held out) and ``a@not1of5seed0`` (all others).

Patients are whole, folds alike in size and in the shares of their classes (of a lesion set, of
slices with the same classes of lesions), and the same whoever asks: they depend on the set, the
number of folds and the seed alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ctmasknet.data.splits import fold_patients
from ctmasknet.errors import CTMaskNetError

_NAME = re.compile(r"(.+)@(not)?([1-9]\d{0,3})of([1-9]\d{0,3})seed(\d{1,10})")
#: Of the last set divided: what its folds depend on, and the fold of each slice.
_last: tuple[Any, list[int]] = (None, [])


class SetFold(NamedTuple):
    """SetFold ``number`` (from 1) of ``count`` of the set ``base``, or with ``rest`` all others."""

    base: str
    number: int
    count: int
    seed: int
    rest: bool

    @property
    def name(self) -> str:
        return f"{self.base}@{'not' * self.rest}{self.number}of{self.count}seed{self.seed}"


def fold_named(name: str) -> SetFold | None:
    """What a name says of a fold; None of a whole set.

    Raises:
        CTMaskNetError: fewer than two folds, or none of this number.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    base, rest, number, count, seed = match.groups()
    fold = SetFold(base, int(number), int(count), int(seed), rest is not None)
    if not 1 <= fold.number <= fold.count or fold.count < 2:
        raise CTMaskNetError(f"data set {name}: no such fold; give one of 2 or more, from 1")
    return fold


def fold_dicts(fold: SetFold, dicts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The dataset dicts of a fold, in the order of the set's.

    Raises:
        CTMaskNetError: slices that tell no patient, or neither class nor lesions; fewer patients
            than folds; a class, of slices or lesions, of one fold alone, which a model of the
            others would never see.
    """
    global _last
    told = [(entry.get("patient"), _classes_of(entry)) for entry in dicts]
    if any(None in pair for pair in told):
        raise CTMaskNetError(
            f"data set {fold.base}: has slices without a patient or a class (or lesions), which "
            "folds are made by; give every slice both"
        )
    known = (told, fold.count, fold.seed)
    if _last[0] != known:
        patients = {index: str(patient) for index, (patient, _) in enumerate(told)}
        strata = {index: labels for index, (_, labels) in enumerate(told)}
        try:
            folds = fold_patients(patients, fold.count, fold.seed, strata)
        except CTMaskNetError as error:
            raise CTMaskNetError(f"data set {fold.base}: {error}") from None
        homes = [0] * len(told)
        for number, members in enumerate(folds, start=1):
            for index in members:
                homes[index] = number
        for label in sorted({label for _, labels in told for label in labels}):
            if len({home for home, pair in zip(homes, told, strict=True) if label in pair[1]}) < 2:
                raise CTMaskNetError(
                    f"data set {fold.base}: class {label} has too few patients for folds: all its "
                    "slices are in one, and a model of the others would never see it; add patients"
                )
        _last = (known, homes)
    return [
        entry
        for home, entry in zip(_last[1], dicts, strict=True)
        if (home == fold.number) != fold.rest
    ]


def _classes_of(entry: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The class of a slice, or those of its lesions; None where it states neither."""
    if entry.get("label") is not None:
        return (entry["label"],)
    lesions = entry.get("annotations")
    return None if lesions is None else tuple(sorted({one["category_id"] for one in lesions}))
