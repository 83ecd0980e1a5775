"""One tool at one place, in a process of its own, and what is wrong with how it ends."""

from __future__ import annotations

import errno
import json
import os
import resource
import runpy
import select
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from tests.places.tools import REPOSITORY, Tool

SECONDS = 120.0
#: Bytes of a file in memory that processes which share work need each.
_SEMAPHORE = 32
#: A folder of the system in which nobody, root included, makes anything.
SYSTEM = Path("/sys")
#: Written line by line while a tool works, so as far as the disk holds.
_RUNNING = ("log.txt", "metrics.json", "timings.json", "events.out")


@dataclass(frozen=True)
class Ended:
    """How a tool ended: exit code, stderr, stdout and stderr, wall-clock seconds, and of its work
    whether it began (``none``, ``pictures``, ``model``) and the files that it finished (count)."""

    code: int
    errors: str
    said: str
    seconds: float
    work: str
    files: int

    @property
    def line(self) -> str:
        """The last one on stderr."""
        return (self.errors.strip().splitlines() or [""])[-1]


def _in_the_way(folder: Path, suffix: str) -> Path:
    place = folder / f"out{suffix}"
    place.mkdir() if suffix else place.write_text("mine")
    if suffix:
        (place / "mine").touch()
    return place


def _below_a_file(folder: Path, suffix: str) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file" / f"out{suffix}"


def _link(folder: Path, suffix: str) -> Path:
    (folder / f"out{suffix}").symlink_to(folder / "nowhere/at/all")
    return folder / f"out{suffix}"


def _below_a_link(folder: Path, suffix: str) -> Path:
    return _link(folder, "") / f"out{suffix}"


def _pipe(folder: Path, suffix: str) -> Path:
    os.mkfifo(folder / f"out{suffix}")
    return folder / f"out{suffix}"


#: Fault -> (folder, suffix of the file, "" of a folder) -> the place that cannot be written.
PLACES: dict[str, Callable[[Path, str], Path]] = {
    "in the way": _in_the_way,
    "below a file": _below_a_file,
    "link": _link,
    "below a link": _below_a_link,
    "long name": lambda folder, suffix: folder / f"{'x' * 300}{suffix}",
    "read-only": lambda folder, suffix: SYSTEM / f"ctmasknet{suffix}",
    "pipe": _pipe,
}
#: Faults of a disk: which of the writes fails, or what share of the largest file it holds.
FULL = {"full, first": 0.0, "full, middle": 0.5, "full, last": 1.0, "no byte": 0.0, "small": 0.99}


def run(words: list, arm: Callable[[], None] = lambda: None) -> Ended:
    """Call a command line in a forked process; ``arm`` is called there first."""
    (told, tell), (out, to_out), (err, to_err) = os.pipe(), os.pipe(), os.pipe()
    sys.stdout.flush()
    begin = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        for pipe, stream in ((to_out, 1), (to_err, 2)):
            os.dup2(pipe, stream)
        # pytest has put others in their place
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        _run([str(word) for word in words], arm, tell)
    for pipe in (tell, to_out, to_err):
        os.close(pipe)
    texts = _drained([told, out, err], begin + SECONDS)
    if texts is None:
        os.killpg(child, signal.SIGKILL)
        texts = ["", "", f"no end within {SECONDS:.0f} s"]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    marks = json.loads(texts[0] or '{"work": "?", "files": 0}')
    return Ended(code, texts[2], texts[1] + texts[2], time.monotonic() - begin, **marks)


def _drained(pipes: list[int], end: float) -> list[str] | None:
    texts, left = dict.fromkeys(pipes, b""), set(pipes)
    while left:
        ready = select.select(left, [], [], max(0.0, end - time.monotonic()))[0]
        if not ready:
            return None
        for pipe in ready:
            texts[pipe] += (part := os.read(pipe, 2**16))
            if not part:
                left.discard(pipe)
                os.close(pipe)
    return [texts[pipe].decode(errors="replace") for pipe in pipes]


