"""The paper's Tables 1, 2 and 3, and those of later works and of the compared systems.

Published figures stand beside those of this project's result files. A figure of this project is
shown with the data it was measured on; a cell that no result file fills says "not run". Where the
paper disagrees with itself or with its code, a table of its own says so, once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctmasknet.files import check_writable, write_json, writing
from ctmasknet.paper import published
from ctmasknet.paper.runs import Measured, Run, find_runs, of_variant
from ctmasknet.paper.table import NOT_RUN, OURS, Table, document, name_of, percent, write_text
from ctmasknet.paper.variants import Variant, count, peer_variants, variants

_CLASSES = ("covid", "pneumonia", "normal")
_CLASSIFIER_COLUMNS = [
    *("model", "source", "COVID", "pneumonia", "normal", "overall"),
    *("measured on", "trained on"),
]


def paper_tables(runs: Sequence[Run], known: Sequence[Variant]) -> dict[str, Table]:
    """All tables by a short name.

    Args:
        runs: from :func:`ctmasknet.paper.runs.find_runs`; may be empty.
        known: all variants, those of compared systems too where these are wanted.
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
        "table3": _comparison(runs, by_name),
        "later_models": _later_models(runs, by_name),
        "compared_systems": _compared_systems(runs, known),
        "lesions": _detectors(runs),
        "dice": _dice(runs, known),
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
    output = check_writable(output, folder=True)
    known = [*variants(), *peer_variants()]
    tables = paper_tables(find_runs(results, known), known)
    parts = [
        f"Rows of {OURS} come from result files and say what they were measured on; all other "
        "rows are published figures.\n",
        *(table.markdown() for table in tables.values()),
    ]
    plain = {name: table.to_json() for name, table in tables.items()}
    with writing(output):
        for name, table in tables.items():
            write_text(output / f"{name}.csv", table.csv())
        write_json(output / "tables.json", {"made_by": made_by, "tables": plain}, 1)
        write_text(output / "tables.md", document("The paper's tables", made_by, parts))
    return tables


def _sizes(runs: Sequence[Run], by_name: Mapping[str, Variant]) -> Table:
    """Sizes of models and of data (paper Table 1); sizes of data come from the runs' records."""
    rows = []
    for size in published.SIZES:
        printed = [size.parameters, size.trainable, size.training, size.validation, size.test]
        rows.append([size.model, "paper, Table 1", *printed, size.ratio])
        if size.variant in by_name:
            numbers = count(by_name[size.variant].cfg)
            models = [f"{numbers[key]:,}" for key in ("parameters", "trainable")]
            found = _data_sizes(runs, size.variant)
            unfit = 2 if size.test == "-" else 0
            for data in found or [[NOT_RUN] * (4 - unfit) + ["-"] * unfit]:
                rows.append([size.ours or size.model, OURS, *models, *data])
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
        drawn = run.training.get("train_patients")
        if drawn:
            learned[0] = f"of {learned[0]}, {drawn} patients of each class"
        train = sum(item["images"] for item in sets["train"])
        evaluated = [item for item in run.measured if item.evaluation]
        if not evaluated:
            rows.append([*learned, NOT_RUN, NOT_RUN])
        for item in evaluated:
            tests = [d for d in item.evaluation["datasets"]["test"] if d["name"] == item.dataset]
            ratio = "-" if drawn else f"{sum(d['images'] for d in tests) / train:.3g}"
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
            percent(result.sensitivity[name])
            + (f" ({percent(result.precision[name])})" if name in result.precision else "")
            for name in _CLASSES
        ]
        printed = [*cells, percent(result.accuracy), result.measured_on, "-"]
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
    mode = "; ".join(filter(None, [run.trained_on(item), run.structure.trainable]))
    return [*cells, percent(slices["accuracy"]), item.on(), mode]


