"""Near-identical slices of different patients: a picture saved twice, or neighbours of one scan.

Patient ids cannot tell when a set has none, or when one person came under two names; a perceptual
hash can.

Legend: n, m pictures; 256 bits a hash, kept as 4 words of 64.
"""

from __future__ import annotations

import csv
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image
from tabulate import tabulate

from ctmasknet.console.progress import tracked
from ctmasknet.csv_tables import safe_cell
from ctmasknet.ct.pictures import raise_problems, read_grey
from ctmasknet.data.registry import dataset_dicts
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write, writing
from ctmasknet.workers import map_in_processes

#: Side of the block of low frequencies whose signs are the hash.
_SIDE = 16
HASH_BITS = _SIDE**2
_WORDS = HASH_BITS // 64
#: Largest number of unlike bits called near-identical (``datasets/README.md`` says what it finds).
DEFAULT_DISTANCE = 28
#: Rows and columns of hashes held against each other at once: their counts stay in a core's cache.
#: On one core, scikit-learn's ball tree and SciPy's distances take some 25 times as long, a
#: product of float32 matrices 1.6 times (and 1 KB a hash).
_ROWS, _COLUMNS = 64, 4096
#: More pairs than anybody can look at; they would also fill the memory.
_MOST_PAIRS = 5_000_000
#: Files of a set and the patient of each.
Pictures = Mapping[str, str]


class NearDuplicate(NamedTuple):
    """Two slices of different patients or sets whose hashes differ in ``distance`` of 256 bits."""

    first_set: str
    first_patient: str
    first_file: str
    second_set: str
    second_patient: str
    second_file: str
    distance: int


class AlikePatients(NamedTuple):
    """Two patients with near-identical slices: how many pairs, and the smallest distance."""

    first_set: str
    first_patient: str
    second_set: str
    second_patient: str
    pairs: int
    distance: int


def perceptual_hash(grey: np.ndarray) -> np.ndarray:
    """The perceptual hash of a picture: signs of its low DCT frequencies against their median.

    A change of size, window or compression moves few bits; a picture that is mirrored, turned or
    cut otherwise is another one. A picture of one grey level has no bit set.

    Args:
        grey: (H, W) uint8.

    Returns:
        (4,) uint64.
    """
    if grey.min() == grey.max():  # its mean would be a bit, and all such pictures alike
        return np.zeros(_WORDS, np.uint64)
    bits = imagehash.phash(Image.fromarray(grey), _SIDE).hash
    return np.packbits(bits.ravel()).view(np.uint64)


def perceptual_hashes(paths: Iterable[str | os.PathLike], workers: int = 1) -> np.ndarray:
    """:func:`perceptual_hash` of each 8-bit picture file, (n, 4) uint64.

    Args:
        paths: the files.
        workers: number of processes; 1 stays in this one.

    Raises:
        CTMaskNetError: names the first file that cannot be read and counts the others.
    """
    paths = [os.fspath(path) for path in paths]
    hashes = list(map_in_processes(_hash_of_file, paths, workers, title="hash"))
    raise_problems([value for value in hashes if isinstance(value, str)], len(paths))
    return np.array(hashes, np.uint64).reshape(len(hashes), _WORDS)


