"""Calibration error by hand and against scikit-learn; temperature against logistic regression."""

import math

import numpy as np
import pytest
from scipy.special import logit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.calibration import (
    calibration_pairs,
    fit_temperature,
    reliability_curve,
)
from ctmasknet.evaluation.resampled_metrics import calibration_metrics
from ctmasknet.evaluation.units import Units, slice_units

CLASSES = ["normal", "pneumonia", "covid"]


def test_error_and_curve_by_hand():
    # A score of 0.5, whose logit is 0, is on an edge and belongs to the bin below
    scores = np.array([1e-9, 0.05, 0.45, 0.5, 0.95, 0.85, 1 - 1e-9])
    labels = np.array([1, 0, 0, 0, 1, 1, 0])
    logits = np.stack([logit(1 - scores), logit(scores)], axis=1)
    units = Units(labels, np.ones(7, dtype=np.int64), logits, np.arange(7), 7, {})
    # {0, 0.05}: |0.05 - 1|; {0.45, 0.5}: 0.95; {0.85}: |0.85 - 1|; {0.95, 1}: |1.95 - 1|
    expected = (0.95 + 0.95 + 0.15 + 0.95) / 7
    found = calibration_metrics(units, ["a", "b"], np.ones((1, 7)))
    assert found["ece-b"] == pytest.approx(expected)
    # Every call is b, so its score is the top label's too
    assert found["ece"] == found["ece-b"]
    curve = reliability_curve(scores, labels == 1)
    assert [(point["low"], point["n"], point["share"]) for point in curve] == [
        (0.0, 2, 0.5),
        (0.4, 2, 0.0),
        (0.8, 1, 1.0),
        (0.9, 2, 0.5),
    ]


@pytest.mark.parametrize("bins", [5, 10])
def test_curve_is_that_of_scikit_learns_bins(bins):
    rng = np.random.default_rng(0)
    # A score on a bin's edge belongs to the bin below
    confidences = np.concatenate([rng.random(500) ** 2, np.linspace(0, 1, bins + 1)])
    outcomes = rng.random(len(confidences)) < confidences**0.5
    curve = reliability_curve(confidences, outcomes, bins)
    shares, means = calibration_curve(outcomes, confidences, n_bins=bins)
    assert [point["share"] for point in curve] == pytest.approx(shares)
    assert [point["confidence"] for point in curve] == pytest.approx(means)
    assert all(point["low"] <= point["confidence"] <= point["high"] for point in curve)
    assert sum(point["n"] for point in curve) == len(confidences)


def test_what_is_compared_is_the_sigmoid_score(simulated_rows):
    rows = simulated_rows(6, seed=1)
    pairs = calibration_pairs(slice_units(rows), CLASSES)
    assert list(pairs) == ["top_label", *CLASSES]
    assert pairs["top_label"][0] == pytest.approx([max(row.scores) for row in rows])
    assert pairs["top_label"][1].tolist() == [row.pred == row.label for row in rows]
    assert pairs["covid"][0] == pytest.approx([row.scores[2] for row in rows])
    assert pairs["covid"][1].tolist() == [row.label == 2 for row in rows]


def test_temperature_is_a_logistic_regression_without_intercept(simulated_rows):
    units = slice_units(simulated_rows(40, seed=2)).tempered(0.4)
    found = fit_temperature(units)
    truth = (units.labels[:, None] == np.arange(3)).reshape(-1)
    model = LogisticRegression(C=math.inf, fit_intercept=False, tol=1e-8)
    slope = model.fit(units.logits.reshape(-1, 1), truth).coef_[0, 0]
    assert found.value == pytest.approx(1 / slope, rel=1e-4)
    assert found.loss_after < found.loss_before and found.n == len(units)
    assert not found.bounded
    # Scores made twice as sure need twice the temperature, and no prediction changes
    assert fit_temperature(units.tempered(0.5)).value == pytest.approx(2 * found.value, rel=1e-4)
    assert (units.tempered(3.0).logits.argmax(axis=1) == units.logits.argmax(axis=1)).all()


def test_temperature_of_scores_without_an_error_stops_at_the_bound():
    labels = np.array([0, 1, 2])
    logits = np.where(np.eye(3) > 0, 2.0, -2.0)
    units = Units(labels, labels, logits, labels, 3, {})
    found = fit_temperature(units)
    assert found.bounded and found.value == pytest.approx(0.05, rel=0.01)
    assert found.to_json()["bounded"] is True
    with pytest.raises(CTMaskNetError, match="no validation slice has a label"):
        fit_temperature(Units(labels[:0], labels[:0], logits[:0], labels[:0], 0, {}))