def _other_classifiers(runs: Sequence[Run], placed: Container[str | None]) -> Table:
    """Figures of classifiers that stand for no published model (lightweight, demo, own configs)."""
    rows = [
        [name_of(run), OURS, *_classifier_cells((run, item))]
        for run in runs
        if run.structure.task == "classification"
        and name_of(run) not in placed
        and not (run.variant and run.structure.network)
        for item in run.measured
    ]
    return Table(
        "Other classifiers of this project: sensitivity (precision) and overall accuracy, %",
        _CLASSIFIER_COLUMNS,
        rows or [[NOT_RUN] * len(_CLASSIFIER_COLUMNS)],
    )


def _comparison(runs: Sequence[Run], known: Container[str | None]) -> Table:
    """COVID sensitivity, accuracy and prevalence beside other models (paper Table 3)."""
    rows = []
    for result in published.COMPARED_RESULTS:
        figures = (result.sensitivity["covid"], result.accuracy, result.prevalence)
        printed = [percent(value) for value in figures]
        found = []
        for _, item in of_variant(runs, result.variant):
            slices = item.figures["slices"]
            figures = [_sensitivity(slices, "covid"), percent(slices["accuracy"])]
            found.append([*figures, percent(_prevalence(item)), item.on()])
        beside = _beside(result, [*printed, result.measured_on], found)
        rows += beside if result.variant in known else beside[:1]
    return Table(
        "Table 3: comparison with other models, %",
        ["model", "source", "COVID sensitivity", "overall", "COVID prevalence", "measured on"],
        rows,
        [
            "The article of Butt et al. was retracted (Applied Intelligence 53:4874); its text, "
            "figures and data are those of Xu et al., arXiv 2002.09334.",
            "COVIDNet-CT stands twice: the paper's authors ran it, its own authors publish a "
            "confusion matrix of the same test split.",
        ],
    )


#: Shares of the classes in the F1 of the author's later works.
_F1_SHARES = {"normal": 0.45, "pneumonia": 0.35, "covid": 0.20}


def _later_models(runs: Sequence[Run], known: Container[str | None]) -> Table:
    """The tables of the author's later works, each row above those of this project's runs."""

    def cell(value: float | None) -> str:
        return "not published" if value is None else percent(value)

    rows = []
    for result in published.LATER_MODELS:
        figures = (result.covid, result.pneumonia, result.normal, result.f1, result.accuracy)
        printed = [*map(cell, figures), *map(cell, result.ap or [None] * 3)]
        source = f"published ({result.source})"
        rows.append([result.model, source, *printed, result.measured_on, "-"])
        if result.variant not in known:
            continue
        found = []
        for run, item in of_variant(runs, result.variant):
            slices = item.figures["slices"]
            sensitivities = [_sensitivity(slices, name) for name in _CLASSES]
            own = [*sensitivities, weighed_f1(slices), percent(slices["accuracy"])]
            found.append([*own, *["not measured"] * 3, item.on(), run.trained_on(item)])
        rows += [[result.model, OURS, *own] for own in found or [[NOT_RUN] * 10]]
    return Table(
        "The author's later works: sensitivity, F1, accuracy and per-image mask AP, %",
        [
            *("model", "source", "COVID", "pneumonia", "normal", "F1", "overall"),
            *("AP50", "AP75", "AP", "measured on", "trained on"),
        ],
        rows,
        [
            "F1 is the mean of the classes' own, weighed 0.45 normal, 0.35 pneumonia, 0.20 COVID "
            "as in these works."
        ],
    )


def weighed_f1(slices: Mapping[str, Any]) -> str:
    """F1 as the author's later works weigh it, of the sensitivities and precisions in percent."""
    total = 0.0
    for name, share in _F1_SHARES.items():
        if f"sensitivity-{name}" not in slices:
            return "no such class"
        pair = [slices[f"{kind}-{name}"] for kind in ("sensitivity", "precision")]
        if None in pair:
            return percent(None)
        total += share * (2 * math.prod(pair) / sum(pair) if any(pair) else 0.0)
    return percent(total)


