"""The author's later heads on ranked boxes: order, repeats, no box; controls of S."""

import pytest
import torch

from ctmasknet.explain.attribution import attribute
from ctmasknet.modeling.image_heads.controls import (
    DeltasOnlyImageHead,
    ScoresOnlyImageHead,
    ShuffledRowsImageHead,
)
from ctmasknet.modeling.image_heads.later_models import (
    AttendedLSTM,
    BoxAffinityImageHead,
    BoxLSTMImageHead,
)
from ctmasknet.modeling.roi_heads import pad_rows
from tests.modeling.image_heads.test_set_attention import LAYOUT, some_boxes

SHAPE = {"layout": LAYOUT, "embed_dim": 8, "dropout": 0.5, "num_classes": 3}
N = 12


def trained(head):
    """With statistics, and weights that tell boxes apart."""
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    head.train()
    for seed in range(20):
        head(torch.stack([pad_rows(some_boxes(9, seed), N), pad_rows(some_boxes(3, seed), N)]))
    return head.eval()


@pytest.fixture
def lstm():
    torch.manual_seed(0)
    return trained(BoxLSTMImageHead(**SHAPE))


@pytest.fixture
def affinity():
    torch.manual_seed(0)
    return trained(BoxAffinityImageHead(num_boxes=N, affinities=4, **SHAPE))


@torch.no_grad()
def test_rank_matters_to_affinity_alone(lstm, affinity):
    boxes = some_boxes(5)
    turned = pad_rows(boxes[[3, 1, 4, 0, 2]], N)[None]
    boxes = pad_rows(boxes, N)[None]
    torch.testing.assert_close(lstm(turned), lstm(boxes))
    assert (affinity(turned) - affinity(boxes)).abs().max() > 1e-3


@torch.no_grad()
def test_the_number_of_boxes_matters_and_of_rows_does_not(lstm, affinity):
    boxes = some_boxes(5)
    every = torch.cat([boxes, torch.zeros(N - 5, LAYOUT.width)])
    for head in (lstm, affinity):
        expected = head(every[None])
        torch.testing.assert_close(head(pad_rows(boxes, N)[None]), expected)
        assert (head(pad_rows(boxes[:4], N)[None]) - expected).abs().max() > 1e-3
        none = head(torch.zeros(1, N, LAYOUT.width))
        assert none.isfinite().all() and (none - expected).abs().max() > 1e-3


@torch.no_grad()
def test_the_lstm_begins_at_the_corner(lstm):
    """Moved boxes come in another order; that a box lies elsewhere is hidden from the vectors."""
    lstm.boxes.embed[0].weight[:, 5:13] = 0
    near, far = some_boxes(2)
    near[5:9], far[5:9] = torch.tensor([0.2, 0.2, 0.1, 0.1]), torch.tensor([0.8, 0.8, 0.1, 0.1])
    swapped = torch.stack([near, far])
    swapped[0, 5:9], swapped[1, 5:9] = far[5:9], near[5:9]
    there = pad_rows(torch.stack([near, far]), N)
    assert (lstm(there[None]) - lstm(pad_rows(swapped, N)[None])).abs().max() > 1e-3


@torch.no_grad()
def test_what_stands_behind_the_boxes_does_not_matter():
    torch.manual_seed(0)
    layer, x = AttendedLSTM(8, 4, 3), torch.randn(2, 6, 8)
    count = torch.tensor([4, 6])
    expected = torch.cat([layer(x[:1, :4]), layer(x[1:])])
    torch.testing.assert_close(layer(x, count), expected)


@pytest.mark.parametrize("hidden", ["zero", "removed"])
def test_hiding_a_box_is_a_slice_without_it(lstm, affinity, hidden):
    boxes = some_boxes(4)
    for head in (lstm, affinity):
        found = attribute(head, pad_rows(boxes, N), 4, hidden=hidden)
        with torch.no_grad():
            without = head(pad_rows(boxes[[0, 2, 3]], N)[None])[0]
        torch.testing.assert_close(found.weights[1], found.logits - without)


@torch.no_grad()
def test_controls_hide_their_part():
    torch.manual_seed(0)
    rows = some_boxes(6)[None, :, :5]
    shape = {"num_boxes": 6, "fc_dim": 8, "num_classes": 3}
    scores, deltas = ScoresOnlyImageHead(**shape).eval(), DeltasOnlyImageHead(**shape).eval()
    shuffled = ShuffledRowsImageHead(**shape).eval()
    other = rows.clone()
    other[..., 1:] += 1
    assert torch.equal(scores(rows), scores(other)) and not torch.equal(deltas(rows), deltas(other))
    other = rows.clone()
    other[..., 0] /= 2
    assert torch.equal(deltas(rows), deltas(other)) and not torch.equal(scores(rows), scores(other))
    turned = rows[:, [3, 1, 5, 4, 0, 2]]
    torch.testing.assert_close(shuffled(turned), shuffled(rows))
    assert not torch.allclose(scores(turned), scores(rows))
