"""Tools one after the other, in processes of their own, for scripts that are made of them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ctmasknet.errors import CTMaskNetError

_ROOT = Path(__file__).resolve().parents[2]


def run_step(words: Sequence[str], datasets: str | os.PathLike, threads: int | None = None) -> None:
    """Print the call of a tool, and run it to its end.

    Args:
        words: the tool's path in the project, and what follows it.
        datasets: folder of prepared sets.
        threads: that it computes with, where ``OMP_NUM_THREADS`` does not say; default: one a core.

    Raises:
        CTMaskNetError: it ended with an error, which it has said.
    """
    print(f"\npython {shlex.join(words)}", flush=True)
    environment = {**os.environ, "DETECTRON2_DATASETS": os.fspath(datasets)}
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    if subprocess.run([sys.executable, *words], cwd=_ROOT, env=environment).returncode:
        raise CTMaskNetError("the step above failed; see its message")
