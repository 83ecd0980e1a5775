"""The file of a run, and what the files of a plan say together.

A file holds the command lines, seconds and hardware of the run, what its evaluation said, and of
each slice, by patient, what figures are made of, so that two arms are compared slice by slice: the
class and the predicted one (with two classes the score of the last, too), or the lesions
(:mod:`ctmasknet.experiments.lesions`). Shapes: P patients, B resamples.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.intervals import Interval, bootstrap_intervals
from ctmasknet.evaluation.metrics import weighted_areas
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.experiments.lesions import LESION_FORM
from ctmasknet.experiments.plan import ArmRun, Fold, Plan
from ctmasknet.files import read_json
from ctmasknet.schema import checked, form, listing, maybe, names_of, number, one_of, record, text
from ctmasknet.schema import whole_from_1 as count_form

#: By task.
RESULT_FORMATS = {"slices": "ctmasknet experiment 1", "lesions": "ctmasknet lesion experiment 1"}
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


@form("two texts of one length, true and predicted classes")
def _classes(value: Any) -> tuple[str, str]:
    true, predicted = (_text(one) for one in value)
    if len(true) != len(predicted) or not set(true + predicted) <= set(_DIGITS):
        raise ValueError
    return true, predicted


_RUN = {
    "config_file": text,
    "opts": listing(text),
    "evaluated_on": text,
    "baseline": maybe(text),
    "seconds": record({"training": number, "evaluation": number}),
    "n": count_form,
    "files_sha256": text,
}
_OF_TASK = {
    "slices": {
        "class_names": listing(text),
        "patients": names_of(_classes),
        "scores": maybe(names_of(listing(number))),
    },
    "lesions": {**LESION_FORM, "normals_on": maybe(text)},
}
_FORMS = {
    task: record({"format": one_of(RESULT_FORMATS[task]), **_RUN, **own})
    for task, own in _OF_TASK.items()
}


def result_path(folder: Path, run: ArmRun) -> Path:
    """Where the file of a run stands in a plan's folder."""
    return folder / run.fold.name / run.arm.name / f"{run.seed}.json"


def opts_of(plan: Plan, run: ArmRun) -> list[str]:
    """``KEY VALUE`` pairs of a run, those of plan, fold and arm in this order."""
    return [*plan.opts, *run.fold.opts, *run.arm.opts]


def of_predictions(rows: Iterable[SlicePrediction], source: str | Path) -> dict[str, Any]:
    """``n``, ``files_sha256``, ``patients`` and, with two classes, ``scores`` (of the last, in the
    order of a patient's slices) of the labelled slices of an evaluation.

    Raises:
        CTMaskNetError: no slice has a label, or there are more classes than digits.
    """
    rows = sorted((row for row in rows if row.label is not None), key=lambda row: row.file)
    if not rows or any(max(row.label, row.pred) >= len(_DIGITS) for row in rows):
        raise CTMaskNetError(
            f"{source}: needs labelled slices of at most {len(_DIGITS)} classes; evaluate on such "
            "a set"
        )
    patients: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    for row in rows:
        patient = row.patient or row.file
        true_and_predicted = patients.setdefault(patient, ["", ""])
        true_and_predicted[0] += _DIGITS[row.label]
        true_and_predicted[1] += _DIGITS[row.pred]
        # Of two logits the difference ranks slices, and neither alone
        scores.setdefault(patient, []).append(round(row.logits[-1] - row.logits[0], 5))
    return {
        **of_files([Path(row.file).name for row in rows]),
        "patients": patients,
        "scores": scores if len(rows[0].logits) == 2 else None,
    }


def of_files(names: Sequence[str]) -> dict[str, Any]:
    """``n`` and ``files_sha256`` of the slices of an evaluation, in order."""
    listed = json.dumps(list(names))
    return {"n": len(names), "files_sha256": hashlib.sha256(listed.encode()).hexdigest()}


def read_results(plan: Plan, folder: Path) -> dict[str, dict[str, Any]]:
    """The files of a plan's runs that are there, by the runs' names.

    Raises:
        CTMaskNetError: one is no such file, contradicts itself, or was made by another plan than
            this.
    """
    found = {}
    for run in plan.runs:
        path = result_path(folder, run)
        if not path.exists():
            continue
        remedy = "remove it, and it is made anew"
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise CTMaskNetError(f"{path}: cannot be read ({error}); {remedy}") from None
        content = checked(path, content, _FORMS[plan.task], "the file of a run", remedy)
        if plan.task == "slices":
            _check_classes(path, content, remedy)
        for key, own in (
            ("config_file", run.arm.config_file),
            ("opts", opts_of(plan, run)),
            ("evaluated_on", run.fold.evaluated_on),
            ("normals_on", plan.normals),
            ("baseline", run.arm.baseline),
        ):
            if (stated := content.get(key)) != own:
                raise CTMaskNetError(
                    f"{path}: was made with another {key} than the plan states now ({stated} and "
                    f"{own}); {remedy}"
                )
        found[run.name] = content
    return found


