"""Slices, scans and patients side by side: every metric with its interval, curves, calibration.

:func:`classification_report` makes plain values of predictions, :func:`evaluate_predictions` files
of files, and :func:`report_text` tables for the terminal.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

from ctmasknet.console.progress import tracked
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.intervals import bootstrap_intervals
from ctmasknet.evaluation.metrics import (
    BINS,
    calibration_gaps,
    calibration_metrics,
    calibration_pairs,
    confusion_matrix,
    curve_points,
    level_metrics,
    patients_behind,
    reliability_curve,
    threshold_metrics,
)
from ctmasknet.evaluation.pooling import (
    POOLED_LEVELS,
    Units,
    check_apart,
    check_rows,
    normal_index,
    pool_slices,
    pooled_units,
    slice_units,
)
from ctmasknet.evaluation.predictions import SlicePrediction, read_predictions_csv
from ctmasknet.evaluation.subgroups import subgroup_report, subgroup_text
from ctmasknet.evaluation.validation_fit import PoolingChoice, ValidationFit, fit_on_validation
from ctmasknet.files import check_writable, write_json, writing

REPORT_FORMAT = "ctmasknet classification report 1"
#: Metrics given in percent; all others lie in 0..1 or are nats.
PERCENT_METRICS = ("accuracy", "sensitivity", "precision", "specificity", "f1", "npv")
_HEADLINES = ("accuracy", "sensitivity-macro", "auroc-macro", "ece")
_POINT_METRICS = ("sensitivity", "specificity", "precision", "npv")
_UNITS = {
    "percent": ", ".join(PERCENT_METRICS),
    "0..1": "auroc, average_precision, ece, scores, thresholds, rates of curves",
    "nats": "loss (binary cross-entropy against the one-hot label, mean over classes)",
}


def classification_report(
    rows: Sequence[SlicePrediction],
    class_names: Sequence[str],
    *,
    fit: ValidationFit | None = None,
    validation: Sequence[SlicePrediction] = (),
    choice: PoolingChoice | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    source: str = "predictions",
    by: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Everything that is to be said of a classifier's predictions, as plain JSON values.

    Without ``fit`` there is no learned pooling, temperature or operating point: the test set is no
    place to choose them.

    Args:
        rows: predictions of the test set.
        class_names: C names in the order of the logits.
        fit: what :func:`fit_on_validation` made of validation predictions; its pooling is used.
        validation: the rows it was made of, to refuse patients that are in both.
        choice: the pooling, when there is no ``fit``; default mean.
        n_boot: bootstrap resamples of patients.
        seed: of the bootstrap.
        confidence: of the intervals.
        source: names the rows in messages.
        by: columns of metadata to group by; default: all that tell slices apart.

    Returns:
        ``{"format", "class_names", "units", "settings", "levels": {"slices", "scans",
        "patients"}, "poolings": {pooling: {"scans": metrics, "patients": metrics}}, "subgroups":
        see :func:`~ctmasknet.evaluation.subgroups.subgroup_report`}``. A level's
        keys are at :func:`_level`; it is None when no slice tells its scan (patient). Undefined
        figures are None.

    Raises:
        CTMaskNetError: rows that cannot be used, see :func:`check_rows` and :func:`check_apart`.
    """
    check_rows(rows, source)
    check_apart(rows, validation)
    # A seed draws the same patients whatever the order of the rows
    rows = sorted(rows, key=lambda row: row.file)
    if fit is not None and list(fit.class_names) != list(class_names):
        raise CTMaskNetError(
            f"{source}: classes {', '.join(class_names)}, but validation has "
            f"{', '.join(fit.class_names)}; give predictions of one model"
        )
    choice = fit.choice if fit is not None else choice or PoolingChoice()
    poolings = choice.poolings(class_names, fit and fit.learned, fit and fit.attention)
    if choice.name not in poolings:
        raise CTMaskNetError(
            f"the pooling {choice.name} is fitted on validation predictions; give them, or choose "
            "another pooling"
        )
    slices = slice_units(rows)
    if not len(slices):
        raise CTMaskNetError(f"{source}: no slice has a label; nothing can be measured")

    # Before the intervals of the whole: a column that is not there is told at once
    subgroups = subgroup_report(
        rows,
        class_names,
        pooling=poolings[choice.name],
        columns=by,
        n_boot=n_boot,
        seed=seed,
        confidence=confidence,
        source=source,
    )

    def intervals(
        units: Units, statistic: Callable, behind: dict[str, int], *, with_ece: bool = True
    ) -> dict[str, dict[str, Any]]:
        found = bootstrap_intervals(
            statistic,
            units.num_patients,
            n_boot=n_boot,
            seed=seed,
            confidence=confidence,
            patients_behind=behind,
            gaps=(lambda w: calibration_gaps(units, class_names, w)) if with_ece else None,
        )
        return {name: interval.to_json() for name, interval in found.items()}

    levels: dict[str, Any] = {"slices": _level("slices", slices, class_names, fit, intervals)}
    compared: dict[str, dict[str, Any]] = {name: {} for name in poolings}
    levels |= dict.fromkeys(POOLED_LEVELS)
    pooled = list(itertools.product(POOLED_LEVELS, poolings.items()))
    for level, (name, pooling) in tracked(pooled, "intervals of poolings", unit="pooling"):
        units = pooled_units(pool_slices(rows, level, pooling))
        if not len(units):
            continue
        if name == choice.name:
            levels[level] = _level(level, units, class_names, fit, intervals)
            compared[name][level] = levels[level]["metrics"]
        else:
            compared[name][level] = _metrics(units, class_names, intervals)
    normal = normal_index(class_names, choice.normal_class)
    return {
        "format": REPORT_FORMAT,
        "class_names": list(class_names),
        "units": _UNITS,
        "settings": {
            "pooling": choice.name,
            "top_k": choice.top_k,
            "normal_class": None if normal is None else class_names[normal],
            "n_boot": n_boot,
            "seed": seed,
            "confidence": confidence,
            "interval": "bootstrap over patients: BCa, inverted for ece; levels widened to t",
            "bins": BINS,
            "stated_sensitivity": None if fit is None else fit.sensitivity,
            "why_no_learned_pooling": "no validation" if fit is None else fit.why_not_learned,
            "validation": None if fit is None else dict(fit.counts),
        },
        "levels": levels,
        "poolings": compared,
        "subgroups": subgroups,
    }


