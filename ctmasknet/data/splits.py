"""Splits that keep every patient whole: by seeded shares, or by published list files.

Legend: P patients, K splits, F features counted for each patient (items in all, then items of each
stratum).
"""

from __future__ import annotations

import logging
import math
import os
import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctmasknet.csv_tables import read_csv_rows
from ctmasknet.ct.find import natural_key
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import has_control_character, plain_file

#: The names a split may have; data sets are registered as ``<name>_<split>``.
SPLITS = ("train", "val", "test")
_MAX_PASSES = 20
_LAST_NUMBER = re.compile(r"\d+(?=\D*$)")
_LOGGER = logging.getLogger(__name__)


def split_patients(
    patients: Mapping[Hashable, str],
    shares: Mapping[str, float],
    seed: int,
    strata: Mapping[Hashable, Hashable] | None = None,
    placed: Mapping[str, str] | None = None,
) -> dict[str, list]:
    """Divide items among splits so that no patient is in two of them.

    Patients are dealt in seeded random order, each to the split where it lowers the chi-square
    distance between the item counts wanted and reached, over all items and within each stratum.
    Then single patients are moved, and pairs exchanged, for as long as that lowers the distance.

    Args:
        patients: the patient of each item (slice).
        shares: the share of the items wanted in each split, each in (0, 1], with sum 1.
        seed: of the dealing order.
        strata: a value of each item (class, or which lesions it shows) whose frequencies all splits
            shall share.
        placed: split of some patients, who stay there; the others make up for it. Patients of no
            item do not matter.

    Returns:
        The items of each split, in the order of ``patients``. No split is empty.

    Raises:
        CTMaskNetError: bad shares, no items, fewer patients than splits, or a patient placed in a
            split without a share.
    """
    _check_shares(shares)
    if not patients:
        raise CTMaskNetError("split: the data set is empty; there is nothing to divide")
    return _divide(patients, shares, seed, strata, placed)


def fold_patients(
    patients: Mapping[Hashable, str],
    count: int,
    seed: int,
    strata: Mapping[Hashable, Hashable] | None = None,
) -> list[list]:
    """Divide items among ``count`` folds of one size, as :func:`split_patients` does.

    Raises:
        CTMaskNetError: fewer patients than folds.
    """
    known = len(set(patients.values()))
    if known < count:
        raise CTMaskNetError(f"{known} patients cannot fill {count} folds; ask for fewer folds")
    shares = {str(number): 1 / count for number in range(1, count + 1)}
    return list(_divide(patients, shares, seed, strata).values())


def _divide(
    patients: Mapping[Hashable, str],
    shares: Mapping[str, float],
    seed: int,
    strata: Mapping[Hashable, Hashable] | None = None,
    placed: Mapping[str, str] | None = None,
) -> dict[str, list]:
    """See :func:`split_patients`; shares have any names."""
    names = list(shares)
    counts, row_of = _count(patients, strata)
    if len(counts) < len(names):
        raise CTMaskNetError(
            f"split: {len(counts)} patient(s) cannot fill the {len(names)} splits "
            f"{', '.join(names)}; "
            "ask for fewer splits or add patients"
        )
    share = np.array([shares[name] for name in names])
    home = np.full(len(counts), -1)
    for patient in sorted(row_of.keys() & (placed or {}).keys()):
        if placed[patient] not in names:
            raise CTMaskNetError(
                f"split: patient {patient} is placed in {placed[patient]}, which has no share; "
                f"give {placed[patient]} one"
            )
        home[row_of[patient]] = names.index(placed[patient])
    split_of = _deal(counts, share, np.random.default_rng(seed), home)
    for index, name in enumerate(names):
        if not (split_of == index).any():
            raise CTMaskNetError(
                f"split {name}: stays empty, all patients are placed elsewhere; leave it out"
            )
    result: dict[str, list] = {name: [] for name in names}
    for item, patient in patients.items():
        result[names[split_of[row_of[patient]]]].append(item)
    return result