def _run(words: list[str], arm: Callable[[], None], tell: int) -> None:
    """The child: never returns."""
    code, marks = 1, {"work": "none", "files": 0}
    try:
        torch.set_num_threads(1)
        _mark(marks)
        arm()
        os.chdir(REPOSITORY)
        sys.argv = words
        try:
            runpy.run_path(words[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os.write(tell, json.dumps(marks).encode())
    finally:
        os._exit(code)


def _mark(marks: dict) -> None:
    """See when pictures are opened and a model runs, and count files that are finished."""

    def before(owner, name: str, note: Callable[[], None]) -> None:
        original = getattr(owner, name)

        def noted(*args, **kwargs):
            note()
            return original(*args, **kwargs)

        setattr(owner, name, noted)

    def opened():
        marks["work"] = marks["work"].replace("none", "pictures")

    before(PIL.Image, "open", opened)
    before(torch.nn.Conv2d, "forward", lambda: marks.update(work="model"))
    before(os, "fsync", lambda: marks.update(files=marks["files"] + 1))


def sound_run(tool: Tool, folder: Path) -> tuple[int, int]:
    """The files that a tool finishes, and the size of the largest that it leaves in ``folder``.

    Raises:
        RuntimeError: it fails, so that nothing can be learned of faults.
    """
    place = _place(tool, folder)
    ended = run(tool.words(place))
    if ended.code and "identical" not in ended.said:
        raise RuntimeError(ended.said[-2000:])
    return ended.files, max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _place(tool: Tool, folder: Path) -> Path:
    place = folder / f"out{tool.suffix}"
    if tool.content is not None:
        place.write_bytes(tool.content)
    return place


def at_a_place(tool: Tool, fault: str, folder: Path) -> tuple[Ended, list[str]]:
    """Try a fault of :data:`PLACES`.

    Args:
        folder: empty.

    Returns:
        how the tool ended; what is wrong with that.
    """
    place = PLACES[fault](folder, tool.suffix)
    before = _tree(folder)
    ended = run(tool.words(place))
    wrong = _wrong_words(ended, SYSTEM if SYSTEM in place.parents else folder)
    if ended.work != "none":
        wrong.append(f"told after the work began ({ended.work})")
    if _tree(folder) != before:
        wrong.append(f"leaves {sorted(_tree(folder).items() - before.items())[:3]}")
    return ended, wrong


def on_a_full_disk(
    tool: Tool, fault: str, folder: Path, sound: tuple[int, int]
) -> tuple[Ended, list[str]]:
    """Try a fault of :data:`FULL`; ``sound`` is of :func:`sound_run`."""
    files, largest = sound
    place = _place(tool, folder)
    if fault.startswith("full"):
        nth = 1 + round(FULL[fault] * (files - 1))
        ended = run(tool.words(place), lambda: _fail_at(nth))
    else:
        ended = run(tool.words(place), lambda: _limit(max(_SEMAPHORE, int(FULL[fault] * largest))))
    # Beside the folder: other files of the tool, such as of a training whose cache is here
    wrong = _wrong_words(ended, folder.parent) + [f"half-written: {one}" for one in _halves(folder)]
    if tool.content is not None and place.read_bytes() != tool.content:
        wrong.append(f"{place.name} is changed")
    return ended, wrong


def _fail_at(nth: int) -> None:
    """Let the nth file that is finished, and all after it, find no room."""
    sync, count = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        sync(handle)
        if count >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = full


def _limit(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _wrong_words(ended: Ended, folder: Path) -> list[str]:
    wrong = []
    if ended.code != 2:
        wrong.append(f"exit code {ended.code}")
    if "Traceback" in ended.said:
        wrong.append("traceback")
    if not ended.line.startswith("error: "):
        wrong.append("no line with what is wrong")
    elif str(folder) not in ended.line:
        wrong.append("the line names no path")
    return wrong


def _tree(folder: Path) -> Mapping[str, int]:
    """Path -> size of everything in a folder."""
    return {str(p.relative_to(folder)): p.lstat().st_size for p in folder.rglob("*")}


def _halves(folder: Path) -> list[str]:
    """What is not whole, or is to be renamed or removed, in a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.name
        if (
            name.endswith(".tmp")
            or name.startswith((".prepare-", ".lock"))
            or (path.is_file() and not name.startswith(_RUNNING) and not _is_whole(path))
        ):
            found.append(name)
    return found


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            # A part of a prediction has its check sum in a second line
            text = path.read_text()
            for part in text.splitlines() if ".parts" in path.parts else [text]:
                json.loads(part)
        elif path.suffix in (".png", ".jpg"):
            np.asarray(PIL.Image.open(path))
        elif path.suffix in (".pth", ".pt", ".pt2"):
            return zipfile.ZipFile(path).testzip() is None
        elif path.suffix in (".csv", ".jsonl", ".md", ".html", ".txt", ".yaml"):
            return path.read_text().endswith("\n") or path.suffix == ".html"
        return True
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
