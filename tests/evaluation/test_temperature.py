"""The temperature: its value, and when there is none that is fair."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.pooling import Units, slice_units
from ctmasknet.evaluation.temperature import fit_temperature


def test_temperature_is_a_logistic_regression_without_intercept(simulated_rows):
    units = slice_units(simulated_rows(40, seed=2)).tempered(0.4)
    found = fit_temperature(units)
    truth = (units.labels[:, None] == np.arange(3)).reshape(-1)
    model = LogisticRegression(C=math.inf, fit_intercept=False, tol=1e-8)
    slope = model.fit(units.logits.reshape(-1, 1), truth).coef_[0, 0]
    assert found.value == pytest.approx(1 / slope, rel=1e-4)
    assert found.loss_after < found.loss_before and found.n == len(units)
    assert not found.bounded and found.why_not == ""
    # Scores made twice as sure need twice the temperature, and no prediction changes
    assert fit_temperature(units.tempered(0.5)).value == pytest.approx(2 * found.value, rel=1e-4)
    assert (units.tempered(3.0).logits.argmax(axis=1) == units.logits.argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("size", "end"),
    [
        pytest.param(0.5, 0.05, id="separable"),
        pytest.param(80.0, 0.05, id="separable-loss-flat-at-0"),
        pytest.param(0.0, 20, id="scores-that-are-all-half"),
        pytest.param(-0.5, 20, id="every-score-wrong"),
    ],
)
def test_temperature_is_no_fair_fit_where_none_is_better_than_the_ends(size, end):
    labels = np.array([0, 1, 2, 2])
    logits = size * np.where(labels[:, None] == np.arange(3), 1.0, -1.0)
    found = fit_temperature(Units(labels, labels, logits, labels, 3, {}))
    assert found.bounded and found.value == pytest.approx(end)
    assert f"end of the range tried ({end:g})" in found.why_not


def test_temperature_of_scores_that_say_less_than_the_share_of_each_class():
    """One score in three is on the wrong side, which a temperature can only make less sure."""
    labels = np.repeat(np.arange(3), 3)
    called = np.tile(np.arange(3), 3)
    logits = np.where(called[:, None] == np.arange(3), 0.8, -0.8)
    found = fit_temperature(Units(labels, called, logits, labels, 3, {}))
    # The best score of what is right 5 times in 9; the best constant is 1/3
    assert found.value == pytest.approx(0.8 / math.log(5 / 4), rel=1e-4) and not found.bounded
    shares = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
    assert found.loss_of_shares == pytest.approx(shares) and found.loss_after > shares
    assert "scores say no more than the share of each class" in found.why_not


def test_temperature_of_scores_without_an_error_stops_at_the_bound():
    labels = np.array([0, 1, 2])
    logits = np.where(np.eye(3) > 0, 2.0, -2.0)
    units = Units(labels, labels, logits, labels, 3, {})
    found = fit_temperature(units)
    assert found.bounded and found.value == pytest.approx(0.05, rel=0.01)
    assert found.to_json()["bounded"] is True
    assert "the end of the range tried (0.05), scores are separable" in found.why_not
    with pytest.raises(CTMaskNetError, match="no validation slice has a label"):
        fit_temperature(Units(labels[:0], labels[:0], logits[:0], labels[:0], 0, {}))
