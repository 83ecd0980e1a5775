"""Units to scans: the headers of one unit are held, those of the next are read meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ctmasknet.data.ct_io import CTScan, read_scans
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.stream import ahead
from ctmasknet.predict.units import Unit


@dataclass(frozen=True)
class ReadUnit:
    """What was found in a unit.

    Attributes:
        scans: in the order in which their files were found.
        bad: (file, reason) of what cannot be read.
        left_out: (file, reason) of sound files that are no axial CT, of a folder that was cut; in a
            folder that was not, its scans name them among their problems.
    """

    scans: list[CTScan]
    bad: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def read_unit(unit: Unit, *, skip_bad: bool) -> ReadUnit:
    """Read the headers of a unit's files.

    Raises:
        CTMaskNetError: without ``skip_bad``, the first bad file.
    """
    bad: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []

    def note(file: str, reason: str) -> None:
        if not skip_bad:
            raise CTMaskNetError(f"{file}: {reason}")
        bad.append((file, reason))

    def leave_out(file: str, reason: str) -> None:
        left_out.append((file, reason))

    scans = read_scans(unit.paths, on_bad=note, on_left_out=None if unit.named else leave_out)
    return ReadUnit(scans, bad, left_out)


def read_ahead(
    units: Iterable[tuple[int, Unit]], *, skip_bad: bool, threads: int = 1
) -> Iterator[tuple[int, ReadUnit]]:
    """Read units in order, each while the one before it is used.

    Args:
        units: (number, unit); read lazily.
        skip_bad: see :func:`read_unit`.
        threads: 0 reads a unit when it is asked for.
    """

    def read(numbered: tuple[int, Unit]) -> tuple[int, ReadUnit]:
        number, unit = numbered
        return number, read_unit(unit, skip_bad=skip_bad)

    for number, found in ahead(read, units, threads=min(1, threads), limit=1):
        for file, reason in found.left_out:
            logging.getLogger(__name__).warning("Left out: %s: %s", file, reason)
        yield number, found
