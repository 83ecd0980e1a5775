"""The model zoo: every variant with how it was run, on what, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ctmasknet.files import atomic_write, write_json, writing
from ctmasknet.paper.cells import hardware_of, lesion_result, slice_result
from ctmasknet.paper.runs import Run, find_runs
from ctmasknet.paper.table import NOT_RUN, Table, document
from ctmasknet.paper.variants import HEADINGS, Variant, model_rows, model_tables, variants

_COLUMNS = ["variant", "config", "command", "data", "hardware", "seed", "result"]


def write_model_table(
    made_by: str, markdown: str | None = None, json_file: str | None = None
) -> str:
    """The model table as Markdown, written to the files that are named.

    Args:
        made_by: the command, told in the files.
        markdown: file for the text, if any.
        json_file: file for the numbers, if any.

    Raises:
        CTMaskNetError: a file cannot be written.
    """
    rows = model_rows(variants())
    text = document("Models", made_by, [table.markdown() for table in model_tables(rows)])
    if markdown:
        with writing(markdown), atomic_write(markdown) as stream:
            stream.write(text)
    if json_file:
        with writing(json_file):
            write_json(json_file, {"made_by": made_by, "models": rows}, 1)
    return text


def write_zoo(path: str | Path, results: Iterable[str | Path], made_by: str) -> list[Table]:
    """Write ``MODEL_ZOO.md``.

    Raises:
        CTMaskNetError: see :func:`ctmasknet.paper.runs.find_runs`; ``path`` cannot be written.
    """
    known = variants()
    tables = zoo_tables(known, find_runs(results, known))
    parts = [
        "Figures come from result files, in percent. Where a variant has none its command is the "
        f'plain one and the rest says "{NOT_RUN}". Published figures are not repeated here: '
        "`tools/paper_tables.py` sets them beside these.\n",
        *(table.markdown() for table in tables),
    ]
    with writing(path), atomic_write(path) as stream:
        stream.write(document("Model zoo", made_by, parts))
    return tables


def zoo_tables(known: Sequence[Variant], runs: Sequence[Run]) -> list[Table]:
    """A table for every heading, and one for runs that no config fits, if there are any."""
    tables = []
    for heading in HEADINGS:
        rows = [
            row for variant in known if variant.heading == heading for row in _rows(variant, runs)
        ]
        if rows:
            tables.append(Table(heading, _COLUMNS, rows))
    strays = [run for run in runs if run.variant is None]
    if strays:
        rows = [row for run in strays for row in _run_rows("own config", "-", run)]
        tables.append(Table("Runs that no config here fits", _COLUMNS, rows))
    return tables


def _rows(variant: Variant, runs: Sequence[Run]) -> list[list[str]]:
    name = f"`{variant.name}`"
    config = f"[{variant.config}]({variant.name}.yaml)"
    own = [run for run in runs if run.variant is not None and run.variant.name == variant.name]
    rows = [row for run in own for row in _run_rows(name, config, run)]
    plain = f"`python tools/train_net.py --config-file {variant.config}`"
    return rows or [[name, config, plain, *[NOT_RUN] * 4]]


def _run_rows(name: str, config: str, run: Run) -> list[list[str]]:
    """One row for each data set that a run was evaluated on, or one that says it was not."""
    result = slice_result if run.structure.task == "classification" else lesion_result
    record = run.training or next((m.evaluation for m in run.measured if m.evaluation), None)
    command = f"`{record['command']}`" if record else "not recorded"
    seed = "not recorded"
    if run.training:
        seed = "random" if run.training["seed"] < 0 else str(run.training["seed"])
    minutes = ""
    if run.training and "seconds" in run.training:
        minutes = f"; {run.training['seconds'] / 60:.1f} min"
    hardware = f"{hardware_of(run)}{minutes}"
    return [
        [
            *(name, config, command),
            f"trained on {run.trained_on(item)}; measured on {item.on() if item else NOT_RUN}",
            *(hardware, seed, result(item)),
        ]
        for item in (run.measured or [None])
    ]
