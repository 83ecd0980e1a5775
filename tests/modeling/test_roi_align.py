import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import poolers as roi_poolers
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch._subclasses.fake_tensor import FakeTensorMode

from ctmasknet.modeling.roi_align import BagROIPooler, Float32ROIPooler

SCALES = [1 / 4, 1 / 8]


def poolers(**changes):
    options = {"output_size": 7, "scales": SCALES, "sampling_ratio": 2, "pooler_type": "ROIAlign"}
    stock = ROIPooler(**options | {"canonical_level": 3, "canonical_box_size": 30} | changes)
    return stock, BagROIPooler.of(stock)


@pytest.fixture
def inputs():
    """Two maps of two images of 64 x 96 px; boxes inside, over every border, outside, flat."""
    generator = torch.Generator().manual_seed(3)
    features = [torch.randn(2, 16, int(64 * s), int(96 * s), generator=generator) for s in SCALES]
    corners = torch.rand(60, 2, generator=generator) * 130 - 20
    sides = torch.rand(60, 2, generator=generator) * 70
    sides[:5, 1] = 0
    boxes = torch.cat([corners, corners + sides], dim=1)
    boxes = torch.cat([boxes, torch.tensor([[0.0, 0, 96, 64], [500, 500, 600, 600]])])
    return features, [Boxes(boxes[:40]), Boxes(boxes[40:])]


@pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIAlignV2"])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_equals_torchvision(inputs, pooler_type, ratio):
    features, boxes = inputs
    stock, bag = poolers(pooler_type=pooler_type, sampling_ratio=ratio)
    found = bag(features, boxes)
    assert isinstance(bag, BagROIPooler)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.abs().max() > 1
    torch.testing.assert_close(found, stock(features, boxes), atol=5e-6, rtol=0)


def test_one_level(inputs):
    features, boxes = inputs
    stock, bag = poolers(scales=SCALES[1:])
    torch.testing.assert_close(
        bag(features[1:], boxes), stock(features[1:], boxes), atol=5e-6, rtol=0
    )


def test_gradients_equal_torchvision_s(inputs):
    features, boxes = inputs
    gradients = []
    for pooler in poolers():
        leaves = [one.clone().requires_grad_(True) for one in features]
        pooler(leaves, boxes).square().sum().backward()
        gradients.append([one.grad for one in leaves])
    for found, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 1
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_half_precision_features_keep_their_type(inputs):
    features, boxes = inputs
    stock, bag = poolers()
    found = bag([one.bfloat16() for one in features], boxes)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), stock(features, boxes), atol=0.03, rtol=0.02)


@pytest.mark.parametrize("changes", [{}, {"sampling_ratio": 0}, {"pooler_type": "ROIAlignV2"}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_pools_half_precision_in_float32(changes, dtype, monkeypatch):
    """By tensors without values: nothing is computed on a GPU."""
    pooler = Float32ROIPooler.of(poolers(scales=SCALES[1:], **changes)[1])
    given, forward = [], ROIAlign.forward

    def noted(layer, maps, boxes):
        given.extend([maps.dtype, boxes.dtype])
        return forward(layer, maps, boxes)

    monkeypatch.setattr(ROIAlign, "forward", noted)
    with FakeTensorMode(allow_non_fake_inputs=True):
        maps = [torch.empty(2, 16, 8, 12, dtype=dtype, device="cuda")]
        boxes = [Boxes(torch.empty(3, 4, device="cuda")) for _ in range(2)]
        numbered = torch.empty(6, 5, device="cuda")
        monkeypatch.setattr(roi_poolers, "convert_boxes_to_pooler_format", lambda _: numbered)
        found = pooler(maps, boxes)
    assert found.dtype == dtype
    assert given and set(given) == {torch.float32}


def test_no_boxes(inputs):
    features, _ = inputs
    _, bag = poolers()
    assert bag(features, [Boxes(torch.empty(0, 4))] * 2).shape == (0, 16, 7, 7)


@pytest.mark.parametrize(
    "changes", [{"sampling_ratio": 0}, {"pooler_type": "ROIPool"}, {"output_size": (7, 14)}]
)
def test_other_poolers_stay_what_they_are(changes):
    stock, found = poolers(**changes)
    assert found is stock
