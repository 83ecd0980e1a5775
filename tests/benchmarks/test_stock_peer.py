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
    peer = StockClassifier(tiny_cfg)
    peer.detector.load_state_dict(model.state_dict(), strict=False)
    heads = zip(peer.image_head.parameters(), model.image_head.parameters(), strict=True)
    with torch.no_grad():
        for theirs, ours in heads:
            theirs.copy_(ours)
    return model, peer


def test_logits_and_the_gradients_of_what_full_trains(pair, slices):
    model, peer = pair
    item = slices[0]
    logits = peer([item])
    torch.testing.assert_close(
        logits[0].detach(), model.eval()([item])[0]["logits"], atol=1e-4, rtol=1e-4
    )
    target = torch.nn.functional.one_hot(torch.tensor([item["label"]]), 3).float()
    torch.nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
    model.train()([item])["loss_image"].backward()
    theirs = dict(peer.detector.named_parameters())
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and name in theirs:
            torch.testing.assert_close(theirs[name].grad, parameter.grad, atol=1e-4, rtol=1e-3)
            compared += 1
    assert compared > 20
