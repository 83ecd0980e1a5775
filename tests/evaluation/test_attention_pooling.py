"""The scan head: it begins as the mean, learns which slices tell, and is stored with the model."""

import json

import numpy as np
import pytest
from scipy.special import expit, softmax

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import attention_pooling
from ctmasknet.evaluation.attention_pooling import (
    attention_pooling_from_json,
    fit_attention_pooling,
    load_attention_pooling,
)
from ctmasknet.evaluation.pooling import ScorePooling, pool_slices
from ctmasknet.evaluation.predictions import SlicePrediction, write_predictions_csv
from ctmasknet.evaluation.report import evaluate_predictions
from ctmasknet.evaluation.validation_fit import PoolingChoice
from ctmasknet.predict.pooled import build_pooler
from ctmasknet.report.source import read_source

CLASSES = ("normal", "pneumonia", "covid")


def focal(patients, seed):
    """An illness shows in two of a scan's slices alone, the others look normal."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        label, count = patient % 3, int(rng.integers(10, 20))
        for number in range(count):
            logits = np.array([2.0, -2.0, -2.0]) + rng.normal(0, 1, 3)
            if label and number in (3, 4):
                logits += np.array([-3.0, 0, 0]) + 5 * np.eye(3)[label]
            whose = (f"{seed}_{patient}_{number}.png", f"{seed}_{patient}", "1", label)
            scores = tuple(expit(logits).tolist())
            rows.append(
                SlicePrediction(*whose, int(logits.argmax()), tuple(logits.tolist()), scores)
            )
    return rows


def accuracy(rows, pooling):
    return np.mean([scan.pred == scan.label for scan in pool_slices(rows, "scans", pooling)])


def test_it_begins_as_the_mean_of_the_logits(monkeypatch):
    monkeypatch.setattr(attention_pooling, "_STEPS", 0)
    fitted = fit_attention_pooling(focal(6, seed=1), CLASSES)
    logits = np.random.default_rng(2).normal(size=(7, 3))
    np.testing.assert_allclose(fitted(logits), softmax(logits.mean(0)), rtol=1e-12)
    np.testing.assert_allclose(fitted.attention(logits), 1 / 7)


def test_it_learns_which_slices_tell(tmp_path):
    validation, test = focal(45, seed=1), focal(60, seed=2)
    fitted = fit_attention_pooling(validation, CLASSES, seed=3)
    assert accuracy(test, fitted) > 0.9
    assert accuracy(test, ScorePooling("mean", 0)) < 0.5
    scan = np.array([row.logits for row in test if row.patient == "2_2"])
    weights = fitted.attention(scan)
    np.testing.assert_allclose(weights.sum(0), 1)
    assert weights[3:5, 2].sum() > 0.5, "of covid's weight, what two of the slices have"
    np.testing.assert_allclose(fitted(scan[::-1]), fitted(scan), rtol=1e-9)
    assert fitted.fit == {"seed": 3, "level": "scans", "patients": dict.fromkeys(CLASSES, 15)}
    path = tmp_path / "attention.json"
    path.write_text(json.dumps(fitted.to_json()))
    np.testing.assert_array_equal(load_attention_pooling(path, CLASSES)(scan), fitted(scan))
    for change, message in (
        ({"format": "another"}, "not a 'ctmasknet attention pooling 1'"),
        ({"class_names": ["a"]}, "fitted for the classes"),
        ({"weights": {"mean": [0, 0, "x"]}}, "mean is no list of numbers"),
        (
            {"weights": fitted.to_json()["weights"] | {"out": [[1.0]]}},
            r"out has the shape \(1, 1\)",
        ),
    ):
        with pytest.raises(CTMaskNetError, match=message):
            attention_pooling_from_json(fitted.to_json() | change, CLASSES)


def test_it_is_chosen_stored_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(attention_pooling, "_STEPS", 40)
    validation, test = focal(15, seed=4), focal(12, seed=5)
    files = {name: tmp_path / name for name in ("val.csv", "predictions.csv")}
    write_predictions_csv(files["val.csv"], validation, CLASSES)
    write_predictions_csv(files["predictions.csv"], test, CLASSES)
    seen = []
    fit = attention_pooling.fit_attention_pooling

    def spy(rows, *args, **kwargs):
        seen.append({row.patient for row in rows})
        return fit(rows, *args, **kwargs)

    monkeypatch.setattr("ctmasknet.evaluation.validation_fit.fit_attention_pooling", spy)
    report, fitted = evaluate_predictions(
        files["predictions.csv"],
        tmp_path / "report",
        validation=files["val.csv"],
        choice=PoolingChoice("attention"),
        n_boot=100,
    )
    # Once on all for use, then without a fifth of them for each level's temperature
    assert [len(patients) for patients in seen] == [15, *[12] * 10]
    assert set(report["poolings"]) == {"mean", "max", "top_k_mean", "learned", "attention"}
    found = read_source(tmp_path)
    expected = [scan.scores for scan in pool_slices(test, "scans", fitted.attention)]
    np.testing.assert_allclose([scan.scores for scan in found.pooled["scans"]], expected)
    stored = json.loads(json.dumps(fitted.to_json()))
    pooler = build_pooler(CLASSES, stored)
    scan = np.array([row.logits for row in test if row.patient == "5_1"])
    assert pooler.label == "attention"
    np.testing.assert_allclose(pooler(scan), fitted.attention(scan))
    with pytest.raises(CTMaskNetError, match="holds no attention pooling; fit one with"):
        build_pooler(CLASSES, None, name="attention")
    with pytest.raises(CTMaskNetError, match="the pooling attention is fitted on validation"):
        evaluate_predictions(
            files["predictions.csv"], tmp_path / "other", choice=PoolingChoice("attention")
        )
    with pytest.raises(CTMaskNetError, match=r"val\.csv: .*no patient of class covid"):
        write_predictions_csv(files["val.csv"], focal(2, seed=6), CLASSES)
        evaluate_predictions(
            files["predictions.csv"],
            tmp_path / "other",
            validation=files["val.csv"],
            choice=PoolingChoice("attention"),
        )
