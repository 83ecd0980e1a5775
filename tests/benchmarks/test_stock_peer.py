"""The peer of the benchmarks does the same work: it gives the classifier's logits."""

import pytest
import torch
from detectron2.modeling import build_model

from ctmasknet.benchmarks.stock_peer import StockClassifier


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