def _level(
    level: str,
    units: Units,
    class_names: Sequence[str],
    fit: ValidationFit | None,
    intervals: Callable,
) -> dict[str, Any]:
    """One level.

    Returns:
        ``n``, ``n_per_class``, ``n_patients``, ``left_out`` (of :class:`Units`),
        ``confusion_matrix`` (rows the truth), ``metrics`` ({name: interval}), ``curves`` ({class:
        :func:`curve_points`}), ``reliability`` ({"top_label" or class: bins}),
        ``calibrated`` (``temperature``, ``metrics``, ``reliability``; None without a temperature,
        then ``why_not_calibrated`` says why) and ``operating_points`` (None without validation,
        else {class: ``threshold``, ``validation``, ``test``}, each of the last two
        {``sensitivity``, ``specificity``, ``precision``, ``npv``}, on test with interval).
    """
    truth = [units.labels == index for index in range(len(class_names))]
    found = {
        "n": len(units),
        "n_per_class": {name: int(t.sum()) for name, t in zip(class_names, truth, strict=True)},
        "n_patients": units.num_patients,
        "left_out": units.left_out,
        "confusion_matrix": confusion_matrix(units.labels, units.preds, len(class_names)).tolist(),
        "metrics": _metrics(units, class_names, intervals),
        "curves": {
            name: curve_points(truth[index], units.scores[:, index])
            for index, name in enumerate(class_names)
        },
        "reliability": _reliability(units, class_names),
        "calibrated": None,
        "why_not_calibrated": "no validation",
        "operating_points": None,
    }
    if fit is None or level not in fit.thresholds:
        return found
    temperature = fit.temperatures[level]
    found["why_not_calibrated"] = temperature.why_not
    if not temperature.why_not:
        tempered = units.tempered(temperature.value)
        found["calibrated"] = {
            "temperature": temperature.to_json(),
            "metrics": intervals(
                tempered, lambda w: calibration_metrics(tempered, class_names, w), {}
            ),
            "reliability": _reliability(tempered, class_names),
        }
    thresholds = fit.thresholds[level]
    reached = intervals(
        units,
        lambda w: threshold_metrics(units, thresholds, class_names, w),
        patients_behind(units, class_names, thresholds),
        with_ece=False,
    )
    found["operating_points"] = {}
    for index, threshold in thresholds.items():
        name = class_names[index]
        names = {metric: f"{metric}-{name}" for metric in _POINT_METRICS}
        before = {metric: fit.reached[level][full] for metric, full in names.items()}
        found["operating_points"][name] = {
            "threshold": threshold,
            "validation": {k: None if math.isnan(v) else v for k, v in before.items()},
            "test": {metric: reached[full] for metric, full in names.items()},
        }
    return found


def _metrics(units: Units, class_names: Sequence[str], intervals: Callable) -> dict[str, Any]:
    behind = patients_behind(units, class_names)
    return intervals(units, lambda weights: level_metrics(units, class_names, weights), behind)


def _reliability(units: Units, class_names: Sequence[str]) -> dict[str, Any]:
    pairs = calibration_pairs(units, class_names)
    return {name: reliability_curve(*pair) for name, pair in pairs.items()}


