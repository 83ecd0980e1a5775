import json

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
    with pytest.raises(CTMaskNetError, match=r"onnx is not installed; .*ctmasknet\[onnx\]"):
        export_classifier(cfg, model, tmp_path / "m.onnx", 64, 64)
    assert not list(tmp_path.iterdir())
