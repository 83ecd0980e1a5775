"""Dice of lesion maps: the three figures, by hand and against known vectors."""

import math
from pathlib import Path

import numpy as np
import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.lesions.dice import DiceEvaluator, dice_at, dice_by_level

GOLDEN = Path(__file__).parents[4] / "shared" / "peers" / "infnet_metric.npz"


def test_by_hand():
    truth = np.array([[True, True, False, False]])
    soft = np.array([[0.8, 0.4, 0.2, 0.0]])
    levels = dice_by_level(soft, truth)  # scaled: 1, 0.5, 0.25, 0
    assert levels.shape == (256,)
    assert levels[0] == pytest.approx(2 / 3)  # cut at 1: one of two, nothing else
    assert levels[-1] == pytest.approx(4 / 6)  # cut at 0: everything
    # levels 1..0.5+: one pixel; 0.5..0.25+: two; 0.25..0+: three; 0: all
    assert levels.mean() == pytest.approx((128 * 2 / 3 + 64 * 1.0 + 63 * 4 / 5 + 4 / 6) / 256)
    assert dice_at(soft, truth) == pytest.approx(2 / 3)  # 0.4 is below 0.5 as it stands
    assert dice_at(soft, truth, 0.4) == 1.0


def test_without_a_true_positive():
    truth = np.array([[True, False]])
    assert dice_at(np.array([[0.0, 0.9]]), truth) == 0.0
    # A constant map is no map: everything at the level 0, nothing above it.
    constant = dice_by_level(np.full((1, 2), 0.7), truth)
    assert (constant[:-1] == 0).all() and constant[-1] == pytest.approx(2 / 3)


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs ../shared/peers")
def test_as_infnet_measures():
    known = np.load(GOLDEN)
    found = []
    for seed in (1, 2, 3, 4):
        truth = known[f"seed{seed}_gt"].astype(bool)
        found.append(dice_by_level(known[f"seed{seed}_map"], truth))
        np.testing.assert_allclose(found[-1], known[f"seed{seed}_dice_by_threshold"], atol=1e-12)
        at_half = dice_at(known[f"seed{seed}_map"] / 255, truth)
        assert at_half == pytest.approx(known[f"seed{seed}_dice_at_half"])
    mean = np.mean(found, axis=0)
    assert mean.mean() == pytest.approx(known["mean_dice"])
    assert mean.max() == pytest.approx(known["max_dice"])


SQUARE = (4, 4, 16, 16)  # xyxy px
ELSEWHERE = (18, 18, 30, 30)
CLASSES = ("ggo", "consolidation")


def test_evaluator_by_class_and_together(lesion_dataset, detections, run):
    """Slice 1: both right, one with a score below 0.5. Slice 2 has no lesion and takes no part."""
    name = lesion_dataset([[(SQUARE, 0), (ELSEWHERE, 1)], []], classes=CLASSES)
    outputs = [detections((SQUARE, 0.9, 0), (ELSEWHERE, 0.4, 1)), detections((SQUARE, 0.9, 0))]
    found = run(DiceEvaluator(name), outputs)["dice"]
    assert found["at-0.5-ggo"] == 1.0 and found["maximum-ggo"] == 1.0
    assert found["at-0.5-consolidation"] == 0.0 and found["maximum-consolidation"] == 1.0
    assert found["at-0.5-lesions"] == pytest.approx(2 / 3)
    assert found["slices-ggo"] == found["slices-lesions"] == 1
    # Scaled by its own maximum a box is right at every level but the last, where all is lesion.
    everything = 2 * 144 / (144 + 32 * 32)
    assert found["mean-ggo"] == pytest.approx((255 + everything) / 256)


def test_overlapping_predictions_count_by_the_best_score(lesion_dataset, detections, run):
    name = lesion_dataset([[(SQUARE, 0)]])
    outputs = [detections((SQUARE, 0.3, 0), (SQUARE, 0.6, 0), (SQUARE, 0.2, 0))]
    assert run(DiceEvaluator(name), outputs)["dice"]["at-0.5-lesion"] == 1.0


def test_nothing_found_and_no_such_class(lesion_dataset, detections, run):
    name = lesion_dataset([[(SQUARE, 0)]], classes=CLASSES)
    found = run(DiceEvaluator(name), [detections()])["dice"]
    assert found["at-0.5-ggo"] == 0.0
    assert math.isnan(found["mean-consolidation"]) and found["slices-consolidation"] == 0
    assert run(DiceEvaluator(name), []) == {}


def test_a_model_without_masks(lesion_dataset, detections, run):
    name = lesion_dataset([[(SQUARE, 0)]])
    with pytest.raises(CTMaskNetError, match=r"MODEL\.MASK_ON"):
        run(DiceEvaluator(name), [detections((SQUARE, 0.9, 0), masks=False)])
