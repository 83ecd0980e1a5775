"""What the authors' implementation computed, number for number, after import of its weights."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.layers import batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes, ROIMasks

from ctmasknet.modeling.fast.openvino import to_openvino
from ctmasknet.modeling.masks import PublishedBitMasks, PublishedROIMasks
from ctmasknet.weights.layout import AuthorsVariant, authors_layout, sizes_outermost
from ctmasknet.weights.pickle import read_weights_file
from tests.helpers.golden_state import build, golden_model, imported_model, read_image
from tests.helpers.running import needs_openvino

#: Scores closer than this tie: their order depends on rounding, also from one CPU to the next.
TIE = 1e-6


@pytest.fixture(scope="module")
def ops(shared):
    with np.load(shared / "golden" / "ops.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


@pytest.fixture(scope="module")
def detectors():
    """Models of the base configuration and of one level, without weights that matter here."""
    return {
        "r50": build("configs/seg.yaml"),
        "r18t1": build("configs/seg_r18_t1_merge.yaml"),
        "r18t2": build("configs/seg_r18_t2_merge.yaml"),
    }


# ---- single operators ----


@pytest.mark.parametrize(("pooler", "side"), [("box_pooler", 7), ("mask_pooler", 14)])
def test_roi_align_over_four_levels(ops, detectors, pooler, side):
    pool = getattr(detectors["r50"].roi_heads, pooler)
    features = [ops[f"feat{level}"] for level in range(4)]
    pooled = pool(features, [Boxes(ops["roi_boxes"])])
    torch.testing.assert_close(pooled, ops[f"roi{side}"], atol=1e-5, rtol=0)


def test_roi_align_on_one_level(ops, detectors):
    pooled = detectors["r18t1"].roi_heads.box_pooler([ops["feat2"]], [Boxes(ops["roi_boxes"])])
    torch.testing.assert_close(pooled, ops["roi7_single16"], atol=1e-5, rtol=0)


def test_level_assignment(ops, detectors):
    pooler = detectors["r50"].roi_heads.box_pooler
    levels = assign_boxes_to_levels(
        [Boxes(ops["roi_boxes"])],
        pooler.min_level,
        pooler.max_level,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )
    assert torch.equal(levels, ops["levels"])


def test_cell_anchors(ops, detectors):
    for model in detectors.values():
        for cell in model.proposal_generator.anchor_generator.cell_anchors:
            assert torch.equal(cell, sizes_outermost(ops["cell_anchors"]).reshape(30, 4))
    assert len(ops["cell_anchors"].unique(dim=0)) == 26


@pytest.mark.parametrize(
    ("name", "sides"), [("r50", (128, 64, 32, 16)), ("r18t1", (32,)), ("r18t2", (64,))]
)
def test_grid_anchors_of_512_px(ops, detectors, name, sides):
    generator = detectors[name].proposal_generator.anchor_generator
    anchors = torch.cat(
        [level.tensor for level in generator([torch.empty(1, 1, side, side) for side in sides])]
    )
    assert len(anchors) == ops[f"anchors_{name}_n"]
    for part, found in (("head", anchors[:90]), ("tail", anchors[-90:])):
        golden = torch.cat(
            [sizes_outermost(cell) for cell in ops[f"anchors_{name}_{part}"].split(30)]
        )
        assert torch.equal(found, golden.reshape(90, 4))
    torch.testing.assert_close(anchors.double().sum(0), ops[f"anchors_{name}_sum"])


def test_box_coding(ops, detectors):
    boxes, codes = ops["nms_boxes"], ops["dec_codes"]
    rpn = detectors["r50"].proposal_generator.box2box_transform
    roi = detectors["r50"].roi_heads.box_predictor.box2box_transform
    assert roi.weights == (10, 10, 5, 5) and isinstance(roi, Box2BoxTransform)
    decoded = roi.apply_deltas(codes, boxes[:200]).view(200, 3, 4)
    torch.testing.assert_close(decoded, ops["dec_roi"], atol=1e-3, rtol=1e-6)
    decoded = rpn.apply_deltas(codes[:, :4].contiguous(), boxes[:200])
    torch.testing.assert_close(decoded, ops["dec_rpn"][:, 0], atol=1e-3, rtol=1e-6)
    encoded = roi.get_deltas(boxes[:200], boxes[200:400])
    torch.testing.assert_close(encoded, ops["enc_roi"], atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75])
def test_nms(ops, threshold):
    kept = batched_nms(ops["nms_boxes"], ops["nms_scores"], ops["nms_ids"], threshold)
    assert torch.equal(kept, ops[f"nms_keep_{threshold}"])


def test_mask_pasting(ops):
    """`published` pastes as the authors did, `detectron2` at the box's exact corners, which is
    finer: on masks shaped like lesions the two disagree about the rim alone."""
    boxes = Boxes(ops["paste_boxes"])
    logits = ops["paste_logits"][:, 0]
    ours = PublishedROIMasks(logits.sigmoid()).to_bitmasks(boxes, 512, 512).tensor
    assert ours.shape == (20, 512, 512)
    theirs = ops["paste_out"]
    # A sigmoid and its inverse cost a few units in the last place
    clear = theirs.abs() > 1e-4
    assert torch.equal(ours[:, ::4, ::4][clear], (theirs > 0)[clear])
    assert (theirs == 0).any() and not ours[:, ::4, ::4][theirs == 0].any()

    across = torch.linspace(-1, 1, 28)
    blob = 4 * (0.7 - across[:, None] ** 2 - (across + 0.3 * across[:, None]) ** 2)
    blobs = PublishedROIMasks(blob.sigmoid().expand(20, 28, 28).contiguous())
    published = blobs.to_bitmasks(boxes, 512, 512).tensor
    finer = ROIMasks(blobs.tensor).to_bitmasks(boxes, 512, 512).tensor
    overlap = (published & finer).sum((1, 2)) / (published | finer).sum((1, 2))
    side = (boxes.tensor[:, 2:] - boxes.tensor[:, :2]).amin(dim=1)
    assert (overlap[side > 10] > 0.85).all() and (overlap[side > 100] > 0.97).all()


def test_mask_targets_of_training(ops):
    """`published` cuts are soft as the authors' were, `detectron2` cuts are 0 or 1."""
    bits = np.unpackbits(ops["pm_masks"].numpy())
    masks = torch.from_numpy(bits.reshape(3, 512, 512)).bool()[ops["pm_idx"]]
    cut = PublishedBitMasks(masks)[torch.arange(216)].crop_and_resize(ops["roi_boxes"], 28)
    torch.testing.assert_close(cut, ops["pm_out"], atol=1e-5, rtol=0)
    assert ((cut > 0.1) & (cut < 0.9)).any()


