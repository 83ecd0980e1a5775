"""Timing things against each other in one run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ctmasknet.engine.run_record import git_commit, hardware


def interleaved(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Time functions in turn, so that whatever else the machine does meets all of them alike.

    Each is called once before, unmeasured.

    Args:
        ways: name -> what to time.
        repeats: times each is measured.

    Returns:
        name -> ``median_s``, ``min_s``, ``max_s``, ``repeats``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    return {
        name: {
            "median_s": statistics.median(found),
            "min_s": min(found),
            "max_s": max(found),
            "repeats": repeats,
        }
        for name, found in seconds.items()
    }


def circumstances(device: str) -> dict[str, Any]:
    """What a figure depends on: hardware, threads, load when measured, versions."""
    return {
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "load_1_min": os.getloadavg()[0],
        "torch": str(torch.__version__),
        "git_commit": git_commit(),
    }
