"""The report as a whole, its files, and the tool."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, roc_auc_score

from ctmasknet.engine.checkpoint import SPEC, store_calibration, stored_calibration
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.learned_pooling import load_learned_pooling
from ctmasknet.evaluation.pooling import ScorePooling, pool_slices
from ctmasknet.evaluation.predictions import write_predictions_csv
from ctmasknet.evaluation.report import classification_report, evaluate_predictions, report_text
from ctmasknet.evaluation.validation_fit import PoolingChoice, fit_on_validation
from tests.helpers.running import run_tool

CLASSES = ["normal", "pneumonia", "covid"]
TOOL = "tools/evaluate_predictions.py"


@pytest.fixture(scope="module")
def tested_rows(simulated_rows):
    return simulated_rows(24, seed=1)


@pytest.fixture(scope="module")
def validation_rows(simulated_rows):
    return simulated_rows(30, seed=2, prefix="v")


@pytest.fixture(scope="module")
def report(tested_rows, validation_rows):
    fit = fit_on_validation(
        validation_rows, CLASSES, choice=PoolingChoice("learned"), sensitivity=0.9
    )
    return classification_report(tested_rows, CLASSES, fit=fit, validation=validation_rows)


@pytest.fixture
def files(tmp_path, tested_rows, validation_rows):
    for name, rows in (("test", tested_rows), ("val", validation_rows)):
        write_predictions_csv(tmp_path / f"{name}.csv", rows, CLASSES)
    return tmp_path


def test_levels_stand_side_by_side(report, tested_rows, validation_rows):
    learned = fit_on_validation(validation_rows, CLASSES).learned
    assert report["settings"]["pooling"] == "learned"
    assert set(report["poolings"]) == {"mean", "max", "top_k_mean", "learned"}
    for level, pooled in (
        ("slices", tested_rows),
        ("scans", pool_slices(tested_rows, "scans", learned)),
        ("patients", pool_slices(tested_rows, "patients", learned)),
    ):
        found = report["levels"][level]
        labels, preds = [item.label for item in pooled], [item.pred for item in pooled]
        scores = np.array([item.scores for item in pooled])
        assert found["n"] == len(pooled) and found["n_patients"] == 24
        assert np.trace(found["confusion_matrix"]) == sum(np.equal(labels, preds))
        accuracy = found["metrics"]["accuracy"]
        assert accuracy["value"] == pytest.approx(100 * accuracy_score(labels, preds))
        area = found["metrics"]["auroc-covid"]
        assert area["value"] == pytest.approx(roc_auc_score(np.equal(labels, 2), scores[:, 2]))
        assert accuracy["low"] < accuracy["value"] <= accuracy["high"]
        assert sum(point["n"] for point in found["reliability"]["top_label"]) == len(pooled)
        if level != "slices":
            assert report["poolings"]["learned"][level] == found["metrics"]
    other = report["poolings"]["mean"]["patients"]["ece"]["value"]
    assert other != report["levels"]["patients"]["metrics"]["ece"]["value"]


def test_what_validation_is_for(report, tested_rows, validation_rows):
    level = report["levels"]["slices"]
    calibrated = level["calibrated"]
    assert level["why_not_calibrated"] == ""
    assert calibrated["temperature"]["fitted_on"]["n"] == len(validation_rows)
    temperature = calibrated["temperature"]["value"]
    logits = np.array([row.logits for row in tested_rows]) / temperature
    truth = np.array([row.label for row in tested_rows])[:, None] == np.arange(3)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits), torch.from_numpy(truth.astype(float))
    )
    assert calibrated["metrics"]["loss"]["value"] == pytest.approx(float(expected))
    point = level["operating_points"]["covid"]
    called = np.array([row.scores[2] for row in tested_rows]) >= point["threshold"]
    assert point["test"]["sensitivity"]["value"] == pytest.approx(100 * called[truth[:, 2]].mean())
    assert point["test"]["specificity"]["low"] < 100 * (~called[~truth[:, 2]]).mean()
    assert 90 <= point["validation"]["sensitivity"] < 95


def test_each_level_has_its_own_temperature_and_thresholds(report, tested_rows, validation_rows):
    fit = fit_on_validation(
        validation_rows, CLASSES, choice=PoolingChoice("learned"), sensitivity=0.9
    )
    assert len({round(fit.temperatures[level].value, 6) for level in report["levels"]}) > 1
    pooled = pool_slices(tested_rows, "patients", fit.learned)
    labels = np.array([item.label for item in pooled])
    scores = np.array([item.scores for item in pooled])
    level = report["levels"]["patients"]
    point = level["operating_points"]["covid"]
    assert point["threshold"] == fit.thresholds["patients"][2] != fit.thresholds["slices"][2]
    called = scores[:, 2] >= point["threshold"]
    assert point["test"]["sensitivity"]["value"] == pytest.approx(100 * called[labels == 2].mean())
    odds = torch.from_numpy(np.log(scores / (1 - scores)))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        odds / fit.temperatures["patients"].value,
        torch.from_numpy((labels[:, None] == np.arange(3)).astype(float)),
    )
    assert level["calibrated"]["metrics"]["loss"]["value"] == pytest.approx(float(expected))


@pytest.mark.parametrize("pooling", ["mean", "learned"])
def test_figures_do_not_depend_on_the_order_of_rows(tested_rows, validation_rows, pooling):
    def report(order):
        both = (tested_rows, validation_rows)
        rows, fitted_on = ([those[index] for index in order(those)] for those in both)
        fit = fit_on_validation(fitted_on, CLASSES, choice=PoolingChoice(pooling))
        return classification_report(rows, CLASSES, fit=fit, validation=fitted_on, n_boot=100)

    shuffled = report(lambda rows: np.random.default_rng(0).permutation(len(rows)))
    assert shuffled == report(lambda rows: range(len(rows)))


def test_a_perfect_share_has_the_exact_interval_of_its_patients(tested_rows):
    right = [dataclasses.replace(row, pred=row.label) for row in tested_rows]
    metrics = classification_report(right, CLASSES, n_boot=100)["levels"]["slices"]["metrics"]
    for name, patients in (("accuracy", 24), ("sensitivity-covid", 8), ("specificity-covid", 16)):
        expected = 100 * binomtest(patients, patients).proportion_ci(0.95, "exact").low
        assert metrics[name]["method"] == "exact"
        assert (metrics[name]["low"], metrics[name]["high"]) == (pytest.approx(expected), 100)


def test_the_report_is_plain_json_and_its_text_shows_every_level(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    text = report_text(report)
    assert "pooled by: learned" in text and "slices |" in text and "patients |" in text
    accuracy = report["levels"]["scans"]["metrics"]["accuracy"]
    cell = "{value:.2f} ({low:.2f}-{high:.2f})".format(**accuracy)
    assert cell in text
    assert "at 90 % sensitivity on validation" in text
    point = report["levels"]["slices"]["operating_points"]["covid"]
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    (row,) = [row for row in rows if row[1:3] == ["slices", "covid"]]
    reached = point["validation"]["sensitivity"]
    assert row[3:5] == [f"{point['threshold']:.4f}", f"{reached:.2f}"]


def test_thresholds_for_the_learned_pooling_are_not_chosen_on_patients_it_saw(validation_rows):
    fit = fit_on_validation(validation_rows, CLASSES, choice=PoolingChoice("learned"))
    seen = [p.scores[2] for p in pool_slices(validation_rows, "patients", fit.learned)]
    assert fit.thresholds["patients"][2] not in seen
    fixed = fit_on_validation(validation_rows, CLASSES, choice=PoolingChoice("max"))
    assert set(fixed.thresholds) == {"slices", "scans", "patients"}
    pooled = pool_slices(validation_rows, "patients", ScorePooling("max", 0))
    covid = sorted(item.scores[2] for item in pooled if item.label == 2)
    # Ten patients of COVID: all of them are needed for 95 %
    assert fixed.thresholds["patients"][2] == pytest.approx(covid[0])


def test_without_validation_nothing_is_fitted_and_without_patients_nothing_pooled(tested_rows):
    report = classification_report(tested_rows, CLASSES, n_boot=100)
    assert set(report["poolings"]) == {"mean", "max", "top_k_mean"}
    for level in report["levels"].values():
        assert level["calibrated"] is None and level["operating_points"] is None
    alone = [dataclasses.replace(row, patient="", scan="") for row in tested_rows[:40]]
    report = classification_report(alone, CLASSES, n_boot=100)
    assert report["levels"]["scans"] is report["levels"]["patients"] is None
    assert report["levels"]["slices"]["left_out"]["no_patient"] == 40
    assert "patients pooled by" in report_text(report)


@pytest.mark.parametrize("size", [0.5, -0.5])
def test_a_temperature_at_the_end_of_its_range_is_not_used_and_said(
    tested_rows, validation_rows, size
):
    """Separable validation slices (size > 0), and such whose scores are all wrong."""
    bent = [
        dataclasses.replace(row, logits=tuple(size if c == row.label else -size for c in range(3)))
        for row in validation_rows
    ]
    fit = fit_on_validation(bent, CLASSES)
    kept = fit.to_json()
    assert kept["temperatures"] == {}
    assert set(kept["why_no_temperature"]) == {"slices", "scans", "patients"}
    report = classification_report(tested_rows, CLASSES, fit=fit, n_boot=100)
    text = report_text(report)
    for name, level in report["levels"].items():
        assert level["calibrated"] is None and level["operating_points"]
        why = kept["why_no_temperature"][name]
        assert level["why_not_calibrated"] == why and "end of the range tried" in why
        assert f"{name} not calibrated: {why}" in text
    assert "ece with temperature" not in text


def test_two_classes_of_which_validation_lacks_one(simulated_rows):
    names = ["control", "covid"]
    rows = simulated_rows(10, seed=3, classes=2)
    validation = [row for row in simulated_rows(10, 4, 2, "v") if row.label == 1]
    fit = fit_on_validation(validation, names)
    assert fit.learned is None and "no patient of class control" in fit.why_not_learned
    report = classification_report(rows, names, fit=fit, n_boot=100)
    assert list(report["levels"]["patients"]["operating_points"]) == ["covid"]
    assert report["settings"]["normal_class"] is None
    assert "no patient of class control" in report["settings"]["why_no_learned_pooling"]
    json.dumps(report, allow_nan=False)
    report_text(report)
    with pytest.raises(CTMaskNetError, match="no patient of class control"):
        fit_on_validation(validation, names, choice=PoolingChoice("learned"))


def test_tool_writes_the_report_and_keeps_the_calibration_in_the_checkpoint(
    repository, files, capsys
):
    checkpoint = files / "model_best.pth"
    spec = {"task": "classification", "image_classes": CLASSES}
    torch.save({"model": {"w": torch.arange(3.0)}, SPEC: spec, "iteration": 7}, checkpoint)
    words = ["--predictions", files / "test.csv", "--validation", files / "val.csv"]
    words += ["--output", files / "out", "--resamples", 200, "--checkpoint", checkpoint]
    assert run_tool(repository, TOOL, *words) == 0
    told = capsys.readouterr().out
    assert "accuracy" in told and f"calibration stored in {checkpoint}" in told
    report = json.loads((files / "out" / "report.json").read_text())
    kept = stored_calibration(checkpoint)
    assert kept == json.loads((files / "out" / "calibration.json").read_text())
    slices = report["levels"]["slices"]
    assert kept["temperatures"]["slices"] == slices["calibrated"]["temperature"]
    assert kept["thresholds"]["slices"]["covid"] == slices["operating_points"]["covid"]["threshold"]
    assert load_learned_pooling(files / "out" / "pooling.json", CLASSES).class_names == (*CLASSES,)
    after = torch.load(checkpoint, weights_only=True)
    assert after["iteration"] == 7 and torch.equal(after["model"]["w"], torch.arange(3.0))
    assert after[SPEC]["image_classes"] == CLASSES


def test_a_second_evaluation_leaves_nothing_of_the_first(repository, files, capsys):
    out = files / "out"
    words = ["--predictions", files / "test.csv", "--resamples", 100, "--output", out]
    assert run_tool(repository, TOOL, *words, "--validation", files / "val.csv") == 0
    assert {path.name for path in out.iterdir()} == {
        "report.json",
        "calibration.json",
        "pooling.json",
    }
    assert run_tool(repository, TOOL, *words) == 0
    assert [path.name for path in out.iterdir()] == ["report.json"]


def test_checkpoints_that_a_calibration_does_not_belong_to(tmp_path, validation_rows):
    calibration = fit_on_validation(validation_rows, CLASSES).to_json()
    path = tmp_path / "model.pth"
    for value, message in (
        ({"model": {}}, "no classifier's checkpoint"),
        ({SPEC: {"task": "segmentation"}}, "no classifier's checkpoint"),
        ({SPEC: {"task": "classification", "image_classes": ["a", "b"]}}, "classifies"),
    ):
        torch.save(value, path)
        before = path.read_bytes()
        with pytest.raises(CTMaskNetError, match=message):
            store_calibration(path, calibration)
        assert path.read_bytes() == before
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CTMaskNetError, match="not a readable checkpoint"):
        stored_calibration(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--predictions", "absent.csv"], "cannot read predictions"),
        (["--predictions", "header.csv"], "no predictions in it"),
        (["--predictions", "column.csv"], "not a predictions file"),
        (["--predictions", "class.csv"], "line 2: 'flu'"),
        (["--predictions", "unlabelled.csv"], "no slice has a label"),
        (["--predictions", "test.csv", "--validation", "test.csv"], "are both in"),
        (["--predictions", "test.csv", "--validation", "two.csv"], "predictions of one model"),
        (["--predictions", "test.csv", "--validation", "unlabelled.csv"], "no slice has a label"),
        (["--predictions", "test.csv", "--pooling", "learned"], "give them, or choose another"),
        (["--predictions", "test.csv", "--normal-class", "healthy"], "'healthy' is not a class"),
        (["--predictions", "test.csv", "--resamples", "1"], "at least 100"),
        (["--predictions", "test.csv", "--seed", "-1"], "seed is -1"),
        (["--predictions", "test.csv", "--validation", "val.csv", "--seed", "-1"], "seed is -1"),
        (["--predictions", "test.csv", "--output", "test.csv"], "cannot be written"),
        (
            ["--predictions", "test.csv", "--validation", "val.csv", "--checkpoint", "test.csv"],
            "test.csv: weights are read from a .pth written by training",
        ),
    ],
)
def test_tool_tells_what_is_wrong_and_writes_nothing(
    repository, files, tested_rows, validation_rows, capsys, monkeypatch, words, message
):
    monkeypatch.chdir(files)
    lines = (files / "test.csv").read_text().splitlines()
    (files / "header.csv").write_text(lines[0] + "\n")
    (files / "column.csv").write_text(lines[0].replace("scan,", "") + "\n")
    (files / "class.csv").write_text("\n".join([lines[0], lines[1].replace("normal", "flu")]))
    unlabelled = [dataclasses.replace(row, label=None) for row in validation_rows]
    write_predictions_csv(files / "unlabelled.csv", unlabelled, CLASSES)
    two = [
        dataclasses.replace(
            row,
            logits=row.logits[:2],
            scores=row.scores[:2],
            pred=int(row.logits[1] > row.logits[0]),
            label=0,
        )
        for row in validation_rows
    ]
    write_predictions_csv(files / "two.csv", two, CLASSES[:2])
    assert run_tool(repository, TOOL, "--output", "out", *words) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1
    assert not (files / "out").exists()


def test_settings_that_are_not_stated(simulated_rows, files):
    """They stand in every report: a change of one changes all figures without a word."""
    rows = simulated_rows(18, seed=5, prefix="t")
    alone = classification_report(rows, CLASSES)["settings"]
    stated = {"pooling": "mean", "top_k": 5, "normal_class": "normal", "n_boot": 1000, "seed": 0}
    assert alone.items() >= (stated | {"confidence": 0.95, "bins": 10}).items()
    fit = fit_on_validation(simulated_rows(18, seed=6), CLASSES)
    assert (fit.choice, fit.sensitivity, fit.seed) == (PoolingChoice("mean", 5, None), 0.95, 0)
    written, fit = evaluate_predictions(
        files / "test.csv", files / "out", validation=files / "val.csv"
    )
    fixed = {"n_boot": 1000, "confidence": 0.95, "stated_sensitivity": 0.95}
    assert written["settings"].items() >= (stated | fixed).items()