def test_normalisation_and_resize(ops, detectors):
    """Normalisation is the authors'. Their resize floors the sides that ours rounds; slices of
    512 px, which all published data are, pass both unchanged."""
    image = ops["tr_in"]
    inputs = [{"image": image * 255}]
    normalised = detectors["r50"].preprocess_image(inputs).tensor[:, :, :600, :417]
    scale = 512 / 417
    floored = (int(600 * scale), int(417 * scale))
    assert floored == tuple(ops["tr_size"])
    resized = torch.nn.functional.interpolate(normalised, size=floored, mode="bilinear")
    torch.testing.assert_close(resized[0, :, ::16, ::16], ops["tr_out"], atol=1e-5, rtol=0)
    # tr_boxes and tr_mask_sum cannot be compared: the file does not hold what they came from.
    resize = T.ResizeShortestEdge(512, 1024)
    ours = resize.get_transform(np.zeros((600, 417), np.uint8))
    assert (ours.new_h, ours.new_w) == (737, 512)
    assert isinstance(resize.get_transform(np.zeros((512, 512), np.uint8)), T.ResizeTransform)


# ---- whole models ----


def compare_rows(model, output, ranked, logits) -> None:
    """Rows within 1e-3 and logits within 1e-4, rows that tie in score taken in the golden order."""
    rows = output["ranked_boxes"]
    golden = torch.from_numpy(ranked)
    assert rows.shape == golden.shape
    order = list(range(len(rows)))
    for index in range(len(rows) - 1):
        straight = (rows[order[index : index + 2]] - golden[index : index + 2]).abs().max()
        swapped = (rows[order[index : index + 2][::-1]] - golden[index : index + 2]).abs().max()
        if golden[index, 0] - golden[index + 1, 0] < TIE and swapped < straight:
            order[index : index + 2] = order[index : index + 2][::-1]
    rows = rows[order]
    assert (rows - golden).abs().max() < 1e-3
    # S reads the rows in order, so a swap of tied rows is undone before logits are compared.
    again = output["logits"] if order == sorted(order) else model.image_head(rows[None])[0]
    assert (again - torch.from_numpy(logits)).abs().max() < 1e-4


