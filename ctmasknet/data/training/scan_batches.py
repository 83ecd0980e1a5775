"""Batches of whole scans, for a model that names scans (:func:`ctmasknet.config.names_scans`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from ctmasknet.errors import CTMaskNetError


def scans_of(
    dicts: Sequence[Mapping[str, Any]], name: str, *, one_label: bool = False
) -> list[list[int]]:
    """Which slices are a scan: their indices in the order of the set, scan by scan.

    Args:
        dicts: dataset dicts with ``scan`` and, where known, ``patient``.
        name: of the set, for errors.
        one_label: the slices of a scan have to be of one class.

    Raises:
        CTMaskNetError: a slice does not tell its scan; slices of one scan have unlike classes.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for index, entry in enumerate(dicts):
        if entry.get("scan") in (None, ""):
            raise CTMaskNetError(
                f"{name}: {entry['file_name']} does not tell its scan, and the model names "
                "whole scans (MODEL.META_ARCHITECTURE, MODEL.LESION_HEAD.NAME); prepare the set "
                "from scans or with patients and scans, or choose a model of slices"
            )
        found.setdefault((str(entry.get("patient")), str(entry["scan"])), []).append(index)
    if one_label:
        for (_, scan), members in found.items():
            labels = {dicts[index].get("label") for index in members}
            if len(labels) > 1:
                raise CTMaskNetError(
                    f"{name}: scan {scan} of {dicts[members[0]]['file_name']} has slices of unlike "
                    "classes, and a model of whole scans learns one class a scan; give its slices "
                    "one class, or choose a model of slices (MODEL.META_ARCHITECTURE)"
                )
    return list(found.values())


class ScanBatches(Sampler):
    """Endless batches of (position, index): the slices of ``batch_size`` scans of this process.

    The slices of a scan share its position, so that what is drawn by it augments them alike. Of a
    scan with more than ``most`` slices so many are drawn by seed and position, in their order.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        scans: Sequence[Sequence[int]],
        most: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        """
        Args:
            sampler: endless numbers of scans, every ``world_size``-th of the common order.
            batch_size: scans a batch of this process.
            scans: indices of the slices of each scan.
            most: slices of a scan at most.
            seed: of the slices drawn.
            rank: number of this process.
            world_size: number of processes.
        """
        self.sampler, self.batch_size, self.scans = sampler, batch_size, scans
        self.most, self.seed, self.rank, self.world_size = most, seed, rank, world_size
        #: The first batch to hand out, set before iterating; no image of earlier ones is read.
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        numbered = enumerate(self.sampler)
        scans = ((count * self.world_size + self.rank, scan) for count, scan in numbered)
        batches = iter(lambda: list(itertools.islice(scans, self.batch_size)), [])
        for batch in itertools.islice(batches, self.start, None):
            yield [
                (position, index)
                for position, scan in batch
                for index in self._drawn(position, int(scan))
            ]

    def _drawn(self, position: int, scan: int) -> list[int]:
        members = list(self.scans[scan])
        if len(members) <= self.most:
            return members
        drawn = np.random.default_rng([self.seed, position, 2]).permutation(len(members))
        return [members[number] for number in sorted(drawn[: self.most])]
