"""The peer of the benchmarks does the same work: it gives the classifier's logits."""

import pytest
import torch
from detectron2.modeling import build_model

from ctmasknet.benchmarks.inference import calibrated_classifier, multiply_adds, noise_slices
from ctmasknet.benchmarks.peers import StockClassifier


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
    # RPN on 8 x 8 cells of 32 channels; box head on 40 proposals; image head on 16 rows
    rpn = 64 * 32 * (32 * 9 + 30 + 120)
    boxes = 40 * (32 * 49 * 32 + 32 * 32 + 32 * (3 + 8))
    image = 16 * 5 * 24 + 24 * 24 + 24 * 3
    stem = 32 * 32 * 64 * 3 * 49
    res2 = 4 * 16 * 16 * 64 * 64 * 9
    res3 = 64 * 128 * (64 * 9 + 64 + 3 * 128 * 9)
    fpn = 64 * 32 * (128 + 32 * 9)
    total = rpn + boxes + image + stem + res2 + res3 + fpn
    assert multiply_adds(model, torch.zeros(3, 64, 64)) == total


@pytest.fixture
def pair(tiny_cfg):
    """A classifier with anchors that stock Detectron2 can have, and its peer with its weights."""
    tiny_cfg.MODEL.ANCHOR_GENERATOR.ROUND = False
    tiny_cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = 0
    tiny_cfg.MODEL.TRAINABLE = "full"
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    peer = StockClassifier(tiny_cfg).take_weights(model)
    return model, peer


def test_logits_and_the_gradients_of_what_full_trains(pair, slices):
    model, peer = pair
    item = slices[0]
    with torch.no_grad():
        logits = peer.eval()([item])
    torch.testing.assert_close(logits[0], model.eval()([item])[0]["logits"], atol=1e-4, rtol=1e-4)
    losses = [one.train()([item])["loss_image"] for one in (peer, model)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    for loss in losses:
        loss.backward()
    theirs = dict(peer.detector.named_parameters())
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and name in theirs:
            torch.testing.assert_close(theirs[name].grad, parameter.grad, atol=1e-4, rtol=1e-3)
            compared += 1
    assert compared > 20