def _check_classes(path: Path, content: Mapping[str, Any], remedy: str) -> None:
    """Refuse classes without a name, and another number of slices than is stated."""
    named = _DIGITS[: len(content["class_names"]) or len(_DIGITS)]
    for true, predicted in content["patients"].values():
        if unknown := sorted(set(true + predicted) - set(named)):
            raise CTMaskNetError(
                f"{path}: has slices of class {unknown[0]}, and names {len(named)} classes; "
                f"{remedy}"
            )
    counted = sum(len(true) for true, _ in content["patients"].values())
    if counted != content["n"]:
        raise CTMaskNetError(
            f"{path}: n is {content['n']}, and its patients have {counted} slices; {remedy}"
        )


def accuracy(result: Mapping[str, Any]) -> float:
    """Share of right slices, percent."""
    right = sum(_right(*classes).sum() for classes in result["patients"].values())
    return 100 * float(right) / result["n"]


def area_under_roc(results: Sequence[Mapping[str, Any]]) -> Interval | None:
    """Area under the ROC curve of two classes, the mean over results of the same slices, with its
    interval over patients; None where a result has no scores."""
    if not results or any(one.get("scores") is None for one in results):
        return None
    patients = list(results[0]["patients"])
    columns = []
    for one in results:
        rows = [
            (true == "1", score, number)
            for number, patient in enumerate(patients)
            for true, score in zip(one["patients"][patient][0], one["scores"][patient], strict=True)
        ]
        columns.append([np.array(column) for column in zip(*rows, strict=True)])

    def area(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"area": np.mean([weighted_areas(*one, weights)[0] for one in columns], axis=0)}

    return bootstrap_intervals(area, len(patients), n_boot=1000)["area"]


def sensitivities(result: Mapping[str, Any]) -> dict[str, float]:
    """Percent of right slices of each class that has some, by its digit."""
    true, predicted = (
        "".join(classes[i] for classes in result["patients"].values()) for i in (0, 1)
    )
    right = _right(true, predicted)
    of_class = {c: np.array([t == c for t in true]) for c in sorted(set(true))}
    return {c: 100 * float(right[own].mean()) for c, own in of_class.items()}


def seeds_of(
    plan: Plan, results: Mapping[str, Mapping[str, Any]], fold: Fold, arms: Sequence[str]
) -> list[int]:
    """The seeds with which all of these arms were run on a fold."""
    return [s for s in plan.seeds if all(f"{fold.name}/{arm}/{s}" in results for arm in arms)]


def difference(
    plan: Plan, results: Mapping[str, Mapping[str, Any]], arm: str, folds: Sequence[Fold]
) -> Interval | None:
    """Accuracy of an arm less that of ``against``, in points, with its interval over patients.

    Both arms are judged on the same slices with the same seeds, those that both were run with; what
    a slice counts is the mean over seeds. None where a fold has no such seed.

    Raises:
        CTMaskNetError: two runs of a fold were evaluated on other slices.
    """
    ahead, slices = [], []
    for fold in folds:
        seeds = seeds_of(plan, results, fold, [arm, plan.against])
        if not seeds:
            return None
        names = [f"{fold.name}/{one}/{seed}" for seed in seeds for one in (arm, plan.against)]
        first = results[names[0]]
        for name in names:
            if _slices(results[name]) != _slices(first):
                raise CTMaskNetError(
                    f"{name}: was evaluated on other slices than {names[0]}; remove the older file"
                )
        for patient, (true, _) in first["patients"].items():
            right = [float(_right(*results[name]["patients"][patient]).sum()) for name in names]
            ahead.append(statistics.fmean(right[::2]) - statistics.fmean(right[1::2]))
            slices.append(len(true))
    ahead, slices = np.array(ahead), np.array(slices)

    def points(weights: np.ndarray) -> dict[str, np.ndarray]:
        """(B, P) -> (B,)."""
        return {"points": 100 * (weights @ ahead) / (weights @ slices)}

    return bootstrap_intervals(points, len(ahead), n_boot=2000)["points"]


def _slices(result: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Which they are, and what they show."""
    patients = result["patients"].items()
    return result["files_sha256"], {name: true for name, (true, _) in patients}


def _right(true: str, predicted: str) -> np.ndarray:
    return np.array([a == b for a, b in zip(true, predicted, strict=True)])
