"""Every metric of a resample against scikit-learn on the slices written out."""

import itertools

import numpy as np
import pytest
from scipy.special import logit
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.metrics import (
    calibration_metrics,
    calibration_pairs,
    curve_points,
    level_metrics,
    patients_behind,
    reliability_curve,
    threshold_for_sensitivity,
    threshold_metrics,
    weighted_areas,
)
from ctmasknet.evaluation.pooling import Units, slice_units

CLASSES = ["normal", "pneumonia", "covid"]


@pytest.fixture(scope="module")
def units(simulated_rows):
    return slice_units(simulated_rows(20, seed=5, shift=1.0))


def written_out(units, weights):
    """The units of one resample, each as often as its patient was drawn."""
    index = np.repeat(np.arange(len(units)), weights[units.patients])
    kept = (units.labels, units.preds, units.logits, units.patients)
    return Units(*(array[index] for array in kept), units.num_patients, {})


def by_scikit_learn(units):
    labels, preds, scores = units.labels, units.preds, units.scores
    precision, sensitivity, f1, _ = sk.precision_recall_fscore_support(
        labels, preds, labels=[0, 1, 2]
    )
    found = {
        "accuracy": 100 * sk.accuracy_score(labels, preds),
        "sensitivity-macro": 100 * sk.balanced_accuracy_score(labels, preds),
        "f1-macro": 100 * sk.f1_score(labels, preds, average="macro"),
        "precision-macro": 100 * sk.precision_score(labels, preds, average="macro"),
        "loss": np.mean([sk.log_loss(labels == c, scores[:, c], labels=[0, 1]) for c in range(3)]),
    }
    for c, name in enumerate(CLASSES):
        truth = labels == c
        found[f"sensitivity-{name}"] = 100 * sensitivity[c]
        found[f"precision-{name}"] = 100 * precision[c]
        found[f"f1-{name}"] = 100 * f1[c]
        found[f"specificity-{name}"] = 100 * sk.recall_score(~truth, preds != c)
        found[f"auroc-{name}"] = sk.roc_auc_score(truth, scores[:, c])
        found[f"average_precision-{name}"] = sk.average_precision_score(truth, scores[:, c])
    for metric in ("specificity", "auroc", "average_precision"):
        found[f"{metric}-macro"] = np.mean([found[f"{metric}-{name}"] for name in CLASSES])
    for name, pair in calibration_pairs(units, CLASSES).items():
        found["ece" if name == "top_label" else f"ece-{name}"] = calibration_error(*pair)
    return found


def calibration_error(confidences, outcomes):
    """Mean gap between confidence and share of true outcomes, ten bins weighted by their units."""
    edges = np.arange(11) / 10
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            total += inside.sum() * abs(confidences[inside].mean() - outcomes[inside].mean())
    return total / len(confidences)


def test_all_metrics_of_all_resamples_at_once(units):
    rng = np.random.default_rng(0)
    draws = rng.multinomial(units.num_patients, [1 / units.num_patients] * units.num_patients, 5)
    weights = np.concatenate([np.ones((1, units.num_patients), dtype=int), draws])
    found = level_metrics(units, CLASSES, weights)
    for number, drawn in enumerate(weights):
        expected = by_scikit_learn(written_out(units, drawn))
        assert {name: values[number] for name, values in found.items()} == pytest.approx(expected)


def test_areas_with_tied_scores_and_in_several_portions(monkeypatch):
    rng = np.random.default_rng(1)
    truth, scores = rng.random(60) < 0.4, rng.integers(0, 6, 60).astype(float)
    patients, weights = rng.integers(0, 12, 60), rng.integers(0, 3, (9, 12))
    monkeypatch.setattr("ctmasknet.evaluation.metrics._CHUNK", 150)
    roc, average = weighted_areas(truth, scores, patients, weights)
    for number, drawn in enumerate(weights):
        sample = {"sample_weight": drawn[patients]}
        assert roc[number] == pytest.approx(sk.roc_auc_score(truth, scores, **sample))
        assert average[number] == pytest.approx(sk.average_precision_score(truth, scores, **sample))


def test_areas_without_a_class_are_nan():
    scores, patients = np.array([0.1, 0.2]), np.array([0, 1])
    weights = np.array([[1, 1], [2, 0], [0, 2]])
    roc, average = weighted_areas(np.array([True, False]), scores, patients, weights)
    assert np.isnan(roc).tolist() == [False, True, True]
    assert np.isnan(average).tolist() == [False, False, True]
    roc, average = weighted_areas(np.zeros(0, bool), np.zeros(0), np.zeros(0, int), weights)
    assert np.isnan(roc).all() and np.isnan(average).all()


