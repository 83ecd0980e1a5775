"""From a folder to all that its report is made of: predictions, evaluation, lesion burden, and what
the run's record says of it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctmasknet.data.bad_slices import REPORT as BAD_SLICES
from ctmasknet.data.registry import dataset_dicts
from ctmasknet.engine.record import RUN_RECORD
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.attention_pooling import load_attention_pooling
from ctmasknet.evaluation.learned_pooling import load_learned_pooling
from ctmasknet.evaluation.metrics import bce_loss, confusion_matrix
from ctmasknet.evaluation.pooling import (
    POOLED_LEVELS,
    PooledPrediction,
    check_rows,
    pool_slices,
    slice_units,
)
from ctmasknet.evaluation.predictions import SlicePrediction, read_predictions_csv
from ctmasknet.evaluation.report import classification_report
from ctmasknet.evaluation.validation_fit import PoolingChoice
from ctmasknet.files import parse_json, plain_file, read_json
from ctmasknet.report.forms import (
    BAD_SLICES_FORM,
    EVALUATION_HEAD,
    SERIES_OF_STUDY,
    burden_form,
    evaluation_form,
    pooled_form,
)
from ctmasknet.schema import Form, UnlikeForm, anything, checked

_PREDICTIONS = "predictions.csv"
_LISTING = "predictions.jsonl"
_EVALUATION, _EVALUATION_TOOL = "report.json", "tools/evaluate_predictions.py"
_BURDEN, _BURDEN_TOOL = "burden.json", "tools/lesion_burden.py"
_LEARNED, _ATTENTION = "pooling.json", "attention.json"
_REMEDY = "make it anew or remove it"


@dataclass(frozen=True)
class StudySeries:
    """A series of a study that holds several, in a prediction: ``scan`` is what people call it,
    ``pred`` its class ("" without), ``counts`` whether it counts for its patient, and ``why``."""

    patient: str
    scan: str
    slices: int
    pred: str
    counts: bool
    why: str


@dataclass(frozen=True)
class ReportSource:
    """What a report is made of.

    Attributes:
        folder: the folder given.
        predictions: the ``predictions.csv`` that is reported.
        predictions_sha256: of that file.
        dataset: name of the evaluated data set, None for a prediction folder.
        rows: predictions of slices, one or more.
        class_names: C names in the order of the logits.
        evaluation: see :func:`classification_report`; None when no slice has a label.
        listing: ``predictions.jsonl`` of a prediction folder, None without.
        pooling_name: how slices become scans and patients.
        pooled: scans and patients, labelled or not, by level.
        record: ``run.json`` as it is, None without one.
        entries: the runs in it, oldest first.
        burden: lesion burden (content of ``burden.json``), None where none was measured.
        burden_truth: the same of ground truth, None without.
        problems: (scan or slice, what is wrong with it) of a prediction folder, scans first.
        cautions: what has to be said of a prediction's weights and lesions.
        bad_slices: (unreadable, all) slices or files, None where the run left none out.
        series: of studies that hold several series, all of them.
    """

    folder: Path
    predictions: Path
    predictions_sha256: str
    dataset: str | None
    rows: Sequence[SlicePrediction]
    class_names: Sequence[str]
    evaluation: dict[str, Any] | None
    listing: Path | None
    pooling_name: str
    pooled: dict[str, list[PooledPrediction]]
    record: Any
    entries: list[dict[str, Any]]
    burden: dict[str, Any] | None
    burden_truth: dict[str, Any] | None
    problems: list[tuple[str, str]]
    cautions: list[str]
    bad_slices: tuple[int, int] | None
    series: Sequence[StudySeries] = ()


def read_source(
    folder: str | os.PathLike,
    *,
    dataset: str | None = None,
    evaluation: str | os.PathLike | None = None,
    burden: str | os.PathLike | None = None,
    burden_truth: str | os.PathLike | None = None,
) -> ReportSource:
    """Read a folder of an evaluation (``OUTPUT_DIR`` of ``tools/train_net.py``, or one data set's
    folder in it) or of predictions.

    Without a ``report.json`` of ``tools/evaluate_predictions.py`` the same evaluation is made here,
    pooled by the mean and with nothing fitted on validation.

    Args:
        folder: holds ``predictions.csv``, or ``inference/<data set>/predictions.csv``.
        dataset: which of several; default the one evaluated last (see ``run.json``).
        evaluation: folder of ``report.json``; default ``<folder>/report`` and ``folder`` itself,
            where they hold one.
        burden: folder of ``burden.json``; default ``<folder>/burden``, where it holds one.
        burden_truth: the same of ground truth; default ``<folder>/burden_truth``.

    Raises:
        CTMaskNetError: no or several predictions, a broken file, a ``report.json`` that was made
            from other predictions, or burdens that cannot be compared.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CTMaskNetError(
            f"{folder}: no such folder; give the OUTPUT_DIR of an evaluation or a folder of "
            "predictions"
        )
    record, entries = read_run(folder)
    path, name = find_predictions(folder, dataset, entries)
    rows, class_names = read_predictions_csv(path)
    check_rows(rows, str(path))
    usual = (folder / "report" / _EVALUATION, folder / _EVALUATION)
    found = _find("evaluation", evaluation, _EVALUATION_TOOL, *usual)
    report, learned, attention = None, None, None
    if found is not None:
        what = f"a report of {_EVALUATION_TOOL}"
        report = _read_json(found, what, EVALUATION_HEAD)
        same = report["class_names"] == list(class_names)
        if same:
            report = checked(found, report, evaluation_form(class_names), what, _REMEDY)
        if not same or not _is_of(report, rows):
            raise CTMaskNetError(
                f"{found}: was made from other predictions than {path}; run "
                "tools/evaluate_predictions.py again, or name the right one as `evaluation` or "
                "`dataset`"
            )
        if report["settings"]["pooling"] == "learned":
            learned = load_learned_pooling(found.with_name(_LEARNED), class_names)
        if report["settings"]["pooling"] == "attention":
            attention = load_attention_pooling(found.with_name(_ATTENTION), class_names)
    elif any(row.label is not None for row in rows):
        report = classification_report(rows, class_names, source=str(path))
    listing = path.with_name(_LISTING)
    listing = listing if listing.is_file() else None
    if report is None and listing is not None:
        pooling_name, pooled = _read_pooled(listing, class_names)
    else:
        settings = report["settings"] if report else {}
        try:
            choice = PoolingChoice(
                settings.get("pooling", PoolingChoice.name),
                settings.get("top_k", PoolingChoice.top_k),
                settings.get("normal_class"),
            )
        except CTMaskNetError as error:
            raise CTMaskNetError(f"{found}: {error}") from error
        poolings = choice.poolings(class_names, learned, attention)
        pooling_name, pooling = choice.name, poolings[choice.name]
        pooled = {level: pool_slices(rows, level, pooling) for level in POOLED_LEVELS}
    measured, truth = _read_burdens(folder, burden, burden_truth)
    problems, cautions = ([], []) if listing is None else read_told(listing)
    return ReportSource(
        folder=folder,
        predictions=path,
        predictions_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        dataset=name,
        rows=rows,
        class_names=class_names,
        evaluation=report,
        listing=listing,
        pooling_name=pooling_name,
        pooled=pooled,
        record=record,
        entries=entries,
        burden=measured,
        burden_truth=truth,
        problems=problems,
        cautions=cautions,
        bad_slices=_read_bad_slices(path, name),
        series=() if listing is None else read_series(listing),
    )


