"""How a run begins: logs, ``config.yaml``, seeds. What Detectron2's ``default_setup`` does, without
colour codes in files and pipes and without hundreds of lines on the terminal."""

from __future__ import annotations

import logging
import os
import re
import sys

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ctmasknet.files import atomic_write

CONFIG = "config.yaml"
_LOGGERS = ("fvcore", "detectron2", "ctmasknet")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: Lines that a message may have on the terminal; evaluation's tables have fewer.
_MOST_LINES = 20
_LOGGER = logging.getLogger(__name__)


def start_run(cfg: CfgNode, *, training: bool) -> None:
    """Set up logs and seeds and write ``config.yaml``; every process has to call this.

    Args:
        cfg: with an ``OUTPUT_DIR`` that is there.
        training: whether it trains; in evaluation cuDNN does not look for its best algorithms.
    """
    start_logs(cfg.OUTPUT_DIR)
    rank, world = comm.get_rank(), comm.get_world_size()
    kind = "Training" if training else "Evaluation"
    _LOGGER.info("%s, process %d of %d, with:\n%s", kind, rank, world, collect_env_info())
    if comm.is_main_process():
        text = cfg.dump()
        _LOGGER.info("Configuration, in %s:\n%s", os.path.join(cfg.OUTPUT_DIR, CONFIG), text)
        with atomic_write(os.path.join(cfg.OUTPUT_DIR, CONFIG)) as stream:
            stream.write(text)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if training:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def start_logs(folder: str | os.PathLike | None = None) -> None:
    """Log to the terminal, and to ``log.txt`` in ``folder`` where one is given, which has what
    Detectron2 says too.

    The terminal of the main process shows the beginning of long messages, with colours if it is
    one; the file has all of them, without.
    """
    output = None if folder is None else os.fspath(folder)
    for name in _LOGGERS if output is not None else ("ctmasknet",):
        logger = setup_logger(output, comm.get_rank(), color=sys.stdout.isatty(), name=name)
        for handler in logger.handlers:
            if not isinstance(handler.formatter, _Shown):
                on_terminal = getattr(handler, "stream", None) in (sys.stdout, sys.__stdout__)
                handler.setFormatter(_Shown(handler.formatter, on_terminal, output is not None))


class _Shown(logging.Formatter):
    """Another formatter's text, shortened on the terminal, and without colours elsewhere."""

    def __init__(self, inner: logging.Formatter, on_terminal: bool, has_file: bool):
        super().__init__()
        self._inner, self._on_terminal, self._has_file = inner, on_terminal, has_file

    def format(self, record: logging.LogRecord) -> str:
        text = self._inner.format(logging.makeLogRecord(vars(record)))
        if not (self._on_terminal and sys.stdout.isatty()):
            text = _COLOUR.sub("", text)
        lines = text.splitlines()
        if self._on_terminal and self._has_file and len(lines) > _MOST_LINES:
            return f"{lines[0]} ({len(lines) - 1} lines, in log.txt)"
        return text
