"""Reads one damaged file in a process of its own and says what became of it."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ctmasknet.errors import CTMaskNetError

#: Above what the process held when it began.
BYTES = 2**30
#: Of the CPU; a file of some kB, so far above 1 s + size / (10 MB/s) on a busy machine.
SECONDS = 10.0


@dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Attributes:
        kind: read | refused (both right) | executed | died | hung | traceback | no line | slow |
            large.
        text: the message, or what was seen.
        seconds: of the CPU.
        bytes: peak memory above what was held before.
    """

    kind: str
    text: str = ""
    seconds: float = 0.0
    bytes: int = 0

    @property
    def right(self) -> bool:
        return self.kind in ("read", "refused")


def be_forkable() -> None:
    """Start no thread from now on: its locks would stay locked in what is forked meanwhile."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0


def attempt(read: Callable[[Path], object], path: Path, marker: Path) -> Outcome:
    """Call ``read(path)`` in a forked process.

    Args:
        read: a reader of the package.
        path: the damaged file.
        marker: a file that code in the input would make.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        _read(read, path, theirs)
    os.close(theirs)
    told, ended, begin = b"", 0, time.monotonic()
    spent, since = -1, begin
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        late = not ended and now - begin > 12 * SECONDS
        # What works, or would if it had the CPU, is ended by its limit of that
        if late and (ticks := _ticks_unless_waiting(child)) != spent:
            spent, since = ticks, now
        elif late and now - since > SECONDS:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            os.close(ours)
            return Outcome("hung", f"asleep after {12 * SECONDS:.0f} s")
        if not ended:
            time.sleep(0.002)
    with open(ours, "rb") as stream:
        told = stream.read()
    if marker.exists():
        marker.unlink()
        return Outcome("executed", "code of the file ran")
    code = os.waitstatus_to_exitcode(status)
    if code or not told:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Outcome("hung" if code == -signal.SIGXCPU else "died", name)
    outcome = Outcome(**json.loads(told))
    if outcome.right and outcome.seconds > SECONDS:
        return Outcome("slow", f"{outcome.seconds:.1f} s", outcome.seconds, outcome.bytes)
    if outcome.right and outcome.bytes > BYTES:
        return Outcome("large", f"{outcome.bytes >> 20} MiB", outcome.seconds, outcome.bytes)
    return outcome


def _ticks_unless_waiting(process: int) -> float:
    """Of the CPU that a process had; another number each time while it waits for it or a disk."""
    with open(f"/proc/{process}/stat", encoding="utf-8") as stream:
        fields = stream.read().rpartition(")")[2].split()
    return time.monotonic() if fields[0] in "RD" else int(fields[11]) + int(fields[12])


def _read(read: Callable[[Path], object], path: Path, answer: int) -> None:
    """The child: never returns."""
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        faulthandler.disable()
        held, mapped = _status("VmRSS"), _status("VmSize")
        for kind, limit in (
            (resource.RLIMIT_AS, mapped + 3 * BYTES),
            (resource.RLIMIT_CPU, int(4 * SECONDS)),
            (resource.RLIMIT_FSIZE, BYTES),
        ):
            resource.setrlimit(kind, (limit, limit + 5))
        begin = time.process_time()
        kind, text = "read", ""
        try:
            read(path)
        except CTMaskNetError as error:
            text = str(error)
            kind = "no line" if "\n" in text or not text.strip() else "refused"
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [f for f in frames if "/ctmasknet/" in f.filename]
            where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
            kind, text = "traceback", f"{where}: {type(error).__name__}: {str(error)[:200]}"
        seconds = time.process_time() - begin
        found = {"kind": kind, "text": text[:2000], "seconds": seconds}
        found["bytes"] = max(0, _status("VmHWM") - held)
        os.write(answer, json.dumps(found).encode())
        code = 0
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _status(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
