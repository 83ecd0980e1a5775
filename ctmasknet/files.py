"""Writing files that are either whole or absent, and reading the CSV files that users write."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import gc
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ctmasknet.errors import CTMaskNetError

#: Bytes of a file's name in the name of its temporary file.
_LONGEST_BEGIN = 200
#: What a full disk, or one that fails, says.
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
_MOST_IN_JSON = 10_000_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path`` and rename it to ``path`` when the block ends well.

    If the block raises, the temporary file is removed and ``path`` stays as it was. Of killed
    processes that were at the same file, theirs is removed.

    Args:
        path: where the file shall stand; missing parent folders are made.
        mode: ``"w"`` (UTF-8 text, newlines as written) or ``"wb"``.

    Raises:
        OSError: of ``path``, which cannot be written, or is there and no file that can be replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _left_in(os.path.abspath(path.parent)):
        if re.fullmatch(rf"\.{re.escape(_begin_of(path))}\.\w{{8}}\.tmp", left, re.ASCII):
            _remove_unlocked_file(path.parent / left)
    _check_replaceable(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    temporary = None
    try:
        temporary = _temporary_name(path)  # known before it is there, for a signal may come then
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, mode, **text) as stream:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)  # while it is locked
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        failed = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(failed, OSError) and failed.filename in (None, temporary):
            failed.filename, failed.filename2 = str(path), None
            if failed is not error and failed.errno in _NO_ROOM:  # so torch tells of it
                raise failed from error
        raise


def _temporary_name(path: Path) -> str:
    """Of a new file beside ``path``; a name that just fits has one too."""
    return str(path.with_name(f".{_begin_of(path)}.{secrets.token_hex(4)}.tmp"))


def _begin_of(path: Path) -> str:
    return os.fsdecode(os.fsencode(path.name)[:_LONGEST_BEGIN])


def _check_replaceable(path: Path) -> None:
    """Refuse what a file cannot replace, or must not: a folder, a device, a pipe, a dead link.

    Raises:
        OSError: says so, or that the name is too long.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        try:
            found = path.stat()
        except FileNotFoundError:
            raise OSError(errno.ENOENT, "a link that leads nowhere", str(path)) from None
    if not stat.S_ISREG(found.st_mode):
        folder = stat.S_ISDIR(found.st_mode)
        code, what = (errno.EISDIR, "a folder") if folder else (errno.ENXIO, "a device or pipe")
        raise OSError(code, f"it is {what}", str(path))


def check_writable(
    path: str | os.PathLike, *, folder: bool = False, argument: str = "output"
) -> Path:
    """Find out, before the work, whether a file can be written; nothing is left of the try.

    In a run of several processes the main one asks.

    Args:
        path: the file, or with ``folder`` a folder for files; made later where it is missing.
        argument: that names it, for the message.

    Raises:
        CTMaskNetError: it cannot be written.
    """
    path = Path(path)
    with writing(path, f"choose another `{argument}`, or get permission and room there"):
        home = path if folder else path.parent
        made = missing_folders(home)
        nearest = made[-1].parent if made else home
        if nearest.is_dir() and not os.access(nearest, os.W_OK | os.X_OK):
            raise CTMaskNetError(
                f"{nearest}: no permission to write here; choose another `{argument}`"
            )
        try:
            home.mkdir(parents=True, exist_ok=True)
            if not folder:
                _check_replaceable(path)
            # Without a name where the file system can, so that a kill leaves nothing
            with tempfile.TemporaryFile(dir=home, prefix=".file.", suffix=".tmp"):
                pass
        finally:
            remove_empty(made)
    return path


def check_room(folder: str | os.PathLike, size: float, what: str, remedy: str) -> None:
    """Refuse, before the work, what does not fit on the disk.

    Args:
        folder: where it is to be written; need not be there.
        size: bytes that are needed at least.
        what: is written, such as "ranked boxes of a set".
        remedy: what to do, beside making room.

    Raises:
        CTMaskNetError: less is free.
    """
    if lack := lack_of_room(folder, size, what):
        raise CTMaskNetError(f"{lack}; make room there, or {remedy}")


