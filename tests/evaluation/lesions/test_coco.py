"""COCO evaluation of lesions: empty predictions, empty truth, and false positives apart."""

import copy
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ctmasknet.benchmarks.loading import synthetic_lesions
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import LesionEvaluator
from ctmasknet.evaluation.lesions.coco import lesion_free_metrics, use_fast_coco

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


@pytest.mark.parametrize("fast", ["auto", "never"])
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


COCO_SQUARE = (4, 4, 16, 16)
FAR_AWAY = (18, 18, 30, 30)
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("faster_coco_eval") is None, reason="faster-coco-eval is not installed"
)


@pytest.fixture(scope="module")
def lesions():
    """Lesions of every size on 30 slices, some without; many detections tie in score."""
    truth, predictions = synthetic_lesions(np.random.default_rng(3), 30, 25)
    for number, annotation in enumerate(truth["annotations"]):
        annotation["iscrowd"] = int(number % 11 == 0)
    return truth, [found for item in predictions for found in item["instances"]]


def coco_of(truth):
    known = COCO()
    known.dataset = copy.deepcopy(truth)
    known.createIndex()
    return known


def by_pycocotools(truth, results, task, max_dets, image_ids=None):
    known = coco_of(truth)
    results = copy.deepcopy(results)
    for result in results:
        # As Detectron2: with a box, a mask's area would be the box's
        result.pop("bbox" if task == "segm" else "segmentation")
    evaluation = COCOeval(known, known.loadRes(results), task)
    evaluation.params.maxDets = list(max_dets)
    evaluation.params.imgIds = image_ids or evaluation.params.imgIds
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@needs_library
@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("image_ids", [None, [2, 3, 7, 11]])
def test_all_twelve_figures_and_all_curves_are_those_of_pycocotools(lesions, task, image_ids):
    from ctmasknet.evaluation.lesions.fast_coco import FastCOCO

    truth, results = lesions
    expected = by_pycocotools(truth, results, task, (1, 10, 100), image_ids)
    known = coco_of(truth)
    before = json.dumps([known.dataset, results])
    detections = FastCOCO(known, results)
    detections.evaluate("segm" if task == "bbox" else "bbox", (1, 10, 100))  # leaves nothing behind
    found = detections.evaluate(task, (1, 10, 100), image_ids)
    assert found.stats.shape == (12,) and 0 < expected.stats.min() < expected.stats.max() < 1
    np.testing.assert_allclose(found.stats, expected.stats, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        found.eval["precision"], expected.eval["precision"], rtol=0, atol=1e-12
    )
    assert json.dumps([known.dataset, results]) == before


@needs_library
@pytest.mark.parametrize("limit", [5, 15, 100, 128])
def test_lesion_evaluator_gives_the_same_either_way(lesions, tmp_path, limit):
    """Through Detectron2, with its classes from 0, and the limit on the detections of a slice."""
    truth, results = lesions
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    name = f"fast_coco_{limit}"
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=["ggo", "consolidation"],
        thing_dataset_id_to_contiguous_id={1: 0, 2: 1},
    )
    found, written = {}, {}
    try:
        for fast in ("never", "always"):
            folder = tmp_path / fast
            evaluator = LesionEvaluator(
                name, distributed=False, output_dir=str(folder), max_dets_per_image=limit, fast=fast
            )
            evaluator.reset()
            for image in truth["images"]:
                mine = [dict(result) for result in results if result["image_id"] == image["id"]]
                for result in mine:
                    result["category_id"] -= 1
                evaluator._predictions.append({"image_id": image["id"], "instances": mine})
            found[fast] = evaluator.evaluate()
            written[fast] = json.loads((folder / "coco_instances_results.json").read_text())
    finally:
        MetadataCatalog.remove(name)
    assert found["always"] == found["never"]
    assert set(found["always"]["segm"]) > {"AP", "AP-ggo", "AP-consolidation"}
    assert written["always"] == written["never"] == results