def evaluate_predictions(
    predictions: str | os.PathLike,
    output: str | os.PathLike,
    *,
    validation: str | os.PathLike | None = None,
    choice: PoolingChoice | None = None,
    sensitivity: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
    by: Sequence[str] | None = None,
) -> tuple[dict[str, Any], ValidationFit | None]:
    """Write ``report.json``, and with validation ``calibration.json`` and what was fitted to pool.

    What an earlier evaluation left of these in the folder is replaced or removed.

    Args:
        predictions: ``predictions.csv`` of the test set.
        output: folder, made when missing.
        validation: ``predictions.csv`` of the validation set, by the same model.
        choice: the pooling; default mean.
        sensitivity: stated for the operating points, 0..1.
        n_boot: bootstrap resamples of patients.
        seed: of bootstrap and folds.
        by: see :func:`classification_report`.

    Returns:
        The report and what was fitted on validation (None without).

    Raises:
        CTMaskNetError: files that cannot be used; nothing is written then.
    """
    output = check_writable(output, folder=True)
    rows, class_names = read_predictions_csv(predictions)
    fit, fitted_on = None, []
    if validation is not None:
        fitted_on, names = read_predictions_csv(validation)
        if names != class_names:
            raise CTMaskNetError(
                f"{validation}: classes {', '.join(names)}, but {predictions} has "
                f"{', '.join(class_names)}; give predictions of one model"
            )
        fit = fit_on_validation(
            fitted_on,
            class_names,
            choice=choice,
            sensitivity=sensitivity,
            seed=seed,
            source=str(validation),
        )
    report = classification_report(
        rows,
        class_names,
        fit=fit,
        validation=fitted_on,
        choice=choice,
        n_boot=n_boot,
        seed=seed,
        source=str(predictions),
        by=by,
    )
    with writing(output):
        write_json(output / "report.json", report, indent=1)
        # What an earlier evaluation fitted does not belong to this report
        for name, fitted in (
            ("calibration.json", fit),
            ("pooling.json", fit and fit.learned),
            ("attention.json", fit and fit.attention),
        ):
            if fitted is None:
                (output / name).unlink(missing_ok=True)
            else:
                write_json(output / name, fitted.to_json(), indent=1)
    return report, fit


def report_text(report: dict[str, Any]) -> str:
    """The report's figures as tables: levels, poolings, calibration, operating points."""
    settings = report["settings"]
    levels = {name: level for name, level in report["levels"].items() if level is not None}
    confidence = f"{100 * settings['confidence']:g} %"
    parts = [
        f"scans and patients pooled by: {settings['pooling']}; {confidence} intervals, "
        f"{settings['n_boot']} resamples of patients, seed {settings['seed']}",
        _level_table(levels),
    ]
    poolings = [
        [name, level, *(_cell(metric, found[level][metric]) for metric in _HEADLINES)]
        for name, found in report["poolings"].items()
        for level in found
    ]
    if poolings:
        parts.append(_table(poolings, ["pooling", "level", *_HEADLINES]))
    calibrated = [
        [
            name,
            f"{level['calibrated']['temperature']['value']:.3f}",
            _cell("ece", level["metrics"]["ece"]),
            _cell("ece", level["calibrated"]["metrics"]["ece"]),
        ]
        for name, level in levels.items()
        if level["calibrated"]
    ]
    if calibrated:
        headers = ["level", "temperature", "ece", "ece with temperature"]
        parts.append(_table(calibrated, headers))
    parts += [
        f"{name} not calibrated: {level['why_not_calibrated']}"
        for name, level in levels.items()
        if settings["validation"] and level["why_not_calibrated"]
    ]
    points = [
        [
            name,
            label,
            f"{point['threshold']:.4f}",
            _figure("sensitivity", point["validation"]["sensitivity"]),
            *(_cell(m, point["test"][m]) for m in ("sensitivity", "specificity", "precision")),
        ]
        for name, level in levels.items()
        for label, point in (level["operating_points"] or {}).items()
    ]
    if points:
        stated = f"at {100 * settings['stated_sensitivity']:g} % sensitivity on validation"
        headers = ["level", stated, "threshold", "reached there"]
        parts.append(_table(points, [*headers, "sensitivity", "specificity", "precision"]))
    sensitivities = [f"sensitivity-{name}" for name in report["class_names"]]
    shown = ["accuracy", *sensitivities, "auroc-macro"]
    if groups := subgroup_text(report["subgroups"], shown, interval_text):
        parts.append(groups)
    return "\n\n".join(parts)


def _level_table(levels: dict[str, Any]) -> str:
    rows = [
        ["n", *(str(level["n"]) for level in levels.values())],
        ["patients", *(str(level["n_patients"]) for level in levels.values())],
    ]
    for metric in levels["slices"]["metrics"]:
        cells = [_cell(metric, level["metrics"][metric]) for level in levels.values()]
        rows.append([metric, *cells])
    return _table(rows, ["", *levels])


def _table(rows: list[list[str]], headers: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, stralign="right")


def _cell(metric: str, interval: dict[str, Any]) -> str:
    """``91.66 (88.10-94.93)``."""
    value = _figure(metric, interval["value"])
    if interval["low"] is None:
        return value
    low, high = (_figure(metric, interval[end]) for end in ("low", "high"))
    return f"{value} ({low}-{high})"


def interval_text(metric: str, interval: dict[str, Any]) -> str:
    """``91.66 (88.10-94.93)``; of a figure that a subgroup cannot have, why."""
    if interval["value"] is None:
        return interval.get("why", "-")
    return _cell(metric, interval)


def _figure(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if metric.split("-")[0] in PERCENT_METRICS else f"{value:.3f}"