#: The model itself, and the form that evaluation and prediction use.
FORMS = pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda model: model, id="model"),
        pytest.param(to_openvino, id="openvino", marks=needs_openvino),
    ],
)


@pytest.mark.parametrize("variant", ["cls_resnet18_t1_c2", "cls_resnet50_t0_c3"])
@FORMS
def test_classifiers(shared, variant, form):
    model, found = golden_model(shared, variant)
    model = form(model)
    assert found.variant.num_boxes == (256 if "50" in variant else 128)
    with np.load(shared / "golden" / f"{variant}.npz") as golden, torch.no_grad():
        for index in range(3):
            output = model([{"image": read_image(shared / "golden" / f"image{index}.png")}])[0]
            compare_rows(model, output, golden[f"ranked{index}"], golden[f"logits{index}"])


@FORMS
def test_segmentation(shared, form):
    model = form(golden_model(shared, "seg_resnet18_t1_c2")[0])
    with np.load(shared / "golden" / "seg_resnet18_t1_c2.npz") as golden, torch.no_grad():
        for index in range(3):
            image = read_image(shared / "golden" / f"image{index}.png")
            found = model.inference([{"image": image}], do_postprocess=False)[0]
            assert len(found) == 100
            assert np.abs(found.pred_boxes.tensor.numpy() - golden[f"boxes{index}"]).max() < 0.05
            assert np.abs(found.scores.numpy() - golden[f"scores{index}"]).max() < 1e-3
            assert (found.pred_classes.numpy() + 1 == golden[f"labels{index}"]).all()
            masks = found.pred_masks[:20, 0].logit().numpy()
            assert np.abs(masks - golden[f"mask_logits{index}"]).max() < 1e-3


# ---- a file as the authors wrote theirs ----


@pytest.fixture(scope="module")
def authors_model(shared):
    content = read_weights_file(shared / "golden" / "authors_file" / "cls_r18t2.pth")
    model, found = imported_model(content["model_weights"])
    assert found.config == "configs/cls_r18_t2_merge.yaml"
    return model


@pytest.mark.parametrize("index", [0, 1, 2])
@FORMS
def test_the_authors_file(shared, authors_model, index, form):
    folder = shared / "golden" / "authors_file"
    with np.load(folder / f"cls_r18t2_img{index}.npz") as golden, torch.no_grad():
        output = form(authors_model)([{"image": read_image(folder / f"img{index}.png")}])[0]
        assert np.abs(output["ranked_boxes"].numpy() - golden["ranked_boxes"]).max() < 1e-4
        assert np.abs(output["logits"].numpy() - golden["final_scores"]).max() < 1e-4


def test_a_training_step_of_the_authors_file(shared, authors_model):
    folder = shared / "golden" / "authors_file"
    authors_model.set_trainable("full")
    authors_model.train()
    inputs = [
        {"image": read_image(folder / f"img{index}.png"), "label": index} for index in range(3)
    ]
    try:
        loss = authors_model(inputs)["loss_image"]
        loss.backward()
    finally:
        authors_model.eval()
    layout = authors_layout(AuthorsVariant(18, 2, 1, False, True))
    ours = dict(authors_model.named_parameters())
    with np.load(folder / "cls_r18t2_train.npz") as golden:
        assert float(loss) == pytest.approx(float(golden["loss"]), rel=1e-3)
        norms = dict(zip(golden["grad_names"].tolist(), golden["grad_norms"].tolist(), strict=True))
        assert len(norms) == len(ours)
        for name, norm in norms.items():
            gradient = ours[layout[name].target].grad
            if norm == -1.0:
                assert gradient is None, name
            else:
                assert float(gradient.norm()) == pytest.approx(norm, rel=1e-3), name
