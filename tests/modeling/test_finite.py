"""A NaN anywhere in a detector is an error that names the slice, however the detector is used."""

import re

import pytest
import torch
from detectron2.modeling import build_model

from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast.openvino import to_openvino
from ctmasknet.modeling.finite import NamingSlices, NotFiniteError, check_boxes
from tests.helpers.running import needs_openvino, run_tool
from tests.test_train_net import TINY

WEIGHTS = [
    "backbone.bottom_up.stem.conv1.norm.running_mean",
    "backbone.bottom_up.res2.0.conv2.weight",
    "backbone.fpn_output3.bias",
    "proposal_generator.rpn_head.objectness_logits.bias",
    "proposal_generator.rpn_head.anchor_deltas.bias",
    "roi_heads.box_head.fc1.bias",
    "roi_heads.box_predictor.cls_score.bias",
    "roi_heads.box_predictor.bbox_pred.bias",
]


def poisoned(model, name):
    """The model with a weight that is no number."""
    model.state_dict()[name].view(-1)[0] = torch.nan
    return model


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize("task", ["GeneralizedRCNN", "CTMaskNet"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_inference(tiny_cfg, slices, task, name, engine):
    tiny_cfg.MODEL.META_ARCHITECTURE = task
    model = poisoned(build_model(tiny_cfg).eval(), name)
    model = to_openvino(model) if engine == "openvino" else model
    with (
        torch.no_grad(),
        pytest.raises(CTMaskNetError, match=r"^0\.png: the model's .* not finite"),
    ):
        NamingSlices(model)(slices)


@pytest.mark.parametrize("name", WEIGHTS)
def test_training_of_the_whole_classifier(tiny_cfg, slices, name):
    tiny_cfg.MODEL.TRAINABLE = "full"
    model = poisoned(build_model(tiny_cfg).train(), name)
    with pytest.raises(CTMaskNetError, match=r"^0\.png: the model's"):
        model(slices)


def test_masks(tiny_cfg, tiny_model, slices):
    tiny_model.eval().return_instances = True
    assert any(len(output["instances"]) for output in tiny_model(slices))
    poisoned(tiny_model, "roi_heads.mask_head.predictor.bias")
    with pytest.raises(CTMaskNetError, match=r"\.png: the model's mask head"):
        tiny_model(slices)


def test_the_slice_that_it_is(tiny_model, slices):
    slices[1]["image"] = torch.full_like(slices[1]["image"], torch.nan)
    with pytest.raises(CTMaskNetError, match=r"^1\.png: the model's region proposal network"):
        tiny_model.eval()(slices)
    values = torch.zeros(5, 2)
    check_boxes("box head", [values, values], [2, 0, 3])
    check_boxes("box head", [values[:0]], [0])
    values[2, 1] = torch.inf
    with pytest.raises(NotFiniteError, match="slice 2 of its batch: the model's box head"):
        check_boxes("box head", [torch.zeros(5, 1), values], [2, 0, 3])


@pytest.mark.parametrize(
    ("config", "name", "overrides", "message"),
    [
        ("seg", WEIGHTS[3], [], "the model's region proposal network"),
        ("seg", "roi_heads.mask_head.predictor.bias", [], "training has diverged"),
        ("cls", WEIGHTS[6], ["MODEL.RANKED_BOXES.CACHE", "always"], "the model's box head"),
        ("cls", "image_head.fc1.bias", [], "training has diverged"),
    ],
)
def test_training_runs(
    repository, prepared, tmp_path, monkeypatch, capsys, config, name, overrides, message
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)
    # Such a file is refused when it is read; a training may come to be so by itself
    monkeypatch.setattr("ctmasknet.engine.checkpoint.check_weights", lambda *given: None)
    file, weights = f"configs/{config}_light.yaml", tmp_path / "nan.pth"
    words = [*TINY, "MODEL.LESION_CLASSES", "['lesion']", "MODEL.ROI_HEADS.NUM_CLASSES", 1]
    model = poisoned(build_model(read_cfg(file, words)), name)
    torch.save({"model": model.state_dict()}, weights)
    words += ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 1]
    if config == "cls":
        overrides = [*overrides, "MODEL.TRAINABLE", "heads"]
    words = ["--config-file", file, *words, *overrides]
    assert run_tool(repository, "tools/train_net.py", *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"error: /\S+\.(png|jpg)[:,] ", error) and message in error
    if "always" in overrides:  # while rows are cached, before the first iteration
        return
    assert "at iteration 0 (no finite loss before it): training has diverged" in error
    assert error.endswith("with a lower SOLVER.BASE_LR")
