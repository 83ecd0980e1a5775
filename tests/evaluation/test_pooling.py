"""Pooling by hand, the learned pooling against scikit-learn, and what is left out."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn import model_selection
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import learned_pooling
from ctmasknet.evaluation.learned_pooling import (
    fit_learned_pooling,
    group_features,
    load_learned_pooling,
    pool_out_of_fold,
)
from ctmasknet.evaluation.pooling import (
    ScorePooling,
    check_apart,
    check_rows,
    normal_index,
    pool_slices,
    pooled_units,
    slice_units,
)
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.evaluation.validation_fit import PoolingChoice
from ctmasknet.files import write_json

CLASSES = ["normal", "pneumonia", "covid"]
SCORES = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.1, 0.2, 0.7], [0.2, 0.1, 0.5]])


def row(file, patient, scan, label, scores=(0.9, 0.1, 0.2)):
    logits = tuple(logit(np.array(scores)).tolist())
    return SlicePrediction(file, patient, scan, label, int(np.argmax(scores)), logits, scores)


@pytest.mark.parametrize(
    ("name", "normal", "expected"),
    [
        ("mean", 0, [0.5, 0.175, 0.375]),
        # normal as in its least normal slice
        ("max", 0, [0.1, 0.3, 0.7]),
        ("max", None, [0.9, 0.3, 0.7]),
        ("top_k_mean", 0, [0.15, 0.25, 0.6]),
        ("top_k_mean", None, [0.85, 0.25, 0.6]),
    ],
)
def test_fixed_poolings_by_hand(name, normal, expected):
    pooling = ScorePooling(name, normal, top_k=2)
    assert pooling(logit(SCORES)) == pytest.approx(expected)
    assert pooling(logit(SCORES[::-1])) == pytest.approx(expected)
    # A single slice is its own scan, and k slices are not asked of three
    assert pooling(logit(SCORES[:1])) == pytest.approx(SCORES[0])
    wide = ScorePooling("top_k_mean", normal, top_k=9)(logit(SCORES))
    assert wide == pytest.approx(SCORES.mean(axis=0))


def test_noisy_or_of_slices():
    found = ScorePooling("noisy_or", 0)(logit(SCORES))
    either = [1 - 0.9 * 0.7 * 0.8 * 0.9, 1 - 0.8 * 0.9 * 0.3 * 0.5]
    assert found == pytest.approx([0.9 * 0.8 * 0.1 * 0.2, *either])
    assert ScorePooling("noisy_or", None)(logit(SCORES))[0] == pytest.approx(
        1 - 0.1 * 0.2 * 0.9 * 0.8
    )
    sure = ScorePooling("noisy_or", None)(np.array([[60.0, -60.0]]))
    assert sure.tolist() == [1, expit(-60.0)]


def test_more_than_18_slices_make_a_patient_ill():
    pooling = ScorePooling("over_18_slices", 0)
    slices = {0: [1.0, 0.0, -1.0], 1: [0.0, 1.0, 0.5], 2: [-1.0, 0.0, 1.0]}
    for counts, pred in (((30, 18, 18), 0), ((90, 3, 19), 2), ((0, 20, 19), 1), ((1, 0, 0), 0)):
        scores = pooling(np.repeat(list(slices.values()), counts, axis=0))
        assert int(np.argmax(scores)) == pred
        assert ((scores >= 0) & (scores <= 1)).all()
        assert scores[1:] == pytest.approx([n / (n + 18.5) for n in counts[1:]])
    with pytest.raises(CTMaskNetError, match="no class is called normal"):
        ScorePooling("over_18_slices", None)
    # Reports compare it where it is asked for
    assert "over_18_slices" in PoolingChoice("over_18_slices").poolings(CLASSES)
    assert "over_18_slices" not in PoolingChoice().poolings(CLASSES)


def test_a_patient_with_one_covid_slice_among_normal_ones_is_covid_by_max_alone():
    rows = [row(f"{n}.png", "p", "s", 2, (0.9, 0.05, 0.1)) for n in range(9)]
    rows.append(row("9.png", "p", "s", 2, (0.1, 0.2, 0.95)))
    calls = [
        pool_slices(rows, "patients", ScorePooling(name, 0))[0].pred for name in ("mean", "max")
    ]
    assert calls == [0, 2]


def test_scans_belong_to_their_patient_and_unclear_labels_are_counted():
    rows = [
        row("a", "p", "1", 0),
        row("b", "q", "1", 2),
        row("c", "p", "1", None),
        row("d", "p", "2", 2),
        row("e", "", "", 1),
        row("f", "r", "1", None),
    ]
    scans = pool_slices(rows, "scans", ScorePooling("mean"))
    assert [(s.patient, s.scan, s.label, s.slices) for s in scans] == [
        ("p", "1", 0, 2),
        ("q", "1", 2, 1),
        ("p", "2", 2, 1),
        ("r", "1", None, 1),
    ]
    patients = pool_slices(rows, "patients", ScorePooling("mean"))
    assert [(p.patient, p.scan, p.label, p.mixed, p.slices) for p in patients] == [
        ("p", "", None, True, 3),
        ("q", "", 2, False, 1),
        ("r", "", None, False, 1),
    ]
    units = pooled_units(patients)
    assert units.labels.tolist() == [2]
    assert units.left_out == {"no_label": 1, "mixed_label": 1}
    assert pooled_units(scans).patients.tolist() == [0, 1, 0]
    slices = slice_units([*rows, row("g", "", "", 1)])
    assert slices.left_out == {"no_label": 2, "no_patient": 2}
    # Slices without a patient are not one patient
    assert slices.patients.tolist() == [0, 1, 0, 2, 3] and slices.num_patients == 4


def test_very_sure_scores_keep_their_order():
    rows = [
        dataclasses.replace(row(f"{number}", f"p{number}", "1", 0), logits=(value, -value, 0.0))
        for number, value in enumerate((19.0, 25.0, 30.0, 50.0))
    ]
    for name in ("mean", "max"):
        logits = pooled_units(pool_slices(rows, "patients", ScorePooling(name))).logits
        assert (np.diff(logits[:, 0]) > 0).all() and (np.diff(logits[:, 1]) < 0).all()
        assert logits[:3, 0] == pytest.approx([19, 25, 30], abs=0.01) and logits[3, 0] < 40


def test_normal_class_by_name():
    assert normal_index(["covid", "normal"]) == 1
    assert normal_index(["control", "covid"]) is None
    assert normal_index(["control", "covid"], "control") == 0
    with pytest.raises(CTMaskNetError, match="'healthy' is not a class"):
        normal_index(CLASSES, "healthy")
    with pytest.raises(CTMaskNetError, match="unknown"):
        ScorePooling("median")
    for choice in (ScorePooling, PoolingChoice):
        with pytest.raises(CTMaskNetError, match="at least one slice"):
            choice("top_k_mean", top_k=0)
        with pytest.raises(CTMaskNetError, match="at least one slice"):
            choice("top_k_mean", top_k=[])


@pytest.mark.parametrize("classes", [2, 3])
def test_learned_pooling_is_scikit_learns_regression_on_patients(simulated_rows, classes):
    rows = simulated_rows(45, seed=1, classes=classes)
    fitted = fit_learned_pooling(rows, CLASSES[:classes], top_k=2, seed=4)
    logits = {}
    for item in rows:
        logits.setdefault(item.patient, []).append(item.logits)
    features = [group_features(group, top_k=2) for group in logits.values()]
    labels = [int(patient) % classes for patient in logits]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=fitted.fit["inverse_penalty"]))
    expected = model.fit(features, labels).predict_proba(features)
    found = [p.scores for p in pool_slices(rows, "patients", fitted)]
    assert np.array(found) == pytest.approx(expected, abs=1e-4)
    assert np.mean(np.argmax(found, axis=1) == labels) > 0.8
    assert list(fitted.fit["patients"].values()) == ([23, 22] if classes == 2 else [15, 15, 15])


def test_features_by_hand():
    logits = np.array([[0.0, 4.0], [10.0, 3.0], [5.0, 2.0]])
    features = group_features(logits, top_k=2).reshape(6, 2)
    assert features[:, 0] == pytest.approx([5, 10, 7.5, 1, 5, 9])
    assert features[:3, 1] == pytest.approx([3, 4, 3.5])


def test_learned_pooling_comes_back_from_its_file(simulated_rows, tmp_path):
    rows = simulated_rows(30, seed=2)
    fitted = fit_learned_pooling(rows, CLASSES, seed=1)
    path = tmp_path / "new" / "pooling.json"
    write_json(path, fitted.to_json(), 1)
    loaded = load_learned_pooling(path, CLASSES)
    before = pool_slices(rows, "scans", fitted)
    for same in (loaded, fit_learned_pooling(rows, CLASSES, seed=1)):
        scores = [scan.scores for scan in pool_slices(rows, "scans", same)]
        assert np.array(scores) == pytest.approx(np.array([s.scores for s in before]), rel=1e-12)
    saved = path.read_text()
    with pytest.raises(TypeError):
        write_json(path, dataclasses.replace(fitted, top_k=object()).to_json())
    assert path.read_text() == saved and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "cannot read"),
        ({"format": "another"}, "not a 'ctmasknet learned pooling 1' file"),
        ({"class_names": ["normal", "covid"]}, "fitted for the classes"),
        ({"coefficients": [[1.0]]}, r"coefficients has the shape \(1, 1\) instead of \(3, 18\)"),
        ({"intercepts": [0, "x", 0]}, "intercepts is no list of numbers"),
        ({"scale": [float("nan")] * 18}, "no number"),
        ({"features": []}, "other features"),
        ({"top_k": 2.5}, "other features"),
        ({"top_k": True}, "other features"),
        ({"top_k": -1}, "other features"),
    ],
)
def test_a_bad_pooling_file_is_one_clear_error(simulated_rows, tmp_path, change, message):
    path = tmp_path / "pooling.json"
    if change is not None:
        fitted = fit_learned_pooling(simulated_rows(6, seed=2), CLASSES)
        path.write_text(json.dumps(fitted.to_json() | change))
    with pytest.raises(CTMaskNetError, match=message) as error:
        load_learned_pooling(path, CLASSES)
    assert str(path) in str(error.value)


def test_too_few_patients_to_learn_from(simulated_rows):
    rows = simulated_rows(2, seed=1)
    with pytest.raises(CTMaskNetError, match="no patient of class covid"):
        fit_learned_pooling(rows, CLASSES)
    rows = simulated_rows(3, seed=1)
    assert fit_learned_pooling(rows, CLASSES).fit["folds"] == 0
    with pytest.raises(CTMaskNetError, match="1 patients of class normal"):
        pool_out_of_fold(rows, CLASSES, "patients")


def test_out_of_fold_pooling_never_saw_its_patient(simulated_rows, monkeypatch):
    rows = simulated_rows(15, seed=3)
    fit, pool, seen = fit_learned_pooling, pool_slices, []

    def spy_fit(kept, *args, **kwargs):
        seen.append({item.patient for item in kept})
        return fit(kept, *args, **kwargs)

    def spy_pool(unseen, *args):
        assert len(seen[-1]) == 12 and not seen[-1] & {item.patient for item in unseen}
        return pool(unseen, *args)

    monkeypatch.setattr(learned_pooling, "fit_learned_pooling", spy_fit)
    monkeypatch.setattr(learned_pooling, "pool_slices", spy_pool)
    pooled = pool_out_of_fold(rows, CLASSES, "scans")
    assert {(p.patient, p.scan) for p in pooled} == {(r.patient, r.scan) for r in rows}


def test_rows_that_no_statistic_can_be_made_of():
    with pytest.raises(CTMaskNetError, match=r"x\.csv: no predictions"):
        check_rows([], "x.csv")
    with pytest.raises(CTMaskNetError, match=r"x\.csv: a\.png is in it twice"):
        check_rows([row("a.png", "p", "1", 0)] * 2, "x.csv")
    broken = dataclasses.replace(row("a.png", "p", "1", 0), logits=(0.0, float("nan"), 0.0))
    with pytest.raises(CTMaskNetError, match=r"a\.png has a logit that is no finite number"):
        check_rows([broken], "x.csv")
    with pytest.raises(CTMaskNetError, match=r"1 patients are both in .* \(p\)"):
        check_apart([row("a.png", "p", "1", 0)], [row("b.png", "p", "1", 0)])
    with pytest.raises(CTMaskNetError, match=r"1 files are both in .* \(a\.png\)"):
        check_apart([row("a.png", "", "", 0)], [row("a.png", "", "", 0)])
    check_apart([row("a.png", "", "", 0)], [row("b.png", "", "", 0)])


def test_the_penalty_is_chosen_of_five_in_five_folds_and_is_cautious_where_it_cannot_be(
    simulated_rows, monkeypatch
):
    grids = []
    search = model_selection.GridSearchCV

    def spy(model, grid, **options):
        grids.append((grid, options["cv"].n_splits, options["scoring"]))
        return search(model, grid, **options)

    monkeypatch.setattr(model_selection, "GridSearchCV", spy)
    fitted = fit_learned_pooling(simulated_rows(18, seed=1), CLASSES)
    assert (fitted.top_k, fitted.fit["seed"], fitted.fit["folds"]) == (5, 0, 5)
    candidates = {"logisticregression__C": (0.001, 0.01, 0.1, 1.0, 10.0)}
    assert grids == [(candidates, 5, "neg_log_loss")]
    assert fit_learned_pooling(simulated_rows(3, seed=1), CLASSES).fit["inverse_penalty"] == 0.1
