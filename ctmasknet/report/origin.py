"""Where figures are from: the run's record as a few lines a reader can check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctmasknet.report.run_files import described_sets
from ctmasknet.report.source import ReportSource


def report_facts(source: ReportSource) -> list[tuple[str, str]]:
    """(name, text) lines about the predictions and what was made of them."""
    facts = [
        ("Predictions", str(source.predictions)),
        ("SHA-256 of them", source.predictions_sha256),
        ("Data set", source.dataset or "not named"),
        ("Pooling", source.pooling_name),
    ]
    if source.evaluation:
        settings = source.evaluation["settings"]
        facts += [
            ("Intervals", settings["interval"]),
            ("Resamples, seed", f"{settings['n_boot']}, {settings['seed']}"),
        ]
        if settings["validation"]:
            counts = ", ".join(
                f"{count} {level}" for level, count in settings["validation"].items()
            )
            facts.append(("Fitted on validation", counts))
    return facts


def run_facts(entry: Mapping[str, Any]) -> dict[str, Any]:
    """``name`` and ``facts`` ((name, text) lines) of one run in ``run.json``.

    A record of any shape is taken: what is not there is left out.
    """
    facts = []
    for key, name in (
        ("command", "Command"),
        ("status", "Status"),
        ("error", "Error"),
        ("start", "Start"),
        ("end", "End"),
        ("seconds", "Seconds"),
        ("iterations", "Iterations"),
        ("seed", "Seed"),
        ("config_file", "Configuration"),
        ("weights", "Weights"),
        ("git_commit", "Commit"),
    ):
        if entry.get(key) is not None:
            facts.append((name, str(entry[key])))
    for key, name in (("hardware", "Hardware"), ("versions", "Versions")):
        if isinstance(entry.get(key), dict):
            known = [f"{k} {v}" for k, v in entry[key].items() if v is not None]
            facts.append((name, ", ".join(known)))
    sets = described_sets(entry)
    for split, described in sets.items():
        facts += [(f"Data, {split}", _dataset(item)) for item in described]
    name = str(entry.get("kind", "run")).capitalize()
    used = [str(item.get("name")) for split in ("train", "test") for item in sets.get(split, ())]
    return {"name": f"{name}: {', '.join(used)}" if used else name, "facts": facts}


def _dataset(item: Mapping[str, Any]) -> str:
    text = f"{item.get('name')}: {item.get('images')} images, {item.get('patients')} patients"
    if item.get("phantoms"):
        text += ", phantoms"
    for key, name in (("content_sha256", "content"), ("fingerprint", "names")):
        if item.get(key):
            text += f"; {name} SHA-256 {item[key]}"
    return text
