"""One bad slice among thousands: an error that names it, or skipped, counted and listed.

Slices are read in processes of a loader, and what is raised there arrives as a long traceback. So a
:class:`Guarded` mapper returns a :class:`BadSlice` in place of the model's input, and the process
that draws the batches takes it out (:meth:`BadSlices.readable`). What is known of bad slices so
follows from the batches drawn, whatever the number of workers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import parse_json, write_json
from ctmasknet.schema import names_of, text

if TYPE_CHECKING:  # the preparation tools start without Detectron2
    from detectron2.config import CfgNode
#: ``DATALOADER.BAD_SLICES``.
BAD_SLICE_MODES = ("error", "skip")
#: The report's usual name.
REPORT = "bad_slices.json"
#: Name of all slices that a set is prepared from, in messages and reports about bad ones.
SOURCE = "source"
#: File -> reason, by data set.
_FOUND = names_of(names_of(text))
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadSlice:
    """A slice that cannot be used, in place of its model input."""

    file: str
    reason: str

    @classmethod
    def from_error(cls, file: str, error: CTMaskNetError) -> BadSlice:
        """``error`` says what is wrong with ``file``, which it may name first."""
        return cls(str(file), str(error).removeprefix(f"{file}: "))

    def error(self) -> CTMaskNetError:
        return CTMaskNetError(f"{self.file}: {self.reason}")


@dataclass(frozen=True)
class Replacement:
    """The model input of another slice, with the bad ones in whose place it stands.

    None is the input where none was found."""

    item: dict[str, Any] | None
    bad: tuple[BadSlice, ...]


class Guarded:
    """A mapper that returns a :class:`BadSlice` where the given one raises a
    :class:`CTMaskNetError`."""

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]):
        """
        Args:
            mapper: dataset dict (with ``file_name``) -> model input.
        """
        self.mapper = mapper

    def __call__(self, dataset_dict: dict[str, Any]) -> Any:
        try:
            return self.mapper(dataset_dict)
        except CTMaskNetError as error:
            return BadSlice.from_error(dataset_dict["file_name"], error)


class BadSlices:
    """What a run does with bad slices, and those it met so far.

    Every file counts once, however often it is met. A run has one or several sets of slices, such
    as a training and a validation set, and the largest share allowed holds for each of them.
    """

    def __init__(
        self,
        totals: Mapping[str, int],
        *,
        mode: str = "error",
        max_share: float = 0.0,
        keys: tuple[str, str] = ("DATALOADER.BAD_SLICES", "DATALOADER.MAX_BAD_SHARE"),
        unit: str = "slices",
    ):
        """
        Args:
            totals: name of each set -> number of its slices, bad ones included; may be set later
                (attribute ``totals``).
            mode: ``error`` (the first bad slice is raised) or ``skip``.
            max_share: largest share of bad slices of a set, 0..1, that is no error.
            keys: what a user calls ``mode`` and ``max_share``; for messages.
            unit: what is counted, ``slices`` or ``files``.

        Raises:
            CTMaskNetError: another mode, or a share outside 0..1.
        """
        if mode not in BAD_SLICE_MODES:
            raise CTMaskNetError(
                f"{keys[0]} is {mode!r}; choose one of {', '.join(BAD_SLICE_MODES)}"
            )
        if not 0 <= max_share <= 1:
            raise CTMaskNetError(f"{keys[1]} is {max_share}; set a share of 0 to 1")
        self.totals = dict(totals)
        self.skip = mode == "skip"
        self.max_share = max_share
        self._keys = keys
        self._unit = unit
        #: What is written of a path or message.
        self.shown: Callable[[str], str] = str
        #: Set -> file -> reason.
        self._found: dict[str, dict[str, str]] = {}

    @classmethod
    def from_cfg(cls, cfg: CfgNode, totals: Mapping[str, int]) -> BadSlices:
        """As ``DATALOADER.BAD_SLICES`` and ``DATALOADER.MAX_BAD_SHARE`` say."""
        mode, share = cfg.DATALOADER.BAD_SLICES, cfg.DATALOADER.MAX_BAD_SHARE
        return cls(totals, mode=mode, max_share=share)

    def add(self, file: str, reason: str, name: str) -> None:
        """Note a bad file of the set ``name``; the first reason given is kept.

        Raises:
            CTMaskNetError: bad slices are not to be skipped.
        """
        if not self.skip:
            raise CTMaskNetError(
                f"{file}: {reason} (to leave bad slices out: {self._keys[0]} skip)"
            )
        file, reason = self.shown(file), self.shown(reason)
        known = self._found.setdefault(name, {})
        if file not in known:
            known[file] = reason
            _LOGGER.warning("Bad slice of %s left out: %s: %s", name, file, reason)

    def files(self, name: str) -> dict[str, str]:
        """File -> reason of the bad slices of a set."""
        return dict(self._found.get(name, {}))

    def readable(self, batches: Iterable[list[Any]], name: str) -> ReadableBatches:
        """The batches of a loader with a :class:`Guarded` mapper without their bad slices."""
        return ReadableBatches(self, batches, name)

    def taken_out(self, batch: list[Any], name: str) -> list[Any]:
        """One batch without its bad slices, which are noted."""
        kept = []
        for item in batch:
            bad: tuple[BadSlice, ...] = ()
            if isinstance(item, BadSlice):
                item, bad = None, (item,)
            elif isinstance(item, Replacement):
                item, bad = item.item, item.bad
            for each in bad:
                self.add(each.file, each.reason, name)
            if item is not None:
                kept.append(item)
        return kept

    def exceeded(self) -> str | None:
        """What is wrong, in one line, when a set has more bad slices than allowed."""
        for name, files in self._found.items():
            total = max(self.totals.get(name, 0), len(files))
            if len(files) > self.max_share * total:
                file, reason = next(iter(sorted(files.items())))
                return (
                    f"{name}: {len(files)} of {total} {self._unit} are bad "
                    f"({100 * len(files) / total:.2f} %), more than {self._keys[1]} "
                    f"{self.max_share:g} allows; the first is {file}: {reason}"
                )
        return None

    def gather(self, gather: Callable[[Any], list[Any]]) -> None:
        """Take over what the other processes met; ``gather`` gives each the values of all."""
        for share in gather(self._found):
            for name, files in share.items():
                known = self._found.setdefault(name, {})
                for file, reason in files.items():
                    known.setdefault(file, reason)

    def report(self) -> dict[str, Any]:
        """``{"max_share", "sets": {name: {"total", "bad", "share", "files": [{"file",
        "reason"}]}}}``, the files sorted."""
        sets = {}
        for name, total in self.totals.items():
            files = sorted(self._found.get(name, {}).items())
            sets[name] = {
                "total": total,
                "bad": len(files),
                "share": len(files) / total if total else 0.0,
                "files": [{"file": file, "reason": reason} for file, reason in files],
            }
        return {"max_share": self.max_share, "sets": sets}

    def finish(self, report: Path | None, *, check: bool = True) -> None:
        """Write the report where bad slices are skipped, and log how many there were.

        Args:
            report: JSON file; None writes none. Without ``skip`` an earlier run's is removed.
            check: raise when there were too many.

        Raises:
            CTMaskNetError: a set has more bad slices than allowed; one line, with the report.
        """
        if not self.skip:
            if report is not None:
                report.unlink(missing_ok=True)
            return
        where = ""
        if report is not None:
            write_json(report, self.report(), indent=1)
            where = f"; all are listed in {report}"
        for name, files in self._found.items():
            _LOGGER.warning("%s: %d bad %s left out%s", name, len(files), self._unit, where)
        if check and (problem := self.exceeded()):
            raise CTMaskNetError(problem + where)

    def state_dict(self) -> dict[str, Any]:
        return {"found": json.dumps(self._found)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        found = _FOUND(parse_json(text(state["found"], "found")), "found")
        self._found = {name: files for name, files in found.items() if name in self.totals}


class ReadableBatches:
    """See :meth:`BadSlices.readable`; a batch of bad slices alone is left out. Its length counts
    those too."""

    def __init__(self, bad: BadSlices, batches: Iterable[list[Any]], name: str):
        self._bad, self._batches, self._name = bad, batches, name

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self._batches:
            if kept := self._bad.taken_out(batch, self._name):
                yield kept
