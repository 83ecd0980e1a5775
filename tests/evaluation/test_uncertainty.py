"""Intervals against SciPy's bootstrap, and how often they hold the truth."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.curves import weighted_areas
from ctmasknet.evaluation.resampled_metrics import level_metrics, patients_behind
from ctmasknet.evaluation.uncertainty import bca_interval, bootstrap_intervals
from ctmasknet.evaluation.units import slice_units

CLASSES = ["normal", "pneumonia", "covid"]


def mean_of(values):
    return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}


def test_bca_is_scipys_on_the_same_resamples():
    values = np.random.default_rng(0).exponential(size=30)
    result = bootstrap((values,), np.mean, n_resamples=999, method="BCa", rng=1)
    left_out = np.array([np.delete(values, i).mean() for i in range(30)])
    low, high = bca_interval(result.bootstrap_distribution, left_out, values.mean(), 0.025)
    assert (low, high) == pytest.approx(tuple(result.confidence_interval), rel=1e-9)


def test_the_whole_way_agrees_with_scipy_but_for_the_draw_and_the_wider_levels():
    values = np.random.default_rng(0).exponential(size=60)
    found = bootstrap_intervals(mean_of(values), 60, n_boot=20_000)["mean"]
    expected = bootstrap((values,), np.mean, n_resamples=20_000, rng=1).confidence_interval
    assert found.value == pytest.approx(values.mean()) and found.undefined == 0
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.05 * width) and found.low < expected.low
    assert found.high == pytest.approx(expected.high, abs=0.1 * width)
    assert found.high > expected.high


def test_more_patients_than_are_left_out_one_by_one():
    values = np.random.default_rng(0).exponential(size=1500)
    found = bootstrap_intervals(mean_of(values), 1500, n_boot=4000)["mean"]
    expected = bootstrap((values,), np.mean, n_resamples=4000, rng=1).confidence_interval
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.06 * width)


def test_the_seed_alone_decides():
    values = np.random.default_rng(0).normal(size=20)
    first, again, other = (
        bootstrap_intervals(mean_of(values), 20, seed=seed)["mean"] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_class_missing_from_a_resample_is_left_out_and_counted(simulated_rows):
    rows = simulated_rows(9, seed=0)
    # One patient of COVID among seven: 34 % of resamples are without
    units = slice_units([row for row in rows if row.patient not in ("5", "8")])
    found = bootstrap_intervals(
        lambda weights: level_metrics(units, CLASSES, weights),
        units.num_patients,
        n_boot=1000,
        patients_behind=patients_behind(units, CLASSES),
    )
    without = 1000 * (6 / 7) ** 7
    for name in ("sensitivity-covid", "auroc-covid", "average_precision-covid", "f1-covid"):
        assert found[name].undefined == pytest.approx(without, abs=60)
        assert found[name].value is not None
    assert found["sensitivity-macro"].undefined >= found["sensitivity-covid"].undefined
    assert found["accuracy"].undefined == 0 and found["accuracy"].low < found["accuracy"].high

    absent = slice_units([row for row in rows if row.label != 2])
    found = bootstrap_intervals(
        lambda weights: level_metrics(absent, CLASSES, weights), absent.num_patients
    )
    assert found["sensitivity-covid"].value is None and found["auroc-covid"].low is None
    assert found["specificity-covid"].value is not None
    assert found["sensitivity-macro"].value == pytest.approx(
        (found["sensitivity-normal"].value + found["sensitivity-pneumonia"].value) / 2
    )


def test_a_share_of_all_or_none_gets_the_exact_interval():
    def statistic(weights):
        ones = np.ones(len(weights))
        return {"all": 100 * ones, "none": 0 * ones, "half": 50 * ones, "auroc": ones}

    behind = {"all": 36, "none": 20, "half": 20}
    found = bootstrap_intervals(statistic, 40, patients_behind=behind)
    for name, hits in (("all", 36), ("none", 0)):
        expected = binomtest(hits, behind[name]).proportion_ci(0.95, "exact")
        assert found[name].method == "exact"
        assert (found[name].low, found[name].high) == pytest.approx(
            (100 * expected.low, 100 * expected.high)
        )
    assert found["half"].low is found["auroc"].high is None


def test_one_patient_has_no_interval_and_bad_settings_are_clear():
    found = bootstrap_intervals(mean_of(np.array([3.0])), 1)["mean"]
    assert found.value == 3.0 and found.low is None
    with pytest.raises(CTMaskNetError, match="at least 100"):
        bootstrap_intervals(mean_of(np.ones(3)), 3, n_boot=10)
    with pytest.raises(CTMaskNetError, match=r"0\.95"):
        bootstrap_intervals(mean_of(np.ones(3)), 3, confidence=95)


def _simulate(rng, patients):
    """Slices of patients who err together: (n,) truth, score, patient."""
    truth, slices = rng.random(patients) < 0.5, rng.integers(1, 9, patients)
    patient = np.repeat(np.arange(patients), slices)
    score = rng.normal(1.5 * truth, 1.0)[patient] + rng.normal(0, 0.7, len(patient))
    return truth[patient], score, patient


def _share_and_area(truth, score, patient, patients):
    right = (score > 0.75) == truth
    sums = [np.bincount(patient, weights=w, minlength=patients) for w in (right, None)]
    found = [np.bincount(patient, weights=w, minlength=patients) for w in (right & truth, truth)]

    def statistic(weights):
        return {
            "accuracy": 100 * (weights @ sums[0]) / (weights @ sums[1]),
            "sensitivity": 100 * (weights @ found[0]) / (weights @ found[1]),
            "auroc": weighted_areas(truth, score, patient, weights)[0],
            "average_precision": weighted_areas(truth, score, patient, weights)[1],
        }

    return statistic


def _coverage(simulations, by_patient):
    """Share of 95 % intervals that hold the figure of 40,000 patients, in percent, by figure."""
    rng = np.random.default_rng(0)
    large = _share_and_area(*_simulate(rng, 40_000), 40_000)(np.ones((1, 40_000)))
    held = dict.fromkeys(large, 0)
    for seed in range(simulations):
        truth, score, patient = _simulate(rng, 80)
        if not by_patient:
            patient = np.arange(len(patient))
        count = int(patient.max()) + 1
        statistic = _share_and_area(truth, score, patient, count)
        for name, found in bootstrap_intervals(statistic, count, n_boot=400, seed=seed).items():
            held[name] += found.low <= large[name][0] <= found.high
    return {name: 100 * count / simulations for name, count in held.items()}


def test_intervals_hold_the_truth_as_often_as_they_say():
    for name, percent in _coverage(1000, by_patient=True).items():
        assert 93 <= percent <= 97, name


def test_resampling_slices_would_not():
    assert max(_coverage(100, by_patient=False).values()) < 85


def test_a_small_calibration_error_is_not_missed_as_by_bca():
    rng = np.random.default_rng(0)
    held = {"mirrored": 0, "not": 0}
    for seed in range(200):
        # Scores are 0.04 too high everywhere: so is the true error
        score = rng.uniform(0.1, 0.9, 200)
        gap = score - (rng.random(200) < score - 0.04)
        bins = np.eye(10)[(10 * score).astype(int)] * gap[:, None]

        def error(weights, bins=bins):
            value = np.abs(weights @ bins).sum(axis=1) / 200
            return {"mirrored": value, "not": value}

        found = bootstrap_intervals(error, 200, n_boot=200, seed=seed, gaps=("mirrored",))
        assert [found[name].method for name in held] == ["basic", "bca"]
        assert 0 <= found["mirrored"].low <= found["mirrored"].value <= found["mirrored"].high
        for name in held:
            held[name] += found[name].low <= 0.04 <= found[name].high
    assert held["mirrored"] / 200 > 0.85 and held["not"] / 200 < 0.5
