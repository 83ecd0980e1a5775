"""DeLong's and McNemar's tests, against a package, the definition, and a permutation."""

import numpy as np
import pytest

from ctmasknet.evaluation.paired_tests import delong, holm, mcnemar


def _scores(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % 3 == 0
    first = np.round(rng.normal(truth * 1.2, 1), 1)
    return truth, first, np.round(rng.normal(truth * 0.6, 1) + 0.3 * first, 1)


def test_delong_as_another_package_finds_it():
    """Figures of MLstatkit 0.1.91 (``Delong_test``) for the same scores."""
    truth, first, second = _scores(60, seed=7)
    found = delong(truth, first, second, np.arange(60))
    assert not found.clustered
    assert (found.first, found.second) == (0.74125, 0.6875)
    assert found.standard_error**2 == pytest.approx(0.007203858805668017, abs=1e-12)
    assert found.p_value == pytest.approx(0.5265507162575611, abs=1e-10)
    assert found.low == pytest.approx(0.05375 - 1.959964 * 0.0848755, abs=1e-6)


def _by_definition(truth, first, second, patients) -> float:
    """Obuchowski's variance, pair by pair of units."""
    parts = []
    for scores in (first, second):
        kernel = np.sign(np.subtract.outer(scores[truth], scores[~truth])) / 2 + 0.5
        parts.append(kernel - kernel.mean())
    kernel = parts[0] - parts[1]
    count = patients.max() + 1
    of_class = np.zeros(count)
    of_rest = np.zeros(count)
    for row, patient in zip(kernel, patients[truth], strict=True):
        of_class[patient] += row.mean()
    for column, patient in zip(kernel.T, patients[~truth], strict=True):
        of_rest[patient] += column.mean()
    m, n = truth.sum(), (~truth).sum()
    i10, i01, i = (len(np.unique(patients[who])) for who in (truth, ~truth, truth | True))
    return (
        i10 / (i10 - 1) * np.sum(of_class**2) / m**2
        + i01 / (i01 - 1) * np.sum(of_rest**2) / n**2
        + 2 * i / (i - 1) * np.sum(of_class * of_rest) / (m * n)
    )


def test_clusters_as_the_definition_has_them():
    truth, first, second = _scores(90, seed=3)
    patients = np.random.default_rng(0).integers(0, 25, 90)
    found = delong(truth, first, second, patients)
    assert found.clustered
    expected = _by_definition(truth, first, second, patients)
    assert found.standard_error**2 == pytest.approx(expected, rel=1e-10)


def test_slices_told_ten_times_are_no_more_than_once():
    truth, first, second = _scores(60, seed=7)
    once = delong(truth, first, second, np.arange(60))
    ten = delong(*(np.repeat(a, 10) for a in (truth, first, second)), np.repeat(np.arange(60), 10))
    assert ten.p_value == pytest.approx(once.p_value, rel=1e-9)
    right = [np.random.default_rng(seed).random(60) < share for seed, share in ((1, 0.8), (2, 0.5))]
    twice, often = (
        mcnemar(*(np.repeat(r, count) for r in right), np.repeat(np.arange(60), count))
        for count in (2, 10)
    )
    assert often.only_first == 5 * twice.only_first > 0
    assert often.p_value == pytest.approx(twice.p_value, rel=1e-9)


def test_mcnemar_is_the_binomial_test_of_the_discordant():
    first = np.array([1] * 9 + [0] * 2 + [1] * 20, dtype=bool)
    second = np.array([0] * 9 + [1] * 2 + [1] * 20, dtype=bool)
    found = mcnemar(first, second, np.arange(31))
    # 2 * (C(11,0) + C(11,1) + C(11,2)) / 2^11
    assert found.p_value == pytest.approx(2 * (1 + 11 + 55) / 2048)
    assert mcnemar(second, second, np.arange(31)).p_value == 1.0


def test_clustered_mcnemar_keeps_its_level():
    """Of 400 sets of two equal systems about 5 % are told apart; with slices as independent, more
    than twice as many."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 10)
    found, naive = 0, 0
    for _ in range(400):
        # A patient is easy for one of both systems as a whole
        ease = rng.random((2, 40)) * 0.6 + 0.3
        right = [rng.random(400) < np.repeat(one, 10) for one in ease]
        found += mcnemar(*right, patients).p_value < 0.05
        naive += mcnemar(*right, np.arange(400)).p_value < 0.05
    assert 8 <= found <= 34
    assert naive > 2 * found


def test_what_cannot_be_told_is_none():
    truth = np.array([True, True, False, False])
    scores = np.array([0.9, 0.8, 0.1, 0.2])
    assert delong(truth, scores, scores, np.array([0, 0, 1, 2])).p_value is None
    assert delong(np.ones(4, bool), scores, scores, np.arange(4)) is None
    assert mcnemar(truth, ~truth, np.zeros(4, int)).p_value is None
    assert delong(truth, scores, scores, np.arange(4)).p_value == 1.0


def test_holm():
    assert holm([0.04, None, 0.01, 0.03]) == [0.06, None, 0.03, 0.06]
