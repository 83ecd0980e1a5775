"""``scans.csv`` and ``patients.csv`` agree with ``predictions.csv`` and ``report.json``."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctmasknet.evaluation import ImageClassificationEvaluator
from ctmasknet.evaluation.metrics import confusion_matrix
from ctmasknet.evaluation.report import evaluate_predictions

CLASSES = ("normal", "pneumonia", "covid")


def read(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_tables_of_an_evaluation_agree_with_its_report(tmp_path, simulated_rows):
    rows = simulated_rows(30, seed=8)
    # Slices of unlike labels have no one truth, and a formula is no name for a spreadsheet
    first = next(number for number, row in enumerate(rows) if row.patient == "3")
    rows[first] = replace(rows[first], label=2 - rows[first].label)
    rows = [replace(row, patient="=7") if row.patient == "7" else row for row in rows]
    evaluator = ImageClassificationEvaluator(class_names=CLASSES, output_dir=tmp_path)
    for row in rows:
        item = {"file_name": row.file, "patient": row.patient, "scan": row.scan}
        told = {"logits": torch.tensor(row.logits), "scores": torch.tensor(row.scores)}
        evaluator.process([{**item, "label": row.label}], [{**told, "pred_class": row.pred}])
    evaluator.evaluate()
    report, _ = evaluate_predictions(tmp_path / "predictions.csv", tmp_path / "report", n_boot=100)
    for level, names in (("scans", ["patient", "scan"]), ("patients", ["patient"])):
        lines = read(tmp_path / f"{level}.csv")
        columns = [*names, "label", "pred", "n_slices", "pooling"]
        assert list(lines[0]) == [*columns, *(f"score_{name}" for name in CLASSES)]
        judged = [one for one in lines if one["label"]]
        found = report["levels"][level]
        assert len(judged) == found["n"]
        labels, preds = ([CLASSES.index(one[key]) for one in judged] for key in ("label", "pred"))
        assert confusion_matrix(labels, preds, 3).tolist() == found["confusion_matrix"]
        assert {one["pooling"] for one in lines} == {report["settings"]["pooling"]}
        assert sum(int(one["n_slices"]) for one in lines) == len(rows)
    assert len(lines) == 30 and len(judged) == 29
    (line,) = (one for one in lines if one["patient"] == "'=7")
    scores = np.mean([row.scores for row in rows if row.patient == "=7"], axis=0)
    assert [float(line[f"score_{name}"]) for name in CLASSES] == pytest.approx(scores, rel=1e-6)
    assert line["pred"] == CLASSES[int(scores.argmax())]
