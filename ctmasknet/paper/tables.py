"""The paper's Tables 1, 2 and 3, the table of models, and the model zoo.

Published figures stand beside those of this project's result files. A figure of this project is
shown with the data it was measured on; a cell that no result file fills says "not run". Where the
paper disagrees with itself or with its code, a table of its own says so, once.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctmasknet.files import atomic_write, write_json, writing
from ctmasknet.paper import published
from ctmasknet.paper.runs import Measured, Run, find_runs, of_variant
from ctmasknet.paper.variants import HEADINGS, Variant, count, model_rows, variants

#: A cell that a result file would fill.
NOT_RUN = "not run"
#: Source of the rows that are not published figures.
OURS = "this project"
_CLASSES = ("covid", "pneumonia", "normal")
_CLASSIFIER_COLUMNS = [
    *("model", "source", "COVID", "pneumonia", "normal", "overall"),
    *("measured on", "trained on"),
]


@dataclass(frozen=True)
class Table:
    """Text cells: ``rows`` hold one for every column; ``notes`` stand below the table."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells in {len(self.columns)} columns")

    def markdown(self) -> str:
        """Title, table and notes; a line break or bar inside a cell does not break the table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
        body = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"## {self.title}\n\n{body}\n" + (f"{notes}\n" if notes else "")

    def csv(self) -> str:
        """Columns and rows, a line each."""
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([self.columns, *self.rows])
        return stream.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Title, columns, rows as column -> cell, notes."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "columns": self.columns, "rows": rows, "notes": self.notes}


def _document(title: str, made_by: str, parts: Sequence[str]) -> str:
    """A Markdown page that says which command made it."""
    return "\n".join([f"# {title}\n", f"Made by `{made_by}`; do not edit by hand.\n", *parts])


def _write_text(path: str | Path, text: str) -> None:
    with writing(path), atomic_write(path) as stream:
        stream.write(text)


def paper_tables(runs: Sequence[Run], known: Sequence[Variant]) -> dict[str, Table]:
    """All tables by a short name.

    Args:
        runs: from :func:`ctmasknet.paper.runs.find_runs`; may be empty.
        known: all variants.
    """
    by_name = {variant.name: variant for variant in known}

    def same_model(result: published.SliceResult) -> list[tuple[Run, Measured]]:
        """Figures of the published model in whatever training mode."""
        wanted = dataclasses.replace(by_name[result.variant].structure, trainable=None)
        own = [run for run in runs if run.variant is not None]
        own = [r for r in own if dataclasses.replace(r.structure, trainable=None) == wanted]
        return [(run, measured) for run in own for measured in run.measured]

    modes, later = published.MODE_RESULTS, published.LATER_RESULTS
    return {
        "table1": _sizes(runs, by_name),
        "table2": _classifiers(
            "Table 2: sensitivity (precision) and overall accuracy of the three training modes, %",
            [(result, of_variant(runs, result.variant)) for result in modes],
        ),
        "table2_later": _classifiers(
            "Later results of the authors' repository: sensitivity and overall accuracy, %",
            [(result, same_model(result)) for result in later],
        ),
        "table3": _comparison(runs),
        "lesions": _detectors(runs),
        "other_classifiers": _other_classifiers(runs, {item.variant for item in (*modes, *later)}),
        "other_detectors": _other_detectors(runs),
        "disagreements": Table(
            "Where the paper disagrees with itself or with its code",
            ["what", "in the paper", "elsewhere"],
            published.DISAGREEMENTS,
        ),
    }


def write_tables(
    results: Sequence[str | Path], output: str | Path, made_by: str
) -> dict[str, Table]:
    """Read ``results`` and write ``tables.md``, ``tables.json`` and a CSV file a table.

    Args:
        results: folders with runs in or below them.
        output: folder to write to.
        made_by: the command, told in the files.

    Raises:
        CTMaskNetError: see :func:`ctmasknet.paper.runs.find_runs`; ``output`` cannot be written.
    """
    known = variants()
    tables = paper_tables(find_runs(results, known), known)
    output = Path(output)
    parts = [
        f"Rows of {OURS} come from result files and say what they were measured on; all other "
        "rows are published figures.\n",
        *(table.markdown() for table in tables.values()),
    ]
    plain = {name: table.to_json() for name, table in tables.items()}
    with writing(output):
        for name, table in tables.items():
            _write_text(output / f"{name}.csv", table.csv())
        write_json(output / "tables.json", {"made_by": made_by, "tables": plain}, 1)
        _write_text(output / "tables.md", _document("The paper's tables", made_by, parts))
    return tables


def _sizes(runs: Sequence[Run], by_name: Mapping[str, Variant]) -> Table:
    """Sizes of models and of data (paper Table 1); sizes of data come from the runs' records."""
    rows = []
    for size in published.SIZES:
        printed = [size.parameters, size.trainable, size.training, size.validation, size.test]
        rows.append([size.model, "paper, Table 1", *printed, size.ratio])
        if size.variant is not None:
            numbers = count(by_name[size.variant].cfg)
            models = [f"{numbers[key]:,}" for key in ("parameters", "trainable")]
            found = _data_sizes(runs, size.variant)
            unfit = 2 if size.test == "-" else 0
            for data in found or [[NOT_RUN] * (4 - unfit) + ["-"] * unfit]:
                rows.append([size.model, OURS, *models, *data])
    return Table(
        "Table 1: sizes of models and of data splits (slices)",
        [
            *("model", "source", "parameters", "trainable parameters"),
            *("training", "validation", "test", "ratio test/train"),
        ],
        rows,
        ["Models of this project keep the mask head in the classifier, to draw lesions with."],
    )


