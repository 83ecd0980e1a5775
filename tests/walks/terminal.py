"""A terminal in which lines are typed: bash, whose ``python`` is a call of a tool."""

from __future__ import annotations

import contextlib
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.walks.page import REPOSITORY

#: What stands in a clone and is named by commands.
_OF_A_CLONE = ("configs", "datasets", "tools")
_PYTHON = """
python() {
    printf '%s\\0' "$#" "$@" >&"$ASKED"
    read -r -u "$ANSWERED" code && return "$code"
}
set -e
"""


@dataclass(frozen=True)
class Call:
    """A command that was typed.

    Attributes:
        words: behind ``python``, as the shell gave them.
        code: exit code.
        cpu_seconds: of the process and those it waited for, whatever else the machine did.
        said: on stdout and stderr.
    """

    words: tuple[str, ...]
    code: int
    cpu_seconds: float
    said: str

    @property
    def last(self) -> str:
        return (self.said.strip().splitlines() or [""])[-1]


def type_in(
    folder: Path,
    lines: str,
    environment: Mapping[str, str],
    behind: Callable[[Sequence[str]], Sequence[str]],
) -> list[Call]:
    """Type lines, up to the first that fails.

    Every tool runs in a process forked from this one, which has torch already.

    Args:
        folder: to work in; gets links to what a clone holds.
        lines: for bash.
        environment: variables beside the present ones.
        behind: words of a call -> what is put behind them.
    """
    for name in _OF_A_CLONE:
        if not (folder / name).exists():
            (folder / name).symlink_to(REPOSITORY / name)
    asked, ask = os.pipe()
    answered, answer = os.pipe()
    shell = subprocess.Popen(
        ["bash", "-c", _PYTHON + lines],
        cwd=folder,
        env={**os.environ, **environment, "ASKED": str(ask), "ANSWERED": str(answered)},
        pass_fds=(ask, answered),
        stdin=subprocess.DEVNULL,
    )
    os.close(ask)
    os.close(answered)
    calls = []
    with open(asked, "rb") as asking, open(answer, "w", buffering=1) as answering:
        while (count := _next(asking)) is not None:
            words = [_next(asking) for _ in range(int(count))]
            more = list(map(str, behind(words)))
            calls.append(_call(folder, words, more, environment))
            with contextlib.suppress(BrokenPipeError):
                print(calls[-1].code, file=answering)
    if shell.wait() and all(call.code == 0 for call in calls):
        calls.append(Call(("bash",), shell.returncode, 0.0, "the shell itself failed"))
    return calls


def _next(stream) -> str | None:
    """The next word, which ends in a NUL."""
    word = bytearray()
    while (letter := stream.read(1)) not in (b"\0", b""):
        word += letter
    return word.decode() if letter else None


def _call(folder, words, more, environment) -> Call:
    log = folder / "said.txt"
    sys.stdout.flush()
    child = os.fork()
    if not child:
        _in_child(folder, [*words, *more], environment, log)
    _, status, used = os.wait4(child, 0)
    said = log.read_text(errors="replace")
    code, seconds = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
    return Call(tuple(words), code, seconds, said)


def _in_child(folder, words, environment, log) -> None:
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(out, stream)
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