def check_disjoint(patients_by_split: Mapping[str, Iterable[str]]) -> None:
    """Check that no patient is in two splits.

    Raises:
        CTMaskNetError: names the first such patient, both splits, and how many more there are.
    """
    home: dict[str, str] = {}
    shared: list[tuple[str, str, str]] = []
    for split, patients in patients_by_split.items():
        for patient in sorted(set(patients)):
            if patient in home:
                shared.append((patient, home[patient], split))
            else:
                home[patient] = split
    if shared:
        patient, first, second = shared[0]
        more = (
            f" (and {len(shared) - 1} more patients are in two splits)" if len(shared) > 1 else ""
        )
        raise CTMaskNetError(
            f"patient {patient} is in two splits, {first} and {second}{more}; "
            "keep all slices of a patient in one split"
        )


def spelled_otherwise(
    patients: Iterable[str], others: Iterable[str] | None = None
) -> list[tuple[str, str]]:
    """Pairs of unlike ids that may be one patient: they meet after Unicode's NFKC, case folding,
    stripping and without the leading zeros of their numbers.

    Args:
        patients: ids of a set.
        others: those of another, which are looked for among the first; default: all of one set are
            held against each other, each later spelling against the first.
    """
    spellings: dict[str, list[str]] = {}
    for patient in sorted(set(patients)):
        spellings.setdefault(_plain_spelling(patient), []).append(patient)
    if others is None:
        return [(first, one) for first, *more in spellings.values() for one in more]
    return [
        (patient, other)
        for other in sorted(set(others))
        for patient in spellings.get(_plain_spelling(other), ())
        if patient != other
    ]


