"""Runs a tool in a process of its own, forked from one that has its libraries, and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
#: Steps of writing, as Python's audit events name them; opening for reading is none.
_STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
#: After which a process has ended with its parent, and a call has, on a busy machine too.
_GROUP_SECONDS, _MOST_SECONDS = 10.0, 1200.0


@dataclass(frozen=True)
class Moment:
    """When a signal comes: before the ``step``-th step of writing, or ``seconds`` after the tool's
    ``main`` was called."""

    number: int
    step: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Ran:
    """What became of a call.

    Attributes:
        code: exit code; minus the number of a signal that ended it.
        said: on stdout and stderr.
        steps: when each step of writing came, seconds after ``main`` was called; of a tool in a
            process of its own, when it wrote first and last.
        orphans: whether processes of it were at work 10 s after its end.
        went_on: seconds that a call worked on after its signal to its own good end.
    """

    code: int
    said: str
    steps: tuple[float, ...] = field(default=())
    orphans: bool = False
    went_on: float = 0.0

    @property
    def last(self) -> str:
        return (self.said.strip().splitlines() or [""])[-1]


def run(
    tool: str,
    words: Sequence[Any],
    watched: Path,
    log: Path,
    moment: Moment | None = None,
    prepare: Callable[[], None] | None = None,
    starter: Sequence[str] | None = None,
) -> Ran:
    """Call a tool as its user does.

    Args:
        tool: its path in the project.
        words: the command line.
        watched: file or folder; only steps there count.
        log: a file that gets what it says; beside it one for its steps.
        moment: when it is signalled; Ctrl-C goes to all its processes, as a terminal sends it.
        prepare: called in the process first.
        starter: words for Python that start the tool afresh; None: its libraries are there already.
    """
    steps_file, (ready, tell) = log.with_suffix(".steps"), os.pipe()
    steps_file.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os.close(ready)
        _in_child(tool, words, watched, log, steps_file, moment, prepare, starter, tell)
    os.close(tell)
    os.read(ready, 1)
    os.close(ready)
    begin, sent_at, code, wrote_at = time.monotonic(), 0.0, None, 0.0
    sent = moment is None or moment.step > 0
    while code is None:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        elif not sent and time.monotonic() - begin >= moment.seconds:
            (os.killpg if moment.number == signal.SIGINT else os.kill)(child, moment.number)
            sent, sent_at = True, time.monotonic()
        elif time.monotonic() - begin > _MOST_SECONDS:
            os.killpg(child, signal.SIGKILL)
        else:
            time.sleep(0.002)
        if not wrote_at and watched.is_dir() and any(watched.iterdir()):
            wrote_at = time.monotonic() - begin
    seconds, ended_at = time.monotonic() - begin, time.time()
    orphans = not _group_ends(child)
    end, *steps = json.loads(steps_file.read_text()) if steps_file.is_file() else [0.0]
    if starter is not None:  # up to its last file: what comes then is the end of the interpreter
        last = max((path.stat().st_mtime for path in watched.rglob("*")), default=ended_at)
        steps = [wrote_at, max(wrote_at, seconds - (ended_at - last))]
    went_on = max(0.0, end - sent_at) if sent_at else 0.0
    return Ran(code, log.read_text(errors="replace"), tuple(steps), orphans, went_on)


def apart(function: Callable[[], Any], log: Path) -> None:
    """Call a function in a forked process, so that what it starts of torch does not stay here; what
    it says goes to a file, and is shown if it fails."""
    child = os.fork()
    if not child:
        code = 1
        try:
            _say_into(log)
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            _leave(code)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"{log.read_text(errors='replace')}error: the inputs could not be made")


def _say_into(log: Path) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)


def _leave(code: int) -> None:
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _group_ends(group: int) -> bool:
    end = time.monotonic() + _GROUP_SECONDS
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    os.killpg(group, signal.SIGKILL)
    return False


def _in_child(tool, words, watched, log, steps_file, moment, prepare, starter, tell) -> None:
    code, steps, begin = 1, [], 0.0
    try:
        os.setsid()
        _say_into(log)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(REPOSITORY)
        sys.argv = [tool, *map(str, words)]
        if starter is not None:
            os.write(tell, b"x")
            os.environ["PYTHONPATH"] = str(REPOSITORY)
            os.execv(sys.executable, [sys.executable, *starter, *sys.argv])
        if prepare is not None:
            prepare()
        main = runpy.run_path(str(REPOSITORY / tool))["main"]
        own, place = os.getpid(), str(watched)

        def step(event, args):
            if event not in _STEPS or os.getpid() != own:
                return
            if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
                return
            if isinstance(args[0], str | os.PathLike) and os.fspath(args[0]).startswith(place):
                steps.append(time.monotonic() - begin)
                if moment is not None and len(steps) == moment.step:
                    os.kill(own, moment.number)

        sys.addaudithook(step)
        begin = time.monotonic()
        os.write(tell, b"x")
        code = main()
        Path(steps_file).write_text(json.dumps([time.monotonic(), *steps]))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(code or 0)
