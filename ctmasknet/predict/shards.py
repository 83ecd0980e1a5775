"""What is finished of a run by each of its processes, so that one of them can put it together and
a killed prediction repeats none of it.

The scans of a unit are cut into shards: a volume or series is one, a folder of pictures one for
every 256 slices. A shard's results are one file, written whole, its last line the check sum of
those before; when all are there they are put together and removed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctmasknet.ct.dicom.reconstruction import series_facts, series_name
from ctmasknet.ct.scan import CTScan
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write, parse_json, plain_file, remove_unfinished
from ctmasknet.predict.inputs import ReadUnit
from ctmasknet.schema import (
    Form,
    UnlikeForm,
    anything,
    listing,
    maybe,
    number,
    one_of,
    record,
    text,
    whole_from_0,
)

SHARD_SLICES = 256
_FOLDER = ".parts"
_SERIES = record(
    {
        **{"study": listing(text, 2), "series": text, "kind": text, "said": text},
        "is_projection": one_of(False, True),
        **{"thickness_mm": maybe(number), "slices": whole_from_0},
    }
)
#: Of :meth:`Shards.unit`.
_UNIT = record(
    {
        "scans": listing(
            record(
                {
                    **{"patient": text, "scan": text, "kind": text, "slices": whole_from_0},
                    **{"problems": listing(text), "series": maybe(_SERIES)},
                    "series_name": maybe(text),
                }
            )
        ),
        "bad": listing(listing(text, 2)),
        "left_out": whole_from_0,
        "pieces": listing(listing(whole_from_0, 3)),
    }
)
_CHECK_SUM = "crc32"
_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS, _TELL_SECONDS = 0.5, 60.0


@dataclass(frozen=True)
class Shard:
    """Slices ``start`` to ``stop`` of scan ``scan`` of unit ``unit``, all counted from 0."""

    unit: int
    scan: int
    start: int
    stop: int


def shards_of(unit: int, scans: Sequence[CTScan]) -> list[Shard]:
    """The shards of a unit, in order."""
    shards = []
    for index, scan in enumerate(scans):
        count = len(scan.slices)
        step = SHARD_SLICES if scan.kind == "image" else max(1, count)
        shards += [
            Shard(unit, index, start, min(start + step, count)) for start in range(0, count, step)
        ]
    return shards


class Shards:
    """The files of finished shards, in a hidden folder of the output folder.

    Args:
        output: the output folder.
        folder: name of the hidden one.
        how_to_go_on: what to do when a process has failed, for the message.
    """

    def __init__(
        self,
        output: str | os.PathLike,
        folder: str = _FOLDER,
        how_to_go_on: str = "continue with `resume`",
    ):
        self._root = Path(output) / folder
        self._how_to_go_on = how_to_go_on

    def remove(self) -> None:
        """Remove all of them.

        Raises:
            OSError: one cannot be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._root)

    def remove_unfinished(self) -> None:
        """Remove temporary files of a killed process, an earlier start's marks of failure, and
        damaged files, whose shards are done again; before any process starts."""
        for path in self._root.glob("failed-*"):
            path.unlink(missing_ok=True)
        for folder in self._root.glob("*"):
            if folder.is_dir():
                remove_unfinished(folder)
                for path in folder.glob("*.json*"):
                    try:
                        _read_lines(path)
                    except OSError:  # told when it is needed
                        continue
                    except ValueError as error:
                        _LOGGER.warning("%s: damaged (%s); it is made anew", path, error)
                        path.unlink()

    def mark_failed(self, rank: int) -> None:
        """Tell the process that waits that this one will not finish its shards."""
        with contextlib.suppress(OSError):
            self._root.mkdir(parents=True, exist_ok=True)
            (self._root / f"failed-{rank}").touch()

    def any_finished(self) -> bool:
        return next(self._root.glob("*/*.jsonl"), None) is not None

    def write_unit(self, unit: int, read: ReadUnit) -> None:
        """Write what was found in a unit: its scans, what was skipped, how much was left out.

        Raises:
            OSError: it cannot be written.
            CTMaskNetError: an earlier start, or another process, has found something else there,
                so that finished shards would be taken for those of other scans.
        """
        described = [
            {key: getattr(scan, key) for key in ("patient", "scan", "kind")}
            | {"slices": len(scan.slices), "problems": list(scan.problems)}
            | {"series_name": series_name(scan) or None}
            | {"series": facts and {**asdict(facts), "study": list(facts.study)}}
            for scan, facts in zip(read.scans, map(series_facts, read.scans), strict=True)
        ]
        document = {
            "scans": described,
            "bad": [list(item) for item in read.bad],
            "left_out": len(read.left_out),
            "pieces": [[one.scan, one.start, one.stop] for one in shards_of(unit, read.scans)],
        }
        path = self._unit_path(unit)
        if path.is_file():
            if self.unit(unit) != document:
                raise CTMaskNetError(
                    f"{self._root.parent}: scans among the inputs are not those that this run "
                    "found first, such as files that cannot be read now or could not be then; "
                    "restore them, or begin anew with `overwrite`"
                )
            return
        _write_lines(path, [document])

    def write(self, shard: Shard, lines: Iterable[dict[str, Any]]) -> None:
        """Write a shard's results; from then on it is finished.

        Raises:
            OSError: they cannot be written.
        """
        _write_lines(self._shard_path(shard), lines)

    def has(self, shard: Shard) -> bool:
        return self._shard_path(shard).is_file()

    def is_finished(self, unit: int) -> bool:
        """Whether all shards of a unit are there; no input is read for the answer."""
        return self._unit_path(unit).is_file() and all(map(self.has, self._shards(unit)))

    def unit(self, unit: int) -> dict[str, Any]:
        """What :meth:`write_unit` wrote, as soon as it is there: ``scans``, ``bad``,
        ``left_out`` (count), ``pieces`` (scan, start and stop of each shard).

        Raises:
            CTMaskNetError: the process that was to write it has failed; it cannot be read.
        """
        path = self._unit_path(unit)
        self._wait_for(path)
        with _reading(path):
            (found,) = _read_lines(path)
            found = _UNIT(found, "")
            if any(scan >= len(found["scans"]) for scan, _, _ in found["pieces"]):
                raise UnlikeForm("pieces", found["pieces"], "parts of its scans")
            return found

    def scan_lines(
        self, unit: int, form: Form = anything
    ) -> Iterator[tuple[int, Iterator[dict[str, Any]]]]:
        """(index, lines of its shards in order) of every scan of a unit, as soon as they are there.

        Raises:
            CTMaskNetError: see :meth:`unit`.
        """
        for scan, its in itertools.groupby(self._shards(unit), lambda shard: shard.scan):
            yield scan, self.lines(list(its), form)

    def lines(self, shards: Iterable[Shard], form: Form = anything) -> Iterator[dict[str, Any]]:
        """The lines of shards in order, each of this form, as soon as they are there.

        Raises:
            CTMaskNetError: the process that was to write one has failed; it cannot be read.
        """
        for shard in shards:
            path = self._shard_path(shard)
            self._wait_for(path)
            with _reading(path):
                found = [form(line, "") for line in _read_lines(path)]
            yield from found

    def _shards(self, unit: int) -> list[Shard]:
        return [Shard(unit, *numbers) for numbers in self.unit(unit)["pieces"]]

    def _wait_for(self, path: Path) -> None:
        """Until another process has written the file. Nothing else joins the processes: barriers
        give up after a while, and shares may take unlike times."""
        asked = time.monotonic()
        while not path.is_file():
            if any(self._root.glob("failed-*")):
                raise CTMaskNetError(
                    f"{self._root.parent}: another process of this run has failed, see its "
                    f"message; mend that and {self._how_to_go_on}"
                )
            time.sleep(_POLL_SECONDS)
            if time.monotonic() - asked >= _TELL_SECONDS:
                asked = time.monotonic()
                _LOGGER.warning(
                    "Waiting for another process of this run to finish %s. Should its machine be "
                    "gone, end this run too and %s.",
                    *(path.name, self._how_to_go_on),
                )

    def _unit_path(self, unit: int) -> Path:
        # At most a thousand units a folder
        return self._root / f"{unit // 1000:04d}" / f"{unit:07d}.json"

    def _shard_path(self, shard: Shard) -> Path:
        name = f"{shard.unit:07d}-{shard.scan:05d}-{shard.start:07d}.jsonl"
        return self._unit_path(shard.unit).with_name(name)


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    check_sum = 0
    with atomic_write(path) as stream:
        for line in lines:
            written = f"{json.dumps(line)}\n"
            check_sum = zlib.crc32(written.encode(), check_sum)
            stream.write(written)
        stream.write(f"{json.dumps({_CHECK_SUM: check_sum})}\n")


def _read_lines(path: Path) -> list[Any]:
    """What :func:`_write_lines` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it does not fit its check sum.
    """
    content = plain_file(path).read_bytes()
    end = content.rstrip(b"\n").rfind(b"\n") + 1
    if parse_json(content[end:]) != {_CHECK_SUM: zlib.crc32(content[:end])}:
        raise ValueError("it does not fit its check sum")
    return [parse_json(line) for line in content[:end].splitlines()]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """So that what cannot be read is not taken for what cannot be written."""
    try:
        yield
    except OSError as error:
        raise CTMaskNetError(
            f"{path}: cannot be read ({error.strerror or error}); get permission, or begin anew"
        ) from error
    except ValueError as error:  # UnlikeForm is one
        raise CTMaskNetError(
            f"{path}: damaged ({error}); remove it and go on, or begin anew with `overwrite`"
        ) from None
