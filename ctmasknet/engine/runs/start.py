"""How a run begins: logs, ``config.yaml``, seeds. What Detectron2's ``default_setup`` does, without
colour codes in files and pipes and without hundreds of lines on the terminal."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TextIO

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from termcolor import colored

from ctmasknet.console.progress import BESIDE_A_BAR
from ctmasknet.console.verbosity import verbosity
from ctmasknet.errors import OptionsFormatter, discard_output
from ctmasknet.files import atomic_write

CONFIG = "config.yaml"
_LOGGERS = ("fvcore", "detectron2", "ctmasknet")
#: They warn of a CUDA compiler that nobody needs, and of a change in torch.fx.
_LOUD = ("torch.utils.cpp_extension", "torch.fx._symbolic_trace")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FORMAT, _TIME = "[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S"
#: What quiet tools say too: the figures of an evaluation, and which model is the best so far.
_RESULTS = (
    *("ctmasknet.engine.testing", "detectron2.evaluation.testing"),
    "ctmasknet.engine.validation",
)
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
    Detectron2 says too. Replaces what an earlier call set up.

    The terminal of the main process shows the beginning of long messages, with colours if it is
    one; the file has all of them, without. Quiet, the terminal shows results, warnings and errors
    alone; verbose, messages of libraries too, all of them whole.
    """
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    rank = comm.get_rank()
    handlers: list[logging.Handler] = [] if rank else [_Terminal(folder is not None)]
    if folder is not None:
        name = os.path.join(folder, "log.txt" if not rank else f"log.txt.rank{rank}")
        handlers.append(_LogFile(name, encoding="utf-8"))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for handler in [one for one in logger.handlers if isinstance(one, _Terminal | _LogFile)]:
            logger.removeHandler(handler)
            handler.close()
        if folder is None and name != "ctmasknet" and verbosity() != "verbose":
            continue
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        for handler in handlers:
            logger.addHandler(handler)


class _Terminal(logging.StreamHandler):
    """Standard output, whatever that is when something is said."""

    def __init__(self, has_file: bool):
        super().__init__()
        self._has_file = has_file
        self._shortens = has_file and verbosity() != "verbose"
        self.setFormatter(OptionsFormatter(_FORMAT, _TIME))
        self.addFilter(lambda record: not getattr(record, BESIDE_A_BAR, False))
        if verbosity() == "quiet":
            self.addFilter(lambda it: it.levelno >= logging.WARNING or it.name in _RESULTS)

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """The base class sets it once."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not sys.stdout.isatty():
            text = _COLOUR.sub("", text)
        elif record.levelno >= logging.WARNING:
            text = colored(text, "red", force_color=True)
        lines = text.splitlines()
        if self._shortens and len(lines) > _MOST_LINES:
            return f"{lines[0]} ({len(lines) - 1} lines, in log.txt)"
        return text

    def handleError(self, record: logging.LogRecord) -> None:
        """Where nobody reads the log any more a run that has a file goes on, and others end."""
        error = sys.exc_info()[1]
        if not isinstance(error, BrokenPipeError):
            super().handleError(record)
        elif not self._has_file:
            raise error
        else:
            discard_output()
            print("nobody reads the log here any more; log.txt has all of it", file=sys.stderr)


class _LogFile(logging.FileHandler):
    def __init__(self, path: str, encoding: str):
        super().__init__(path, encoding=encoding)
        self.setFormatter(OptionsFormatter(_FORMAT, _TIME))

    def format(self, record: logging.LogRecord) -> str:
        return _COLOUR.sub("", super().format(record))
