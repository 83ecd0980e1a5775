"""Jobs of the drop page: files that were dropped, the prediction of them, and its results.

A job lives in a folder of its own below a temporary one, under names that the server gives: what a
file was called decides its ending at most, and stands in what people read. Predictions run one
after the other, each in processes of its own, which are ended when their time is up.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from ctmasknet.console.verbosity import VERBOSITY_VARIABLE
from ctmasknet.data.bad_slices import REPORT as BAD_SLICES
from ctmasknet.errors import CTMaskNetError, starting_processes
from ctmasknet.files import atomic_write, lock_folder, read_json, remove_unlocked

_LOGGER = logging.getLogger(__name__)
_PREFIX = "ctmasknet-serve-"
#: What a stored file may end with; all others are stored without an ending, as DICOM often is.
ENDINGS = (
    *(".nii.gz", ".nii", ".mha", ".nrrd", ".zip", ".dcm"),
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"),
)
#: States, in their order; a job ends in one of the last two.
UPLOADING, QUEUED, RUNNING, DONE, FAILED = "uploading", "queued", "running", "done", "failed"
_STORED = "dropped_"
_CHUNK_BYTES = 2**20
_SLICES = re.compile(
    r"(\d+(?: of (?:about )?\d+)?) slices, (?:([\d.]+) slices/s|([\d.]+) s/slice)(?:, (.*) left)?"
)
#: Of a log, from its end, for what is told of a run.
_TAIL_BYTES = 4096
_REAP_SECONDS = 10.0
#: Given to a run that is asked to end.
_GRACE_SECONDS = 10.0
_UPLOAD_IDLE_SECONDS = 600.0
#: Told of a job.
_MOST_NAMES = 1000


class Refused(CTMaskNetError):
    """What is asked for cannot be done; ``status`` is its HTTP status."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What a job may take: bytes and number of files, minutes of computing, minutes that it is kept
    after its last use; jobs at once."""

    upload_bytes: int = 2 * 10**9
    files: int = 20_000
    run_minutes: float = 60.0
    keep_minutes: float = 60.0
    jobs: int = 8


@dataclass
class Job:
    """One drop of files. ``names`` are what they were called, by number; for people only."""

    folder: Path
    state: str = UPLOADING
    size: int = 0
    names: dict[int, str] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)
    message: str = ""
    used: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    process: subprocess.Popen | None = None
    removed: bool = False

    @property
    def given(self) -> Path:
        """Where its files lie."""
        return self.folder / "given"

    @property
    def output(self) -> Path:
        """Where its results lie."""
        return self.folder / "output"

    @property
    def log(self) -> Path:
        """What its processes said."""
        return self.folder / "log.txt"


class Jobs:
    """All jobs of a server; a context that removes them in the end, and what killed servers left in
    the beginning.

    Args:
        commands: (folder of the files, folder for the results) -> command lines, run in turn.
        limits: of a job.
    """

    def __init__(
        self, commands: Callable[[Path, Path], Sequence[Sequence[str]]], limits: Limits = Limits()
    ):
        self.limits = limits
        self._commands = commands
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._ending = threading.Event()

    def __enter__(self) -> Jobs:
        remove_unlocked(tempfile.gettempdir(), f"{_PREFIX}*")
        self._root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._held = lock_folder(self._root)
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._work, self._reap)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ending.set()
        self._queue.put(None)
        for token in list(self._jobs):
            self.remove(token)
        for thread in self._threads:
            thread.join(timeout=2 * _GRACE_SECONDS)
        shutil.rmtree(self._root, ignore_errors=True)
        self._held.close()

    def new(self) -> str:
        """Begin a job; returns the word that it is known by, which cannot be guessed.

        Raises:
            Refused: too many jobs, or no room on the disk.
        """
        with self._lock:
            if len(self._jobs) >= self.limits.jobs:
                raise Refused(f"{len(self._jobs)} jobs are kept already; remove one first", 429)
            free = shutil.disk_usage(self._root).free
            if free < 2 * self.limits.upload_bytes:
                raise Refused(f"only {free / 1e9:.1f} GB are free in {self._root.parent}", 507)
            token = secrets.token_urlsafe(16)
            job = Job(self._root / "jobs" / secrets.token_hex(8))
            job.given.mkdir(parents=True)
            self._jobs[token] = job
            return token

    def get(self, token: str) -> Job:
        """The job of that word.

        Raises:
            Refused: there is none, or no more.
        """
        job = self._jobs.get(token)
        if job is None:
            raise Refused("there is no such job, or no more; drop the files again", 404)
        job.used = time.monotonic()
        return job

    def add(self, token: str, number: int, name: str, stream: IO[bytes]) -> None:
        """Store a file.

        Args:
            token: of the job.
            number: of the file, from 0; files are read in this order.
            name: what it was called, folders before it; decides its ending, and which files lie in
                one folder.
            stream: its bytes.

        Raises:
            Refused: too large, too many, twice, or the job has begun.
        """
        job = self.get(token)
        folder, _, own = name.replace("\\", "/").rpartition("/")
        with job.lock:
            if job.state != UPLOADING:
                raise Refused("the job has begun already; drop the files again", 409)
            if not 0 <= number < self.limits.files or len(job.names) >= self.limits.files:
                raise Refused(f"more than {self.limits.files} files; drop fewer, or a zip", 413)
            if number in job.names:
                raise Refused(f"file {number} was sent already; drop the files again", 409)
            job.names[number] = _printable(own)
            place = job.given / f"{job.folders.setdefault(folder, len(job.folders)):06d}"
        ending = next((end for end in ENDINGS if own.lower().endswith(end)), "")
        path = place / f"{_STORED}{number:06d}{ending}"
        try:
            place.mkdir(exist_ok=True)
            with path.open("xb") as stored:
                while chunk := stream.read(_CHUNK_BYTES):
                    if job.removed:
                        raise Refused("the job was removed; drop the files again", 404)
                    job.size += len(chunk)
                    if job.size > self.limits.upload_bytes:
                        most = self.limits.upload_bytes / 1e9
                        raise Refused(f"more than {most:g} GB; drop fewer files", 413)
                    stored.write(chunk)
                    job.used = time.monotonic()
        except OSError as error:
            path.unlink(missing_ok=True)
            raise Refused(f"the file cannot be stored ({error.strerror or error})", 507) from None
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            if job.removed:
                shutil.rmtree(job.folder, ignore_errors=True)

    def check_room_for(self, token: str, size: int) -> None:
        """Refuse, before it is sent, a file of so many bytes that the job cannot take.

        Raises:
            Refused: there is no such job, it has begun, or it is large enough.
        """
        job = self.get(token)
        if job.state != UPLOADING:
            raise Refused("the job has begun already; drop the files again", 409)
        if job.size + size > self.limits.upload_bytes:
            most = self.limits.upload_bytes / 1e9
            raise Refused(f"more than {most:g} GB; drop fewer files", 413)

    def start(self, token: str) -> None:
        """Queue the prediction of a job's files.

        Raises:
            Refused: no file, or it has begun.
        """
        job = self.get(token)
        with job.lock:
            if job.state != UPLOADING:
                raise Refused("the job has begun already", 409)
            if not job.names:
                raise Refused("no file was sent; drop a scan")
            job.state = QUEUED
        self._queue.put(job)

    def told(self, token: str) -> dict[str, object]:
        """What its page shows of a job: state, progress in words, the files' names by number, and
        the results by number once it is done."""
        job = self.get(token)
        found: dict[str, object] = {"state": job.state, "message": job.message}
        if job.state == QUEUED:
            others = [one for one in self._jobs.values() if one.state in (QUEUED, RUNNING)]
            count = len(others) - 1
            jobs = "job is" if count == 1 else "jobs are"
            found["message"] = f"waiting; {count} other {jobs} queued or running"
        if job.state == RUNNING:
            counts = _SLICES.findall(_tail(job.log))
            found["message"] = "loading the model and reading"
            if counts:
                count, a_second, each, left = counts[-1]
                pace = f"{a_second} a second" if a_second else f"{each} s each"
                found["message"] = f"{count} slices so far, {pace}{left and f', {left} left'}"
        if job.state == DONE:
            found["results"] = [path.name for path in results_of(job)]
            found["pages"] = [_called(job, path.stem) for path in pages_of(job)]
        numbers = sorted(job.names)[:_MOST_NAMES]
        found["files"] = [f"{number:06d}: {job.names[number]}" for number in numbers]
        return found

    def remove(self, token: str) -> None:
        """End a job and remove all of it."""
        with self._lock:
            job = self._jobs.pop(token, None)
        if job is None:
            return
        job.removed = True
        _end(job.process)
        shutil.rmtree(job.folder, ignore_errors=True)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if job.removed:
                continue
            job.state = RUNNING
            try:
                fault = self._run(job)
                job.message = fault or _left_out(job)
                job.state = FAILED if fault else DONE
            except Exception as error:
                _LOGGER.exception("A job failed")
                job.message, job.state = f"the server failed ({type(error).__name__})", FAILED
            job.used = time.monotonic()
            if job.removed:
                shutil.rmtree(job.folder, ignore_errors=True)

    def _run(self, job: Job) -> str:
        """Run the commands; "" or what went wrong."""
        until = time.monotonic() + 60 * self.limits.run_minutes
        own = {"CTMASKNET_LOG_SECONDS": "1", "TMPDIR": os.fspath(job.folder)}
        own[VERBOSITY_VARIABLE] = "usual"  # the page shows how far it is
        for command in self._commands(job.given, job.output):
            # A run ends with the server, even a killed one
            with job.log.open("ab") as log, starting_processes():
                job.process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **own},
                    start_new_session=True,
                )
            if job.removed:
                _end(job.process)
                return "removed"
            try:
                code = job.process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                _end(job.process)
                return (
                    f"not done within {self.limits.run_minutes:g} minutes, and ended; drop fewer "
                    "slices, or start the server with more minutes"
                )
            if job.removed:
                return "removed"
            if code:
                return _reason(job)
        for path in (*results_of(job), *pages_of(job)):
            text = path.read_bytes().decode("utf-8")  # with its line ends
            with atomic_write(path) as stream:
                stream.write(_in_own_names(job, text))
        _zip(job)
        return ""

    def _reap(self) -> None:
        while not self._ending.wait(_REAP_SECONDS):
            now = time.monotonic()
            for token, job in list(self._jobs.items()):
                kept = 60 * self.limits.keep_minutes
                kept = min(kept, _UPLOAD_IDLE_SECONDS) if job.state == UPLOADING else kept
                if job.state not in (QUEUED, RUNNING) and now - job.used > kept:
                    self.remove(token)


def results_of(job: Job) -> list[Path]:
    """Files of a finished job that can be fetched, in a fixed order."""
    names = (
        *("report.html", "patients.csv", "scans.csv", "predictions.csv", "predictions.jsonl"),
        "lesions.json",
        *("masks.zip", "everything.zip"),
    )
    return [path for name in names if (path := job.output / name).is_file()]


def pages_of(job: Job) -> list[Path]:
    """The viewer's pages of a finished job."""
    return sorted(path for path in (job.output / "viewer").glob("0*.html"))


