"""Weights of boxes on heads whose answer is known: linear, by hand, and S itself."""

import sys

import pytest
import torch

from ctmasknet.errors import CTMaskNetError
from ctmasknet.explain import attribution
from ctmasknet.explain.attribution import attribute, integrate_gradients, occlude
from ctmasknet.modeling.image_heads.s import RankedBoxImageHead
from ctmasknet.modeling.roi_heads import pad_rows


def some_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randn(count, 5, generator=generator)
    boxes[:, 0] = torch.rand(count, generator=generator).sort(descending=True).values
    return boxes


class LinearHead:
    """logits = sum over rows of weights[row] * rows, + bias; keeps the batch sizes it saw."""

    def __init__(self, rows, classes=3, seed=1):
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(rows, 5, classes, generator=generator)
        self.bias = torch.arange(float(classes))
        self.batches = []

    def __call__(self, rows):
        self.batches.append(len(rows))
        return torch.einsum("bnf,nfc->bc", rows, self.weights) + self.bias


@pytest.fixture
def image_head():
    """S with biases: without them it is linear along every straight way from zero."""
    torch.manual_seed(0)
    head = RankedBoxImageHead(num_boxes=12, fc_dim=32, num_classes=3).eval()
    for layer in (head.fc1, head.fc2, head.logits):
        torch.nn.init.normal_(layer.bias)
    return head


