"""What a run says at its start: in short on the terminal, whole and without colours in log.txt."""

import logging
import subprocess
import sys

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import print_csv_format

from ctmasknet.console.verbosity import VERBOSITY_VARIABLE
from ctmasknet.engine.runs import start
from ctmasknet.engine.runs.start import start_logs, start_run

CODES = "\x1b["


@pytest.fixture
def fresh_logs():
    """The run's loggers are as before afterwards."""
    loggers = [logging.getLogger(name) for name in start._LOGGERS]
    before = [(item, item.handlers[:], item.level, item.propagate) for item in loggers]
    for item in loggers:
        item.handlers.clear()
    yield
    for item, handlers, level, propagate in before:
        item.handlers[:] = handlers
        item.setLevel(level)
        item.propagate = propagate


@pytest.mark.parametrize("terminal", [True, False])
def test_short_on_the_terminal_whole_and_plain_in_the_file(
    tmp_path, fresh_logs, capsys, monkeypatch, terminal
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    start_logs(tmp_path)
    logger = logging.getLogger("detectron2.engine")
    logger.info("Model:\n%s", "\n".join(map(str, range(400))))
    logger.info("\x1b[34mblue\x1b[0m words")
    logger.warning("look here")
    shown, kept = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    assert len(shown.splitlines()) == 3 and "Model: (400 lines, in log.txt)" in shown
    assert (CODES in shown) is terminal
    assert "\n399\n" in kept and "blue words" in kept and "WARNING: look here" in kept
    assert CODES not in kept


def test_a_second_start_replaces_the_first(tmp_path, fresh_logs, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        start_logs(tmp_path / name)
        logging.getLogger("ctmasknet").info("in %s", name)
    assert "in b" not in (tmp_path / "a" / "log.txt").read_text()
    assert capsys.readouterr().out.count("in b") == 1
    start_logs()
    logging.getLogger("ctmasknet").info("of a prediction")
    assert "of a prediction" not in (tmp_path / "b" / "log.txt").read_text()
    assert "of a prediction" in capsys.readouterr().out


@pytest.mark.parametrize("has_file", [True, False])
def test_a_log_that_nobody_reads_ends_what_has_no_other(tmp_path, has_file):
    code = f"""
import logging, time
from ctmasknet.errors import command_line
from ctmasknet.engine.runs.start import start_logs
@command_line(go_on="go on")
def main():
    start_logs({str(tmp_path) if has_file else None!r})
    print("one", flush=True)
    time.sleep(0.5)
    for number in range(3):
        logging.getLogger("ctmasknet").info("step %d", number)
        print("printed")
raise SystemExit(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "one\n"
    process.stdout.close()
    said = process.stderr.read().splitlines()
    if has_file:
        assert process.wait(30) == 0 and said == [
            "nobody reads the log here any more; log.txt has all of it"
        ]
        assert (tmp_path / "log.txt").read_text().count("INFO: step") == 3
    else:
        assert process.wait(30) == 141 and said == [
            "ended, for nobody reads its output any more: go on"
        ]


def test_quiet_says_results_and_warnings(tmp_path, fresh_logs, capsys, monkeypatch):
    monkeypatch.setenv(VERBOSITY_VARIABLE, "quiet")
    start_logs(tmp_path)
    logging.getLogger("detectron2.engine").info("Starting training")
    logging.getLogger("detectron2.engine").warning("look here")
    print_csv_format({"slices": {"accuracy": 91.5}})
    lines = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "look here" and lines[-1] == "copypaste: 91.5000" and len(lines) == 4
    assert "Starting training" in (tmp_path / "log.txt").read_text()


def test_configuration_seed_and_environment(tmp_path, fresh_logs, capsys):
    cfg = CfgNode({"OUTPUT_DIR": str(tmp_path), "SEED": 5, "CUDNN_BENCHMARK": False})
    drawn = []
    for _ in range(2):
        start_run(cfg, training=True)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]
    assert (tmp_path / "config.yaml").read_text() == cfg.dump()
    assert "SEED: 5" in (tmp_path / "log.txt").read_text()
    assert "Training, process 0 of 1, with: (" in capsys.readouterr().out
