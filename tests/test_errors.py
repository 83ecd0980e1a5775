import errno
import logging
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ctmasknet.errors import CTMaskNetError, command_line, report_in


def test_a_message_is_one_line():
    told = str(CTMaskNetError("a\nb\r\tc\x1b[31m \udc80 \u2028 é '\\n'"))
    assert told == r"a\nb\r\tc\x1b[31m \udc80 \u2028 é '\n'"
    assert pickle.loads(pickle.dumps(CTMaskNetError("a\nb"))).args == ("a\\nb",)


def test_a_tool_names_its_options_where_the_library_names_arguments(capsys):
    message = "`max_bad_share` is 3; give 0..1, or see `python tools/predict.py --help`"

    @command_line
    def main():
        raise CTMaskNetError(message)

    assert main() == 2
    assert capsys.readouterr().err == (
        "error: --max-bad-share is 3; give 0..1, or see `python tools/predict.py --help`\n"
    )


@command_line
def defective(argv=None):
    raise KeyError("covid")


def test_a_defect_is_three_lines_and_its_traceback_a_file(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("CTMASKNET_DEBUG", raising=False)
    assert defective([]) == 1
    what, where, report = capsys.readouterr().err.splitlines()
    assert re.match(r"error: KeyError: 'covid' \(test_errors.py, line \d+\): not foreseen", what)
    file = Path(where.removeprefix("traceback, command and versions: "))
    text = file.read_text()
    file.unlink()
    assert "raise KeyError" in text and text.startswith("command: ") and "\npython 3." in text
    assert "report it" in report and "CTMASKNET_DEBUG=1" in report

    @command_line
    def in_a_folder(argv):
        report_in(tmp_path)
        raise RuntimeError("first\n\nTraceback (most recent call last):\n  x\nValueError: last\n")

    assert in_a_folder([]) == 1
    what, where, _ = capsys.readouterr().err.splitlines()
    assert "RuntimeError: ValueError: last (" in what
    assert where.endswith(f": {tmp_path / 'error.txt'}")
    assert "in_a_folder" in (tmp_path / "error.txt").read_text()


@pytest.mark.parametrize("how", ["option", "variable"])
def test_tracebacks_are_shown_to_who_asks(monkeypatch, how):
    monkeypatch.setenv("CTMASKNET_DEBUG", "1" if how == "variable" else "")
    words = ["--debug"] if how == "option" else []
    with pytest.raises(KeyError):
        defective(words)
    assert words == []


def test_a_place_that_cannot_be_written_is_no_defect(capsys, tmp_path):
    (tmp_path / "file").touch()

    @command_line
    def below_a_file(argv):
        (tmp_path / "file" / "below").write_text("x")

    @command_line
    def on_a_full_disk(argv):
        raise OSError(errno.ENOSPC, "No space left on device")  # names no file, as write(2)

    for main, where in (below_a_file, f"{tmp_path}/file/below"), (on_a_full_disk, "a file"):
        assert main([]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {where}: cannot be read or written (No")


_PROGRAM = """
import sys, time
from ctmasknet.errors import command_line

@command_line{given}
def main():
    try:
        print("at work", flush=True)
        time.sleep(600)
    finally:
        print("clearing up", flush=True)
        time.sleep({seconds})

sys.exit(main())
"""


def start(given="", seconds=0):
    command = [sys.executable, "-c", _PROGRAM.format(given=given, seconds=seconds)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "at work\n"
    return process


@pytest.mark.parametrize(
    ("number", "given", "line"),
    [
        (signal.SIGINT, "", "interrupted: call it again; nothing half-made is left"),
        (signal.SIGTERM, "(go_on='`resume` goes on')", "ended by SIGTERM: --resume goes on"),
    ],
)
def test_a_signal_ends_a_tool_in_one_line(number, given, line):
    with start(given) as process:
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (128 + number, "clearing up\n", f"{line}\n")


_WHERE_IT_COMES = {
    "a process is forked": """
    os.register_at_fork(after_in_parent=ask)
    if not os.fork():
        os._exit(0)""",
    "an object is removed": """
    Removed()""",
    "a library is half-way": """
    try:
        ask()
    finally:
        raise RuntimeError("half-way")""",
}


@pytest.mark.parametrize("body", _WHERE_IT_COMES.values(), ids=_WHERE_IT_COMES)
def test_a_signal_is_not_lost_wherever_it_comes(body):
    program = f"""
import os, signal, sys, time
from ctmasknet.errors import command_line

def ask():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)

class Removed:
    def __del__(self):
        ask()

@command_line
def main():{body}
    time.sleep(5)

sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    line = "ended by SIGTERM: call it again; nothing half-made is left\n"
    assert (done.returncode, done.stdout, done.stderr) == (143, "", line)


@pytest.mark.parametrize(
    ("lines", "code_of_exit", "line"),
    [
        (
            *(100_000, 141),
            "ended, for nobody reads its output any more: call it again; nothing half-made is "
            "left\n",
        ),
        (2, 0, ""),
    ],
)
def test_output_that_nobody_reads_ends_a_tool_in_one_line(lines, code_of_exit, line):
    """As `| head -1` does. A few lines are held back until the end, when its work is done."""
    code = f"""
import time
from ctmasknet.errors import command_line
@command_line
def main():
    print("one", flush=True)
    time.sleep(0.5)
    print(*range({lines}), sep="\\n")
raise SystemExit(main())
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    held_back = {k: value for k, value in os.environ.items() if k != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", code], env=held_back, **pipes)
    assert process.stdout.readline() == "one\n"
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(30), said) == (code_of_exit, line)


def test_a_tool_without_standard_output_does_its_work():
    code = "from ctmasknet.errors import command_line\nraise SystemExit(command_line(lambda: 0)())"
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} >&-"
    done = subprocess.run(["bash", "-c", shell], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_signal_ends_it_at_once():
    with start(seconds=600) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "clearing up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="what is loaded is told by /proc")
@pytest.mark.parametrize(
    ("tool", "number"),
    [
        ("tools/train_net.py", signal.SIGINT),
        ("datasets/describe.py", signal.SIGINT),
        ("datasets/describe.py", signal.SIGTERM),
    ],
)
def test_ctrl_c_while_libraries_load_is_one_line(repository, tool, number):
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    with subprocess.Popen(
        [sys.executable, tool, "--help"],
        cwd=repository,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.002)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    how = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM"}[number]
    assert error == f"{how}: call it again; nothing was begun\n"


def test_every_tool_ends_in_one_place(repository):
    for folder in ("tools", "datasets"):
        # tools/__init__.py only finds the one that is called
        for path in (repository / folder).glob("[!_]*.py"):
            text = path.read_text()
            if "runpy.run_path(str(Path(__file__).with_name(" not in text:  # another's other name
                assert re.search(r"\n@command_line(\(.*\))?\ndef main\(", text), path
            assert text.endswith('if __name__ == "__main__":\n    sys.exit(main())\n'), path


def test_a_warning_before_there_is_a_log_says_that_it_is_one(monkeypatch):
    monkeypatch.setattr(logging, "lastResort", logging.Handler())
    command_line(lambda: 0)()
    told = "name it as `lesion_weights`"
    record = logging.LogRecord("ctmasknet", logging.WARNING, "", 0, told, (), None)
    assert logging.lastResort.format(record) == "WARNING: name it as --lesion-weights"
