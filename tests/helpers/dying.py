"""Predictions in processes of their own, which may kill themselves as a scheduler would.

A server process imports torch and Detectron2 once and forks for every prediction.
"""

import multiprocessing
import os
import signal

import torch

from ctmasknet.predict.predictor import CTPredictor
from tests.helpers.running import run_tool

KILLED = -signal.SIGKILL
#: Before a file gets its name (it is half-written until then), after that, and in a batch.
POINTS = ("rename", "renamed", "batch")


def start_prediction(repository, words, *, kill=None, log=None, environment=None):
    """Start tools/predict.py in a process of its own; returns the process.

    Args:
        kill: (one of POINTS, n): it ends without notice at the n-th of these.
        log: file that gets the name of every slice that the model is asked about.
        environment: added to the process's.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ctmasknet.predict.command", "highdicom"])
    words = [str(word) for word in words]
    process = context.Process(
        target=_predict, args=(repository, words, kill, log, environment or {})
    )
    process.start()
    return process


def _predict(repository, words, kill, log, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    point, left = kill or (None, 0)

    def count(name):
        nonlocal left
        if name == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    replace, predict = os.replace, CTPredictor.predict

    def counted_replace(*args):
        count("rename")
        replace(*args)
        count("renamed")

    def counted_predict(self, items):
        count("batch")
        if log is not None:
            with open(log, "a", encoding="utf-8") as stream:
                stream.writelines(f"{item['file_name']}\n" for item in items)
        return predict(self, items)

    os.replace, CTPredictor.predict = counted_replace, counted_predict
    raise SystemExit(run_tool(repository, "tools/predict.py", *words))
