"""Metrics by subgroup as values that the template only sets."""

from __future__ import annotations

from typing import Any

from ctmasknet.evaluation.report import interval_text
from ctmasknet.report.source import ReportSource


def subgroup_section(source: ReportSource) -> dict[str, Any] | None:
    """Everything the section shows; None where nothing is known to group by."""
    report = (source.evaluation or {}).get("subgroups") or {}
    if not report.get("columns"):
        return None
    metrics = ["accuracy", *(f"sensitivity-{name}" for name in source.class_names), "auroc-macro"]
    tables = []
    for column, groups in report["columns"].items():
        rows = [
            {
                "name": value,
                "small": group["small"],
                "level": level,
                "n": found["n"],
                "patients": found["n_patients"],
                "cells": [interval_text(metric, found["metrics"][metric]) for metric in metrics],
            }
            for value, group in groups.items()
            for level, found in group["levels"].items()
            if found is not None
        ]
        tables.append({"column": column.replace("_", " "), "rows": rows})
    return {"small_below": report["small_below"], "metrics": metrics, "tables": tables}
