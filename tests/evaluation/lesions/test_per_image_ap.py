"""Hand-computed cases of the authors' AP (reference), and one where COCO's differs."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import LesionEvaluator, PerImageAPEvaluator
from ctmasknet.evaluation.lesions.per_image_ap import IOU_THRESHOLDS, per_image_ap

#: xyxy px
SQUARE = (4, 4, 16, 16)
ELSEWHERE = (18, 18, 30, 30)


def test_thresholds_are_50_to_95_by_5_hundredths():
    assert IOU_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@pytest.mark.parametrize(
    ("scores", "classes", "iou", "truth", "expected"),
    [
        pytest.param([0.9, 0.8], [0, 1], [[1, 0], [0, 1]], [0, 1], 1.0, id="perfect"),
        pytest.param([0.9], [0], [[0.4]], [0], 0.0, id="overlaps-too-little"),
        pytest.param([0.9], [0], [[0.5]], [0], 0.0, id="overlap-at-the-threshold"),
        # hit, miss, hit of 2: precision 1, 1/2, 2/3 -> 1/2 * 1 + 1/2 * 2/3
        pytest.param(
            [0.9, 0.8, 0.7],
            [0, 0, 0],
            [[1, 0], [0.9, 0], [0, 1]],
            [0, 0],
            0.5 + 0.5 * 2 / 3,
            id="duplicate-between-two-hits",
        ),
        pytest.param([0.9, 0.8], [0, 0], [[1], [1]], [0], 1.0, id="duplicate-after-the-last-hit"),
        # the lesion marks the better overlap, the duplicate above it is a miss: precision 0, 1/2
        pytest.param([0.6, 0.9], [0, 0], [[1], [0.6]], [0], 0.5, id="duplicate-above-the-hit"),
        pytest.param([0.3, 0.9], [0, 0], [[0.9], [0.6]], [0], 0.5, id="whatever-the-score"),
        pytest.param([0.9], [0], [[0.8, 0.7]], [0, 0], 0.5, id="marked-twice-is-one-hit"),
        # both lesions mark the first; the second, which overlaps the other lesion too, is a miss
        pytest.param(
            [0.9, 0.8], [0, 0], [[0.8, 0.8], [0, 0.7]], [0, 0], 0.5, id="marked-already-is-no-bar"
        ),
        # the better overlap is of another class
        pytest.param([0.9, 0.8], [1, 0], [[1], [0.6]], [0], 0.5, id="best-of-its-own-class"),
        pytest.param([0.9], [1], [[1]], [0], 0.0, id="wrong-class"),
        # the wrong class ranks first: precision 0, 1/2
        pytest.param([0.9, 0.8], [1, 0], [[1], [1]], [0], 0.5, id="wrong-class-before-a-hit"),
        pytest.param(
            [0.9, 0.8], [0, 0], [[0.6, 0.9], [0.7, 0]], [0, 0], 1.0, id="each-marks-its-own"
        ),
        pytest.param([0.9], [0], [[1, 0]], [0, 0], 0.5, id="one-of-two-missed"),
        pytest.param([], [], np.zeros((0, 0)), [], 1.0, id="empty-on-both-sides"),
        pytest.param([0.9], [0], np.zeros((1, 0)), [], 0.0, id="prediction-without-truth"),
        pytest.param([], [], np.zeros((0, 2)), [0, 1], 0.0, id="truth-without-prediction"),
    ],
)
def test_ap_of_one_image_at_iou_50(scores, classes, iou, truth, expected):
    ap = per_image_ap(scores, classes, np.array(iou, dtype=float), truth, [0.5])
    assert ap.shape == (1,)
    assert ap[0] == pytest.approx(expected)


def test_each_threshold_is_matched_anew():
    ap = per_image_ap([0.9], [0], np.array([[0.76]]), [0])
    assert ap.tolist() == [1.0] * 6 + [0.0] * 4


def test_evaluator_differs_from_coco_where_images_are_ranked_together(
    lesion_dataset, detections, run
):
    """Slice 1: a hit at 0.9. Slice 2: a miss at 0.95, then a hit at 0.8. Slice 3: nothing, rightly.

    Per image: (1 + 1/2 + 1) / 3. COCO ranks miss, hit, hit: precision 0, 1/2, 2/3, whose envelope
    is 2/3 at every recall, and does not see slice 3.
    """
    name = lesion_dataset([[(SQUARE, 0)], [(SQUARE, 0)], []])
    outputs = [
        detections((SQUARE, 0.9, 0)),
        detections((ELSEWHERE, 0.95, 0), (SQUARE, 0.8, 0)),
        detections(),
    ]
    ours = run(PerImageAPEvaluator(name), outputs)["per_image"]
    coco = run(LesionEvaluator(name), outputs)["segm"]
    assert ours == pytest.approx({"AP": 250 / 3, "AP50": 250 / 3, "AP75": 250 / 3})
    assert coco["AP50"] == pytest.approx(200 / 3, abs=1e-3)
    assert coco["AP"] == pytest.approx(200 / 3, abs=1e-3)


def test_evaluator_counts_detections_above_the_score_threshold(lesion_dataset, detections, run):
    name = lesion_dataset([[]])
    outputs = [detections((SQUARE, 0.75, 0))]
    assert run(PerImageAPEvaluator(name), outputs)["per_image"]["AP"] == 100.0
    assert run(PerImageAPEvaluator(name, score_threshold=0.05), outputs)["per_image"]["AP"] == 0.0
    above = [detections((SQUARE, 0.76, 0))]
    assert run(PerImageAPEvaluator(name), above)["per_image"]["AP"] == 0.0


def test_a_crowd_region_counts_for_one_lesion(lesion_dataset, detections, run):
    name = lesion_dataset([[(SQUARE, 0), (ELSEWHERE, 0)]])
    path = Path(MetadataCatalog.get(name).json_file)
    content = json.loads(path.read_text())
    content["annotations"][1]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    one = run(PerImageAPEvaluator(name), [detections((SQUARE, 0.9, 0))])["per_image"]
    assert one["AP"] == 50.0
    # By COCO's overlap with a crowd, a share of the prediction, this part would be a hit
    part = (18, 18, 23, 23)
    both = run(PerImageAPEvaluator(name), [detections((SQUARE, 0.9, 0), (part, 0.8, 0))])
    assert both["per_image"]["AP"] == 50.0


def test_evaluator_compares_class_and_mask_overlap(lesion_dataset, detections, run):
    """The mask covers 9 of the 12 columns: IoU 0.75, a hit below that threshold."""
    name = lesion_dataset([[(SQUARE, 1)]], classes=("ggo", "consolidation"))
    narrow = (4, 4, 13, 16)
    hit = run(PerImageAPEvaluator(name), [detections((narrow, 0.9, 1))])["per_image"]
    assert hit == pytest.approx({"AP": 50.0, "AP50": 100.0, "AP75": 0.0})
    other = run(PerImageAPEvaluator(name), [detections((narrow, 0.9, 0))])["per_image"]
    assert other["AP50"] == 0.0


def test_box_overlap_serves_a_model_without_masks(lesion_dataset, detections, run):
    name = lesion_dataset([[(SQUARE, 0)]])
    outputs = [detections((SQUARE, 0.9, 0), masks=False)]
    assert run(PerImageAPEvaluator(name, iou_type="bbox"), outputs)["per_image"]["AP"] == 100.0
    with pytest.raises(CTMaskNetError, match=r"MODEL\.MASK_ON"):
        run(PerImageAPEvaluator(name), outputs)


def test_nothing_processed_gives_no_result(lesion_dataset, run):
    assert run(PerImageAPEvaluator(lesion_dataset([[]])), []) == {}
