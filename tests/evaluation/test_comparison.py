"""Systems compared on the same patients: differences, what is refused, and the tool."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.comparison import compare_systems, comparison_text, read_systems
from ctmasknet.evaluation.predictions import write_predictions_csv
from ctmasknet.report import write_report
from tests.helpers.running import run_tool

NAMES = ("normal", "pneumonia", "covid")


def _with_noise(rows, scale: float, seed: int):
    rng = np.random.default_rng(seed)
    noisy = []
    for row in rows:
        logits = tuple(
            float(v) for v in np.array(row.logits) + rng.normal(0, scale, len(row.logits))
        )
        scores = tuple(float(v) for v in expit(logits))
        noisy.append(replace(row, logits=logits, scores=scores, pred=int(np.argmax(logits))))
    return noisy


@pytest.fixture
def files(tmp_path, simulated_rows):
    """Predictions of three systems: the second one worse, the third equal to the first."""
    rows = simulated_rows(40, seed=1)
    found = {}
    for name, own in (("good", rows), ("noisy", _with_noise(rows, 4.0, 3)), ("same", rows[::-1])):
        found[name] = tmp_path / name / "predictions.csv"
        write_predictions_csv(found[name], own, NAMES)
    return found


def test_differences_are_paired(files):
    found = compare_systems(files, n_boot=200)
    pairs = {(pair["first"], pair["second"]): pair["levels"] for pair in found["pairs"]}
    systems = {system["name"]: system["levels"] for system in found["systems"]}
    for level in ("slices", "scans", "patients"):
        worse, equal = pairs["good", "noisy"][level], pairs["good", "same"][level]
        for metric, interval in worse["differences"].items():
            own, other = (systems[name][level][metric]["value"] for name in ("good", "noisy"))
            assert interval["value"] == pytest.approx(own - other)
        assert all(i["value"] == 0 and i["low"] is None for i in equal["differences"].values())
        assert equal["mcnemar"]["p_value"] == 1
        assert {d["p_value"] for d in equal["delong"].values()} == {1.0}
    slices = pairs["good", "noisy"]["slices"]
    gap = slices["differences"]["accuracy"]
    assert gap["low"] > 0
    assert slices["mcnemar"]["p_value"] < slices["mcnemar"]["p_holm"] < 0.05
    # What is hard for both cancels out: narrower than the intervals of both added
    apart = [systems[name]["slices"]["accuracy"] for name in ("good", "noisy")]
    assert gap["high"] - gap["low"] < sum(i["high"] - i["low"] for i in apart)
    text = comparison_text(found, "same")
    assert "good - same" in text and "good - noisy" not in text


def test_classes_in_another_order_are_the_same_classes(files, tmp_path):
    systems, names, _ = read_systems({"a": files["good"], "b": files["same"]})
    turned = tmp_path / "turned.csv"
    order = (2, 0, 1)
    rows = [
        replace(
            row,
            label=order.index(row.label),
            pred=order.index(row.pred),
            logits=tuple(row.logits[i] for i in order),
            scores=tuple(row.scores[i] for i in order),
        )
        for row in systems["a"]
    ]
    write_predictions_csv(turned, rows, [names[i] for i in order])
    again, _, _ = read_systems({"a": files["good"], "b": turned})
    assert again["b"] == systems["a"]


def test_what_cannot_be_compared_is_refused(files, tmp_path):
    systems, names, _ = read_systems({"a": files["good"], "b": files["same"]})
    rows = systems["a"]
    other = tmp_path / "other.csv"

    def message(changed, class_names=names, **options) -> str:
        write_predictions_csv(other, changed, class_names)
        with pytest.raises(CTMaskNetError) as caught:
            compare_systems({"a": files["good"], "b": other}, n_boot=100, **options)
        return str(caught.value)

    relabelled = [replace(rows[0], label=(rows[0].label + 1) % 3), *rows[1:]]
    assert f"{rows[0].file} has label" in message(relabelled)
    assert "has patient 'X'" in message([replace(rows[0], patient="X"), *rows[1:]])
    assert f"other.csv: has no line for {rows[0].file}" in message(rows[1:])
    assert f"{len(rows) - 1} slices that all have" in message(rows[1:])
    assert "classes a, b, c" in message(rows, ("a", "b", "c"))
    write_predictions_csv(other, rows[1:], names)
    found = compare_systems({"a": files["good"], "b": other}, n_boot=100, common=True)
    assert found["n_left_out"] == 1 and found["levels"]["slices"]["n"] == len(rows) - 1


def test_the_tool_writes_a_table_a_picture_and_a_section(files, tmp_path, capsys, repository):
    output = tmp_path / "comparison"
    names = [f"{name}={path}" for name, path in files.items()]
    tool = "tools/compare.py"
    options = ("--output", output, "--resamples", 100, "--against", "good")
    options = (*options, "--pooling", "over_18_slices")
    assert run_tool(repository, tool, *names, *options) in (0, None)
    printed = capsys.readouterr().out
    assert "good - noisy" in printed and "noisy - same" not in printed
    assert json.loads((output / "comparison.json").read_text())["pairs"][0]["second"] == "noisy"
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    page = write_report(files["good"].parent, tmp_path / "r.html", comparison=output).read_text()
    assert "Compared with other systems" in page and "good less noisy" in page
    broken = json.loads((output / "comparison.json").read_text())
    broken["pairs"][0]["levels"]["slices"]["mcnemar"]["p_value"] = "small"
    (output / "comparison.json").write_text(json.dumps(broken))
    with pytest.raises(CTMaskNetError, match=r"pairs\[0\]\.levels\.slices\.mcnemar\.p_value"):
        write_report(files["good"].parent, tmp_path / "r.html", comparison=output)
    assert run_tool(repository, tool, names[0], names[0], "--output", output) == 2
    assert "a second system called good" in capsys.readouterr().err
