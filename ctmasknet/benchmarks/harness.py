"""Timing things against each other in one run.

What changes a whole process, such as how its memory is handled, is timed in a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from ctmasknet.engine.record import git_commit, hardware
from ctmasknet.errors import CTMaskNetError


def interleaved(
    ways: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    warm: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Any]]:
    """Time functions in turn, so that whatever else the machine does meets all of them alike.

    Each is called once before, unmeasured.

    Args:
        ways: name -> what to time.
        repeats: times each is measured.
        warm: further unmeasured calls before every measurement: what a way in a process of its own
            needs, which the system puts to rest while the others have their turn.
        clock: seconds; ``time.process_time`` counts those that this process computes, whatever
            else the machine does.

    Returns:
        name -> ``median_s``, ``q1_s`` and ``q3_s`` (quartiles), ``min_s``, ``max_s``, ``repeats``,
        and ``seconds``, every measurement in its order.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            for _ in range(warm):
                way()
            begin = clock()
            way()
            seconds[name].append(clock() - begin)
    return {name: spread(found) for name, found in seconds.items()}


def peak_memory_of(module: str, *words: Any, processes: int = 3) -> float:
    """Most memory that ``python -m module words`` holds, MB: the median of processes, because what
    an allocator has to hold for the same tensors varies by some percent.

    Args:
        module: prints it, as JSON, in its last line.
        words: for its command line.
        processes: that are run, one after the other.
    """
    command = [sys.executable, "-m", module, *map(str, words)]

    def peak() -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    return statistics.median(peak() for _ in range(processes))


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median and spread of measurements, see :func:`interleaved`."""
    q1, q3 = np.percentile(seconds, (25, 75))
    return {
        "median_s": statistics.median(seconds),
        "q1_s": float(q1),
        "q3_s": float(q3),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "repeats": len(seconds),
        "seconds": seconds,
    }


def comparison(
    what: str,
    timings: Mapping[str, Mapping[str, Any]],
    reference: str,
    device: str,
    *,
    per: str = "",
    figures: Mapping[str, float] | None = None,
    peak_memory_mb: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """A benchmark's result.

    Args:
        what: the work, in a few words.
        timings: way -> its times, as from :func:`interleaved`.
        reference: the way that the others are compared with.
        device: the work is done on.
        per: what the seconds are of, such as "image"; default: the whole work.
        figures: what -> another number that the run gave, for the table.
        peak_memory_mb: way -> most memory held, MB (10^6 bytes).
        notes: what else its reader has to know, a sentence each.
        more: further entries of the file.

    Returns:
        the above; ``ratios``: way -> ``ratio``, the median of the reference over its own, and
        ``q1`` and ``q3``, the quartiles of the ratios of neighbouring measurements; and
        ``circumstances``, what a figure depends on: hardware, threads, load when measured,
        versions.
    """
    base = timings[reference]
    ratios = {}
    for name, found in timings.items():
        pairs = [a / b for a, b in zip(base["seconds"], found["seconds"], strict=True)]
        q1, q3 = np.percentile(pairs, (25, 75)).tolist()
        ratios[name] = {"ratio": base["median_s"] / found["median_s"], "q1": q1, "q3": q3}
    return {
        "what": what,
        "per": per,
        "reference": reference,
        "timings": dict(timings),
        "ratios": ratios,
        "figures": dict(figures or {}),
        "peak_memory_mb": dict(peak_memory_mb or {}),
        "notes": list(notes),
        **more,
        "circumstances": circumstances(device),
    }


def circumstances(device: str) -> dict[str, Any]:
    """What a figure depends on: hardware, threads, load now, versions, commit."""
    return {
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "load_1_min": os.getloadavg()[0],
        "torch": str(torch.__version__),
        "git_commit": git_commit(),
    }


class Apart:
    """Calling it calls a function in another process, which lives until the end of the context.

    with Apart(make_call, 512) as call:
        result = call()
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *args: Any):
        """
        Args:
            make: called with ``args`` there, gives the function; importable by name.
            args: can be pickled, as what the function returns.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._pipe.close()
        self._process.join()

    def __call__(self) -> Any:
        """
        Raises:
            CTMaskNetError: the process has ended; its message is on the terminal.
        """
        try:
            self._pipe.send(None)
            return self._pipe.recv()
        except (EOFError, OSError):
            raise CTMaskNetError(
                "a process of the benchmark has ended; its message stands above"
            ) from None


def _serve(pipe: Connection, make: Callable[..., Callable[[], Any]], args: tuple) -> None:
    call = make(*args)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(call())