@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients"])
@pytest.mark.parametrize("count", [6, 4, 1])
def test_a_linear_head_gives_each_box_what_its_rows_add(method, count):
    head = LinearHead(6)
    rows = pad_rows(some_boxes(count), 6)
    found = attribute(head, rows, count, method=method)
    by_row = torch.einsum("nf,nfc->nc", rows, head.weights)
    expected = torch.zeros(count, 3)
    for row, place in enumerate([row * count // 6 for row in range(6)]):
        expected[place] += by_row[row]
    torch.testing.assert_close(found.weights, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.without_boxes, head.bias)
    torch.testing.assert_close(found.logits, head(rows[None])[0])
    torch.testing.assert_close(
        found.weights.sum(0), found.logits - found.without_boxes, atol=1e-4, rtol=1e-4
    )
    assert found.rest.abs().max() < 1e-4
    assert torch.equal(found.weights.argsort(0), expected.argsort(0))
    assert found.complete is (None if method == "occlusion" else True)


def test_by_hand():
    # Row i speaks with 1, 10, 100 of its score for class 0; class 1 hears the first row alone
    def head(rows):
        return torch.stack([rows[..., 0] @ torch.tensor([1.0, 10, 100]), -rows[:, 0, 0]], 1)

    scores = torch.tensor([[0.9], [0.5], [0.5]])
    rows = torch.cat([scores, torch.ones(3, 4)], 1)
    found = occlude(head, rows, 3)
    assert found.weights.flatten().tolist() == pytest.approx([0.9, -0.9, 5, 0, 50, 0], abs=1e-4)
    # Two boxes over three rows: the first has two of them
    found = occlude(head, rows[[0, 0, 1]], 2)
    assert found.box_of_row.tolist() == [0, 0, 1]
    assert found.weights.flatten().tolist() == pytest.approx([9.9, -0.9, 50, 0], abs=1e-4)
    # Without the first box the second stands in all three rows, with 0.5 instead of 0.9
    found = occlude(head, rows[[0, 0, 1]], 2, hidden="removed")
    assert found.logits.tolist() == pytest.approx([59.9, -0.9])
    assert found.weights.flatten().tolist() == pytest.approx(
        [59.9 - 55.5, -0.9 + 0.5, 59.9 - 99.9, 0], abs=1e-4
    )


def test_in_a_full_list_the_rest_moves_up_and_the_last_stands_for_the_next():
    def head(rows):
        return rows[..., 0] @ torch.tensor([[1.0], [10], [100]])

    rows = torch.tensor([[0.9], [0.5], [0.2]]).expand(3, 5)
    found = occlude(head, rows, 3, hidden="removed")
    # 0.5 0.2 0.2, 0.9 0.2 0.2 and 0.9 0.5 0.5 instead of 0.9 0.5 0.2
    expected = [25.9 - 22.5, 25.9 - 22.9, 25.9 - 55.9]
    assert found.weights.flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_boxes_of_equal_numbers_are_not_taken_for_one():
    rows = some_boxes(1).expand(4, 5)
    head = LinearHead(4)
    assert occlude(head, rows, 4).weights.shape == (4, 3)
    assert occlude(head, rows, 1).weights.shape == (1, 3)


@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients"])
def test_a_slice_without_boxes_has_no_weights(image_head, method):
    found = attribute(image_head, torch.zeros(12, 5), 0, method=method)
    assert found.weights.shape == (0, 3) and found.box_of_row.tolist() == [-1] * 12
    assert torch.equal(found.logits, found.without_boxes)
    assert found.rest.tolist() == [0, 0, 0]


def test_the_only_box_has_all_the_weight(image_head):
    rows = pad_rows(some_boxes(1), 12)
    for hidden in ("zero", "removed"):
        found = occlude(image_head, rows, 1, hidden=hidden)
        torch.testing.assert_close(found.weights[0], found.logits - found.without_boxes)


@pytest.mark.parametrize("count", [12, 7])
def test_occlusion_is_captums_ablation_of_each_boxs_rows(image_head, count):
    from captum.attr import FeatureAblation

    rows = pad_rows(some_boxes(count), 12)
    found = occlude(image_head, rows, count)
    mask = found.box_of_row[:, None].expand(12, 5)[None]
    for target in range(3):
        ablated = FeatureAblation(image_head).attribute(
            rows[None], target=target, feature_mask=mask
        )[0, :, 0]
        torch.testing.assert_close(found.weights[found.box_of_row, target], ablated)


def test_removal_is_a_new_run_without_the_box(image_head):
    boxes = some_boxes(5)
    found = occlude(image_head, pad_rows(boxes, 12), 5, hidden="removed")
    for k in range(5):
        without = pad_rows(torch.cat([boxes[:k], boxes[k + 1 :]]), 12)
        expected = found.logits - image_head(without[None])[0]
        torch.testing.assert_close(found.weights[k], expected)


def test_integrated_gradients_add_up_on_the_image_head(image_head):
    found = integrate_gradients(image_head, pad_rows(some_boxes(7), 12), 7)
    change = found.logits - found.without_boxes
    assert found.complete and change.abs().max() > 0.1
    torch.testing.assert_close(found.rest, change - found.weights.sum(0))
    assert found.rest.abs().max() <= 0.01 * change.abs().max()
    assert all(parameter.grad is None for parameter in image_head.parameters())


def test_more_points_are_taken_until_they_add_up(image_head, monkeypatch):
    rows = pad_rows(some_boxes(7), 12)
    monkeypatch.setattr(attribution, "_STEPS", 1)
    assert integrate_gradients(image_head, rows, 7).complete
    monkeypatch.setattr(attribution, "_MOST_STEPS", 1)
    assert integrate_gradients(image_head, rows, 7).complete is False


def test_what_does_not_add_up_is_said(monkeypatch):
    # A step half way: no number of points on the path finds a gradient
    def head(rows):
        total = rows.sum((1, 2))[:, None]
        return (total > 0.5).float() + 0 * total

    monkeypatch.setattr(attribution, "_MOST_STEPS", 128)
    found = integrate_gradients(head, torch.ones(2, 5) / 10, 2)
    assert found.complete is False and found.rest.tolist() == [1.0]


def test_occlusions_go_through_the_head_in_portions(monkeypatch):
    head, rows = LinearHead(10), some_boxes(10)
    for hidden in ("zero", "removed"):
        whole = occlude(head, rows, 10, hidden=hidden).weights
        with monkeypatch.context() as patch:
            patch.setattr(attribution, "_AT_ONCE", 4)
            head.batches.clear()
            torch.testing.assert_close(occlude(head, rows, 10, hidden=hidden).weights, whole)
        assert head.batches == [2, 4, 4, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "saliency"}, "'saliency' is unknown; choose one of occlusion"),
        ({"hidden": "mean"}, "'mean' is unknown; choose one of zero, removed"),
        ({"method": "integrated_gradients", "hidden": "removed"}, "start from zero rows"),
        ({"count": 13}, "13 boxes do not fit 12 rows"),
    ],
)
def test_what_is_not_known_is_one_clear_error(image_head, options, message):
    with pytest.raises(CTMaskNetError, match=message):
        attribute(image_head, torch.zeros(12, 5), **({"count": 1} | options))


def test_without_captum_the_package_is_named(image_head, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(CTMaskNetError, match=r"pip install captum"):
        attribute(image_head, torch.zeros(12, 5), 0, method="integrated_gradients")