def _compared_systems(runs: Sequence[Run], known: Sequence[Variant]) -> Table:
    """Every compared system that names slices, run here or not."""
    rows = []
    for variant in known:
        if variant.structure.network and variant.structure.task == "classification":
            found = of_variant(runs, variant.name)
            for cells in map(_classifier_cells, found) if found else [[NOT_RUN] * 6]:
                rows.append([variant.name, OURS, *cells])
    return Table(
        "Compared systems run here: sensitivity (precision) and overall accuracy, %",
        _CLASSIFIER_COLUMNS,
        rows or [[NOT_RUN] * len(_CLASSIFIER_COLUMNS)],
        ["Published figures of such systems, mostly of other data, stand in the two tables above."],
    )


def _detectors(runs: Sequence[Run]) -> Table:
    """The authors' per-image AP of the published detectors beside ours."""
    rows = []
    for result in published.LESION_RESULTS:
        printed = [percent(value) for value in (result.ap50, result.ap75, result.ap)]
        found = []
        for run, item in of_variant(runs, result.variant):
            ap = item.figures.get("per_image", {})
            figures = [percent(ap[key]) if ap else "no masks" for key in ("AP50", "AP75", "AP")]
            found.append([*figures, item.on(), run.trained_on(item)])
        rows += _beside(result, [*printed, result.measured_on, "-"], found)
    return Table(
        "Lesion detectors: the authors' per-image mask AP, %",
        ["model", "source", "AP50", "AP75", "AP", "measured on", "trained on"],
        rows,
        ["Not COCO's AP: scores above 0.75, each slice by itself, then averaged over the slices."],
    )


def _dice(runs: Sequence[Run], known: Sequence[Variant]) -> Table:
    """The figures that are called Dice, of published lesion maps and of all detectors here."""
    rows = [
        [
            *(result.model, f"published ({result.source})", "lesions"),
            *(f"{result.mean:.3f}", f"{result.maximum:.3f}", "not published"),
            *(result.measured_on, "-"),
        ]
        for result in published.DICE_RESULTS
    ]
    for run in runs:
        for item in run.measured:
            dice = item.figures.get("dice", {})
            for name in (key.removeprefix("mean-") for key in dice if key.startswith("mean-")):
                figures = [dice[f"{kind}-{name}"] for kind in ("mean", "maximum", "at-0.5")]
                figures = ["no such slice" if v is None else f"{v:.3f}" for v in figures]
                rows.append([name_of(run), OURS, name, *figures, item.on(), run.trained_on(item)])
    shown = {row[0] for row in rows if row[1] == OURS}
    rows += [
        [variant.name, OURS, *[NOT_RUN] * 6]
        for variant in known
        if variant.structure.network
        and variant.structure.task == "segmentation"
        and variant.name not in shown
    ]
    return Table(
        "Dice of lesion maps, 0..1",
        [
            *("model", "source", "class", "mean of 256 cuts", "maximum", "at 0.5"),
            *("measured on", "trained on"),
        ],
        rows,
        [
            'Inf-Net\'s "mean Dice" is the first figure: the mean over 256 cuts of the scaled map, '
            "not Dice at 0.5. Sets differ, so rows of different sets are not to be compared."
        ],
    )


def _other_detectors(runs: Sequence[Run]) -> Table:
    """Figures of detectors that stand for none of published AP, by COCO's AP and the authors'."""
    placed = {result.variant for result in published.LESION_RESULTS}
    rows = []
    for run in runs:
        if run.structure.task != "segmentation" or name_of(run) in placed:
            continue
        for item in run.measured:
            figures = [
                percent(item.figures[task]["AP50"]) if task in item.figures else "not measured"
                for task in ("bbox", "segm", "per_image")
            ]
            rows.append([name_of(run), OURS, *figures, item.on(), run.trained_on(item)])
    return Table(
        "Other lesion detectors of this project, %",
        [
            *("model", "source", "box AP50", "mask AP50", "per-image mask AP50"),
            *("measured on", "trained on"),
        ],
        rows or [[NOT_RUN] * 7],
    )


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
