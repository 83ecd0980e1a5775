import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.published_masks import PublishedBitMasks, PublishedROIMasks


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
