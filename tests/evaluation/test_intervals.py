"""Intervals against SciPy's bootstrap, and how often they hold the truth."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest, bootstrap, norm

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.intervals import bca_interval, bootstrap_intervals, gap_interval
from ctmasknet.evaluation.metrics import bin_of, level_metrics, patients_behind, weighted_areas
from ctmasknet.evaluation.pooling import slice_units

CLASSES = ["normal", "pneumonia", "covid"]


def mean_of(values):
    return lambda weights: {"mean": weights @ values / weights.sum(axis=1)}


@pytest.mark.parametrize("tied", [False, True])
def test_bca_is_scipys_on_the_same_resamples(tied):
    values = np.random.default_rng(0).exponential(size=30)
    values = (values > 1.5).astype(float) if tied else values
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


@pytest.mark.parametrize(("lost", "method"), [(499, "bca"), (501, None)])
def test_a_figure_that_most_resamples_leave_undefined_has_no_interval(lost, method):
    def statistic(weights):
        value = weights @ np.arange(20.0)
        return {"share": np.where(np.arange(len(value)) < lost, np.nan, value)}

    def all_patients_known(weights):
        return statistic(weights) if len(weights) == 1000 else {"share": weights @ np.arange(20.0)}

    found = bootstrap_intervals(all_patients_known, 20, n_boot=1000)["share"]
    assert (found.method, found.undefined, found.value) == (method, lost, 190)
    assert (found.low is None) == (method is None)


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


@pytest.mark.parametrize("sign", [1, -1])
def test_two_patients_have_the_widest_interval_that_resamples_show(sign):
    # Skewed either way: the acceleration is positive once and negative once
    values = sign * np.array([0.0, 0.1, 0.2, 5.0])
    found = bootstrap_intervals(mean_of(values), 4, patients_behind={"mean": 2})["mean"]
    assert (found.low, found.high) == pytest.approx(tuple(np.sort([values[0], values[3]])))
    first, second = 0.1, 0.7
    found = bootstrap_intervals(mean_of(sign * np.array([first, second])), 2)["mean"]
    assert (found.low, found.high) == pytest.approx(tuple(np.sort([sign * first, sign * second])))


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
    """The statistic, and the patients behind its shares."""
    called = score > 0.75
    right = called == truth
    sums = [np.bincount(patient, weights=w, minlength=patients) for w in (right, None)]
    found = [
        np.bincount(patient, weights=w, minlength=patients) for w in (right & truth, truth, called)
    ]

    def statistic(weights):
        area, average_precision = weighted_areas(truth, score, patient, weights)
        return {
            "accuracy": 100 * (weights @ sums[0]) / (weights @ sums[1]),
            "sensitivity": 100 * (weights @ found[0]) / (weights @ found[1]),
            "precision": 100 * (weights @ found[0]) / (weights @ found[2]),
            "auroc": area,
            "average_precision": average_precision,
        }

    inside = {"accuracy": patient, "sensitivity": patient[truth], "precision": patient[called]}
    return statistic, {name: len(np.unique(kept)) for name, kept in inside.items()}


def _coverage(simulations, by_patient):
    """Share of 95 % intervals that hold the figure of 40,000 patients, in percent, by figure."""
    rng = np.random.default_rng(0)
    statistic, _ = _share_and_area(*_simulate(rng, 40_000), 40_000)
    large = statistic(np.ones((1, 40_000)))
    held = dict.fromkeys(large, 0)
    for seed in range(simulations):
        truth, score, patient = _simulate(rng, 80)
        if not by_patient:
            patient = np.arange(len(patient))
        count = int(patient.max()) + 1
        statistic, behind = _share_and_area(truth, score, patient, count)
        options = {"n_boot": 400, "seed": seed, "patients_behind": behind}
        for name, found in bootstrap_intervals(statistic, count, **options).items():
            held[name] += found.low <= large[name][0] <= found.high
    return {name: 100 * count / simulations for name, count in held.items()}


def test_intervals_hold_the_truth_as_often_as_they_say():
    for name, percent in _coverage(800, by_patient=True).items():
        assert 93 <= percent <= 97, name


def test_resampling_slices_would_not():
    assert max(_coverage(50, by_patient=False).values()) < 85


def _scored(rng, patients, sharper):
    """Slices whose logits are ``sharper`` times what they should be, those of a patient alike."""
    patient = np.repeat(np.arange(patients), rng.integers(1, 9, patients))
    honest = (rng.normal(0, 1.5, patients))[patient] + rng.normal(0, 0.7, len(patient))
    # A patient's slices come true together as a rule
    luck = norm.cdf(rng.normal(0, 0.8, patients)[patient] + rng.normal(0, 0.6, len(patient)))
    return patient, expit(sharper * honest), luck < expit(honest)


def _calibration_gaps(patient, score, outcome, patients):
    """Weights to the gaps of ten bins, (B, 10)."""
    by_patient = np.zeros((patients, 10))
    np.add.at(by_patient, (patient, bin_of(score)), score - outcome)
    size = np.bincount(patient, minlength=patients)
    return lambda weights: {"ece": weights @ by_patient / (weights @ size)[:, None]}


@pytest.mark.parametrize(("patients", "sharper"), [(60, 2.0), (200, 1.5)])
def test_intervals_hold_a_calibration_error_as_often_as_they_say(patients, sharper):
    rng = np.random.default_rng(0)
    many = _calibration_gaps(*_scored(rng, 100_000, sharper), 100_000)
    truth = np.abs(many(np.ones((1, 100_000)))["ece"]).sum()
    held = {"inverted": 0, "bca": 0}
    for seed in range(500):
        gaps = _calibration_gaps(*_scored(rng, patients, sharper), patients)

        def error(weights, gaps=gaps):
            return {"ece": np.abs(gaps(weights)["ece"]).sum(axis=1)}

        for given in (gaps, None) if seed < 150 else (gaps,):
            options = {"n_boot": 200, "seed": seed, "gaps": given}
            found = bootstrap_intervals(error, patients, **options)["ece"]
            assert found.low >= 0 and (given is None or found.low <= found.value <= found.high)
            held[found.method] += found.low <= truth <= found.high
    assert 93 <= held["inverted"] / 5 <= 97, held
    assert held["bca"] / 1.5 < 90, held


def test_a_calibration_error_of_large_gaps_is_a_plain_sum():
    # Far from 0 no gap changes its sign: the sum is normal, and so is its interval
    rng = np.random.default_rng(0)
    gaps, noise = np.array([0.5, -0.7, 0.2]), rng.normal(0, 0.01, (20_000, 3))
    low, high = gap_interval(gaps, noise, 0.025)
    assert (low, high) == pytest.approx((1.4 - 1.96 * 0.0173, 1.4 + 1.96 * 0.0173), abs=5e-4)


def test_a_calibration_error_within_the_noise_may_be_none():
    noise = np.random.default_rng(0).normal(0, 0.1, (2000, 10))
    low, high = gap_interval(np.full(10, 0.05), noise, 0.025)
    assert low == 0 and 0.5 <= high < 1
    # Less than noise alone would give: the figure itself is the upper end
    assert gap_interval(np.full(10, 0.01), noise, 0.025) == (0, pytest.approx(0.1))


def test_a_calibration_error_is_at_most_1():
    """Nine patients, eight of whom are called wrong by scores of 0.98: 1.2 without a limit."""

    def gaps(weights):
        wrong = np.repeat([0.98, -0.02], [8, 1])
        return {"ece": (weights @ wrong / weights.sum(axis=1))[:, None]}

    def error(weights):
        return {"ece": np.abs(gaps(weights)["ece"]).sum(axis=1)}

    found = bootstrap_intervals(error, 9, seed=0, gaps=gaps)["ece"]
    assert found.value == pytest.approx(0.8689, abs=1e-4) and found.low > 0.75
    assert found.high == 1


def test_an_interval_is_of_95_percent_and_1000_resamples_where_nothing_is_stated():
    drawn = []

    def mean(weights):
        drawn.append(len(weights))
        return {"mean": weights @ np.arange(500.0) / weights.sum(axis=1)}

    found = bootstrap_intervals(mean, 500)
    # All patients, 400 groups of them left out, the resamples
    assert drawn == [1, 400, 1000]
    assert found == bootstrap_intervals(mean, 500, n_boot=1000, seed=0, confidence=0.95)