def _data_sizes(runs: Sequence[Run], name: str) -> list[list[str]]:
    """Training, validation and test slices and their ratio, of each recorded run of a variant."""
    rows = []
    for run in runs:
        if run.variant is None or run.variant.name != name or run.training is None:
            continue
        sets = run.training["datasets"]
        learned = [_slices(sets["train"]), _slices(sets["val"])]
        if run.structure.task == "segmentation":
            rows.append([*learned, "-", "-"])
            continue
        train = sum(item["images"] for item in sets["train"])
        evaluated = [item for item in run.measured if item.evaluation]
        if not evaluated:
            rows.append([*learned, NOT_RUN, NOT_RUN])
        for item in evaluated:
            tests = [d for d in item.evaluation["datasets"]["test"] if d["name"] == item.dataset]
            ratio = f"{sum(d['images'] for d in tests) / train:.3g}"
            rows.append([*learned, _slices(tests), ratio])
    return rows


def _slices(recorded: Sequence[Mapping[str, Any]]) -> str:
    """How many slices data sets of a run's record hold, and whether they are phantoms."""
    if not recorded:
        return "-"
    phantoms = " (phantoms)" if any(item["phantoms"] for item in recorded) else ""
    return f"{sum(item['images'] for item in recorded):,}{phantoms}"


def _classifiers(
    title: str, found: Iterable[tuple[published.SliceResult, Iterable[tuple[Run, Measured]]]]
) -> Table:
    """Published sensitivity (precision) and accuracy, each above those of this project's runs."""
    rows = []
    for result, own in found:
        cells = [
            _percent(result.sensitivity[name])
            + (f" ({_percent(result.precision[name])})" if name in result.precision else "")
            for name in _CLASSES
        ]
        printed = [*cells, _percent(result.accuracy), result.measured_on, "-"]
        rows += _beside(result, printed, map(_classifier_cells, own))
    return Table(title, _CLASSIFIER_COLUMNS, rows)


def _beside(
    result: published.SliceResult | published.LesionResult,
    printed: list[str],
    own: Iterable[list[str]],
) -> list[list[str]]:
    """A published row, and below it those of this project, or one that says there are none."""
    below = list(own) or [[NOT_RUN] * len(printed)]
    rows = [[result.model, f"published ({result.source})", *printed]]
    return rows + [[result.model, OURS, *row] for row in below]


def _classifier_cells(found: tuple[Run, Measured]) -> list[str]:
    run, item = found
    slices = item.figures["slices"]
    cells = [_sensitivity(slices, name, with_precision=True) for name in _CLASSES]
    mode = f"{run.trained_on(item)}; {run.structure.trainable}"
    return [*cells, _percent(slices["accuracy"]), item.on(), mode]


def _other_classifiers(runs: Sequence[Run], placed: Container[str | None]) -> Table:
    """Figures of classifiers that stand for no published model (lightweight, demo, own configs)."""
    rows = [
        [_name(run), OURS, *_classifier_cells((run, item))]
        for run in runs
        if run.structure.task == "classification" and _name(run) not in placed
        for item in run.measured
    ]
    return Table(
        "Other classifiers of this project: sensitivity (precision) and overall accuracy, %",
        _CLASSIFIER_COLUMNS,
        rows or [[NOT_RUN] * len(_CLASSIFIER_COLUMNS)],
    )


