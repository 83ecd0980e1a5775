"""What is told of a long work, on a terminal and elsewhere."""

import io
import logging
import sys

import pytest

from ctmasknet.console import progress
from ctmasknet.console.progress import Progress, duration, tracked
from ctmasknet.console.verbosity import VERBOSITY_VARIABLE
from ctmasknet.engine.runs.start import start_logs


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def usual(monkeypatch):
    monkeypatch.setenv(VERBOSITY_VARIABLE, "usual")
    monkeypatch.delenv("CTMASKNET_LOG_SECONDS", raising=False)
    logger = logging.getLogger("ctmasknet")
    before, logger.handlers = logger.handlers, []
    # pytest gives handlers of its own to a logger that does not propagate
    propagates, logger.propagate = logger.propagate, True
    yield
    logger.handlers, logger.propagate = before, propagates


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def work(clock, count, seconds, **settings):
    for _ in tracked(range(count), "masks", **settings):
        clock[0] += seconds


def test_a_log_has_a_line_with_the_time_left_each_minute(clock, capfd):
    work(clock, 200, 1.0)
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "masks: 10 of 200 slices, 1.0 slices/s, 3 min 10 s left",
        "masks: 70 of 200 slices, 1.0 slices/s, 2 min 10 s left",
        "masks: 130 of 200 slices, 1.0 slices/s, 1 min 10 s left",
        "masks: 190 of 200 slices, 1.0 slices/s, 10 s left",
    ]


def test_slow_items_and_unknown_totals(clock, capfd):
    work(clock, 2, 3000.0, unit="scan")
    items = (one for one in range(3))
    for _ in tracked(items, "reading", unit="file"):
        clock[0] += 40.0
    assert capfd.readouterr().err.splitlines() == [
        "masks: 1 of 2 scans, 3000.0 s/scan, 50 min 0 s left",
        "masks: 2 of 2 scans, 3000.0 s/scan, 0 s left",
        "reading: 1 files, 40.0 s/file",
        "reading: 3 files, 40.0 s/file",
    ]


def test_what_was_done_before_is_not_of_this_pace(clock, capfd):
    with Progress("rows", 100, initial=80) as counted:
        clock[0] += 20.0
        counted.update(10)
        counted.expect(110, about=True)
        assert counted.line() == "rows: 90 of about 110 slices, 2.0 s/slice, 40 s left"
    assert capfd.readouterr().err == "rows: 90 of 100 slices, 2.0 s/slice, 20 s left\n"


def test_of_short_work_nothing_is_said(clock, capfd, monkeypatch):
    work(clock, 9, 1.0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(tracked(range(1000), "masks"))
    assert terminal.getvalue() == "" == capfd.readouterr().err


def test_a_terminal_has_a_bar_with_total_and_time_left(monkeypatch, tmp_path, clock):
    monkeypatch.setattr(progress, "_SHORT_SECONDS", 0.0)
    terminal, screen = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", screen)
    start_logs(tmp_path)
    work(clock, 200, 1.0)
    bar = terminal.getvalue()
    assert "masks:   0%" in bar and "| 200/200 [" in bar and "slice/s]" in bar
    # The run's log has the lines, which are not between the bar's
    assert screen.getvalue() == ""
    log = (tmp_path / "log.txt").read_text()
    assert "masks: 10 of 200 slices, 1.0 slices/s, 3 min 10 s left" in log
    assert "\r" not in log and "\x1b" not in log


def test_quiet_keeps_the_log_alone(monkeypatch, tmp_path, clock, capsys):
    monkeypatch.setenv(VERBOSITY_VARIABLE, "quiet")
    work(clock, 200, 1.0)
    start_logs(tmp_path)
    work(clock, 200, 1.0)
    logging.getLogger("ctmasknet.engine").warning("of a slice")
    told = capsys.readouterr()
    assert told.err == "" and told.out.count("\n") == 1 and told.out.endswith("of a slice\n")
    assert (tmp_path / "log.txt").read_text().count(" left\n") == 4


def test_another_process_tells(clock, capfd):
    work(clock, 200, 1.0, shown=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_nothing_else_shows_a_bar(repository):
    files = (repository / "ctmasknet").rglob("*.py")
    importing = [path for path in files if "import tqdm" in path.read_text(encoding="utf-8")]
    assert importing == [repository / "ctmasknet" / "console" / "progress.py"]
