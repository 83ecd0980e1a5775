"""Trainings in processes that kill themselves at a chosen point, as a scheduler would.

A server process imports torch and Detectron2 once and forks for every training.
"""

import io
import multiprocessing
import os
import signal

import torch

from ctmasknet.engine import metrics
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer
from ctmasknet.engine.metrics import JSONLinesWriter
from ctmasknet.engine.trainer import Trainer
from tests.helpers.running import run_tool

POINTS = ("step", "checkpoint", "tag", "evaluation", "metrics")
KILLED = -signal.SIGKILL


def train(repository, datasets, words, kill=None) -> int:
    """Run tools/train_net.py in a process of its own.

    Args:
        kill: (one of POINTS or "curves", n): the process ends without notice within the n-th of
            these; or (point, n, signal): it gets another signal there.

    Returns:
        its exit code; KILLED if it was.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ctmasknet.engine.trainer", "ctmasknet.engine.record"])
    process = context.Process(target=_train, args=(repository, str(datasets), list(words), kill))
    process.start()
    process.join(120)
    return process.exitcode


def _train(repository, datasets, words, kill):
    # Loader workers, too, are forked: the server's way would have each of them import everything.
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(repository)
    os.environ["DETECTRON2_DATASETS"] = datasets
    torch.set_num_threads(1)
    if kill is not None:
        _arm(*kill)
    raise SystemExit(run_tool(repository, "tools/train_net.py", *words))


def _arm(point, nth, number=signal.SIGKILL):
    def die():
        os.kill(os.getpid(), number)

    def on_call(owner, name, act):
        """Replace a function: its nth call is ``act`` and then death."""
        original = getattr(owner, name)
        calls = 0

        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == nth:
                act(original, *args, **kwargs)
                die()
            return original(*args, **kwargs)

        setattr(owner, name, counted)

    def half_a_file(save, content, stream):
        whole = io.BytesIO()
        save(content, whole)
        stream.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        stream.flush()

    def half_a_line(write, writer):
        write(writer)
        if writer._path.is_file():
            os.truncate(writer._path, writer._path.stat().st_size - 7)

    def nothing(*args, **kwargs):
        pass

    if point == "step":  # gradients are there, weights not yet changed
        on_call(torch.optim.Adam, "step", nothing)
    elif point == "checkpoint":
        on_call(torch, "save", half_a_file)
    elif point == "tag":  # the file is whole, but not yet the one to resume from
        on_call(CTMaskNetCheckpointer, "tag_last_checkpoint", nothing)
    elif point == "metrics":
        on_call(JSONLinesWriter, "write", half_a_line)
    elif point == "curves":  # everything else is written
        on_call(metrics, "draw_run", nothing)
    elif point == "evaluation":
        build = Trainer.build_evaluator.__func__

        def build_counted(cls, cfg, name):
            evaluator = build(cls, cfg, name)
            on_call(evaluator, "process", nothing)
            return evaluator

        Trainer.build_evaluator = classmethod(build_counted)
    else:
        raise ValueError(point)
