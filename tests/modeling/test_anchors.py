import torch
from detectron2.modeling.proposal_generator import RPN

from ctmasknet.modeling.anchors import FlatAnchorTransform, RoundedAnchorGenerator

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


def test_only_chosen_anchors_are_decoded_and_proposals_stay_the_same(tiny_model, slices):
    rpn = tiny_model.eval().proposal_generator
    images = tiny_model.preprocess_image(slices)
    with torch.no_grad():
        features = tiny_model.backbone(images.tensor)
        decoded = []
        rpn.box2box_transform.apply_deltas = lambda deltas, boxes: (
            decoded.append(len(boxes))
            or FlatAnchorTransform.apply_deltas(rpn.box2box_transform, deltas, boxes)
        )
        rpn.pre_nms_topk = {False: 50}
        ours, _ = rpn(images, features)
        rpn._decode_proposals = lambda *args: RPN._decode_proposals(rpn, *args)
        stock, _ = rpn(images, features)
    assert decoded == [3 * 50, 3 * 30 * 12 * 12]
    for found, expected in zip(ours, stock, strict=True):
        assert torch.equal(found.proposal_boxes.tensor, expected.proposal_boxes.tensor)
        assert torch.equal(found.objectness_logits, expected.objectness_logits)