def find_predictions(
    folder: Path, dataset: str | None, entries: Sequence[dict[str, Any]]
) -> tuple[Path, str | None]:
    """The predictions to report, and the name of their data set (None for a prediction folder)."""
    here = folder / _PREDICTIONS
    if here.is_file():
        # "." has no name of its own
        own = folder.resolve()
        if dataset not in (None, own.name):
            raise CTMaskNetError(
                f"{here}: is the only predictions file here; leave `dataset` {dataset} out"
            )
        return here, own.name if own.parent.name == "inference" else None
    found = {path.parent.name: path for path in folder.glob(f"inference/*/{_PREDICTIONS}")}
    if not found:
        raise CTMaskNetError(
            f"{folder}: no {_PREDICTIONS} here or in inference/<data set>/; evaluate a classifier "
            "with tools/train_net.py, or predict with tools/predict.py"
        )
    if dataset is not None:
        if dataset not in found:
            raise CTMaskNetError(
                f"{folder}: no predictions of {dataset}; `dataset` is one of "
                f"{', '.join(sorted(found))}"
            )
        return found[dataset], dataset
    if len(found) == 1:
        (name, path) = next(iter(found.items()))
        return path, name
    # Validation data are no test set, even when they were evaluated last
    validation = {name for entry in entries for name in dataset_names(entry, "val")}
    for entry in reversed(entries):
        for name in dataset_names(entry, "test"):
            if name in found and name not in validation:
                return found[name], name
    raise CTMaskNetError(
        f"{folder}: predictions of {', '.join(sorted(found))}; choose one with `dataset` NAME"
    )


