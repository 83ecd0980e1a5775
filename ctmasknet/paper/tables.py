"""The paper's Tables 1, 2 and 3, published figures beside those of this project's result files.

A figure of this project is shown with the data it was measured on; a cell that no result file
fills says "not run". Where the paper disagrees with itself or with its code, a table of its own
says so, once.

What a cell says of a run: its figures and its hardware in a few words.

The model zoo: every variant with how it was run, on what, and what came of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctmasknet.files import atomic_write, write_json, writing
from ctmasknet.paper import published
from ctmasknet.paper.runs import Measured, Run, find_runs, of_variant
from ctmasknet.paper.table import NOT_RUN, Table, document
from ctmasknet.paper.variants import HEADINGS, Variant, count, model_rows, model_tables, variants


def hardware_of(run: Run) -> str:
    """CPU and cores, or GPU, of the training; else of an evaluation."""
    record = run.training or next((m.evaluation for m in run.measured if m.evaluation), None)
    if record is None:
        return "not recorded"
    parts = record["hardware"]
    if parts["gpu"]:
        return f"{parts['num_gpus']} x {parts['gpu']}"
    return f"{parts['cpu']}, {parts['cores']} cores"


def percent(value: float | None) -> str:
    """A figure in percent; None (a share of nothing) is "undefined"."""
    return "undefined" if value is None else f"{value:.2f}"


def lesion_result(measured: Measured | None) -> str:
    """The figures of a detector in a few words."""
    if measured is None:
        return NOT_RUN
    parts = {"box AP50": ("bbox", "AP50"), "mask AP50": ("segm", "AP50")}
    parts |= {"per-image AP50": ("per_image", "AP50")}
    return ", ".join(
        f"{name} {percent(measured.figures[task][key])}"
        for name, (task, key) in parts.items()
        if task in measured.figures
    )


def slice_result(measured: Measured | None) -> str:
    """The figures of a classifier in a few words."""
    if measured is None:
        return NOT_RUN
    slices = measured.figures["slices"]
    prefix = "sensitivity-"
    classes = ", ".join(
        f"{key.removeprefix(prefix)} {percent(value)}"
        for key, value in slices.items()
        if key.startswith(prefix)
    )
    return f"accuracy {percent(slices['accuracy'])}; sensitivity {classes}"


_CLASSES = ("covid", "pneumonia", "normal")
OURS = "this project"


def paper_tables(runs: Sequence[Run], known: Sequence[Variant]) -> dict[str, Table]:
    """All tables by a short name.

    Args:
        runs: from :func:`ctmasknet.paper.runs.find_runs`; may be empty.
        known: all variants.
    """
    return {
        "table1": table_1(runs, known),
        "table2": table_2(runs),
        "table2_later": later_results(runs, known),
        "table3": table_3(runs),
        "lesions": lesion_results(runs),
        "other_classifiers": other_classifiers(runs),
        "other_detectors": other_detectors(runs),
        "disagreements": Table(
            "Where the paper disagrees with itself or with its code",
            ["what", "in the paper", "elsewhere"],
            [list(row) for row in published.DISAGREEMENTS],
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
    plain = {name: table.plain() for name, table in tables.items()}
    with writing(output):
        for name, table in tables.items():
            with atomic_write(output / f"{name}.csv") as stream:
                stream.write(table.csv())
        write_json(output / "tables.json", {"made_by": made_by, "tables": plain}, 1)
        with atomic_write(output / "tables.md") as stream:
            stream.write(document("The paper's tables", made_by, parts))
    return tables


def table_1(runs: Sequence[Run], known: Sequence[Variant]) -> Table:
    """Sizes of models and of data (paper Table 1); sizes of data come from the runs' records."""
    by_name = {variant.name: variant for variant in known}
    rows = []
    for size in published.SIZES:
        printed = [size.parameters, size.trainable, size.training, size.validation, size.test]
        rows.append([size.model, size.source, *printed, size.ratio])
        if size.variant is not None:
            numbers = count(by_name[size.variant].cfg)
            models = [f"{numbers.parameters:,}", f"{numbers.trainable:,}"]
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
        # None stands for a training that was not evaluated
        for item in [item for item in run.measured if item.evaluation] or [None]:
            if item is None:
                rows.append([*learned, NOT_RUN, NOT_RUN])
                continue
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


_AP_KEYS = ("AP50", "AP75", "AP")
_SLICE_COLUMNS = ["model", "source", "COVID", "pneumonia", "normal", "overall", "measured on"]


def table_2(runs: Sequence[Run]) -> Table:
    """Sensitivity (precision) and accuracy of the three training modes (paper Table 2)."""
    rows = []
    for result in published.MODE_RESULTS:
        rows += [_published(result), *_ours(result.model, of_variant(runs, result.variant))]
    return Table(
        "Table 2: sensitivity (precision) and overall accuracy of the three training modes, %",
        [*_SLICE_COLUMNS, "trained on"],
        rows,
    )


