import json
from math import nan

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from ctmasknet.engine import export
from ctmasknet.engine.checkpoint import spec_of
from ctmasknet.engine.export import SPEC_NAME, export_classifier, load_exported
from ctmasknet.errors import CTMaskNetError


@pytest.fixture
def cfg(tiny_cfg):
    """Two levels, so that boxes are pooled from both."""
    tiny_cfg.MODEL.RESNETS.OUT_FEATURES = tiny_cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3"]
    tiny_cfg.MODEL.RPN.IN_FEATURES = tiny_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    return tiny_cfg


@pytest.fixture
def model(cfg):
    torch.manual_seed(0)
    built = build_model(cfg).eval()
    for layer in (
        built.proposal_generator.rpn_head.objectness_logits,
        built.roi_heads.box_predictor.cls_score,
        built.roi_heads.box_predictor.bbox_pred,
    ):
        nn.init.normal_(layer.weight, std=0.3)
    # Some boxes large enough for the coarser level
    built.roi_heads.box_pooler.canonical_level = 3
    built.roi_heads.box_pooler.canonical_box_size = 16
    return built


@pytest.fixture
def image():
    return torch.rand(1, 3, 70, 96, generator=torch.Generator().manual_seed(5)) * 255


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_file_gives_the_rows_and_logits_of_the_model(cfg, model, image, tmp_path, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"model{suffix}"
    assert export_classifier(cfg, model, path, 70, 96) < 1e-4
    run = load_exported(path)
    for picture in (image, image.flip(3), torch.zeros_like(image)):
        logits, rows = run(picture)
        expected = model([{"image": picture[0]}])[0]
        assert rows.shape == (1, 16, 5) and logits.shape == (1, 3)
        assert (rows[0] - expected["ranked_boxes"]).abs().max() < 1e-3
        assert (logits[0] - expected["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("left", [10, 0])
def test_few_boxes_or_none_are_stretched_as_in_the_model(cfg, model, image, left):
    ranked = model([{"image": image[0]}])[0]["ranked_boxes"]
    model.roi_heads.ranked_score_thresh = float(ranked[left, 0]) if left else 1.0
    rows = export.ExportableClassifier(model, 70, 96)(image)[1][0]
    expected = model([{"image": image[0]}])[0]["ranked_boxes"]
    assert len(expected.unique(dim=0)) == (left or 1)
    assert (rows - expected).abs().max() < 1e-3


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_scores_are_the_model_s_own(cfg, image, tmp_path, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    assert export_classifier(cfg, model, tmp_path / f"m{suffix}", 70, 96) < 1e-4
    rows = load_exported(tmp_path / f"m{suffix}")(image)[1][0]
    assert (rows - model([{"image": image[0]}])[0]["ranked_boxes"]).abs().max() < 1e-3


#: Other values of keys that change what a classifier computes; None: one that is refused.
FORWARD_KEYS = {
    "MODEL.RPN.NMS_THRESH": 0.3,
    "MODEL.RPN.BBOX_REG_WEIGHTS": (2.0, 2.0, 1.0, 1.0),
    "MODEL.RPN.CONV_DIMS": [16, 32],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 30,
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 8,
    "MODEL.ANCHOR_GENERATOR.ROUND": False,
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p3"],
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (5.0, 5.0, 2.0, 2.0),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 5,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "GN",
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.FPN.FUSE_TYPE": "avg",
    "MODEL.RANKED_BOXES.NMS_THRESH": 0.2,
    "MODEL.RANKED_BOXES.SCORE_THRESH": 0.3,
    "MODEL.PIXEL_STD": [40.0, 50.0, 60.0],
}


@pytest.mark.parametrize(("key", "value"), FORWARD_KEYS.items(), ids=FORWARD_KEYS)
def test_a_key_that_changes_the_model_changes_the_program(cfg, image, key, value):
    if key == "MODEL.ROI_BOX_HEAD.NORM":
        cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 1, 32
    cfg.merge_from_list([key, value])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for layer in (
        model.proposal_generator.rpn_head.objectness_logits,
        model.proposal_generator.rpn_head.anchor_deltas,
        model.roi_heads.box_predictor.cls_score,
    ):
        nn.init.normal_(layer.weight, std=0.1)
    with torch.no_grad():
        logits = export.ExportableClassifier(model, 70, 96)(image)[0][0]
    assert (logits - model([{"image": image[0]}])[0]["logits"]).abs().max() < 1e-4


def test_what_the_program_does_not_compute_is_refused_and_not_written(
    cfg, model, tmp_path, monkeypatch
):
    class Doubled(type(model.roi_heads)):
        def rank(self, predictions, proposals):
            return 2 * super().rank(predictions, proposals)

    plain, model.roi_heads.__class__ = type(model.roi_heads), Doubled
    with pytest.raises(CTMaskNetError, match=r"m\.pt2: its logits would differ by \d"):
        export_classifier(cfg, model, tmp_path / "m.pt2", 70, 96)
    model.roi_heads.__class__ = plain
    forward = model.image_head.forward
    monkeypatch.setattr(model.image_head, "forward", lambda rows: forward(rows.sort().values + nan))
    with pytest.raises(CTMaskNetError, match="its logits would differ by nan"):
        export_classifier(cfg, model, tmp_path / "m.pt2", 70, 96)
    monkeypatch.setattr(
        *(model.image_head, "forward"),
        lambda rows: forward(rows) if rows.sum() > -1 else forward(2 * rows),
    )
    with pytest.raises(CTMaskNetError, match=r"m\.pt2: this model has no form in torch\.export"):
        export_classifier(cfg, model, tmp_path / "m.pt2", 70, 96)
    assert not list(tmp_path.iterdir())


def test_boxes_of_one_score_may_change_places(cfg, model, tmp_path, monkeypatch):
    """Rows of one score in another order, which this head does not take for the same."""
    model.roi_heads.box_predictor.cls_score.weight.data.zero_()
    model.image_head.fc1.weight.data.mul_(100)

    class Turned(type(model.roi_heads)):
        def rank(self, predictions, proposals):
            return super().rank(predictions, proposals).flip(1)

    model.roi_heads.__class__ = Turned
    assert export_classifier(cfg, model, tmp_path / "m.pt2", 70, 96) > 0.01
    model.roi_heads.ranked_score_thresh = -0.5
    model.roi_heads.box_predictor.use_sigmoid_ce = True  # not what the rows were scored with
    program = export.ExportableClassifier

    class OtherScores(program):
        def _rank(self, class_logits, deltas, boxes, real):
            return super()._rank(class_logits, deltas, boxes, real) * 0.9

    monkeypatch.setattr(export, "ExportableClassifier", OtherScores)
    with pytest.raises(CTMaskNetError, match="its logits would differ"):
        export_classifier(cfg, model, tmp_path / "n.pt2", 70, 96)


def test_file_carries_the_checkpoint_s_specification(cfg, model, tmp_path):
    onnx = pytest.importorskip("onnx")
    expected = json.loads(json.dumps(spec_of(cfg)))
    export_classifier(cfg, model, tmp_path / "m.onnx", 64, 64)
    made = onnx.load(tmp_path / "m.onnx")
    assert json.loads({p.key: p.value for p in made.metadata_props}[SPEC_NAME]) == expected
    # Standard operators alone
    assert {node.domain for node in made.graph.node} == {""}
    export_classifier(cfg, model, tmp_path / "m.pt2", 64, 64)
    found = {SPEC_NAME: ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=found)
    assert json.loads(found[SPEC_NAME]) == expected


def test_bad_input_is_named_and_nothing_written(cfg, model, tmp_path, monkeypatch):
    with pytest.raises(CTMaskNetError, match=r"m\.pth: end the name in \.pt2 or \.onnx"):
        export_classifier(cfg, model, tmp_path / "m.pth", 64, 64)
    with pytest.raises(CTMaskNetError, match="height 0"):
        export_classifier(cfg, model, tmp_path / "m.pt2", 0, 64)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(CTMaskNetError, match="only classifiers"):
        export_classifier(cfg, model, tmp_path / "m.pt2", 64, 64)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    cfg.MODEL.META_ARCHITECTURE = "CTMaskNet"
    with pytest.raises(CTMaskNetError, match="pip install onnx onnxruntime"):
        export_classifier(cfg, model, tmp_path / "m.onnx", 64, 64)
    assert not list(tmp_path.iterdir())
