"""COCO evaluation of lesions: empty predictions, empty truth, and false positives apart."""

import math

import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import LesionEvaluator, lesion_free_metrics

#: xyxy px
SQUARE = (4, 4, 16, 16)
ELSEWHERE = (18, 18, 30, 30)


def test_perfect_detections_have_box_and_mask_ap_100(lesion_dataset, tmp_path, detections, run):
    name = lesion_dataset([[(SQUARE, 0), (ELSEWHERE, 1)]], classes=("ggo", "consolidation"))
    evaluator = LesionEvaluator(name, output_dir=str(tmp_path / "out"))
    results = run(evaluator, [detections((SQUARE, 0.9, 0), (ELSEWHERE, 0.8, 1))])
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100.0)
        assert results[task]["AP-consolidation"] == pytest.approx(100.0)
    assert (tmp_path / "out" / "coco_instances_results.json").is_file()


def test_false_positives_on_slices_without_lesions_are_counted_apart(
    lesion_dataset, detections, run
):
    """One of three has two detections from 0.5 on; those at 0.49 and on slice 1 do not count."""
    name = lesion_dataset([[(SQUARE, 0)], [], [], []])
    outputs = [
        detections((SQUARE, 0.9, 0), (ELSEWHERE, 0.9, 0)),
        detections((SQUARE, 0.5, 0), (ELSEWHERE, 0.8, 0)),
        detections((SQUARE, 0.49, 0)),
        detections(),
    ]
    results = run(LesionEvaluator(name), outputs)
    assert results["lesion_free"] == {
        "slices": 3,
        "slices-with-false-positives@0.5": 1,
        "false-positives-per-slice@0.5": pytest.approx(2 / 3),
    }
    lower = run(LesionEvaluator(name, false_positive_score=0.4), outputs)["lesion_free"]
    assert lower["slices-with-false-positives@0.4"] == 2
    assert lower["false-positives-per-slice@0.4"] == 1.0


def test_no_lesion_free_slice_is_no_rate():
    metrics = lesion_free_metrics([], 0.5)
    assert metrics["slices"] == 0
    assert math.isnan(metrics["false-positives-per-slice@0.5"])


def test_a_model_that_detects_nothing_has_ap_0_for_boxes_and_masks(
    lesion_dataset, caplog, detections, run
):
    name = lesion_dataset([[(SQUARE, 0)], []], classes=("ggo", "consolidation"))
    results = run(LesionEvaluator(name), [detections(), detections()])
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == results[task]["AP50"] == results[task]["AP-ggo"] == 0.0
    assert results["lesion_free"]["slices"] == 1
    assert "detected nothing" in caplog.text


def test_without_any_ground_truth_ap_is_nan_and_false_positives_still_count(
    lesion_dataset, detections, run
):
    name = lesion_dataset([[], []])
    results = run(LesionEvaluator(name), [detections((SQUARE, 0.9, 0)), detections()])
    assert math.isnan(results["bbox"]["AP"]) and math.isnan(results["segm"]["AP50"])
    assert results["lesion_free"]["slices-with-false-positives@0.5"] == 1
    nothing = run(LesionEvaluator(name), [detections(), detections()])
    assert math.isnan(nothing["bbox"]["AP"])


def test_a_model_without_masks_gets_boxes_only(lesion_dataset, detections, run):
    name = lesion_dataset([[(SQUARE, 0)]])
    results = run(LesionEvaluator(name), [detections((SQUARE, 0.9, 0), masks=False)])
    assert set(results) == {"bbox", "lesion_free"}


def test_only_the_best_detections_of_a_slice_count(lesion_dataset, detections, run):
    """With room for eleven, the hit that ranks twelfth is lost."""
    name = lesion_dataset([[(SQUARE, 0)]])
    rows = [(ELSEWHERE, 0.9 - 0.01 * n, 0) for n in range(11)] + [(SQUARE, 0.7, 0)]
    kept = run(LesionEvaluator(name, max_dets_per_image=128), [detections(*rows)])
    assert kept["bbox"]["AP50"] == pytest.approx(100 / 12, abs=1e-3)
    lost = run(LesionEvaluator(name, max_dets_per_image=11), [detections(*rows)])
    assert lost["bbox"]["AP50"] == 0.0


def test_a_class_the_data_set_does_not_have_is_one_clear_error(lesion_dataset, detections, run):
    name = lesion_dataset([[(SQUARE, 0)]])
    with pytest.raises(CTMaskNetError, match=r"1\.png: the model predicts lesion class 1"):
        run(LesionEvaluator(name), [detections((SQUARE, 0.9, 1))])


@pytest.mark.parametrize("fast", ["auto", "off"])
def test_a_slice_that_a_padding_sampler_shows_twice_counts_once(lesion_dataset, detections, fast):
    name = lesion_dataset([[(SQUARE, 0)], []])
    evaluator = LesionEvaluator(name, fast=fast)
    evaluator.reset()
    for image_id in (1, 2, 1, 2):
        item = {"image_id": image_id, "file_name": f"{image_id}.png"}
        evaluator.process([item], [{"instances": detections((SQUARE, 0.9, 0))}])
    results = evaluator.evaluate()
    # A hit and, on the slice without lesions, a miss of the same score; twice, AP would be less
    assert results["segm"]["AP50"] == pytest.approx(100.0)
    assert results["lesion_free"]["slices"] == 1


def test_lesions_of_a_slice_that_was_not_read_are_not_missed(lesion_dataset, detections, run):
    name = lesion_dataset([[(SQUARE, 0)], [(SQUARE, 0), (ELSEWHERE, 0)], []])
    results = run(LesionEvaluator(name), [detections((SQUARE, 0.9, 0))])
    assert results["segm"]["AP"] == results["bbox"]["AP"] == pytest.approx(100.0)
    assert results["lesion_free"]["slices"] == 0