def _find(argument: str, given: str | os.PathLike | None, tool: str, *usual: Path) -> Path | None:
    """The file that ``argument`` names, itself or its folder; not given, the first of the usual
    files that there is."""
    if given is None:
        return next((path for path in usual if path.is_file()), None)
    path = Path(given)
    path = path / usual[0].name if path.is_dir() else path
    if not path.is_file():
        raise CTMaskNetError(f"{path}: no such file; `{argument}` is the folder that {tool} wrote")
    return path


def _read_json(path: Path, what: str, form: Form) -> Any:
    """The content of a file, of the form it has to have."""
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise CTMaskNetError(f"{path}: not {what} ({error}); {_REMEDY}") from error
    return checked(path, found, form, what, _REMEDY)


def _is_of(report: dict[str, Any], rows: Sequence[SlicePrediction]) -> bool:
    """Whether an evaluation is of these predictions: else figures and pictures would be of two
    models."""
    units = slice_units(rows)
    slices = report["levels"]["slices"]
    if slices["n"] != len(units):
        return False
    matrix = confusion_matrix(units.labels, units.preds, len(report["class_names"])).tolist()
    # Two models may call all slices alike; their logits still differ
    loss, stated = bce_loss(units.logits, units.labels), slices["metrics"]["loss"]["value"]
    same = stated is not None and math.isclose(stated, loss, rel_tol=1e-6)
    return same and slices["confusion_matrix"] == matrix