def close_pairs(
    first: np.ndarray, second: np.ndarray, distance: int, workers: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of hashes that differ in at most ``distance`` bits; exact, every pair is looked at.

    Hashes of pictures without content (no bit set) are in no pair.

    Args:
        first: (n, 4) uint64.
        second: (m, 4) uint64.
        distance: 0 to 256.
        workers: number of threads.

    Returns:
        rows of ``first``, rows of ``second`` and unlike bits, (k,) each, ordered by the rows.

    Raises:
        CTMaskNetError: a distance out of range, or more pairs than memory should hold.
    """
    if not 0 <= distance <= HASH_BITS:
        raise CTMaskNetError(f"distance {distance}: expected 0 to {HASH_BITS} unlike bits")
    keep = [np.flatnonzero(hashes.any(axis=1)) for hashes in (first, second)]
    # Word by word, so that each is one run of memory.
    a, b = (np.ascontiguousarray(h[k].T) for h, k in zip((first, second), keep, strict=True))
    found, count = [], 0
    starts = range(0, a.shape[1], _ROWS)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        close = pool.map(functools.partial(_close_to_rows, a, b, distance), starts)
        for rows in tracked(close, "comparing", len(starts), unit="part"):
            found.append(rows)
            count += rows.shape[1]
            if count > _MOST_PAIRS:
                pool.shutdown(cancel_futures=True)
                raise CTMaskNetError(
                    f"distance {distance}: more than {_MOST_PAIRS:,} pairs of slices are that "
                    "close; one set is a copy of the other, or the distance is too large"
                )
    i, j, unlike = np.concatenate(found, axis=1) if found else np.zeros((3, 0), int)
    order = np.lexsort((j, i))
    return keep[0][i[order]], keep[1][j[order]], unlike[order]


def find_near_duplicates(
    sets: Mapping[str, Pictures],
    distance: int = DEFAULT_DISTANCE,
    workers: int = 1,
    within: bool = False,
    hashes: Mapping[str, np.ndarray] | None = None,
) -> list[NearDuplicate]:
    """Near-identical pictures across sets.

    Args:
        sets: the files of each set with their patients.
        distance: largest number of unlike bits, 0 to 256.
        workers: number of processes that hash, and of threads that compare.
        within: pictures of unlike patients of one set count too.
        hashes: of the files of each set, (n, 4), where they are known already.

    Returns:
        The pairs, the closest first.

    Raises:
        CTMaskNetError: a bad distance, a file that cannot be read, or far too many pairs.
    """
    hashes = hashes or {name: perceptual_hashes(files, workers) for name, files in sets.items()}
    pairs: list[NearDuplicate] = []
    for first, second in itertools.combinations_with_replacement(sets, 2):
        if first == second and not within:
            continue
        found = close_pairs(hashes[first], hashes[second], distance, workers)
        listed = [list(sets[name].items()) for name in (first, second)]
        for i, j, unlike in zip(*(values.tolist() for values in found), strict=True):
            (file, patient), (other_file, other) = listed[0][i], listed[1][j]
            if first != second or (i < j and patient != other):
                pairs.append(NearDuplicate(first, patient, file, second, other, other_file, unlike))
    return sorted(pairs, key=lambda pair: pair.distance)


def near_duplicates_of_sets(
    names: Sequence[str], distance: int = DEFAULT_DISTANCE, workers: int = 1, within: bool = False
) -> list[NearDuplicate]:
    """:func:`find_near_duplicates` for registered data sets.

    Raises:
        CTMaskNetError: fewer than two sets without ``within``, an unknown or empty one, or as
            there.
    """
    names = list(dict.fromkeys(names))
    if len(names) < 2 and not within:
        raise CTMaskNetError(
            f"data sets {', '.join(names)}: name at least two, or look `within` one"
        )
    return find_near_duplicates(
        {name: pictures_of(dataset_dicts(name)) for name in names}, distance, workers, within
    )


def pictures_of(dicts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The files of a data set with their patients; a slice without one is of a patient of its
    own."""
    return {d["file_name"]: str(d.get("patient", d["file_name"])) for d in dicts}


def alike_patients(pairs: Iterable[NearDuplicate]) -> list[AlikePatients]:
    """The pairs by patients, those with most pairs first: one alone may be chance, many are one
    scan twice."""
    found: dict[tuple[str, str, str, str], list[int]] = {}
    for pair in pairs:
        key = (pair.first_set, pair.first_patient, pair.second_set, pair.second_patient)
        found.setdefault(key, []).append(pair.distance)
    alike = [AlikePatients(*key, len(values), min(values)) for key, values in found.items()]
    return sorted(alike, key=lambda item: (-item.pairs, item.distance))


def near_duplicate_lines(pairs: Sequence[NearDuplicate], distance: int, few: int = 10) -> list[str]:
    """The pairs in words: how many, by which patients, and the closest of them."""
    alike = alike_patients(pairs)
    lines = [
        f"near-identical slices ({distance} of {HASH_BITS} bits or fewer unlike): {len(pairs)} "
        f"pair(s), of {len(alike)} pair(s) of patients"
    ]
    if pairs:
        rows = [
            (f"{a.first_patient} ({a.first_set})", f"{a.second_patient} ({a.second_set})", *a[4:])
            for a in alike[:few]
        ]
        lines.append(tabulate(rows, headers=("patient", "and patient", "pairs", "closest, bits")))
        rows = [(pair.first_file, pair.second_file, pair.distance) for pair in pairs[:few]]
        lines.append(tabulate(rows, headers=("closest slices", "and", "bits")))
    return lines


def write_near_duplicates(path: str | os.PathLike, pairs: Iterable[NearDuplicate]) -> None:
    """Write the pairs as a CSV table, whole or not at all."""
    with writing(path), atomic_write(path) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(NearDuplicate._fields)
        for pair in pairs:
            table.writerow(safe_cell(one) if isinstance(one, str) else one for one in pair)


def _hash_of_file(path: str) -> np.ndarray | str:
    """The hash, or what is wrong with the file."""
    try:
        return perceptual_hash(read_grey(path))
    except CTMaskNetError as error:
        return str(error)


def _close_to_rows(a: np.ndarray, b: np.ndarray, distance: int, start: int) -> np.ndarray:
    """Row of ``a``, row of ``b`` and unlike bits (3, k), of ``_ROWS`` rows of ``a`` (4, n) on."""
    rows = a[:, start : start + _ROWS]
    found = [np.zeros((3, 0), np.int64)]
    for begin, unlike in _unlike_bits(rows, b):
        if unlike.min() <= distance:
            i, j = np.nonzero(unlike <= distance)
            found.append(np.stack([i + start, j + begin, unlike[i, j]]))
    return np.concatenate(found, axis=1)


def _unlike_bits(rows: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """For each run of columns its begin and the unlike bits (rows, columns); valid until the
    next."""
    shape = rows.shape[1], min(_COLUMNS, b.shape[1])
    words, counts, total = (np.empty(shape, kind) for kind in (np.uint64, np.uint8, np.uint16))
    for begin in range(0, b.shape[1], _COLUMNS):
        columns = b[:, begin : begin + _COLUMNS]
        w, c, t = (part[:, : columns.shape[1]] for part in (words, counts, total))
        t[:] = 0
        for word in range(_WORDS):
            np.bitwise_xor(rows[word, :, None], columns[word], out=w)
            np.bitwise_count(w, out=c)
            np.add(t, c, out=t)
        yield begin, t
