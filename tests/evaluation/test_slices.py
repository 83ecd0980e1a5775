"""Paper section 4 by hand, files, order, and two processes."""

import json
import math
import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import ImageClassificationEvaluator
from ctmasknet.evaluation.metrics import (
    bce_loss,
    classification_metrics,
    confusion_matrix,
    confusion_table,
)
from ctmasknet.evaluation.predictions import (
    SlicePrediction,
    read_predictions_csv,
    write_predictions_csv,
)

CLASSES = ("normal", "pneumonia", "covid")
#: Header of two classes.
TWO = "file,patient,scan,label,pred,logit_a,logit_b,score_a,score_b\n"


def item(number, label=None):
    return {
        "file_name": f"/data/{number}.png",
        "image_id": f"{number}.png",
        "patient": str(number // 2),
        "scan": "7",
        "label": label,
    }


def output(pred, logit=2.0):
    logits = torch.full((3,), -logit)
    logits[pred] = logit
    return {"logits": logits, "scores": logits.sigmoid(), "pred_class": pred}


def test_confusion_matrix_has_truth_in_rows():
    matrix = confusion_matrix([0, 0, 2, 2, 2], [0, 1, 2, 2, 0], 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(CTMaskNetError, match="same classes"):
        confusion_matrix([0, 3], [0, 0], 3)
    with pytest.raises(CTMaskNetError, match="2 labels but 1 predictions"):
        confusion_matrix([0, 1], [0], 3)


def test_metrics_are_those_of_section_4_in_percent():
    metrics = classification_metrics(np.array([[8, 2, 0], [1, 5, 4], [1, 0, 9]]), CLASSES)
    assert metrics == pytest.approx(
        {
            "accuracy": 2200 / 30,
            "sensitivity-normal": 80.0,
            "precision-normal": 80.0,
            "sensitivity-pneumonia": 50.0,
            "precision-pneumonia": 500 / 7,
            "sensitivity-covid": 90.0,
            "precision-covid": 900 / 13,
        }
    )


def test_a_share_of_nothing_is_nan_and_not_zero():
    metrics = classification_metrics(np.array([[3, 0, 0], [0, 0, 0], [2, 0, 0]]), CLASSES)
    assert math.isnan(metrics["sensitivity-pneumonia"])
    assert math.isnan(metrics["precision-covid"])
    assert metrics["sensitivity-covid"] == 0.0
    assert metrics["accuracy"] == 60.0
    assert math.isnan(classification_metrics(np.zeros((3, 3)), CLASSES)["accuracy"])


def test_table_reads_like_table_2():
    table = confusion_table(np.array([[8, 2], [1, 9]]), ("normal", "covid"))
    assert "80.00 (88.89)" in table and "90.00 (81.82)" in table
    assert table.splitlines()[0].split("|")[2].strip() == "normal"


def test_loss_is_torchs_binary_cross_entropy_against_one_hot():
    logits = torch.tensor([[0.3, -2.0, 5.0], [90.0, -90.0, 0.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.double(), torch.tensor([[0.0, 0, 1], [0, 1, 0]]).double()
    )
    assert bce_loss(logits.numpy(), [2, 1]) == pytest.approx(float(expected))
    assert math.isnan(bce_loss(np.zeros((0, 3)), []))


def test_evaluator_counts_each_file_once_and_unlabelled_slices_not_at_all(tmp_path):
    evaluator = ImageClassificationEvaluator(output_dir=tmp_path)
    evaluator.reset()
    evaluator.process([item(1, 0), item(2, 2)], [output(0), output(0)])
    # A padding sampler shows slice 1 again; slice 3 has no label
    evaluator.process([item(1, 0), item(3)], [output(0), output(1)])
    slices = evaluator.evaluate()["slices"]
    assert slices["accuracy"] == 50.0
    assert slices["sensitivity-covid"] == 0.0 and slices["precision-normal"] == 50.0
    hit, miss = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert slices["loss"] == pytest.approx((4 * hit + 2 * miss) / 6, rel=1e-6)

    rows, names = read_predictions_csv(tmp_path / "predictions.csv")
    assert names == list(CLASSES)
    assert [(row.file, row.label, row.pred) for row in rows] == [
        ("1.png", 0, 0),
        ("2.png", 2, 0),
        ("3.png", None, 1),
    ]
    saved = json.loads((tmp_path / "slices_metrics.json").read_text())
    assert saved["n"] == 2 and saved["n_without_label"] == 1
    assert saved["confusion_matrix"] == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert saved["metrics"]["sensitivity-pneumonia"] is None
    assert saved["pooling"] == "mean" and set(saved["patients_metrics"]) < set(saved["metrics"])


def test_predictions_csv_is_the_agreed_table(tmp_path):
    path = tmp_path / "deep" / "predictions.csv"
    logits = torch.tensor([-3.3333333, 0.1, 1e-7]).tolist()
    scores = (0.034445196, 0.524979187, 0.500000025)
    row = SlicePrediction("a,b.png", "p", "s", None, 1, tuple(logits), scores)
    write_predictions_csv(path, [row], CLASSES)
    lines = path.read_text().splitlines()
    assert lines[0] == (
        "file,patient,scan,label,pred,logit_normal,logit_pneumonia,logit_covid,"
        "score_normal,score_pneumonia,score_covid"
    )
    assert lines[1].startswith('"a,b.png",p,s,,pneumonia,')
    back, _ = read_predictions_csv(path)
    assert torch.equal(torch.tensor(back[0].logits), torch.tensor(logits))
    assert back[0].label is None and back[0].scores == row.scores
    saved_by_a_spreadsheet = path.read_text().replace("\n", "\r\n")
    path.write_bytes(saved_by_a_spreadsheet.encode("utf-8-sig"))
    assert read_predictions_csv(path)[0] == back


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read predictions"),
        ("", "not a predictions file"),
        ("file,label\n", "not a predictions file"),
        ("file,patient,scan,label,pred,logit_a,score_a\nx,1,1,a,a,1\n", "line 2: 6 fields"),
        ("file,patient,scan,label,pred,logit_a,score_a\nx,1,1,b,a,1,1\n", "line 2: 'b'"),
        ("file,patient,scan,label,pred,logit_a,score_a\nx,1,1,a,a,1,?\n", "line 2: could not"),
        (TWO + "x,1,1,a,a,1,0,5,0.5\n", r"line 2: score_a is 5, not within 0\.\.1"),
        (TWO + "x,1,1,a,a,1,0,0.731,-0.2\n", r"line 2: score_b is -0\.2, not within"),
        (TWO + "x,1,1,a,a,1,0,nan,0.5\n", "line 2: score_a is nan, not within"),
        (TWO + "x,1,1,a,a,nan,0,nan,0.5\n", "line 2: logit_a is nan, no finite"),
        (TWO + "x,1,1,a,a,inf,0,1,0.5\n", "line 2: logit_a is inf, no finite"),
        (
            TWO + "x,1,1,a,a,1,0,0.7311,0.5\ny,1,1,a,a,1,0,0.7313,0.5\n",
            r"line 3: score_a is 0\.7313, but the sigmoid of logit_a is 0\.731059",
        ),
        (TWO + "x,1,1,a,b,1,0,0.7311,0.5\n", "line 2: pred is b, but logit_a is the highest"),
    ],
)
def test_a_bad_predictions_file_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "predictions.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CTMaskNetError, match=message) as error:
        read_predictions_csv(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_predictions_of_few_decimals_and_of_equal_logits_are_sound(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text(TWO + "x,1,1,a,a,1.0,-1.0,0.7311,0.2689\ny,1,1,a,b,0,0,0.5,0.5\n")
    assert [row.pred for row in read_predictions_csv(path)[0]] == [0, 1]


def test_rows_stand_in_the_order_of_the_data_set(tmp_path):
    DatasetCatalog.register("ordered_slices", lambda: [item(n) for n in (3, 1, 2)])
    MetadataCatalog.get("ordered_slices").image_classes = ["control", "cp", "ncp"]
    try:
        evaluator = ImageClassificationEvaluator("ordered_slices", output_dir=tmp_path)
        evaluator.process([item(n, 0) for n in (1, 2, 3)], [output(0)] * 3)
        assert "sensitivity-control" in evaluator.evaluate()["slices"]
    finally:
        DatasetCatalog.remove("ordered_slices")
        MetadataCatalog.remove("ordered_slices")
    rows, names = read_predictions_csv(tmp_path / "predictions.csv")
    assert [row.file for row in rows] == ["3.png", "1.png", "2.png"]
    assert names == ["control", "cp", "ncp"]


def test_classes_that_do_not_fit_are_one_clear_error():
    evaluator = ImageClassificationEvaluator(class_names=("normal", "covid"))
    with pytest.raises(CTMaskNetError, match="3 logits but the data has 2 classes"):
        evaluator.process([item(1, 0)], [output(0)])
    with pytest.raises(CTMaskNetError, match=r"label 3 is outside 0\.\.2"):
        ImageClassificationEvaluator().process([item(1, 3)], [output(0)])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_model_that_diverged_is_one_clear_error(broken):
    # Its class would be that of the first NaN, and count as right or wrong
    with pytest.raises(CTMaskNetError, match=r"/data/1\.png: .* no finite number"):
        ImageClassificationEvaluator().process([item(1, 0)], [output(0, logit=broken)])


def test_patients_and_scans_may_be_numbers(tmp_path):
    evaluator = ImageClassificationEvaluator(output_dir=tmp_path)
    evaluator.process([item(1, 0) | {"patient": 0, "scan": 0}], [output(0)])
    assert list(evaluator.evaluate()) == ["slices", "scans", "patients"]
    rows, _ = read_predictions_csv(tmp_path / "predictions.csv")
    assert (rows[0].patient, rows[0].scan) == ("0", "0")


def test_scans_and_patients_stand_beside_slices():
    def shown(name, patient, scan, label, logits):
        values = torch.tensor(logits)
        return (
            {"file_name": name, "patient": patient, "scan": scan, "label": label},
            {"logits": values, "scores": values.sigmoid(), "pred_class": int(values.argmax())},
        )

    batch = [
        # Two doubtful slices of the first scan are outvoted by one sure one
        shown("a.png", "p", "1", 2, [0.5, -9.0, 0.0]),
        shown("b.png", "p", "1", 2, [0.5, -9.0, 0.0]),
        shown("c.png", "p", "1", 2, [-9.0, -9.0, 9.0]),
        shown("d.png", "p", "2", 2, [0.5, -9.0, 0.0]),
        # Another patient's scan of the same number; one slice without label
        shown("e.png", "q", "1", 0, [2.0, -9.0, -9.0]),
        shown("f.png", "q", "1", None, [2.0, -9.0, -9.0]),
        # Nothing is known of this one, and two labels are known of that one
        shown("g.png", "", "", 1, [-9.0, 2.0, -9.0]),
        shown("h.png", "r", "1", 1, [-9.0, 2.0, -9.0]),
        shown("i.png", "r", "2", 2, [-9.0, 2.0, -9.0]),
    ]
    evaluator = ImageClassificationEvaluator()
    evaluator.process(*zip(*batch, strict=True))
    results = evaluator.evaluate()
    assert list(results) == ["slices", "scans", "patients"]
    assert results["slices"]["accuracy"] == 50.0 and "loss" in results["slices"]
    assert results["scans"]["accuracy"] == 60.0
    assert results["scans"]["sensitivity-covid"] == pytest.approx(100 / 3)
    assert results["patients"]["accuracy"] == 100.0
    assert math.isnan(results["patients"]["sensitivity-pneumonia"])

    evaluator.reset()
    evaluator.process(*zip(batch[6], strict=True))
    assert list(evaluator.evaluate()) == ["slices"]


def test_nothing_processed_gives_no_result(tmp_path):
    assert ImageClassificationEvaluator(output_dir=tmp_path / "out").evaluate() == {}
    assert not (tmp_path / "out").exists()


def _worker(rank, folder, queue):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    evaluator = ImageClassificationEvaluator(output_dir=folder)
    # Both see slice 9, as under a padding sampler
    for number in ((1, 9), (2, 9))[rank]:
        evaluator.process([item(number, rank)], [output(0)])
    queue.put((rank, dict(evaluator.evaluate())))
    dist.destroy_process_group()


def test_two_processes_gather_on_the_first(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(r, tmp_path, queue)) for r in (0, 1)]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=600) for _ in workers)
    for worker in workers:
        worker.join(timeout=600)
    assert results[1] == {}
    assert results[0]["slices"]["accuracy"] == pytest.approx(200 / 3)
    rows, _ = read_predictions_csv(tmp_path / "predictions.csv")
    assert [row.file for row in rows] == ["1.png", "9.png", "2.png"]