def _read_burdens(
    folder: Path, given: str | os.PathLike | None, given_truth: str | os.PathLike | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Burden of a run and of its ground truth, None where there is none."""
    what = f"a burden of {_BURDEN_TOOL}"
    path = _find("burden", given, _BURDEN_TOOL, folder / "burden" / _BURDEN)
    usual_truth = folder / "burden_truth" / _BURDEN
    truth_path = _find("burden_truth", given_truth, _BURDEN_TOOL, usual_truth)
    if path is None:
        if given_truth is not None:
            raise CTMaskNetError(
                f"{given_truth}: ground truth has nothing to be held against; give the burden of "
                "the predicted lesions as `burden`"
            )
        return None, None
    found = _read_json(path, what, burden_form)
    truth = None
    if truth_path is not None:
        truth = _read_json(truth_path, what, burden_form)
    if truth is not None and truth["of"] != found["of"]:
        raise CTMaskNetError(
            f"{path}: shares of the {found['of']}, but those in {truth_path} are of the "
            f"{truth['of']}; measure both with the same label masks"
        )
    return found, truth


def read_run(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """``run.json`` as it is, and the runs in it.

    A report only shows the record, so any JSON will do; what is no list of runs is shown whole.
    """
    paths = (parent / RUN_RECORD for parent in run_folders(folder))
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None, []
    record = _read_json(path, "a run's record", anything)
    runs = record.get("entries", [record]) if isinstance(record, dict) else []
    runs = runs if isinstance(runs, list) else []
    return record, [entry for entry in runs if isinstance(entry, dict)]


def _read_bad_slices(predictions: Path, dataset: str | None) -> tuple[int, int] | None:
    """(unreadable, all) slices or files behind ``predictions``; None where none was left out.

    ``bad_slices.json`` lies beside a prediction, or beside the folders of an evaluation's sets.
    """
    folder = predictions.resolve().parent
    path = (folder if dataset is None else folder.parent) / BAD_SLICES
    if not path.is_file():
        return None
    sets = _read_json(path, "a list of bad slices", BAD_SLICES_FORM)["sets"]
    found = sets.get(dataset or "inputs", {"bad": 0, "total": 0})
    return (found["bad"], found["total"]) if found["bad"] else None


def _read_pooled(
    path: Path, class_names: Sequence[str]
) -> tuple[str, dict[str, list[PooledPrediction]]]:
    """What ``tools/predict.py`` says of scans and patients, and the pooling it names: that may be
    one fitted with the checkpoint, so it is not made again here."""
    pooled: dict[str, list[PooledPrediction]] = {level: [] for level in POOLED_LEVELS}
    name = PoolingChoice.name
    form = pooled_form(class_names)
    for line in json_lines(path):
        level = f"{line.get('level')}s"
        # A scan of which no slice could be read has no class
        if level not in pooled or "pred" not in line:
            continue
        try:
            item = form(line, "")
        except UnlikeForm as error:
            raise CTMaskNetError(
                f"{path}: a {level[:-1]} that does not fit predictions.csv ({error}); predict again"
            ) from None
        name = item["pooling"]
        pooled[level].append(
            PooledPrediction(
                patient=item["patient"],
                scan=item["scan"] or "",
                label=None,
                mixed=False,
                pred=class_names.index(item["pred"]),
                scores=tuple(item["scores"][label] for label in class_names),
                slices=item["slices"],
            )
        )
    return name, pooled


def read_told(path: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Problems of scans, then of slices, and cautions of a ``predictions.jsonl``."""
    of_level: dict[str, list[tuple[str, str]]] = {"scan": [], "slice": []}
    cautions: dict[str, None] = {}
    for item in json_lines(path):
        try:
            cautions |= dict.fromkeys(map(str, item.get("cautions") or ()))
            called = item.get("series") or item.get("scan")
            names = [item["file"]] if "file" in item else [item.get("patient"), called]
            name = " / ".join(str(part) for part in names if part)
            problems = [(name, str(problem)) for problem in item.get("problems") or ()]
        except TypeError as error:
            raise CTMaskNetError(
                f"{path}: problems or cautions that are no lists ({error}); predict again"
            ) from error
        of_level.setdefault(str(item.get("level")), []).extend(problems)
    return of_level["scan"] + of_level["slice"], list(cautions)


def read_series(path: Path) -> list[StudySeries]:
    """The series of a ``predictions.jsonl`` among which one was chosen for the patient.

    Raises:
        CTMaskNetError: the file cannot be read, or tells of them in another form.
    """
    found = []
    for item in json_lines(path):
        if item.get("level") != "scan" or not item.get("reconstruction"):
            continue
        told = checked(path, item, SERIES_OF_STUDY, "a prediction", "predict again")
        name = told["series"] or told["scan"] or ""
        facts = (told["patient"] or "", name, told["slices"], told["pred"] or "", told["counts"])
        found.append(StudySeries(*facts, told["reconstruction"]))
    return found


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a ``.jsonl`` file, one after the other.

    Raises:
        CTMaskNetError: a file that cannot be read, or a line that is no object.
    """
    try:
        with plain_file(path).open(encoding="utf-8") as stream:
            for line in stream:
                item = parse_json(line)
                if not isinstance(item, dict):
                    raise ValueError(f"no object: {line[:40]!r}")
                yield item
    except (OSError, ValueError) as error:
        raise CTMaskNetError(f"{path}: cannot be read ({error}); write the file anew") from error


def run_folders(folder: Path) -> list[Path]:
    """Where the run's own files may lie: the folder, and the ``OUTPUT_DIR`` that it is
    ``inference/<data set>`` of."""
    parent = folder.resolve().parent
    return [folder, parent.parent] if parent.name == "inference" else [folder]


def described_sets(entry: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The data sets of a run in ``run.json`` by split, those that are described as
    :func:`ctmasknet.engine.record.describe_dataset` does it."""
    sets = entry.get("datasets")
    return {
        split: [item for item in described if isinstance(item, dict)]
        for split, described in (sets.items() if isinstance(sets, dict) else ())
        if isinstance(described, list)
    }


def dataset_names(entry: Mapping[str, Any], split: str) -> list[str]:
    """Names of the data sets of one split (``train``, ``val``, ``test``) of a run."""
    return [str(item.get("name")) for item in described_sets(entry).get(split, ())]


def dataset_entries(dataset: str | None) -> dict[str, Mapping[str, Any]]:
    """Dataset dicts by the name that predictions have for them; none where it is not prepared."""
    if dataset is None:
        return {}
    try:
        entries = dataset_dicts(dataset)
    except CTMaskNetError:
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        name = entry.get("image_id")
        found[name if isinstance(name, str) else entry["file_name"]] = entry
    return found
