"""Metrics by subgroup, and the metadata columns of predictions.csv."""

import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.config import CfgNode
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score

from ctmasknet.engine import trainer
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import ImageClassificationEvaluator
from ctmasknet.evaluation.intervals import bootstrap_intervals
from ctmasknet.evaluation.pooling import ScorePooling
from ctmasknet.evaluation.predictions import (
    SlicePrediction,
    read_predictions_csv,
    write_predictions_csv,
)
from ctmasknet.evaluation.report import evaluate_predictions, report_text
from ctmasknet.evaluation.subgroups import age_band, grouped, subgroup_report
from ctmasknet.files import read_json
from ctmasknet.report import write_report

CLASSES = ["normal", "pneumonia", "covid"]


def row(patient: int, slice_: int, label: int, pred: int, **metadata: str) -> SlicePrediction:
    logits = tuple(2.0 if index == pred else -2.0 - 0.01 * patient for index in range(3))
    name = f"p{patient}"
    scores = tuple(expit(logits).tolist())
    file = f"{name}_{slice_}.png"
    return SlicePrediction(file, name, name, label, pred, logits, scores, metadata)


@pytest.fixture
def rows():
    """24 patients of A, half of them normal, all right; 4 COVID patients of B, one wrong."""
    of_a = [row(p, s, 2 * (p % 2), 2 * (p % 2), source="A") for p in range(24) for s in range(2)]
    of_b = [row(p, s, 2, 1 if p == 30 else 2, source="B") for p in range(30, 34) for s in range(3)]
    return of_a + of_b


def test_groups_have_their_figures_counts_and_reasons(rows):
    report = subgroup_report(rows, CLASSES, pooling=ScorePooling("mean", 0), n_boot=100)
    a, b = (report["columns"]["source"][name] for name in "AB")
    assert (a["slices"], a["patients"], a["small"]) == (48, 24, False)
    assert (b["slices"], b["patients"], b["small"]) == (12, 4, True)
    assert a["levels"]["slices"]["metrics"]["accuracy"]["value"] == 100
    of_b = b["levels"]["patients"]
    assert of_b["n_per_class"] == {"normal": 0, "pneumonia": 0, "covid": 4}
    accuracy = of_b["metrics"]["accuracy"]
    assert accuracy["value"] == 75
    assert accuracy["low"] < 75 <= accuracy["high"]
    for metric, why in {
        "auroc-covid": "one class only, covid",
        "specificity-covid": "one class only, covid",
        "sensitivity-normal": "no normal in this group",
        "precision-normal": "normal is never predicted",
    }.items():
        assert (of_b["metrics"][metric]["value"], of_b["metrics"][metric]["why"]) == (None, why)


def test_intervals_are_those_of_rows_repeated_as_often_as_their_patient_is_drawn():
    """The plain definition: every resample as a list of slices, judged by scikit-learn."""
    chance = np.random.default_rng(3)
    rows = []
    for patient in range(12):
        for slice_ in range(int(chance.integers(1, 6))):
            label, logits = patient % 3, chance.normal(size=3).round(1)  # so that scores are tied
            logits[label] += 0.5
            name, pred = f"p{patient:02d}", int(np.argmax(logits))
            rows.append(
                SlicePrediction(
                    *(f"{name}_{slice_}.png", name, name, label, pred, tuple(logits.tolist())),
                    *(tuple(expit(logits).tolist()), {"source": "AB"[patient % 2]}),
                )
            )

    def plain(members, names, weights):
        found = {"accuracy": [], "auroc-covid": [], "average_precision-covid": []}
        for drawn in weights.astype(int):
            taken = [r for name, n in zip(names, drawn, strict=True) for r in members[name] * n]
            truth, scores = [r.label == 2 for r in taken], [r.logits[2] for r in taken]
            right = [r.label == r.pred for r in taken]
            found["accuracy"].append(100 * np.mean(right))
            both = any(truth) and not all(truth)
            found["auroc-covid"].append(roc_auc_score(truth, scores) if both else np.nan)
            found["average_precision-covid"].append(
                average_precision_score(truth, scores) if any(truth) else np.nan
            )
        return {name: np.array(values) for name, values in found.items()}

    report = subgroup_report(rows, CLASSES, pooling=ScorePooling("mean", 0), n_boot=100, seed=5)
    for source in "AB":
        metrics = report["columns"]["source"][source]["levels"]["slices"]["metrics"]
        members = {}
        for row_ in rows:
            if row_.metadata["source"] == source:
                members.setdefault(row_.patient, []).append(row_)
        names = sorted(members)
        expected = bootstrap_intervals(
            functools.partial(plain, members, names),
            len(names),
            n_boot=100,
            seed=5,
            patients_behind={"accuracy": len(names)},
        )
        for name, interval in expected.items():
            wanted = interval.to_json()
            assert wanted["low"] is not None
            assert metrics[name] == pytest.approx(wanted, abs=1e-9), name


