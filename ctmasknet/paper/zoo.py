"""The table of all models' sizes, and the model zoo: which command made which figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctmasknet.files import check_writable, write_json, writing
from ctmasknet.paper.runs import Measured, Run, find_runs
from ctmasknet.paper.table import NOT_RUN, Table, document, percent, write_text
from ctmasknet.paper.variants import HEADINGS, Variant, model_rows, variants

_MODEL_COLUMNS = {
    "config": "config",
    "backbone": "backbone",
    "truncation": "truncation",
    "mask_type": "masks",
    "num_boxes": "N",
    "image_fc_dim": "S width",
    "training_mode": "trained",
    "parameters": "parameters",
    "mask_head": "of them mask head",
    "trainable": "trainable",
    "state_dict": "state dict",
    "authors_parameters": "authors' parameters",
    "authors_state_dict": "authors' state dict",
}
_MODEL_NOTES = (
    "Parameters are those of the Detectron2 model that the config builds; the state dict counts "
    "running statistics too.",
    "The authors' layout has a background class where Detectron2 has none: 516 more numbers in the "
    "box predictor, 257 (ResNet-18 and -34: 129) more in the mask predictor. Their classifiers "
    "have no mask head: their parameters are ours without the mask head plus 516.",
    'N and S width: rows that the image head reads, and width of its layers. "trained" is '
    "MODEL.TRAINABLE; a detector trains every parameter.",
)


def model_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The model table, one part a heading."""
    tables = []
    for heading in HEADINGS:
        cells = [
            [_model_cell(row, key) for key in _MODEL_COLUMNS]
            for row in rows
            if row["heading"] == heading
        ]
        if cells:
            tables.append(Table(heading, list(_MODEL_COLUMNS.values()), cells))
    tables[-1].notes.extend(_MODEL_NOTES)
    return tables


def _model_cell(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if key == "training_mode" and value is None:
        return "all"
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def write_model_table(made_by: str, *files: str) -> str:
    """The model table as Markdown.

    Args:
        made_by: the command, told in the files.
        files: what to write; ``.json`` files hold the numbers, others the text.

    Raises:
        CTMaskNetError: a file cannot be written.
    """
    for path in files:
        check_writable(path)
    rows = model_rows(variants())
    text = document("Models", made_by, [table.markdown() for table in model_tables(rows)])
    for path in files:
        if path.endswith(".json"):
            with writing(path):
                write_json(path, {"made_by": made_by, "models": rows}, 1)
        else:
            write_text(path, text)
    return text


_ZOO_COLUMNS = ["variant", "config", "command", "data", "hardware", "seed", "result"]


def write_zoo(
    path: str | Path, results: Iterable[str | Path], made_by: str, command: str
) -> list[Table]:
    """Write ``MODEL_ZOO.md``.

    Args:
        path: the file.
        results: folders with runs in or below them.
        made_by: the command that makes the zoo, told in the file.
        command: the one that trains a config, with ``{}`` for its file.

    Raises:
        CTMaskNetError: see :func:`ctmasknet.paper.runs.find_runs`; ``path`` cannot be written.
    """
    check_writable(path)
    known = variants()
    tables = zoo_tables(known, find_runs(results, known), command)
    parts = [
        "Figures come from result files, in percent. Where a variant has none its command is the "
        f'plain one and the rest says "{NOT_RUN}". Published figures are not repeated here: '
        "`tools/paper_tables.py` sets them beside these.\n",
        *(table.markdown() for table in tables),
    ]
    write_text(path, document("Model zoo", made_by, parts))
    return tables


def zoo_tables(known: Sequence[Variant], runs: Sequence[Run], command: str) -> list[Table]:
    """A table for every heading, and one for runs that no config fits, if there are any; arguments
    as :func:`write_zoo`."""
    tables = []
    for heading in HEADINGS:
        rows = []
        for variant in (item for item in known if item.heading == heading):
            names = (f"`{variant.name}`", f"[{variant.config}](../../{variant.config})")
            own = [run for run in runs if run.variant and run.variant.name == variant.name]
            plain = [*names, f"`{command.format(variant.config)}`", *[NOT_RUN] * 4]
            rows += [row for run in own for row in _run_rows(names, run)] or [plain]
        if rows:
            tables.append(Table(heading, _ZOO_COLUMNS, rows))
    rows = [row for run in runs if not run.variant for row in _run_rows(("own config", "-"), run)]
    if rows:
        tables.append(Table("Runs that no config here fits", _ZOO_COLUMNS, rows))
    return tables


def _run_rows(names: Sequence[str], run: Run) -> list[list[str]]:
    """One row for each data set that a run was evaluated on, or one that says it was not."""
    record = run.training or next((m.evaluation for m in run.measured if m.evaluation), None)
    command = hardware = seed = "not recorded"
    if record:
        command, parts = f"`{record['command']}`", record["hardware"]
        hardware = f"{parts['cpu']}, {parts['cores']} cores"
        if parts["gpu"]:
            hardware = f"{parts['num_gpus']} x {parts['gpu']}"
    if run.training:
        seed = "random" if run.training["seed"] < 0 else str(run.training["seed"])
        if "seconds" in run.training:
            hardware += f"; {run.training['seconds'] / 60:.1f} min"
    rows = []
    for item in run.measured or [None]:
        data = f"trained on {run.trained_on(item)}; measured on {item.on() if item else NOT_RUN}"
        rows.append([*names, command, data, hardware, seed, _result(item) if item else NOT_RUN])
    return rows


def _result(measured: Measured) -> str:
    """The figures of a detector or a classifier in a few words."""
    if "slices" not in measured.figures:
        parts = {"box AP50": "bbox", "mask AP50": "segm", "per-image AP50": "per_image"}
        found = {n: measured.figures[k]["AP50"] for n, k in parts.items() if k in measured.figures}
        return ", ".join(f"{name} {percent(value)}" for name, value in found.items())
    slices = measured.figures["slices"]
    classes = ", ".join(
        f"{key.removeprefix('sensitivity-')} {percent(value)}"
        for key, value in slices.items()
        if key.startswith("sensitivity-")
    )
    return f"accuracy {percent(slices['accuracy'])}; sensitivity {classes}"
