"""Heads that take ranked boxes as a set: order, repeats, no box, and known numbers."""

import pytest
import torch

from ctmasknet.explain.attribution import attribute
from ctmasknet.modeling.image_heads.set_attention import (
    LesionCountImageHead,
    RowStandardization,
    SetAttentionImageHead,
)
from ctmasknet.modeling.ranked_boxes import RowLayout
from ctmasknet.modeling.roi_heads import pad_rows

LAYOUT = RowLayout(("boxes",), num_classes=1, feature_dim=0, mask_dim=0)


def some_boxes(count: int, seed: int = 0) -> torch.Tensor:
    boxes = torch.rand(count, LAYOUT.width, generator=torch.Generator().manual_seed(seed))
    return boxes[boxes[:, 0].argsort(descending=True)]


@pytest.fixture
def attention():
    torch.manual_seed(0)
    head = SetAttentionImageHead(
        layout=LAYOUT, embed_dim=8, num_queries=2, dropout=0.5, num_classes=3
    )
    torch.nn.init.normal_(head.no_box)
    # Statistics as after training
    head.train()
    for seed in range(20):
        head(torch.stack([pad_rows(some_boxes(9, seed), 12), pad_rows(some_boxes(3, seed), 12)]))
    return head.eval()


@torch.no_grad()
def test_order_and_repeats_do_not_matter(attention):
    boxes = some_boxes(5)
    expected = attention(boxes[None])
    turned = boxes[[3, 1, 4, 0, 2]][None]
    torch.testing.assert_close(attention(turned), expected)
    torch.testing.assert_close(attention(pad_rows(boxes, 12)[None]), expected)
    # But how many boxes there are does
    assert (attention(boxes[None, :4]) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_a_slice_without_boxes_has_logits_of_its_own(attention):
    none, some = attention(torch.stack([torch.zeros(12, 14), pad_rows(some_boxes(3), 12)]))
    assert none.isfinite().all() and (none - some).abs().max() > 1e-3


@pytest.mark.parametrize("hidden", ["zero", "removed"])
def test_hiding_a_box_is_a_slice_without_it(attention, hidden):
    """Both ways of hiding are one for a head that knows no order."""
    boxes = some_boxes(4)
    found = attribute(attention, pad_rows(boxes, 12), 4, hidden=hidden)
    with torch.no_grad():
        without = attention(boxes[[0, 2, 3]][None])[0]
    torch.testing.assert_close(found.weights[1], found.logits - without)


def test_standardization_is_over_boxes_alone():
    layer = RowStandardization(2).train()
    rows = torch.tensor([[[1.0, 10.0], [3.0, 10.0], [3.0, 10.0], [0.0, 0.0]]])
    first = torch.tensor([[True, True, False, False]])
    found = layer(rows, first)
    assert found[0, :, 0].tolist() == pytest.approx([-1, 1, 0, 0], abs=1e-4)
    assert layer.norm.running_mean.tolist() == pytest.approx([0.2, 1.0])
    # A batch with a single box has no variance to learn from
    single = layer(rows[:, :1], first[:, :1])
    assert single.isfinite().all() and layer.norm.running_mean.tolist() == pytest.approx([0.2, 1.0])


def test_counts_and_areas_by_score_level():
    head = LesionCountImageHead(layout=LAYOUT, fc_dim=4, num_classes=3)
    boxes = torch.zeros(2, LAYOUT.width)
    boxes[:, 0] = torch.tensor([0.55, 0.15])
    boxes[:, 7:9] = torch.tensor([[0.5, 0.4], [0.1, 0.1]])  # width and height
    found = head.counts(LAYOUT.unpack(pad_rows(boxes, 8)[None]))[0].view(3, -1)
    assert found.shape == (3, 12)
    assert found[0].tolist() == [2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert found[1, [0, 3, 7]].tolist() == pytest.approx([0.21, 0.2, 0])
    assert found[2, [0, 3, 7]].tolist() == pytest.approx([0.2, 0.2, 0])
    assert head.train()(pad_rows(boxes, 8)[None]).shape == (1, 3)  # one slice, no variance