def test_ages_are_bands_in_order_and_unknown_ones_last():
    rows = [row(i, 0, 0, 0, age=age) for i, age in enumerate(("", "85", "9", "065Y", "40", "17"))]
    assert list(grouped(rows, "age")) == ["0-17", "40-59", "60-79", "80+", "not stated"]
    with pytest.raises(CTMaskNetError, match="age 'old'"):
        age_band("old")


def test_a_column_that_is_not_there_is_named_with_those_that_are(rows):
    with pytest.raises(CTMaskNetError, match=r"no column 'sex' .* source"):
        grouped(rows, "sex")


def test_metadata_come_back_from_predictions_and_one_patient_has_one_value(rows, tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions_csv(path, rows, CLASSES)
    found, names = read_predictions_csv(path)
    assert names == CLASSES
    assert [each.metadata for each in found] == [each.metadata for each in rows]
    rows[1] = dataclasses.replace(rows[1], metadata={"source": "B"})
    write_predictions_csv(path, rows, CLASSES)
    with pytest.raises(CTMaskNetError, match=r"line 3: patient p0 has the source 'B', and 'A'"):
        read_predictions_csv(path)


def test_report_json_text_and_page_have_the_groups(rows, tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions_csv(path, rows, CLASSES)
    report, _ = evaluate_predictions(path, tmp_path / "report", n_boot=100)
    assert list(report["subgroups"]["columns"]["source"]) == ["A", "B"]
    text = report_text(report)
    assert "B (small)" in text
    assert "no normal in this group" in text
    write_report(tmp_path, tmp_path / "page.html", images=None)
    page = (tmp_path / "page.html").read_text()
    assert "B (small)" in page
    assert "one class only, covid" in page
    with pytest.raises(CTMaskNetError, match="no column 'town'"):
        evaluate_predictions(path, tmp_path / "report", by=["town"])


def test_evaluation_in_training_makes_no_subgroups(rows, tmp_path, monkeypatch):
    inputs = [
        {"file_name": r.file, "patient": r.patient, "scan": r.scan, "label": r.label}
        | {"metadata": r.metadata}
        for r in rows
    ]
    outputs = [{"logits": r.logits, "scores": r.scores, "pred_class": r.pred} for r in rows]

    def evaluated(cfg, model, build_loader, evaluator_of):
        evaluator = evaluator_of("")
        evaluator.process(inputs, outputs)
        return evaluator.evaluate()

    monkeypatch.setattr(trainer, "evaluate", evaluated)
    cfg = CfgNode({"TEST": {"VALIDATION_LOSS": False}})
    validating = SimpleNamespace(
        **{"cfg": cfg, "checkpointer": SimpleNamespace(model=None), "share_buffers": lambda: None},
        **{"_rows": None, "build_test_loader": None},
        build_evaluator=lambda *_: ImageClassificationEvaluator(output_dir=tmp_path),
    )
    found = trainer.Trainer.validate(validating)
    assert found["slices"]["accuracy"] == pytest.approx(100 * 57 / 60)
    assert "subgroups" not in read_json(tmp_path / "slices_metrics.json")
    evaluated(None, None, None, validating.build_evaluator)
    assert list(read_json(tmp_path / "slices_metrics.json")["subgroups"]["columns"]) == ["source"]
