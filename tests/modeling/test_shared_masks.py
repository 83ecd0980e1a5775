"""Shared masks are cut as Detectron2 cuts copies of them."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from ctmasknet.modeling.shared_masks import SharedBitMasks


@pytest.fixture
def lesions():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 8, 10, generator=generator) < 0.5
    return coarse.repeat_interleave(6, 1).repeat_interleave(6, 2)


@pytest.fixture
def boxes():
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(20, 2, generator=generator) * torch.tensor([70.0, 50.0]) - 5
    return torch.cat([corner, corner + 1 + 20 * torch.rand(20, 2, generator=generator)], dim=1)


@pytest.mark.parametrize(
    "chosen",
    [torch.arange(20) % 3, slice(0, 2), torch.tensor([True, False, True]), 1, slice(0, 0)],
)
def test_choosing_and_cutting_as_bit_masks_do(lesions, boxes, chosen):
    plain, shared = BitMasks(lesions)[chosen], SharedBitMasks(lesions)[chosen]
    assert isinstance(shared, SharedBitMasks) and len(shared) == len(plain)
    assert torch.equal(shared.tensor, plain.tensor)
    assert shared.masks.data_ptr() == lesions.data_ptr()
    boxes = boxes[: len(plain)]
    cut = shared.crop_and_resize(boxes, 28)
    assert cut.dtype == torch.bool
    assert torch.equal(cut, plain.crop_and_resize(boxes, 28))
    assert len(plain) < 2 or 0 < cut.float().mean() < 1


def test_chosen_again_and_moved(lesions, boxes):
    plain, shared = (kind(lesions)[torch.arange(20) % 3] for kind in (BitMasks, SharedBitMasks))
    some = torch.arange(20) > 4
    moved = shared[some].to("cpu")
    assert torch.equal(moved.tensor, plain[some].tensor)
    assert torch.equal(
        moved.crop_and_resize(boxes[some], 14), plain[some].crop_and_resize(boxes[some], 14)
    )
    assert moved.get_bounding_boxes().tensor.tolist() == (
        plain[some].get_bounding_boxes().tensor.tolist()
    )


def test_sampled_proposals_share_the_masks_of_their_lesions(tiny_cfg, tiny_model, lesions):
    targets = Instances((48, 60))
    targets.gt_boxes = Boxes(torch.tensor([[0.0, 0, 30, 30], [30, 0, 60, 30], [0, 10, 40, 48]]))
    targets.gt_classes = torch.tensor([0, 1, 0])
    targets.gt_masks = BitMasks(lesions)
    proposals = Instances((48, 60))
    proposals.proposal_boxes = Boxes(targets.gt_boxes.tensor.repeat(4, 1) + 1)
    proposals.objectness_logits = torch.zeros(12)
    heads = tiny_model.roi_heads
    with EventStorage():
        sampled = heads.label_and_sample_proposals([proposals], [targets])[0]
    assert len(sampled) == 15  # the lesions themselves are proposed as well
    for box, mask in zip(sampled.gt_boxes, sampled.gt_masks, strict=True):
        lesion = (targets.gt_boxes.tensor == box).all(dim=1).nonzero().item()
        assert torch.equal(mask, lesions[lesion])
    assert len(sampled.gt_masks.masks) == 3
