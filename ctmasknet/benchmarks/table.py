"""Results of benchmarks as text: on the terminal, and as the README's table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import replace_between_marks


def text_of(result: Mapping[str, Any]) -> str:
    """A result for the terminal."""
    return tabulate(_rows([result]), headers=_headers([result]), disable_numparse=True)


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
        for way, time in result["timings"].items():
            ratio = result["ratios"][way]
            one = way == result["reference"]
            row = [
                work,
                way,
                _spread(time["median_s"], time["q1_s"], time["q3_s"]),
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