def _called(job: Job, page: str) -> str:
    """What a page shows: a volume that tells no patient by the name that it was given."""
    _, stored, number = page.partition(_STORED)
    return job.names.get(int(number), page) if stored and number.isdecimal() else page


def _zip(job: Job) -> None:
    """Put all results, and the masks alone, into archives."""
    files = [path for path in sorted(job.output.rglob("*")) if path.is_file()]
    own = {path: path.relative_to(job.output) for path in files if path.suffix != ".lock"}
    masks = {path: name for path, name in own.items() if name.parts[0] == "masks"}
    for name, its in (("masks.zip", masks), ("everything.zip", own)):
        if its:
            with zipfile.ZipFile(job.output / name, "w", zipfile.ZIP_DEFLATED) as archive:
                for path, inside in its.items():
                    archive.write(path, inside)


def _reason(job: Job) -> str:
    """The last line that a run said, or the files that could not be read where they are its reason;
    in the names that the files were given."""
    lines = [line for line in _tail(job.log).splitlines() if line.strip()]
    reason = lines[-1].removeprefix("error: ") if lines else "it ended without a word"
    if BAD_SLICES in reason:
        reason = _left_out(job) or reason
    return _in_own_names(job, reason)


def _left_out(job: Job) -> str:
    """The first slice or file that could not be read and how many more; "" where there is none."""
    try:
        bad = read_json(job.output / BAD_SLICES)["sets"]["inputs"]["files"]
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        return _in_own_names(job, f"{bad[0]['reason']}{more}")
    except (OSError, ValueError, LookupError, TypeError, CTMaskNetError):
        return ""


