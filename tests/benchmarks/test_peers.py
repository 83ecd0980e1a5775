import pytest
import torch

from ctmasknet.benchmarks.classifier_inference import (
    calibrated_classifier,
    multiply_adds,
    noise_slices,
)
from ctmasknet.benchmarks.stock_peer import StockClassifier


@pytest.fixture
def model(tiny_cfg):
    tiny_cfg.MODEL.ANCHOR_GENERATOR.ROUND = False
    tiny_cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = 0
    return calibrated_classifier(tiny_cfg, 0, noise_slices(1, 64, 0))


def test_the_usual_way_gives_the_same_logits(tiny_cfg, model):
    slices = noise_slices(2, 64, 3)
    found = StockClassifier(tiny_cfg).eval().take_weights(model)(slices)
    expected = model(slices)
    assert len(found) == 2
    for ours, theirs in zip(expected, found, strict=True):
        assert ours["ranked_boxes"][:, 0].std() > 0.01
        assert (ours["logits"] - theirs).abs().max() < 1e-4


def test_multiply_adds_are_counted_layer_by_layer(model):
    # RPN on 8 x 8 places of 32 channels; box head on 40 proposals; image head on 16 rows
    rpn = 64 * 32 * (32 * 9 + 30 + 120)
    boxes = 40 * (32 * 49 * 32 + 32 * 32 + 32 * (3 + 8))
    image = 16 * 5 * 24 + 24 * 24 + 24 * 3
    stem = 32 * 32 * 64 * 3 * 49
    res2 = 4 * 16 * 16 * 64 * 64 * 9
    res3 = 64 * 128 * (64 * 9 + 64 + 3 * 128 * 9)
    fpn = 64 * 32 * (128 + 32 * 9)
    total = rpn + boxes + image + stem + res2 + res3 + fpn
    assert multiply_adds(model, torch.zeros(3, 64, 64)) == total
