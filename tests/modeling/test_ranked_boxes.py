"""What a head may read of the ranked boxes: columns, their numbers, and which rows are boxes."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from ctmasknet.errors import CTMaskNetError
from ctmasknet.key_checks import check_keys
from ctmasknet.modeling.ranked_boxes import RowLayout, first_rows, relative_boxes
from ctmasknet.modeling.roi_heads import pad_rows


def test_boxes_relative_to_the_image():
    found = relative_boxes(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), (100, 40))
    assert found[0].tolist() == pytest.approx([0.5, 0.4, 0.5, 0.4])


def test_boxes_relative_to_a_part_of_the_image():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 4.0, 10.0]])
    inside, outside = relative_boxes(boxes, (8, 10, 48, 90)).tolist()
    assert inside == pytest.approx([12 / 40, 30 / 80, 0.5, 0.5])
    assert outside == pytest.approx([-6 / 40, -5 / 80, 0.1, 0.125])


def test_repeated_rows_are_no_boxes():
    rows = torch.tensor([[0.9, 1.0], [0.5, 0.0], [0.1, 0.0]])
    packed = torch.stack([pad_rows(rows, 7), torch.zeros(7, 2)])
    assert first_rows(packed).tolist() == [
        [True, False, False, True, False, True, False],
        [False] * 7,
    ]


def _proposals(*boxes):
    instances = Instances((64, 32))
    instances.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return instances


@pytest.fixture
def reading_cfg(tiny_cfg):
    tiny_cfg.MODEL.IMAGE_HEAD.NAME = "SetAttentionImageHead"
    tiny_cfg.MODEL.IMAGE_HEAD.READS = ["boxes", "features", "masks"]
    return tiny_cfg


def test_columns_of_a_row(reading_cfg):
    """Two proposals, the second moved right by half its width; class 1 of it scores best."""
    torch.manual_seed(0)
    model = build_model(reading_cfg).eval()
    heads, layout = model.roi_heads, model.layout
    assert layout.widths == {"rows": 5, "boxes": 10, "features": 32, "masks": 17}
    logits = torch.tensor([[2.0, -9.0, 0.0], [-9.0, 3.0, 0.0]])
    deltas = torch.zeros(2, 8)
    deltas[1, 4] = 0.5 * 10  # box weights divide dx by 10
    proposals = [_proposals([0, 0, 16, 16], [4, 32, 20, 64]), _proposals()]
    features = {"p3": torch.rand(2, 32, 8, 4)}
    hidden = torch.rand(2, 32)
    with torch.no_grad():
        rows = heads.rank_with(layout, (logits, deltas), proposals, features, hidden)
        assert torch.equal(rows[..., :5], heads.rank((logits, deltas), proposals))
        found = layout.unpack(rows)
        boxes = heads.ranked_instances((logits, deltas), proposals)[0].pred_boxes
        pooled = heads.mask_pooler([features["p3"]], [boxes, Boxes(torch.zeros(0, 4))])
        masks = heads.mask_head.layers(pooled).sigmoid()[0, 1].mean()
    assert found.boxes[0, 0].tolist() == pytest.approx([20 / 32, 0.75, 0.5, 0.5])
    assert found.proposals[0, 0].tolist() == pytest.approx([12 / 32, 0.75, 0.5, 0.5])
    assert found.classes[0, 0].tolist() == [0, 1]
    assert torch.equal(found.features[0, 0], hidden[1])
    assert found.masks[0, 0, -1].item() == pytest.approx(masks.item())
    assert found.count.tolist() == [4, 0] and not rows[1].any()


@torch.no_grad()
def test_columns_relative_to_the_lungs(reading_cfg, slices):
    """The box of the test above in lungs of 4..28 x 16..64 px; an image without lungs; neither."""
    reading_cfg.MODEL.IMAGE_HEAD.READS = ["boxes"]
    reading_cfg.MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO = "lungs"
    model = build_model(reading_cfg).eval()
    layout = model.layout
    assert layout.widths == {"rows": 5, "boxes": 11}
    logits, deltas = torch.tensor([[-9.0, 3.0, 0.0]]).repeat(2, 1), torch.zeros(2, 8)
    proposals = [_proposals([4, 32, 20, 64])] * 2
    lungs = [(4, 16, 28, 64), None]
    rows = model.roi_heads.rank_with(layout, (logits, deltas), [*proposals], {}, None, lungs)
    found = layout.unpack(rows)
    assert found.boxes[0, 0].tolist() == pytest.approx([8 / 24, 32 / 48, 16 / 24, 32 / 48])
    assert found.proposals[0, 0].tolist() == found.boxes[0, 0].tolist()
    assert found.boxes[1, 0].tolist() == pytest.approx([12 / 32, 0.75, 0.5, 0.5])
    assert found.in_lungs[:, 0].tolist() == [1, 0] and found.classes[0, 0].tolist() == [0, 1]
    empty, unreadable = torch.zeros_like(rows[:1]), torch.full_like(rows[:1], torch.nan)
    assert layout.without_lungs(torch.cat([rows, empty, unreadable])) == 1
    with pytest.raises(CTMaskNetError, match="its input has no lung_box, which the image head's"):
        model(slices[:1])
    by_image = model([slices[0] | {"lung_box": None}])[0]["ranked_rows"]
    height, width = slices[0]["image"].shape[1:]
    whole = model([slices[0] | {"lung_box": (0, 0, width, height)}])[0]["ranked_rows"]
    assert torch.equal(by_image[:, :-1], whole[:, :-1])
    assert by_image[0, -1] == 0 and whole[0, -1] == 1


@torch.no_grad()
def test_cached_rows_give_the_logits_of_the_image(reading_cfg, slices):
    model = build_model(reading_cfg).eval()
    for result in model(slices[:1]):
        again = model([{"ranked_rows": result["ranked_rows"]}])[0]
        assert torch.equal(again["logits"], result["logits"])
        assert result["ranked_rows"].shape == (16, 64)
        assert torch.equal(result["ranked_rows"][:, :5], result["ranked_boxes"])


@pytest.mark.parametrize("reads", ["features", "masks"])
def test_gradients_reach_what_is_read(reading_cfg, slices, reads):
    """Both hang on the pyramid; the mask head itself is no part of a classifier's training."""
    reading_cfg.MODEL.TRAINABLE = "full"
    reading_cfg.MODEL.IMAGE_HEAD.READS = [reads]
    model = build_model(reading_cfg).train()
    rows, _ = model._ranked_boxes(slices[:1])
    column = model.layout.widths["rows"]
    rows[..., column:].sum().backward()
    assert model.backbone.fpn_output3.weight.grad.abs().sum() > 0
    grad = model.roi_heads.box_head.fc2.weight.grad
    assert bool(grad.abs().sum() > 0) == (reads == "features")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"READS": ["boxes"], "NAME": "RankedBoxImageHead"}, "leave boxes out"),
        ({"READS": ["masks", "boxes"]}, "in this order"),
        ({"READS": ["boxes", "lungs"]}, "names of boxes, features, masks"),
        ({"READS": [], "NAME": "LesionCountImageHead"}, "needs boxes; add it"),
        ({"READS": ["masks"], "BOXES_RELATIVE_TO": "lungs"}, "the image head reads no boxes"),
        ({"BOXES_RELATIVE_TO": "lung"}, "choose one of image, lungs"),
        ({"READS": ["masks"], "MASK_ON": False}, "MODEL.MASK_ON is False; leave masks out"),
    ],
)
def test_what_cannot_be_read_is_refused_at_the_start(reading_cfg, settings, message):
    reading_cfg.MODEL.MASK_ON = settings.pop("MASK_ON", True)
    for name, value in settings.items():
        reading_cfg.MODEL.IMAGE_HEAD[name] = value
    with pytest.raises(CTMaskNetError, match=message):
        check_keys(reading_cfg)


def test_rows_of_another_width_are_refused():
    layout = RowLayout(("boxes",), num_classes=1, feature_dim=8, mask_dim=8)
    with pytest.raises(
        CTMaskNetError, match="ranked rows of 5 numbers, but the image head reads 14"
    ):
        layout.unpack(torch.zeros(1, 3, 5))
