"""The study of how often intervals hold the truth: its patients, its counting, its kept figures."""

import importlib.util
import json
import math

import numpy as np
import pytest

from ctmasknet.evaluation.intervals import Interval


@pytest.fixture
def study(repository, monkeypatch):
    """``docs/interval_coverage.py`` with fewer patients that stand for the truth."""
    path = repository / "docs" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("interval_coverage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "POPULATION", 500)
    return module


def test_slices_of_a_patient_err_together(study):
    units = study.simulated_units(np.random.default_rng(0), 4000)
    assert units.num_patients == 4000 and units.patients.max() == 3999
    per_patient = np.bincount(units.patients)
    assert (per_patient.min(), per_patient.max()) == (1, 8)
    wrong = units.preds != units.labels
    wrong_before = wrong[:-1][units.patients[:-1] == units.patients[1:]]
    wrong_after = wrong[1:][units.patients[:-1] == units.patients[1:]]
    assert 0.1 < wrong.mean() < 0.25
    assert wrong_after[wrong_before].mean() > 2 * wrong.mean()


def test_every_figure_of_a_level_is_counted(study):
    found = study.interval_coverage(12, 4, n_boot=100, seed=3)
    assert found == study.interval_coverage(12, 4, n_boot=100, seed=3)
    assert {found["patients"], found["simulations"], found["n_boot"]} == {12, 4, 100}
    assert {"accuracy", "f1-macro", "auroc-covid", "ece", "loss"} < set(found["held"])
    assert "at-threshold-npv-covid" in found["held"] and len(found["held"]) == 34
    assert all(0 <= share <= 100 for share in found["held"].values())
    assert found["held"]["accuracy"] >= 50


def test_an_interval_counts_when_it_holds_the_truth(study, monkeypatch):
    ends = iter([(0.0, 100.0), (-2.0, -1.0), (101.0, 102.0), (None, None)])

    def intervals(statistic, patients, **_):
        low, high = next(ends)
        names = statistic(np.ones((1, patients)))
        return {name: Interval(0.0, low, high, None, 0) for name in names}

    monkeypatch.setattr(study, "bootstrap_intervals", intervals)
    held = study.interval_coverage(9, 4, n_boot=100)["held"]
    assert held["accuracy"] == held["auroc-covid"] == pytest.approx(100 / 3)
    ends = iter([(None, None)])
    assert math.isnan(study.interval_coverage(9, 1, n_boot=100)["held"]["accuracy"])


def test_the_kept_figures_are_of_this_study(study):
    kept = json.loads(study.RESULTS.read_text())
    assert tuple(item["patients"] for item in kept) == study.PATIENTS == (40, 80, 293)
    for item in kept:
        assert (item["simulations"], item["n_boot"], item["seed"]) == (1000, 400, 0)
    for item in kept[1:]:
        shares = list(item["held"].values())
        assert len(shares) == 34 and 93 <= min(shares) <= max(shares) <= 97