def test_curve_points_are_scikit_learns_and_keep_the_area():
    rng = np.random.default_rng(2)
    truth = rng.random(3000) < 0.3
    scores = rng.normal(truth * 1.0)
    points = curve_points(truth, scores)
    roc, pr = points["roc"], points["precision_recall"]
    assert roc["thresholds"][0] is None and pr["thresholds"][-1] is None
    for curve in (roc, pr):
        assert 150 <= len(curve["thresholds"]) <= 202
        assert len({len(values) for values in curve.values()}) == 1
    x, y = roc["false_positive_rate"], roc["true_positive_rate"]
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert sk.auc(x, y) == pytest.approx(sk.roc_auc_score(truth, scores), abs=0.002)
    threshold, index = roc["thresholds"][50], 50
    assert y[index] == pytest.approx((scores[truth] >= threshold).mean())
    assert x[index] == pytest.approx((scores[~truth] >= threshold).mean())
    assert pr["precision"][50] == pytest.approx(truth[scores >= pr["thresholds"][50]].mean())
    assert sk.auc(pr["recall"], pr["precision"]) == pytest.approx(
        sk.average_precision_score(truth, scores), abs=0.005
    )
    assert curve_points(np.ones(3, bool), np.arange(3.0)) is None


@pytest.mark.parametrize("sensitivity", [0.05, 0.5, 0.95, 1.0])
def test_threshold_is_the_first_of_the_roc_curve_that_is_sensitive_enough(sensitivity):
    rng = np.random.default_rng(3)
    truth = np.arange(100) < 20
    scores = rng.normal(truth * 1.0).round(1)
    _, rates, thresholds = sk.roc_curve(truth, scores, drop_intermediate=False)
    expected = thresholds[np.argmax(rates >= sensitivity)]
    assert threshold_for_sensitivity(truth, scores, sensitivity) == expected


def test_thresholds_that_cannot_be():
    with pytest.raises(CTMaskNetError, match="stated sensitivity is 95"):
        threshold_for_sensitivity(np.ones(2, bool), np.ones(2), 95)
    with pytest.raises(CTMaskNetError, match="no unit of the class"):
        threshold_for_sensitivity(np.zeros(2, bool), np.ones(2), 0.9)


def test_metrics_at_a_threshold(units):
    thresholds = {2: 0.5, 0: 0.2}
    found = threshold_metrics(units, thresholds, CLASSES, np.ones((1, units.num_patients)))
    for index, threshold in thresholds.items():
        truth, called = units.labels == index, units.scores[:, index] >= threshold
        (tn, fp), (fn, tp) = sk.confusion_matrix(truth, called)
        expected = {
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "precision": tp / (tp + fp),
            "npv": tn / (tn + fn),
        }
        for metric, share in expected.items():
            assert found[f"{metric}-{CLASSES[index]}"][0] == pytest.approx(100 * share)
    assert len(found) == 8


def test_patients_behind_a_share():
    # Patient 0 has a normal and a covid slice, patient 1 two normal ones, patient 2 pneumonia
    units = Units(
        labels=np.array([0, 2, 0, 0, 1]),
        preds=np.array([0, 2, 0, 2, 2]),
        logits=np.array([[0.0, 0, 9], [9, 0, 9], [9, 0, -9], [9, 0, 9], [9, 0, -9]]),
        patients=np.array([0, 0, 1, 1, 2]),
        num_patients=3,
        left_out={},
    )
    assert patients_behind(units, CLASSES) == {
        "accuracy": 3,
        **{"sensitivity-normal": 2, "specificity-normal": 2, "precision-normal": 2},
        **{"sensitivity-pneumonia": 1, "specificity-pneumonia": 2, "precision-pneumonia": 0},
        **{"sensitivity-covid": 1, "specificity-covid": 3, "precision-covid": 3},
    }
    assert patients_behind(units, CLASSES, {2: 0.5}) == {
        "sensitivity-covid": 1,
        "specificity-covid": 3,
        "precision-covid": 2,
        "npv-covid": 2,
    }


CALIBRATED_CLASSES = ["normal", "pneumonia", "covid"]


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
    pairs = calibration_pairs(slice_units(rows), CALIBRATED_CLASSES)
    assert list(pairs) == ["top_label", *CALIBRATED_CLASSES]
    assert pairs["top_label"][0] == pytest.approx([max(row.scores) for row in rows])
    assert pairs["top_label"][1].tolist() == [row.pred == row.label for row in rows]
    assert pairs["covid"][0] == pytest.approx([row.scores[2] for row in rows])
    assert pairs["covid"][1].tolist() == [row.label == 2 for row in rows]
