"""A classification report as tables for the terminal, and from files to files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.classification_report import classification_report
from ctmasknet.evaluation.learned_pooling import save_learned_pooling
from ctmasknet.evaluation.predictions import read_predictions_csv
from ctmasknet.evaluation.validation_fit import (
    PoolingChoice,
    ValidationFit,
    fit_on_validation,
    save_validation_fit,
)
from ctmasknet.files import write_json, writing

#: Metrics given in percent; all others lie in 0..1 or are nats.
PERCENT_METRICS = ("accuracy", "sensitivity", "precision", "specificity", "f1", "npv")


def evaluate_predictions(
    predictions: str | os.PathLike,
    output: str | os.PathLike,
    *,
    validation: str | os.PathLike | None = None,
    choice: PoolingChoice | None = None,
    sensitivity: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], ValidationFit | None]:
    """Write ``report.json``, and with validation ``calibration.json`` and ``pooling.json``.

    What an earlier evaluation left of these in the folder is replaced or removed.

    Args:
        predictions: ``predictions.csv`` of the test set.
        output: folder, made when missing.
        validation: ``predictions.csv`` of the validation set, by the same model.
        choice: the pooling; default mean.
        sensitivity: stated for the operating points, 0..1.
        n_boot: bootstrap resamples of patients.
        seed: of bootstrap and folds.

    Returns:
        The report and what was fitted on validation (None without).

    Raises:
        CTMaskNetError: files that cannot be used; nothing is written then.
    """
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
    )
    output = Path(output)
    with writing(output):
        write_json(output / "report.json", report, indent=1)
        # What an earlier evaluation fitted does not belong to this report
        if fit is not None:
            save_validation_fit(output / "calibration.json", fit)
        else:
            (output / "calibration.json").unlink(missing_ok=True)
        if fit is not None and fit.learned is not None:
            save_learned_pooling(output / "pooling.json", fit.learned)
        else:
            (output / "pooling.json").unlink(missing_ok=True)
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
    return "\n\n".join(parts)


_HEADLINES = ("accuracy", "sensitivity-macro", "auroc-macro", "ece")


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


def _figure(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if metric.split("-")[0] in PERCENT_METRICS else f"{value:.3f}"