def later_results(runs: Sequence[Run], known: Sequence[Variant]) -> Table:
    """The repository's later classifiers beside ours of the same model, in whatever mode."""
    by_name = {variant.name: variant for variant in known}
    rows = []
    for result in published.LATER_RESULTS:
        wanted = dataclasses.replace(by_name[result.variant].structure, trainable=None)
        found = [
            (run, measured)
            for run in runs
            if run.variant is not None
            and dataclasses.replace(run.structure, trainable=None) == wanted
            for measured in run.measured
        ]
        rows += [_published(result), *_ours(result.model, found)]
    return Table(
        "Later results of the authors' repository: sensitivity and overall accuracy, %",
        [*_SLICE_COLUMNS, "trained on"],
        rows,
    )


def table_3(runs: Sequence[Run]) -> Table:
    """COVID sensitivity, accuracy and prevalence beside other models (paper Table 3)."""
    rows = []
    for result in published.COMPARED_RESULTS:
        sensitivity = percent(result.sensitivity["covid"])
        figures = [sensitivity, percent(result.accuracy), percent(result.prevalence)]
        rows.append([result.model, f"published ({result.source})", *figures, result.measured_on])
        if result.variant is None:
            continue
        measured = [item for _, item in of_variant(runs, result.variant)]
        for item in measured:
            slices = item.figures["slices"]
            figures = [_sensitivity(slices, "covid"), percent(slices["accuracy"])]
            rows.append([result.model, OURS, *figures, percent(_prevalence(item)), item.on()])
        if not measured:
            rows.append([result.model, OURS, *[NOT_RUN] * 4])
    return Table(
        "Table 3: comparison with other models, %",
        ["model", "source", "COVID sensitivity", "overall", "COVID prevalence", "measured on"],
        rows,
    )


def lesion_results(runs: Sequence[Run]) -> Table:
    """The authors' per-image AP of the published detectors beside ours."""
    rows = []
    for result in published.LESION_RESULTS:
        figures = [percent(value) for value in (result.ap50, result.ap75, result.ap)]
        source = f"published ({result.source})"
        rows.append([result.model, source, *figures, result.measured_on, "-"])
        found = of_variant(runs, result.variant)
        for run, item in found:
            own = item.figures.get("per_image", {})
            figures = [percent(own[key]) if own else "no masks" for key in _AP_KEYS]
            rows.append([result.model, OURS, *figures, item.on(), run.trained_on(item)])
        if not found:
            rows.append([result.model, OURS, *[NOT_RUN] * 5])
    return Table(
        "Lesion detectors: the authors' per-image mask AP, %",
        ["model", "source", "AP50", "AP75", "AP", "measured on", "trained on"],
        rows,
        ["Not COCO's AP: taken on every slice by itself, then averaged over the slices."],
    )


def other_classifiers(runs: Sequence[Run]) -> Table:
    """Figures of classifiers that stand for no published model (lightweight, demo, own configs)."""
    placed = {result.variant for result in (*published.MODE_RESULTS, *published.LATER_RESULTS)}
    rows = [
        row
        for run in runs
        if run.structure.task == "classification" and _name(run) not in placed
        for row in _ours(_name(run), [(run, item) for item in run.measured])
    ]
    return Table(
        "Other classifiers of this project: sensitivity (precision) and overall accuracy, %",
        [*_SLICE_COLUMNS, "trained on"],
        rows or [[NOT_RUN] * 8],
    )


def other_detectors(runs: Sequence[Run]) -> Table:
    """Figures of detectors that stand for none of published AP, by COCO's AP and the authors'."""
    placed = {result.variant for result in published.LESION_RESULTS}
    rows = []
    for run in runs:
        if run.structure.task != "segmentation" or _name(run) in placed:
            continue
        for item in run.measured:
            figures = [
                percent(item.figures[task]["AP50"]) if task in item.figures else "not measured"
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


def _published(result: published.SliceResult) -> list[str]:
    cells = []
    for name in _CLASSES:
        cell = percent(result.sensitivity[name])
        if name in result.precision:
            cell += f" ({percent(result.precision[name])})"
        cells.append(cell)
    source = f"published ({result.source})"
    return [result.model, source, *cells, percent(result.accuracy), result.measured_on, "-"]


def _ours(model: str, found: Sequence[tuple[Run, Measured]]) -> list[list[str]]:
    rows = []
    for run, item in found:
        slices = item.figures["slices"]
        cells = [_sensitivity(slices, name, with_precision=True) for name in _CLASSES]
        mode = f"{run.trained_on(item)}; {run.structure.trainable}"
        rows.append([model, OURS, *cells, percent(slices["accuracy"]), item.on(), mode])
    return rows or [[model, OURS, *[NOT_RUN] * 6]]


def _sensitivity(slices, name: str, with_precision: bool = False) -> str:
    if f"sensitivity-{name}" not in slices:
        return "no such class"
    cell = percent(slices[f"sensitivity-{name}"])
    return f"{cell} ({percent(slices[f'precision-{name}'])})" if with_precision else cell


def _prevalence(measured: Measured) -> float | None:
    """Share of COVID slices in a test set, percent; None where it is not known."""
    counts = measured.counts or {}
    if "covid" not in counts.get("class_names", ()) or not counts["n"]:
        return None
    row = counts["confusion_matrix"][counts["class_names"].index("covid")]
    return 100.0 * sum(row) / counts["n"]


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