@needs_library
def test_nothing_detected_and_no_ground_truth(lesion_dataset, detections, run):
    name = lesion_dataset([[(COCO_SQUARE, 0)], []])
    nothing = run(LesionEvaluator(name, fast="always"), [detections(), detections()])
    assert nothing["segm"]["AP"] == 0.0
    name = lesion_dataset([[], []])
    found = run(
        LesionEvaluator(name, fast="always"), [detections((COCO_SQUARE, 0.9, 0)), detections()]
    )
    assert math.isnan(found["bbox"]["AP"]) and math.isnan(found["segm"]["AP"])
    assert found["lesion_free"]["slices-with-false-positives@0.5"] == 1


def test_without_the_library_the_stock_evaluation_is_used_or_one_error_says_what_to_install(
    monkeypatch, lesion_dataset, detections, run
):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "faster_coco_eval" else find_spec(name, *rest),
    )
    assert use_fast_coco("auto") is use_fast_coco("never") is False
    name = lesion_dataset([[(COCO_SQUARE, 0), (FAR_AWAY, 0)]])
    found = run(LesionEvaluator(name), [detections((COCO_SQUARE, 0.9, 0), (FAR_AWAY, 0.8, 0))])
    assert found["segm"]["AP"] == pytest.approx(100)
    with pytest.raises(CTMaskNetError, match=r"pip install faster-coco-eval"):
        LesionEvaluator(name, fast="always")
    with pytest.raises(CTMaskNetError, match=r"TEST\.COCO_FAST"):
        use_fast_coco("yes")


def test_the_package_is_imported_without_the_library():
    code = "import sys; sys.modules['faster_coco_eval'] = None; import ctmasknet.evaluation"
    subprocess.run([sys.executable, "-c", code], check=True)


def _rewritten(name, change):
    path = MetadataCatalog.get(name).json_file
    document = json.loads(Path(path).read_text())
    change(document)
    Path(path).write_text(json.dumps(document))


@pytest.mark.parametrize("fast", ["never", pytest.param("always", marks=needs_library)])
class TestFilesOfAnotherHand:
    """Both back ends give the figures of a file that the preparation wrote."""

    @pytest.fixture
    def ap(self, lesion_dataset, detections, run, fast):
        """``ap(change of the json)``: AP of boxes and masks; of two lesions and a false positive
        one lesion is found."""

        def of(change, *found):
            name = lesion_dataset([[(SQUARE, 0), (ELSEWHERE, 1)]], classes=("ggo", "consolidation"))
            _rewritten(name, change)
            results = run(LesionEvaluator(name, fast=fast), [detections(*found)])
            return [results[task]["AP"] for task in ("bbox", "segm")]

        return of

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: [a.update(id=k) for k, a in enumerate(d["annotations"])],
            lambda d: [a.update(id=0) for a in d["annotations"]],
            lambda d: [(a.pop("area"), a.pop("iscrowd")) for a in d["annotations"]],
            lambda d: [a.update(image_id=str(a["image_id"])) for a in d["annotations"]],
            lambda d: [a.update(category_id=str(a["category_id"])) for a in d["annotations"]],
            lambda d: d.pop("info"),
        ],
    )
    def test_perfect_predictions_have_ap_100(self, ap, change):
        assert ap(change, (SQUARE, 0.9, 0), (ELSEWHERE, 0.8, 1)) == pytest.approx([100, 100])

    def test_a_crowd_is_neither_found_nor_missed(self, ap):
        """The other lesion is one of 2 classes; the class of the crowd alone has no AP."""

        def crowd(document):
            document["annotations"][1]["iscrowd"] = 1

        assert ap(crowd, (SQUARE, 0.9, 0)) == pytest.approx([100, 100])
        assert ap(crowd, (SQUARE, 0.9, 0), (ELSEWHERE, 0.95, 1)) == pytest.approx([100, 100])

    def test_malformed_masks_are_refused(self, ap):
        def polygon(document):
            document["annotations"][0]["segmentation"] = [[0, 0, 2**31, 0, 2**31, 2**31]]

        with pytest.raises(CTMaskNetError, match=r"annotation 1 of .*: a polygon reaches"):
            ap(polygon)
