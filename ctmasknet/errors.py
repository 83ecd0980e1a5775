"""The one kind of error a user of the tools is meant to read, and the one place every tool ends in.

A signal that asks a tool to end (Ctrl-C, or SIGTERM as schedulers send it) raises :class:`Ended`
in it once, so that it leaves nothing half-made; a second one ends it at once.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import errno
import functools
import logging
import multiprocessing
import os
import platform
import re
import select
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

#: An argument in a message, such as `max_bad_share`.
_ARGUMENT = re.compile(r"`([a-z][a-z0-9_]*)`")
#: What asks a tool to end.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Set to 1, tracebacks are shown on the terminal; so does the option.
_DEBUG, _DEBUG_OPTION = "CTMASKNET_DEBUG", "-" * 2 + "debug"
#: What a disk or its rights say: the place is at fault and not the program.
_OF_THE_PLACE = {
    *(errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENXIO, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.EIO, errno.ESTALE),
}
#: Seconds between looks whether the process that started this one still lives.
_POLL_SECONDS = 1.0
#: prctl's number of the signal that the death of the parent sends.
_PR_SET_PDEATHSIG = 1
#: That of a process whose output nobody reads; its name is not on every system.
_SIGPIPE = 13
#: Who started this process.
_STARTED_BY = "CTMASKNET_STARTED_BY"
#: Where tracebacks go; None: to a temporary file.
_report_folder: Path | None = None


class CTMaskNetError(Exception):
    """Bad input: the message names the file or key, what is wrong and what to do about it.

    Arguments stand in backquotes under their Python names; :func:`command_line` shows a tool's user
    the option instead, with hyphens for the underscores. Control characters of names and
    values are written as escapes, so that a message is always one line.
    """

    def __init__(self, message: str = ""):
        message = str(message)
        if not message.isprintable():
            message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        super().__init__(message)


class Ended(KeyboardInterrupt):
    """A signal asked this process to end; the message tells how to go on (empty: as the tool
    says)."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


def command_line(
    main: Callable[..., int | None] | None = None,
    *,
    go_on: str = "call it again; nothing half-made is left",
) -> Callable[..., int]:
    """Wrap a tool's ``main``, so that it ends in words.

    * A :class:`CTMaskNetError`, or a place that cannot be written: one line on stderr, exit code 2.
    * Ctrl-C and SIGTERM: one line that tells how to go on, exit codes 130 and 143; output that
      nobody reads any more, as behind ``head``, likewise: 141, but not once the work is done.
    * Every other exception is a defect: what failed, the file that its traceback is in, and how to
      report it; exit code 1. ``CTMASKNET_DEBUG=1`` or the option ``debug``, which every tool has,
      shows the traceback instead.

    Args:
        main: of the tool; it gets the words of the command line or nothing.
        go_on: what to do after Ctrl-C.
    """
    if main is None:
        return functools.partial(command_line, go_on=go_on)

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        words = args[0] if args and isinstance(args[0], list) else sys.argv
        if _DEBUG_OPTION in words:
            words.remove(_DEBUG_OPTION)
            os.environ[_DEBUG] = "1"
        global _report_folder
        _report_folder, debug = None, os.environ.get(_DEBUG, "") not in ("", "0")
        # What is warned of before a log is set up
        logging.lastResort.setFormatter(OptionsFormatter("%(levelname)s: %(message)s"))
        try:
            with ending_by(raise_ended):
                try:
                    code = main(*args, **kwargs) or 0
                except SystemExit:  # after help
                    _flush_output()
                    raise
                _flush_output()
                return code
        except CTMaskNetError as error:
            if debug:
                traceback.print_exc()
            return _say(f"error: {error}", 2)
        except KeyboardInterrupt as end:
            if not args:  # the process ends, and until then a second signal ends it at once
                _default_signals()
            number = getattr(end, "number", signal.SIGINT)
            return _say(f"{_how(number)}: {str(end) or go_on}", 128 + number)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
                discard_output()
                return _say(f"ended, for nobody reads its output any more: {go_on}", 128 + _SIGPIPE)
            if debug:
                raise
            if isinstance(error, OSError) and error.errno in _OF_THE_PLACE:
                reason = f"{error.filename or 'a file'}: cannot be read or written"
                reason = f"{reason} ({error.strerror}); choose another place, or make room there"
                return _say(f"error: {reason}", 2)
            return _say(_defect(error), 1)

    return wrapped