def lack_of_room(folder: str | os.PathLike, size: float, what: str) -> str:
    """What :func:`check_room` refuses, in words; "" where it fits."""
    path = Path(folder).absolute()
    home = next(one for one in (path, *path.parents) if one.exists())
    free = shutil.disk_usage(home).free
    if size <= free:
        return ""
    units = (1e9, "GB"), (1e6, "MB"), (1e3, "kB")
    needed, there = (
        next((f"{n / one:.1f} {name}" for one, name in units if n >= one), f"{n:.0f} bytes")
        for n in (size, free)
    )
    return f"{folder}: {what} need about {needed}, and the disk has {there} free"


def missing_folders(folder: Path) -> list[Path]:
    """The folders that have to be made for this one, the innermost first."""
    return [one for one in (folder, *folder.parents) if not one.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the innermost first, that exist and hold nothing."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextlib.contextmanager
def writing(
    path: str | os.PathLike, remedy: str = "choose another place, or make room there"
) -> Iterator[None]:
    """Make one clear error, which ends with ``remedy``, of a write to ``path`` that fails. What is
    written is read and computed before.

    Raises:
        CTMaskNetError: an ``OSError`` in the block: no permission, a full disk, a file where a
            folder has to be.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileExistsError) and os.path.islink(error.filename or ""):
            reason = f"{error.filename} is a link that leads nowhere"
        raise CTMaskNetError(f"{path}: cannot be written ({reason}); {remedy}") from error


def remove_unfinished(folder: str | os.PathLike, *, below: bool = False) -> None:
    """Remove the temporary files that a killed process left of :func:`atomic_write` in ``folder``,
    and with ``below`` in all folders in it; not those that are being written."""
    for path in Path(folder).glob("**/.*.tmp" if below else ".*.tmp"):
        _remove_unlocked_file(path)


@functools.cache
def _left_in(folder: str) -> tuple[str, ...]:
    """Names of the temporary files that were in a folder before this process first wrote there; to
    list it for every file would take long where there are many."""
    return tuple(path.name for path in Path(folder).glob(".*.tmp"))


def _remove_unlocked_file(path: Path) -> None:
    # An OSError: locked by who writes it, no file, or removed by another
    with contextlib.suppress(OSError), open(path, "r+b") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


#: In a folder that is being written, until it takes its place.
LOCK = ".lock"


def lock_folder(folder: str | os.PathLike) -> IO:
    """Lock a folder until the returned file is closed or this process ends.

    A POSIX record lock: processes that this one forks do not hold it, and may outlive it.
    """
    stream = open(Path(folder) / LOCK, "wb")  # noqa: SIM115  (open as long as the lock shall last)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return stream


@contextlib.contextmanager
def folder_of_one(
    folder: str | os.PathLike,
    work: str,
    *,
    shared: bool = False,
    elsewhere: str = "set OUTPUT_DIR to another folder",
) -> Iterator[None]:
    """Hold a folder for the block: nobody else may come here meanwhile, but for others that share
    it. What a dead process left locked is free.

    Args:
        folder: made if it is missing.
        work: what is done there, such as "training", for others to be told.
        shared: several may come here together.
        elsewhere: how another folder is chosen, for others to be told.

    Raises:
        CTMaskNetError: another process holds it; names that one.
    """
    path, kind = Path(folder) / LOCK, fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with writing(folder, f"{elsewhere}, or make room there"):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (open as long as the lock)
            try:
                fcntl.lockf(stream, kind | fcntl.LOCK_NB)
                held = False
            except (BlockingIOError, PermissionError):
                held = True
            except OSError:  # a file system without locks
                held = _at_work(stream)
            if held:
                with stream:
                    raise CTMaskNetError(
                        f"{folder}: {_holder(stream)} here; wait for its end, or {elsewhere}"
                    )
            # Who had it may have removed it in between
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                    break
            stream.close()
        if not shared:
            try:
                stream.truncate(0)
                json.dump({"host": socket.gethostname(), "pid": os.getpid(), "work": work}, stream)
                stream.flush()
            except OSError:
                path.unlink(missing_ok=True)
                raise
    try:
        yield
    finally:
        with stream, contextlib.suppress(OSError):  # the last one removes it
            if shared:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _holder(stream: IO) -> str:
    """Who holds a lock, in words."""
    try:
        stream.seek(0)
        found = parse_json(stream.read())
        return f"process {found['pid']} on {found['host']} is at work ({found['work']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process is at work"


def _at_work(stream: IO) -> bool:
    """Whether who wrote this lock lives, as far as can be told from here."""
    try:
        stream.seek(0)
        found = parse_json(stream.read())
        if found["host"] == socket.gethostname():
            os.kill(int(found["pid"]), 0)
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remove_unlocked(parent: str | os.PathLike, pattern: str) -> None:
    """Remove the folders in ``parent`` that killed runs left: those of names like ``pattern`` that
    no process has locked."""
    for folder in Path(parent).glob(pattern):
        # An OSError: locked by a run that is still at it
        with contextlib.suppress(OSError), open(folder / LOCK, "ab") as stream:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def remove_folder(folder: str | os.PathLike) -> None:
    """Remove a folder with all that is in it; a signal that asks to end waits for that.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        shutil.rmtree(folder)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def plain_file(path: str | os.PathLike) -> Path:
    """``path``, of a file that can be read to its end; a pipe or a device may have none.

    Raises:
        OSError: it is missing, or no plain file.
    """
    path, mode = Path(path), os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        folder = stat.S_ISDIR(mode)
        code, what = (errno.EISDIR, "a folder") if folder else (errno.ENXIO, "a device or pipe")
        raise OSError(code, f"it is {what}, no plain file", str(path))
    return path


def parse_json(text: str | bytes) -> Any:
    """What JSON from outside says.

    Raises:
        ValueError: it is no JSON, nested too deeply, or of more lists and objects than any file of
            this project, each of which takes 20 times its bytes.
    """
    begins = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, begins)) > _MOST_IN_JSON:
        raise ValueError(f"holds more than {_MOST_IN_JSON} lists and objects")
    collects = gc.isenabled()
    gc.disable()  # to look through all of them again and again takes most of the time
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):
            raise ValueError("holds a number of thousands of digits") from None
        raise
    finally:
        if collects:
            gc.enable()


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file from outside says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON in UTF-8, or nested too deeply.
    """
    return parse_json(plain_file(path).read_text(encoding="utf-8"))


def write_json(path: str | os.PathLike, value: Any, indent: int | None = None) -> None:
    """Write ``value`` as JSON, whole or not at all; a number that is not finite becomes null."""
    # Not json.dump, nor always a copy: both take much longer where slices are 100,000
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(plain(value), indent=indent, allow_nan=False)
    with atomic_write(path) as stream:
        stream.write(f"{text}\n")


def replace_between_marks(path: str | os.PathLike, name: str, text: str) -> None:
    """Replace what stands in a Markdown file between ``<!-- name: begin -->`` and
    ``<!-- name: end -->``, each a line.

    Raises:
        CTMaskNetError: the file has no such lines, or cannot be read.
    """
    try:
        old = plain_file(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CTMaskNetError(f"{path}: cannot be read ({error}); name a Markdown file") from None
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    if old.find(begin) < 0 or old.find(end) < old.find(begin):
        raise CTMaskNetError(f"{path}: has no lines {begin} and {end}; put them where it goes")
    # Text out of JSON need not be Unicode; what is none becomes a question mark
    text = text.strip().encode("utf-8", "replace").decode("utf-8")
    with atomic_write(path) as stream:
        stream.write(f"{old[: old.index(begin)]}{begin}\n{text}\n{old[old.index(end) :]}")


def plain(value: Any) -> Any:
    """``value`` for JSON, which has no NaN: what is not finite becomes null, at any depth."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def has_control_character(text: str) -> bool:
    """Whether a text holds a line break or another control character, with which no list, table or
    log would read back."""
    return not text.isprintable() and _CONTROL.search(text) is not None
