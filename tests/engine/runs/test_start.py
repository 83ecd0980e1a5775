"""What a run says at its start: in short on the terminal, whole and without colours in log.txt."""

import logging
import sys

import pytest
import torch
from detectron2.config import CfgNode

from ctmasknet.engine.runs import start
from ctmasknet.engine.runs.start import start_logs, start_run

CODES = "\x1b["


@pytest.fixture
def fresh_logs(monkeypatch):
    """Loggers of the run without handlers, as in a new process; as before afterwards."""
    loggers = [logging.getLogger(name) for name in start._LOGGERS]
    before = [(item, item.handlers[:], item.level, item.propagate) for item in loggers]
    for item in loggers:
        item.handlers.clear()
    start.setup_logger.cache_clear()
    yield
    for item, handlers, level, propagate in before:
        item.handlers[:] = handlers
        item.setLevel(level)
        item.propagate = propagate
    start.setup_logger.cache_clear()


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
    for handler in logging.getLogger("detectron2").handlers:
        handler.flush()
    shown, kept = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    assert len(shown.splitlines()) == 3 and "Model: (400 lines, in log.txt)" in shown
    assert (CODES in shown) is terminal
    assert "\n399\n" in kept and "blue words" in kept and "WARNING: look here" in kept
    assert CODES not in kept


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
