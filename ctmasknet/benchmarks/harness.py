"""Timing things against each other in one run.

Work in a process of its own, for what a benchmark changes in a whole process, such as how its
memory is handled.

Results of benchmarks as text: on the terminal, and as the README's table.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from ctmasknet.engine.record import git_commit, hardware
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import replace_between_marks


def interleaved(
    ways: Mapping[str, Callable[[], Any]], repeats: int, *, warm: int = 0
) -> dict[str, dict[str, Any]]:
    """Time functions in turn, so that whatever else the machine does meets all of them alike.

    Each is called once before, unmeasured.

    Args:
        ways: name -> what to time.
        repeats: times each is measured.
        warm: further unmeasured calls before every measurement: what a way in a process of its own
            needs, which the system puts to rest while the others have their turn.

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
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
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
    found = [
        json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[
                -1
            ]
        )
        for _ in range(processes)
    ]
    return statistics.median(found)


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
        per: what the seconds are of, such as "image"; default: one piece of the work.
        figures: what -> another number that the run gave, for the table.
        peak_memory_mb: way -> most memory held, MB (10^6 bytes).
        notes: what else its reader has to know, a sentence each.
        more: further entries of the file.

    Returns:
        the above, and ``ratios``: way -> ``ratio``, the median of the reference over its own, and
        ``q1`` and ``q3``, the quartiles of the ratios of neighbouring measurements.
    """
    base = timings[reference]
    ratios = {}
    for name, found in timings.items():
        pairs = [a / b for a, b in zip(base["seconds"], found["seconds"], strict=True)]
        q1, q3 = np.percentile(pairs, (25, 75))
        ratios[name] = {
            "ratio": base["median_s"] / found["median_s"],
            "q1": float(q1),
            "q3": float(q3),
        }
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
    """What a figure depends on: hardware, threads, load when measured, versions."""
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


def text_of(result: Mapping[str, Any]) -> str:
    """A result for the terminal: its table, and its notes below."""
    table = tabulate(_rows([result]), headers=_headers([result]), disable_numparse=True)
    return "\n".join([table, *result["notes"]])


def write_readme_table(readme: str | os.PathLike, files: Sequence[str | os.PathLike]) -> None:
    """Replace what stands between the marks ``benchmarks`` in ``readme`` by a table of results.

    Args:
        readme: a Markdown file.
        files: as ``tools/benchmark.py --output`` writes them.

    Raises:
        CTMaskNetError: a file is missing or no result, or the marks are.
    """
    results = [_read(path) for path in files]
    table = tabulate(
        _rows(results), headers=_headers(results), tablefmt="pipe", disable_numparse=True
    )
    machines = sorted({_machine(result["circumstances"]) for result in results})
    loads = [result["circumstances"]["load_1_min"] for result in results]
    note = (
        "Medians with quartiles in brackets; a ratio is the median of the row marked 1 over the "
        f"row's own, both from one run with the repetitions in turn. Measured on: "
        f"{'; '.join(machines)}; load {min(loads):.1f} to {max(loads):.1f}, the benchmark's own "
        "threads among it. Made by `python tools/benchmark.py table` from the files that "
        "`python tools/benchmark.py NAME --output FILE` wrote."
    )
    replace_between_marks(readme, "benchmarks", f"{table}\n\n{note}")


def _read(path: str | os.PathLike) -> dict[str, Any]:
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        _rows([result])
        _machine(result["circumstances"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CTMaskNetError(
            f"{path}: no result of a benchmark ({type(error).__name__}: {error}); make it with "
            "`python tools/benchmark.py NAME --output FILE`"
        ) from None
    return result


def _headers(results: Sequence[Mapping[str, Any]]) -> list[str]:
    headers = ["work", "way", "seconds", "ratio"]
    return [*headers, "peak MB"] if _with_memory(results) else headers


def _with_memory(results: Sequence[Mapping[str, Any]]) -> bool:
    return any(result["peak_memory_mb"] for result in results)


def _rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for result in results:
        work = result["what"] + (f", one {result['per']}" if result["per"] else "")
        for way, timing in result["timings"].items():
            ratio = result["ratios"][way]
            one = way == result["reference"]
            row = [
                work,
                way,
                _spread(timing["median_s"], timing["q1_s"], timing["q3_s"]),
                "1" if one else _spread(ratio["ratio"], ratio["q1"], ratio["q3"]),
            ]
            if _with_memory(results):
                memory = result["peak_memory_mb"].get(way)
                row.append("" if memory is None else f"{memory:.0f}")
            rows.append(row)
            work = ""
        width = 5 if _with_memory(results) else 4
        for name, value in result["figures"].items():
            rows.append([work, name, "", f"{value:.4g}", ""][:width])
            work = ""
    return rows


def _spread(median: float, q1: float, q3: float) -> str:
    return f"{median:.3g} ({q1:.3g}-{q3:.3g})"


def _machine(found: Mapping[str, Any]) -> str:
    hardware = found["hardware"]
    return (
        f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores, "
        f"{found['threads']} threads, torch {found['torch']}"
    )