def _parts(name: str) -> tuple[str, str]:
    """A given name and its ending, of letters, numbers and signs that mean nothing in a page, and
    nothing to a spreadsheet where a cell begins."""
    name = re.sub(r"^-|[^\w. ()-]", "_", name)
    ending = next((end for end in ENDINGS if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)] or "file", name[len(name) - len(ending) :]


def _in_own_names(job: Job, words: str) -> str:
    """What is said of stored files, of the names that they were given; of these no sign that means
    something in a page or a table, and with their number where several share one. Names of results
    stay."""
    parts = {number: _parts(name) for number, name in job.names.items()}
    stems = Counter(stem for stem, _ in parts.values())

    def called(match: re.Match, *, whole: bool) -> str:
        stem, ending = parts.get(int(match[1]), ("the file", ""))
        stem += f" ({match[1]})" * (stems[stem] > 1)
        return stem + ending * whole

    given = re.escape(os.fspath(job.given))
    stored = rf"{_STORED}([0-9]{{6}})"
    words = re.sub(rf"{given}/[0-9]+/{stored}[.\w]*", partial(called, whole=True), words)
    words = re.sub(rf"(?<![0-9]_){stored}", partial(called, whole=False), words)
    return words.replace(os.fspath(job.given), "the files").replace(os.fspath(job.folder), "")


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _end(process: subprocess.Popen | None) -> None:
    """End a run and all its processes."""
    if process is None or process.poll() is not None:
        return
    for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:200]
