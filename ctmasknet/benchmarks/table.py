"""Results of benchmarks as text: on the terminal, and as the tables of ``docs/speed.md``."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import read_json, replace_between_marks

_WIDTH = 118


def text_of(result: Mapping[str, Any], style: str = "simple") -> str:
    """A result: the work, a table of its ways, its other figures, and its notes.

    Args:
        result: as :func:`ctmasknet.benchmarks.harness.comparison` makes it.
        style: of the table, as tabulate names it.
    """
    work = result["what"] + (f", one {result['per']}" if result["per"] else "")
    memory = result["peak_memory_mb"]
    rows = []
    for way, timing in result["timings"].items():
        ratio = result["ratios"][way]
        row = [way, _spread(timing["median_s"], timing["q1_s"], timing["q3_s"])]
        one = way == result["reference"]
        row.append("1" if one else _spread(ratio["ratio"], ratio["q1"], ratio["q3"]))
        rows.append([*row, f"{memory[way]:.0f}" if way in memory else ""][: 4 if memory else 3])
    headers = ["way", "seconds", "ratio", "peak MB"][: 4 if memory else 3]
    table = tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True)
    figures = [f"- {name}: {value:.4g}" for name, value in result["figures"].items()]
    more = [*figures, *result.get("notes", ())]
    folded = [textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in more]
    return "\n".join([work, "", table, *([""] if more else []), *folded])


def write_speed_tables(page: str | os.PathLike, files: Sequence[str | os.PathLike]) -> None:
    """Replace what stands between the marks ``benchmarks`` in ``page`` by tables of results, one
    for each file.

    Args:
        page: a Markdown file.
        files: as ``tools/benchmark.py`` writes them.

    Raises:
        CTMaskNetError: a file is missing or no result, or the marks are.
    """
    results = [_read(path) for path in files]
    tables = [_markdown(result) for result in results]
    machines = sorted({_machine(result["circumstances"]) for result in results})
    loads = [result["circumstances"]["load_1_min"] for result in results]
    note = (
        "Medians with quartiles in brackets; a ratio is the median of the row marked 1 over the "
        f"row's own, both from one run with the repetitions in turn. Measured on: "
        f"{'; '.join(machines)}; load {min(loads):.1f} to {max(loads):.1f}, the benchmark's own "
        "threads among it. Made by `python tools/benchmark.py table` from the files that the "
        "benchmarks wrote."
    )
    text = "\n\n".join([textwrap.fill(note, _WIDTH), *tables])
    replace_between_marks(page, "benchmarks", text)


def _markdown(result: Mapping[str, Any]) -> str:
    work, rest = text_of(result, "pipe").split("\n", 1)
    return f"### {work[:1].upper()}{work[1:]}\n{rest}"


def _read(path: str | os.PathLike) -> dict[str, Any]:
    try:
        result = read_json(path)
        text_of(result)
        _machine(result["circumstances"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CTMaskNetError(
            f"{path}: no result of a benchmark ({type(error).__name__}: {error}); make it with "
            "`python tools/benchmark.py`, which names the benchmarks"
        ) from None
    return result


def _spread(median: float, q1: float, q3: float) -> str:
    return f"{median:.3g} ({q1:.3g}-{q3:.3g})"


def _machine(found: Mapping[str, Any]) -> str:
    hardware = found["hardware"]
    return (
        f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores, "
        f"{found['threads']} threads, torch {found['torch']}"
    )
