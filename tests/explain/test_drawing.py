"""Pictures of box weights, by their pixels."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from ctmasknet.draw.lesions import SliceCall
from ctmasknet.explain import drawing
from ctmasknet.explain.attribution import BoxAttribution
from ctmasknet.explain.drawing import AGAINST, FOR, attribution_page, draw_box_weights, heaviest

GREY = np.full((80, 100, 3), 90, dtype=np.uint8)
BOXES = np.array([[10.0, 20, 40, 50], [60, 20, 90, 50], [30, 60, 50, 75]])


def coloured(picture, color):
    """(H, W) bool: pixels whose hue is nearly that of ``color``."""
    lifted = picture.astype(float) - picture.min(2, keepdims=True)
    wanted = np.array(color, dtype=float) - min(color)
    size = np.linalg.norm(lifted, axis=2)
    cosine = lifted @ wanted / np.maximum(size * np.linalg.norm(wanted), 1e-9)
    return (cosine > 0.97) & (size > 15)


def extent(mask):
    """(x0, y0, x1, y1) of the True pixels."""
    y, x = mask.nonzero()
    return x.min(), y.min(), x.max() + 1, y.max() + 1


@pytest.mark.parametrize("scale", [1, 4])
def test_boxes_stand_where_they_belong_in_the_colour_of_their_sign(scale):
    weights = np.array([2.0, -1.0, 0.0])
    picture = draw_box_weights(GREY, BOXES, weights, scale=scale)
    assert picture.shape == (80 * scale, 100 * scale, 3)
    for index, color in ((0, FOR), (1, AGAINST)):
        x0, y0, x1, y1 = (BOXES[index] * scale).astype(int)
        # Below the label, which stands on the box or beside it
        lower = coloured(picture, color)[(y0 + y1) // 2 : y1 + 3 * scale]
        left, _, right, bottom = extent(lower)
        assert (left, right) == pytest.approx((x0, x1), abs=4)
        assert bottom + (y0 + y1) // 2 == pytest.approx(y1, abs=4)
        assert coloured(picture, color)[(y0 + y1) // 2, (x0 + x1) // 2], "filled"
    x0, y0, x1, y1 = (BOXES[2] * scale).astype(int)
    third = picture[y0 : y1 + 1, x0 : x1 + 1]
    assert (abs(third.astype(int) - 90) <= 2).all(), "no weight, no box"


def test_the_heavier_box_is_drawn_stronger_and_only_so_many_are_drawn():
    def ink(picture, index):
        x0, y0, x1, y1 = (BOXES[index] * 4).astype(int)
        return np.abs(picture[y0:y1, x0:x1].astype(int) - 90).sum()

    weights = np.array([1.0, 3.0, -0.1])
    picture = draw_box_weights(GREY, BOXES, weights, scale=4)
    assert ink(picture, 1) > 1.5 * ink(picture, 0) > 0
    alone = draw_box_weights(GREY, BOXES, weights, most=1, scale=4)
    assert ink(alone, 0) == 0 and ink(alone, 1) > 0


def test_the_heaviest_come_first_whatever_their_sign():
    assert heaviest(np.array([0.1, -3.0, 2.0, 0.0]), 10).tolist() == [1, 2, 0]
    assert heaviest(np.array([0.1, -3.0, 2.0, 0.0]), 2).tolist() == [1, 2]
    assert heaviest(np.zeros(0), 5).tolist() == []


def attributed(count):
    weights = torch.tensor([[0.5, 0.0], [-0.25, 1.0], [0.0, 2.0]])[:count]
    without = torch.tensor([0.5, -1.0])
    rest = torch.tensor([0.125, 0.0])
    return BoxAttribution(
        *("occlusion", without + weights.sum(0) + rest, without, weights),
        box_of_row=torch.arange(count),
        rest=rest,
    )


@pytest.fixture
def words(monkeypatch):
    """The text of every chunk and caption of the next page."""
    said = []

    def compose(panels, *, title, header, legend):
        lines = [[title], [panel.caption for panel in panels]]
        lines += [[chunk.text for chunk in line] for line in (*header, legend)]
        said.extend(lines)
        return panels[1].picture

    monkeypatch.setattr(drawing, "compose_page", compose)
    return said


def ranked(count):
    boxes = torch.tensor(BOXES[:count], dtype=torch.float32).reshape(-1, 4)
    classes, scores = torch.tensor([0, 1, 0])[:count], torch.tensor([0.9, 0.5, 0.1])[:count]
    return Instances((80, 100), pred_boxes=Boxes(boxes), pred_classes=classes, scores=scores)


def page(count, target, **options):
    names = {"class_names": ["normal", "covid"], "lesion_classes": ["ggo", "consolidation"]}
    return attribution_page(GREY, ranked(count), attributed(count), target, **names, **options)


def test_the_page_says_what_adds_up_and_what_weights_are_not(words):
    page(3, 0, title="a.png", call=SliceCall(["normal", "covid"], predicted=0), most=1)
    assert ["a.png"] in words
    assert ["slice", "1 of 3 boxes, 67 % of all weight"] in words
    assert [
        "logit of normal +0.88:",
        "without boxes +0.50,",
        "boxes for +0.50,",
        "against -0.25,",
        "of no box alone +0.12",
    ] in words
    assert words[-1][-1] == "input to the decision, not cause"
    assert words[-1][:3] == ["for normal (solid)", "against normal (dashed)", "by occlusion (zero)"]


def test_a_slice_without_boxes_is_drawn_bare(words):
    picture = page(0, 1, scale=2)
    assert (picture == 90).all()
    assert ["slice", "0 of 0 boxes"] in words


def test_a_whole_page():
    picture = page(3, 1, title="a.png")
    assert picture.dtype == np.uint8 and picture.shape[1] > 1000
    assert coloured(picture, FOR).sum() > 1000