def _plain_spelling(patient: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", patient).casefold())
    return re.sub(r"(?<!\d)0+(?=\d)", "", folded.strip())


def tell_spellings(
    pairs: Sequence[tuple[str, str]], where: str, strict: bool, remedy: str = "write them alike"
) -> None:
    """Log the pairs of :func:`spelled_otherwise`, or refuse them.

    Args:
        pairs: none is no word.
        where: the sets they are of, for the message.
        strict: refuse.
        remedy: what else can be done.

    Raises:
        CTMaskNetError: with ``strict``; names the first pair and how many more there are.
    """
    if not pairs:
        return
    (first, second), *more = pairs
    message = (
        f"patients {first!r} and {second!r} of {where} may be one, spelled otherwise"
        + (f" (and {len(more)} more pairs)" if more else "")
        + f"; they count as two and may stand on both sides of a split: {remedy}"
    )
    if strict:
        raise CTMaskNetError(message)
    _LOGGER.warning("%s", message)


def tell_numbered(files: Iterable[str]) -> None:
    """Log files that are patients of their own though their names differ in the last number only:
    they may be several of one patient. So may all be where all names are numbered alike.

    Args:
        files: paths or keys.
    """
    groups: dict[str, list[str]] = {}
    for file in sorted(set(files)):
        groups.setdefault(_LAST_NUMBER.sub("", os.path.basename(file)), []).append(file)
    alike = [group for group in groups.values() if len(group) > 1]
    if alike and len(groups) == 1:
        first, second, *_ = alike[0]
        _LOGGER.warning(
            "all %d files are patients of their own and numbered alike, such as %s and %s: files "
            "may be of one patient, and would be on both sides of the split then; where some are, "
            "say so with `patient_pattern` or `groups`",
            *(len(alike[0]), first, second),
        )
    elif alike:
        first, second, *_ = min(alike, key=len)
        _LOGGER.warning(
            "%d files are patients of their own whose names differ from another's in the last "
            "number only, such as %s and %s; where these are of one patient, say so with "
            "`patient_pattern` or `groups`",
            *(sum(map(len, alike)), first, second),
        )


def read_list(path: str | os.PathLike) -> list[tuple[int, str]]:
    """Read a list file: one entry a line, blank lines skipped.

    Returns:
        ``(line number, counted from 1; the line without surrounding blanks)`` of each entry.

    Raises:
        CTMaskNetError: the file is missing, is no UTF-8 text, holds no entry, or holds an entry
            twice.
    """
    path = Path(path)
    try:
        text = plain_file(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CTMaskNetError(f"{path}: no such list file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CTMaskNetError(f"{path}: cannot be read as a text list ({error})") from None
    entries: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    # Not splitlines, which also breaks names at form feeds and the like
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        line = line.strip()
        if not line:
            continue
        if has_control_character(line.replace("\t", " ")):
            raise CTMaskNetError(f"{path}:{number}: {line!r} holds a control character; correct it")
        if line in seen:
            raise CTMaskNetError(
                f"{path}:{number}: {line} is already on line {seen[line]}; remove one"
            )
        seen[line] = number
        entries.append((number, line))
    if not entries:
        raise CTMaskNetError(f"{path}: the list is empty; it needs one file name a line")
    return entries


@dataclass(frozen=True)
class FoldList:
    """The lines of a table of folds that are one split, where a list file could stand."""

    path: str
    folds: tuple[str, ...]
    lines: tuple[tuple[int, str], ...]

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return f"{self.path} ({', '.join(self.folds)})"


def read_folds(
    path: str | os.PathLike,
    test: str,
    val: str | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, FoldList]:
    """Read a CSV file with the columns ``stem,fold`` for one of its folds.

    Args:
        path: of the file.
        test: the fold that is the test split.
        val: the one that is for validation; default: none is. The others are for training.
        names: column -> what the file calls it.

    Returns:
        what stands for the list file of each split.

    Raises:
        CTMaskNetError: the file is missing or lacks a column or a cell, there is no such fold, or
            none is left for training.
    """
    of_fold: dict[str, list[tuple[int, str]]] = {}
    for number, row in read_csv_rows(path, ("stem", "fold"), what="folds file", names=names or {}):
        if not row["stem"] or not row["fold"]:
            raise CTMaskNetError(f"{path}:{number}: needs both a stem and a fold")
        of_fold.setdefault(row["fold"], []).append((number, row["stem"]))
    if test == val:
        raise CTMaskNetError(f"`val_fold` {val}: is the test fold; name another")
    folds = {"train": [fold for fold in of_fold if fold not in (test, val)]}
    for split, fold in (("val", val), ("test", test)):
        if fold is None:
            continue
        if fold not in of_fold:
            raise CTMaskNetError(
                f"`{split}_fold` {fold}: {path} has no such fold, but "
                f"{', '.join(sorted(of_fold, key=natural_key))}"
            )
        folds[split] = [fold]
    if not folds["train"]:
        raise CTMaskNetError(f"{path}: has no further fold to train on; add one")
    return {
        split: FoldList(
            *(os.fspath(path), tuple(own)), tuple(line for fold in own for line in of_fold[fold])
        )
        for split, own in folds.items()
    }


def parse_shares(text: str) -> dict[str, float]:
    """Read ``train:0.8,val:0.2``.

    Raises:
        CTMaskNetError: another form, an unknown split or a bad share.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition(":")
        try:
            share = float(value)
        except ValueError:
            raise CTMaskNetError(
                f"split {text}: {part!r} is not NAME:SHARE, such as train:0.8"
            ) from None
        if name in shares:
            raise CTMaskNetError(f"split {text}: {name} is given twice")
        shares[name] = share
    _check_shares(shares)
    return shares


#: What lists of others call the splits, in small letters.
_CALLED = {
    "train": ("training", "tr"),
    "val": ("valid", "validation", "dev", "development"),
    "test": ("testing", "ts", "holdout", "hold-out"),
}


def split_named(text: str) -> str:
    """The split that ``Training``, ``valid`` or ``holdout`` means; what means none is itself."""
    word = text.strip().lower()
    return next((name for name, words in _CALLED.items() if word in (name, *words)), text)


def check_split_name(name: str) -> None:
    """Raise :class:`CTMaskNetError` unless ``name`` is one of :data:`SPLITS`."""
    if name not in SPLITS:
        raise CTMaskNetError(f"split {name!r}: unknown; the splits are {', '.join(SPLITS)}")


def _check_shares(shares: Mapping[str, float]) -> None:
    for name, share in shares.items():
        check_split_name(name)
        if not 0 < share <= 1:
            raise CTMaskNetError(f"split {name}: the share {share} is not in (0, 1]")
    total = sum(shares.values())
    if not math.isclose(total, 1, abs_tol=1e-6):
        raise CTMaskNetError(
            f"split: the shares {dict(shares)} sum to {total:g}; they must sum to 1"
        )


def _count(
    patients: Mapping[Hashable, str], strata: Mapping[Hashable, Hashable] | None
) -> tuple[np.ndarray, dict[str, int]]:
    """Counts (P, F), and each patient's row; patients and strata in order of appearance."""
    row_of: dict[str, int] = {}
    column_of: dict[Hashable, int] = {}
    cells: list[tuple[int, int]] = []
    for item, patient in patients.items():
        row = row_of.setdefault(patient, len(row_of))
        cells.append((row, 0))
        if strata is not None:
            cells.append((row, 1 + column_of.setdefault(strata[item], len(column_of))))
    counts = np.zeros((len(row_of), 1 + len(column_of)))
    np.add.at(counts, tuple(np.array(cells).T), 1)
    return counts, row_of


def _deal(
    counts: np.ndarray, share: np.ndarray, rng: np.random.Generator, placed: np.ndarray
) -> np.ndarray:
    """Split index (P,) of each patient with features ``counts`` (P, F), for shares (K,); those
    ``placed`` (P,) at 0 or above are not moved."""
    wanted = share[:, None] * counts.sum(axis=0)
    weight = 1 / np.maximum(wanted, 1)
    # excess[k, f]: items of split k with feature f above (below, if negative) the number wanted.
    excess = -wanted
    split_of = placed.copy()
    free = placed < 0
    order = rng.permutation(len(counts))
    order = order[free[order]]
    for split in range(len(share)):
        excess[split] += counts[placed == split].sum(axis=0)

    def gain(row: np.ndarray) -> np.ndarray:
        """Change (K,) of the distance when features ``row`` (F,) join each split."""
        return (weight * (2 * excess * row + row**2)).sum(axis=1)

    def move(patient: int, target: int) -> None:
        excess[split_of[patient]] -= counts[patient]
        excess[target] += counts[patient]
        split_of[patient] = target

    for patient in order:
        target = int(np.argmin(gain(counts[patient])))
        excess[target] += counts[patient]
        split_of[patient] = target
    _fill_empty_splits(split_of, counts, len(share), move, free)

    # Patients of equal counts in one split can be moved alike: where none of them gains, the others
    # need no look until something has moved. Without this, 100,000 patients would take minutes.
    kind = np.unique(counts, axis=0, return_inverse=True)[1].reshape(-1).tolist()
    settled: set[tuple[int, int]] = set()
    for _ in range(_MAX_PASSES):
        changed = False
        for patient in order:
            home = int(split_of[patient])
            if (home, kind[patient]) in settled:
                continue
            row = counts[patient]
            leave = (weight[home] * (-2 * excess[home] * row + row**2)).sum()
            change = leave + gain(row)
            change[home] = 0
            if (split_of == home).sum() == 1:
                change[:] = 0
            target = int(np.argmin(change))
            if change[target] < -1e-9:
                move(patient, target)
                settled.clear()
                changed = True
                continue
            # Exchange with patient q of split k: home changes by d = row_q - row, split k by -d.
            others = np.flatnonzero((split_of != home) & free)
            d = counts[others] - row
            away = split_of[others]
            change = (weight[home] * (2 * excess[home] * d + d**2)).sum(axis=1)
            change += (weight[away] * (-2 * excess[away] * d + d**2)).sum(axis=1)
            if len(change) and change.min() < -1e-9:
                partner = int(others[np.argmin(change)])
                partner_home = int(split_of[partner])
                move(partner, home)
                move(patient, partner_home)
                settled.clear()
                changed = True
            else:
                settled.add((home, kind[patient]))
        if not changed:
            break
    return split_of


def _fill_empty_splits(
    split_of: np.ndarray, counts: np.ndarray, splits: int, move, free: np.ndarray
) -> None:
    """Give each empty split the smallest free patient of the split with most of them; no split is
    emptied for it."""
    for empty in range(splits):
        number = np.bincount(split_of, minlength=splits)
        spare = np.bincount(split_of[free], minlength=splits) * (number > 1)
        if not number[empty] and spare.any():
            members = np.flatnonzero((split_of == int(spare.argmax())) & free)
            move(int(members[np.argmin(counts[members, 0])]), empty)