def report_in(folder: str | os.PathLike) -> None:
    """From now on a traceback goes to ``error.txt`` in this folder."""
    global _report_folder
    _report_folder = Path(folder)


@contextlib.contextmanager
def ending_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Let ``handler`` take the signals that ask to end, for the block.

    Not those that are ignored (``nohup``, a script's ``&``), and not outside of the main thread.
    A process that is forked meanwhile, such as a loader's worker, leaves them to this one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    _handlers.append(handler)
    unraisable = sys.unraisablehook
    sys.unraisablehook = functools.partial(_not_lost, unraisable)
    try:
        yield
    except Exception as error:
        # Raised on the way out, such as by a library that was half-way: it is the signal's
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, Ended):
            behind = behind.__context__
        if behind is not None:
            raise behind from None
        raise
    finally:
        sys.unraisablehook = unraisable
        _handlers.pop()
        for number, old in before.items():
            signal.signal(number, old)


def raise_ended(number: int, frame: FrameType | None) -> None:
    """A signal handler.

    Raises:
        Ended: always, but a moment later while a process is forked, where it would get lost; the
            next signal ends the process at once.
    """
    if _forking or time.monotonic() < _forked + _FORK_SECONDS:
        _send_later(number)
        return
    second_ends_at_once()
    raise Ended(number)


#: Whether a process is being forked, and when the last was. Who forks calls libraries back, which
#: hold locks meanwhile, and passes over what is raised in them.
_forking, _forked = False, 0.0
_FORK_SECONDS = 0.01


def _before_fork() -> None:
    global _forking
    _forking = True


def _after_fork() -> None:
    global _forking, _forked
    _forking, _forked = False, time.monotonic()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork)


def _send_later(number: int) -> None:
    def send() -> None:
        time.sleep(2 * _FORK_SECONDS)
        os.kill(os.getpid(), number)

    # Not by threading: the signal may have come while that holds its lock
    _thread.start_new_thread(send, ())


def _not_lost(otherwise: Callable[[Any], Any], unraisable: Any) -> None:
    """Where exceptions are passed over, as while an object is removed: the signal comes again."""
    if isinstance(unraisable.exc_value, Ended):
        number = unraisable.exc_value.number
        signal.signal(number, raise_ended)
        _send_later(number)
    else:
        otherwise(unraisable)


def second_ends_at_once() -> None:
    """From now on a signal ends this process without ado; in a process of several, which its
    starter signals and ends, it does nothing."""
    started = multiprocessing.parent_process() is not None or started_by_torchrun()
    for number in SIGNALS:
        if signal.getsignal(number) in _handlers:
            signal.signal(number, signal.SIG_IGN if started else signal.SIG_DFL)


def started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


#: Those in force, the innermost last.
_handlers: list[Callable] = []


def _leave_signals_to_the_parent() -> None:
    """In a forked process: Ctrl-C and schedulers signal all processes, but one decides, and needs a
    loader's workers until its iteration has ended."""
    _after_fork()
    if not _handlers:
        return
    for number in SIGNALS:
        if signal.getsignal(number) in _handlers:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    _handlers.clear()
    if hasattr(signal, "sigwaitinfo"):
        # Torch gives its workers a handler of their own later: blocked, none is called
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()


def _end_when_the_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


os.register_at_fork(after_in_child=_leave_signals_to_the_parent)