def _comparison(runs: Sequence[Run]) -> Table:
    """COVID sensitivity, accuracy and prevalence beside other models (paper Table 3)."""
    rows = []
    for result in published.COMPARED_RESULTS:
        figures = (result.sensitivity["covid"], result.accuracy, result.prevalence)
        printed = [_percent(value) for value in figures]
        found = []
        for _, item in of_variant(runs, result.variant):
            slices = item.figures["slices"]
            figures = [_sensitivity(slices, "covid"), _percent(slices["accuracy"])]
            found.append([*figures, _percent(_prevalence(item)), item.on()])
        beside = _beside(result, [*printed, result.measured_on], found)
        rows += beside if result.variant else beside[:1]
    return Table(
        "Table 3: comparison with other models, %",
        ["model", "source", "COVID sensitivity", "overall", "COVID prevalence", "measured on"],
        rows,
    )


def _detectors(runs: Sequence[Run]) -> Table:
    """The authors' per-image AP of the published detectors beside ours."""
    rows = []
    for result in published.LESION_RESULTS:
        printed = [_percent(value) for value in (result.ap50, result.ap75, result.ap)]
        found = []
        for run, item in of_variant(runs, result.variant):
            ap = item.figures.get("per_image", {})
            figures = [_percent(ap[key]) if ap else "no masks" for key in ("AP50", "AP75", "AP")]
            found.append([*figures, item.on(), run.trained_on(item)])
        rows += _beside(result, [*printed, result.measured_on, "-"], found)
    return Table(
        "Lesion detectors: the authors' per-image mask AP, %",
        ["model", "source", "AP50", "AP75", "AP", "measured on", "trained on"],
        rows,
        ["Not COCO's AP: scores above 0.75, each slice by itself, then averaged over the slices."],
    )


def _other_detectors(runs: Sequence[Run]) -> Table:
    """Figures of detectors that stand for none of published AP, by COCO's AP and the authors'."""
    placed = {result.variant for result in published.LESION_RESULTS}
    rows = []
    for run in runs:
        if run.structure.task != "segmentation" or _name(run) in placed:
            continue
        for item in run.measured:
            figures = [
                _percent(item.figures[task]["AP50"]) if task in item.figures else "not measured"
                for task in ("bbox", "segm", "per_image")
            ]
            rows.append([_name(run), OURS, *figures, item.on(), run.trained_on(item)])
    return Table(
        "Other lesion detectors of this project, %",
        [
            *("model", "source", "box AP50", "mask AP50", "per-image mask AP50"),
            *("measured on", "trained on"),
        ],
        rows or [[NOT_RUN] * 7],
    )


def _name(run: Run) -> str:
    return run.variant.name if run.variant else f"own model ({run.folder.name})"


def _percent(value: float | None) -> str:
    """A figure in percent; None (a share of nothing) is "undefined"."""
    return "undefined" if value is None else f"{value:.2f}"


def _sensitivity(slices, name: str, with_precision: bool = False) -> str:
    if f"sensitivity-{name}" not in slices:
        return "no such class"
    cell = _percent(slices[f"sensitivity-{name}"])
    return f"{cell} ({_percent(slices[f'precision-{name}'])})" if with_precision else cell


def _prevalence(measured: Measured) -> float | None:
    """Share of COVID slices in a test set, percent; None where it is not known."""
    counts = measured.counts or {}
    if "covid" not in counts.get("class_names", ()) or not counts["n"]:
        return None
    row = counts["confusion_matrix"][counts["class_names"].index("covid")]
    return 100.0 * sum(row) / counts["n"]


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
    text = _document("Models", made_by, [table.markdown() for table in model_tables(rows)])
    if markdown:
        _write_text(markdown, text)
    if json_file:
        with writing(json_file):
            write_json(json_file, {"made_by": made_by, "models": rows}, 1)
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
    known = variants()
    tables = zoo_tables(known, find_runs(results, known), command)
    parts = [
        "Figures come from result files, in percent. Where a variant has none its command is the "
        f'plain one and the rest says "{NOT_RUN}". Published figures are not repeated here: '
        "`tools/paper_tables.py` sets them beside these.\n",
        *(table.markdown() for table in tables),
    ]
    _write_text(path, _document("Model zoo", made_by, parts))
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
        return ", ".join(f"{name} {_percent(value)}" for name, value in found.items())
    slices = measured.figures["slices"]
    classes = ", ".join(
        f"{key.removeprefix('sensitivity-')} {_percent(value)}"
        for key, value in slices.items()
        if key.startswith("sensitivity-")
    )
    return f"accuracy {_percent(slices['accuracy'])}; sensitivity {classes}"
