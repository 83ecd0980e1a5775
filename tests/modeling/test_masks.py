"""Shared masks are cut as Detectron2 cuts copies of them."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.masks import PublishedBitMasks, PublishedROIMasks, SharedBitMasks


@pytest.mark.parametrize(
    ("box", "area"),
    [
        ([2.0, 2.0, 2.0, 2.0], 1),  # a box without area still has its pixel
        ([2.4, 2.4, 5.6, 5.6], 16),
        ([-30.0, -30.0, -20.0, -20.0], 0),
        ([6.0, 6.0, 12.0, 12.0], 9),  # widened by 1 in 28, cut off at the edge
    ],
)
def test_pasting_a_full_mask(box, area):
    masks = PublishedROIMasks(torch.full((1, 28, 28), 0.999))
    pasted = masks.to_bitmasks(Boxes(torch.tensor([box])), 8, 8)
    assert pasted.tensor.shape == (1, 8, 8) and pasted.tensor.dtype == torch.bool
    assert int(pasted.tensor.sum()) == area


def test_no_instance():
    masks = PublishedROIMasks(torch.zeros(0, 28, 28))
    assert masks.to_bitmasks(Boxes(torch.zeros(0, 4)), 5, 7).tensor.shape == (0, 5, 7)
    cut = PublishedBitMasks(torch.zeros(0, 5, 7)).crop_and_resize(torch.zeros(0, 4), 28)
    assert cut.shape == (0, 28, 28)


def test_choosing_some_keeps_the_way():
    chosen = torch.tensor([True, False])
    assert isinstance(PublishedROIMasks(torch.rand(2, 4, 4))[chosen], PublishedROIMasks)
    assert isinstance(PublishedBitMasks(torch.ones(2, 4, 4))[chosen], PublishedBitMasks)


@pytest.fixture
def detector_cfg(tiny_cfg) -> CfgNode:
    tiny_cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    tiny_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    return tiny_cfg


def predict(cfg, slices, way):
    cfg.MODEL.ROI_MASK_HEAD.PASTE = way
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        return model(slices)[0]["instances"]


def test_the_key_decides_how_predictions_are_pasted(detector_cfg, slices):
    plain, published = (predict(detector_cfg, slices, way) for way in ("detectron2", "published"))
    assert published.pred_masks.shape == plain.pred_masks.shape
    assert torch.equal(plain.pred_boxes.tensor, published.pred_boxes.tensor)
    assert not torch.equal(plain.pred_masks, published.pred_masks)


def test_the_key_decides_what_the_mask_head_learns(detector_cfg, slices):
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 20:37, 20:41] = True
    item = {**slices[0], "instances": Instances((64, 64))}
    item["instances"].gt_boxes = Boxes(torch.tensor([[20.0, 20.0, 41.0, 37.0]]))
    item["instances"].gt_classes = torch.tensor([0])
    item["instances"].gt_masks = BitMasks(masks)
    losses = {}
    for way in ("detectron2", "published"):
        detector_cfg.MODEL.ROI_MASK_HEAD.TARGETS = way
        torch.manual_seed(0)
        model = build_model(detector_cfg).train()
        torch.manual_seed(0)
        with EventStorage():
            losses[way] = {key: float(loss) for key, loss in model([item]).items()}
    mask = {way: found.pop("loss_mask") for way, found in losses.items()}
    assert losses["detectron2"] == losses["published"]
    assert mask["detectron2"] != mask["published"]


def test_unknown_way(detector_cfg):
    detector_cfg.MODEL.ROI_MASK_HEAD.PASTE = "fine"
    with pytest.raises(CTMaskNetError, match=r"ROI_MASK_HEAD.PASTE is 'fine'; choose one of"):
        build_model(detector_cfg)


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
    "chosen", [torch.arange(20) % 3, slice(0, 2), torch.tensor([True, False, True]), 1, slice(0, 0)]
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
