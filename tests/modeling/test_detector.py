import torch

from ctmasknet.modeling.detector import FlatAnchorTransform, RoundedAnchorGenerator

SIZES = [[2, 4, 8, 16, 32]]
RATIOS = [[0.1, 0.25, 0.5, 1.0, 1.5, 2.0]]


def cell_anchors(round_px):
    generator = RoundedAnchorGenerator(
        round_px=round_px, sizes=SIZES, aspect_ratios=RATIOS, strides=[8], offset=0.0
    )
    return next(iter(generator.cell_anchors))


def test_rounded_anchors_are_whole_px_and_partly_flat():
    anchors = cell_anchors(round_px=True)
    assert anchors.shape == (30, 4)
    assert torch.equal(anchors, anchors.round())
    assert len(torch.unique(anchors, dim=0)) == 26  # reference: 26 of the 30 are distinct
    flat = anchors[:, 3] <= anchors[:, 1]
    assert flat.nonzero().flatten().tolist() == [0, 1]  # size 2, ratios 0.1 and 0.25


def test_unrounded_anchors_keep_their_area():
    anchors = cell_anchors(round_px=False)
    sides = anchors[:, 2:] - anchors[:, :2]
    expected = torch.tensor(SIZES[0]).repeat_interleave(6).float() ** 2
    torch.testing.assert_close(sides.prod(dim=1), expected)


def test_flat_boxes_are_coded_as_one_px():
    transform = FlatAnchorTransform(weights=(1.0, 1.0, 1.0, 1.0))
    sources = torch.tensor([[0.0, 0.0, 6.0, 0.0], [0.0, 0.0, 10.0, 10.0]])
    targets = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 10.0, 10.0]])
    assert torch.equal(transform.get_deltas(sources, targets), torch.zeros(2, 4))
