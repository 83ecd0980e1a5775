"""Patches with their place, and noisy-or."""

import torch

from ctmasknet.modeling.peers.patches import PatchClassifier, noisy_or, relative_places


def test_noisy_or():
    found = noisy_or(torch.tensor([[0.5, 0.0], [0.5, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([0.75, 1.0]))
    assert noisy_or(torch.zeros(0, 2)).tolist() == [0, 0]


def test_places_are_shares_of_the_slice():
    found = relative_places(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), 80, 40)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))


def test_a_patch_is_named_by_its_pixels_and_place():
    torch.manual_seed(0)
    model = PatchClassifier(3, patch_px=32).eval()
    image = torch.full((1, 3, 64, 64), 0.5)
    boxes = torch.tensor([[8.0, 8.0, 24.0, 24.0], [32.0, 32.0, 48.0, 48.0]])
    with torch.no_grad():
        (logits,) = model(image, [boxes])
        moved = logits[1] - logits[0]
        expected = model.logits.weight[:, -4:] @ torch.tensor([0.375, 0.375, 0, 0])
        torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-4)
        none, one = model(image.expand(2, -1, -1, -1), [boxes[:0], boxes[:1]])
    assert none.shape == (0, 3)
    torch.testing.assert_close(one, logits[:1])
