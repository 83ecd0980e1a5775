"""Near-identical slices in two sets: the same picture saved twice, or neighbours of one scan.

Patient names cannot tell when a set has none, or when the same scan came under two names; a
perceptual hash can.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import imagehash
import numpy as np
import torch
from PIL import Image

from ctmasknet.data.datasets import dataset_dicts
from ctmasknet.data.images import in_processes, read_grey
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write

#: Side of the block of low frequencies whose signs are the hash.
_SIDE = 16
HASH_BITS = _SIDE**2
#: Largest number of unlike bits called near-identical (``datasets/README.md`` says what it finds).
DEFAULT_DISTANCE = 32
#: Hashes of two sets held against each other at once.
_BLOCK = 8192


class NearDuplicate(NamedTuple):
    """Two slices of different sets whose hashes differ in ``distance`` of 256 bits."""

    first_set: str
    first_file: str
    second_set: str
    second_file: str
    distance: int


def perceptual_hashes(paths: Iterable[str | os.PathLike], workers: int = 1) -> np.ndarray:
    """The perceptual hash (signs of low DCT frequencies) of each 8-bit picture, (n, 256) bool.

    A change of size, window or compression moves few bits; a mirrored or turned picture is another
    picture.

    Args:
        paths: the files.
        workers: number of processes; 1 stays in this one.

    Raises:
        CTMaskNetError: names the first file that cannot be read.
    """
    hashes = in_processes(_hash, [os.fspath(path) for path in paths], workers, "hash")
    for value in hashes:
        if isinstance(value, str):
            raise CTMaskNetError(value)
    return np.array(hashes, bool).reshape(len(hashes), HASH_BITS)


def pairs_within(first: np.ndarray, second: np.ndarray, distance: int) -> list[tuple[int, ...]]:
    """All pairs of rows that differ in at most ``distance`` bits.

    Args:
        first: (n, B) bool.
        second: (m, B) bool.
        distance: 0 to B.

    Returns:
        ``(row of first, row of second, unlike bits)``, ordered by the rows.
    """
    # Of signs +1 and -1 the scalar product is B - 2 * unlike bits, whole numbers, so float is exact.
    a, b = (torch.from_numpy(bits).float() * 2 - 1 for bits in (first, second))
    bits = first.shape[1]
    found = []
    for i, j in itertools.product(range(0, len(a), _BLOCK), range(0, len(b), _BLOCK)):
        products = a[i : i + _BLOCK] @ b[j : j + _BLOCK].T
        rows, columns = torch.nonzero(products >= bits - 2 * distance, as_tuple=True)
        unlike = ((bits - products[rows, columns]) / 2).int()
        found += zip((rows + i).tolist(), (columns + j).tolist(), unlike.tolist(), strict=True)
    return sorted(found)


def find_near_duplicates(
    files: Mapping[str, Sequence[str]], distance: int = DEFAULT_DISTANCE, workers: int = 1
) -> list[NearDuplicate]:
    """Near-identical pictures across sets; those within one set do not count.

    Args:
        files: the files of each set.
        distance: largest number of unlike bits, 0 to 256.
        workers: number of processes that hash.

    Returns:
        The pairs, the closest first.

    Raises:
        CTMaskNetError: a bad distance, or a file that cannot be read.
    """
    if not 0 <= distance <= HASH_BITS:
        raise CTMaskNetError(f"distance {distance}: expected 0 to {HASH_BITS} unlike bits")
    hashes = {name: perceptual_hashes(paths, workers) for name, paths in files.items()}
    pairs = [
        NearDuplicate(first, files[first][i], second, files[second][j], unlike)
        for first, second in itertools.combinations(files, 2)
        for i, j, unlike in pairs_within(hashes[first], hashes[second], distance)
    ]
    return sorted(pairs, key=lambda pair: pair.distance)


def near_duplicates_of_sets(
    names: Sequence[str], distance: int = DEFAULT_DISTANCE, workers: int = 1
) -> list[NearDuplicate]:
    """:func:`find_near_duplicates` for registered data sets.

    Raises:
        CTMaskNetError: fewer than two sets, an unknown or empty one, or as there.
    """
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise CTMaskNetError(f"data sets {', '.join(names)}: name at least two different ones")
    files = {name: [d["file_name"] for d in dataset_dicts(name)] for name in names}
    return find_near_duplicates(files, distance, workers)


def write_near_duplicates(path: str | os.PathLike, pairs: Iterable[NearDuplicate]) -> None:
    """Write the pairs as a CSV table, whole or not at all."""
    with atomic_write(path) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(NearDuplicate._fields)
        table.writerows(pairs)


def _hash(path: str) -> np.ndarray | str:
    """The hash as (256,) bool, or what is wrong with the file."""
    try:
        return imagehash.phash(Image.fromarray(read_grey(path)), _SIDE).hash.ravel()
    except CTMaskNetError as error:
        return str(error)
