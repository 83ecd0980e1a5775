"""What a run of any kind ran on and with, for its record."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import detectron2
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

import ctmasknet

_ROOT = Path(ctmasknet.__file__).resolve().parent.parent


def surroundings(cfg: CfgNode, num_gpus: int = 1) -> dict[str, Any]:
    """What a run of any kind ran on and with: ``hardware``, ``versions``, ``git_commit`` and
    ``config`` (all keys)."""
    return {
        "hardware": hardware(cfg.MODEL.DEVICE, num_gpus),
        "versions": {
            "ctmasknet": ctmasknet.__version__,
            "detectron2": detectron2.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "git_commit": git_commit(),
        "config": yaml.safe_load(cfg.dump()),
    }


def hardware(device: str, num_gpus: int = 1) -> dict[str, Any]:
    """``device``, ``cpu`` (model), ``cores`` (that this process may use), ``gpu`` (name or None),
    ``num_gpus`` and ``processes`` (of the run, on all machines)."""
    with_gpu = device.startswith("cuda") and torch.cuda.is_available()
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return {
        "device": device,
        "cpu": _cpu_model(),
        "cores": cores,
        "gpu": torch.cuda.get_device_name(0) if with_gpu else None,
        "num_gpus": num_gpus if with_gpu else 0,
        "processes": comm.get_world_size(),
    }


def git_commit() -> str | None:
    """The commit of the clone that runs, with ``-dirty`` after local changes; None elsewhere."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(_ROOT), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        # An installed copy may lie inside a clone of something else.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _ROOT:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