def end_with_parent(parent: int) -> None:
    """Let this process end at once when its parent does, whatever signals it ignores.

    Args:
        parent: the parent's id, which may have ended by now.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once its parent is gone, which would leave it waiting for ever."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """For the block, in which processes are started afresh that import this package: each ends with
    this one from :func:`quiet_start` on. Ctrl-C, which a terminal sends to all of them, is held
    back until then and ends it without a word, for this one says it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ[_STARTED_BY] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[_STARTED_BY]
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_started(parent: int) -> None:
    end_with_parent(parent)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _default_signals() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def quiet_start() -> None:
    """Until :func:`command_line` takes over, Ctrl-C and SIGTERM end a tool that still loads its
    libraries with one line; and Python's helper process says nothing of semaphores that ended
    processes left, for it clears them up. Does nothing but in a tool of this project, and in
    processes of :func:`starting_processes`."""
    if _STARTED_BY in os.environ:
        _begin_started(int(os.environ.pop(_STARTED_BY)))
        return
    script = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    root = Path(__file__).resolve().parent.parent
    names = ("tools", "datasets")  # in a clone, and as they are installed
    homes = [root / f"{prefix}{name}" for prefix in ("", "ctmasknet_") for name in names]
    if Path(script).resolve().parent not in homes:
        return
    given = os.environ.get("PYTHONWARNINGS", "")
    if "resource_tracker" not in given:
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (given, "ignore:resource_tracker")))

    def end(number: int, frame: FrameType | None) -> None:
        if multiprocessing.parent_process() is None:
            os.write(2, f"{_how(number)}: call it again; nothing was begun\n".encode())
        os._exit(128 + number)

    for number, default in zip(SIGNALS, (signal.default_int_handler, signal.SIG_DFL), strict=True):
        if signal.getsignal(number) is default:
            signal.signal(number, end)


def _how(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else "ended by SIGTERM"


def _say(message: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(as_options(message), file=sys.stderr, flush=True)
    return code


def discard_output() -> None:
    """From now on standard output goes nowhere, so that what is printed to a pipe that nobody
    reads fails no more, not even when the process ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _flush_output() -> None:
    """Of a tool that has done its work, whose output need not be read to its end."""
    try:
        if sys.stdout is not None:  # which it is where it was closed
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()


def _is_unread(stream: IO[str]) -> bool:
    """Whether it goes to a pipe whose other end is closed."""
    try:
        watched = select.poll()
        watched.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in watched.poll(0))
    except (OSError, ValueError, AttributeError):  # no file, or no poll on this system
        return False


def as_options(text: str) -> str:
    """A text whose arguments in backquotes are the options of a command line."""
    return _ARGUMENT.sub(lambda argument: f"--{argument[1].replace('_', '-')}", text)


class OptionsFormatter(logging.Formatter):
    """Of what a tool logs: arguments in backquotes are shown as its options, as in errors."""

    def format(self, record: logging.LogRecord) -> str:
        return as_options(super().format(record))


def _defect(error: Exception) -> str:
    """Three lines; the traceback goes to a file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    # Of a process that was started, its whole traceback
    first = lines[-1] if "Traceback (most recent call last)" in str(error) else lines[0]
    at = traceback.extract_tb(error.__traceback__)[-1]
    text = "".join(traceback.format_exception(error))
    versions = [
        f"{name} {getattr(sys.modules[name], '__version__', '')}"
        for name in ("ctmasknet", "detectron2", "torch", "numpy")
        if name in sys.modules
    ]
    about = f"command: {shlex.join(sys.argv)}\npython {platform.python_version()}, "
    about += f"{', '.join(versions)}, {platform.platform()}\n\n"
    where = "nowhere, for no file could be written"
    for folder in (_report_folder, Path(tempfile.gettempdir())):
        if folder is not None and folder.is_dir():
            with contextlib.suppress(OSError):
                where = folder / "error.txt"
                if folder != _report_folder:
                    handle, where = tempfile.mkstemp(".txt", "ctmasknet_error_", folder)
                    os.close(handle)
                Path(where).write_text(about + text, encoding="utf-8", errors="replace")
                break
    return (
        f"error: {type(error).__name__}: {first} ({Path(at.filename).name}, line {at.lineno}): "
        "not foreseen, so a defect of this program\n"
        f"traceback, command and versions: {where}\n"
        f"to report it, give that file to who maintains the program; {_DEBUG}=1 shows it here"
    )


def check_seed(seed: int) -> None:
    """Refuse a seed that not every generator takes (scikit-learn's take 32 bits).

    Raises:
        CTMaskNetError: a seed outside 0..2^32 - 1; a negative one does not mean a random seed here.
    """
    if not 0 <= seed < 2**32:
        raise CTMaskNetError(f"seed is {seed}; give a number within 0..{2**32 - 1}")
