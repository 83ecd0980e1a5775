"""The study of intervals: its patients, and its counting."""

import json
import math

import numpy as np
import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import coverage
from ctmasknet.evaluation.coverage import interval_coverage, simulated_units
from ctmasknet.evaluation.intervals import Interval


def test_slices_of_a_patient_err_together():
    units = simulated_units(np.random.default_rng(0), 4000)
    assert units.num_patients == 4000 and units.patients.max() == 3999
    per_patient = np.bincount(units.patients)
    assert (per_patient.min(), per_patient.max()) == (1, 8)
    wrong = units.preds != units.labels
    wrong_before = wrong[:-1][units.patients[:-1] == units.patients[1:]]
    wrong_after = wrong[1:][units.patients[:-1] == units.patients[1:]]
    assert 0.1 < wrong.mean() < 0.25
    assert wrong_after[wrong_before].mean() > 2 * wrong.mean()


def test_every_figure_of_a_level_is_counted(monkeypatch):
    monkeypatch.setattr(coverage, "POPULATION", 500)
    found = interval_coverage(12, 4, n_boot=100, seed=3)
    assert found == interval_coverage(12, 4, n_boot=100, seed=3)
    assert {found["patients"], found["simulations"], found["n_boot"]} == {12, 4, 100}
    assert {"accuracy", "f1-macro", "auroc-covid", "ece", "loss"} < set(found["held"])
    assert "at-threshold-npv-covid" in found["held"] and len(found["held"]) == 34
    assert all(0 <= share <= 100 for share in found["held"].values())
    assert found["held"]["accuracy"] >= 50


def test_an_interval_counts_when_it_holds_the_truth(monkeypatch):
    monkeypatch.setattr(coverage, "POPULATION", 500)
    ends = iter([(0.0, 100.0), (-2.0, -1.0), (101.0, 102.0), (None, None)])

    def intervals(statistic, patients, **_):
        low, high = next(ends)
        names = statistic(np.ones((1, patients)))
        return {name: Interval(0.0, low, high, None, 0) for name in names}

    monkeypatch.setattr(coverage, "bootstrap_intervals", intervals)
    held = interval_coverage(9, 4)["held"]
    assert held["accuracy"] == held["auroc-covid"] == pytest.approx(100 / 3)
    ends = iter([(None, None)])
    assert math.isnan(interval_coverage(9, 1)["held"]["accuracy"])


@pytest.mark.parametrize(
    ("patients", "simulations", "seed", "message"),
    [(1, 5, 0, "5 data sets of 1 patients"), (5, 0, 0, "0 data sets"), (5, 1, -1, "seed is -1")],
)
def test_a_study_of_nothing_is_one_clear_error(patients, simulations, seed, message):
    with pytest.raises(CTMaskNetError, match=message):
        interval_coverage(patients, simulations, seed=seed)


def test_the_kept_figures_are_of_this_study(repository):
    kept = json.loads((repository / "configs" / "interval_coverage.json").read_text())
    assert [item["patients"] for item in kept] == [40, 80, 293]
    for item in kept[1:]:
        shares = list(item["held"].values())
        assert len(shares) == 34 and 93 <= min(shares) <= max(shares) <= 97
