import copy
import logging
import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast import inference
from ctmasknet.modeling.fast.inference import inference_engine, inference_model
from ctmasknet.modeling.fast.openvino import Compiled, computes_bfloat16, to_openvino
from tests.helpers.running import needs_openvino
from tests.modeling.fast.results import assert_near, assert_same


@pytest.fixture
def torch_computes():
    """Not here."""


@needs_openvino
def test_rows_logits_boxes_and_masks_are_those_of_the_model(model, slices):
    before = copy.deepcopy(model.state_dict())
    model.return_instances = True
    expected, alone = model(slices), model(slices[:1])
    model.backbone.train()  # as a detector that learns has it
    form = to_openvino(model)
    # It is a copy: what becomes of the model is nothing to it
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.5)
    assert_same(form(slices), expected)
    assert_same(form(slices[:1]), alone)
    assert not any("backbone" in name for name in form.state_dict())
    with torch.no_grad():
        for value in model.parameters():
            value.div_(1.5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(before[name], value)


@needs_openvino
def test_it_computes_in_float32_by_torchs_threads():
    """Where the CPU has bfloat16, OpenVINO takes it unless told otherwise."""
    for dtype, hint in ((torch.float32, "float"), (torch.bfloat16, "bfloat16")):
        if dtype == torch.float32 or computes_bfloat16():
            dense = Compiled.of(nn.Linear(2, 2), torch.zeros(1, 2), dtype)
            its = dense.request.get_compiled_model().get_property
            assert hint in str(its("INFERENCE_PRECISION_HINT")).replace("f32", "float").lower()
            assert its("INFERENCE_NUM_THREADS") == torch.get_num_threads()
            assert its("ENABLE_CPU_PINNING") is False


@needs_openvino
def test_it_tells_nobody_that_it_is_used():
    """``import openvino`` alone sends an event."""
    code = "import sys; from ctmasknet.modeling.fast.openvino import computes_bfloat16 as c; c()"
    code += "; assert 'openvino' in sys.modules and not sys.modules['openvino_telemetry']"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_openvino
def test_bfloat16_is_near_and_decodes_in_float32(model, slices):
    if not computes_bfloat16():
        pytest.skip("OpenVINO does not compute in bfloat16 on this CPU")
    found, expected = to_openvino(model, torch.bfloat16)(slices), model(slices)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["logits"].dtype == ours["ranked_boxes"].dtype == torch.float32
        assert_near(ours["ranked_boxes"], theirs["ranked_boxes"])


@needs_openvino
@pytest.mark.parametrize(
    "changes",
    [
        ["MODEL.ROI_BOX_HEAD.NUM_CONV", 1, "MODEL.RESNETS.NORM", "GN"],
        ["MODEL.IMAGE_HEAD.NAME", "SetAttentionImageHead", "MODEL.IMAGE_HEAD.READS", ("masks",)],
    ],
)
def test_other_heads_and_norms(tiny_cfg, slices, changes):
    tiny_cfg.merge_from_list(changes)
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    found, expected = to_openvino(model)(slices), model(slices)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["logits"] - theirs["logits"]).abs().max() < 1e-4
        assert theirs["logits"].abs().max() > 0


@needs_openvino
def test_a_slice_without_boxes(tiny_cfg, tiny_model, slices):
    tiny_model.eval().return_instances = True
    tiny_model.roi_heads.box_predictor.test_score_thresh = 1.0
    form = to_openvino(tiny_model)
    (found,) = form(slices[:1])
    assert len(found["instances"]) == 0 and found["instances"].pred_masks.shape == (0, 64, 64)
    assert form.roi_heads.box_head(torch.zeros(0, 32, 7, 7)).shape == (0, 32)


class _Branches(nn.Module):
    """Its layers depend on what it sees."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features):
        objectness, deltas = self.head(features)
        return [one + one.shape[-1] * (len(one) > 1) for one in objectness], deltas


@needs_openvino
def test_a_model_that_is_not_fixed_is_left_to_torch(tiny_cfg, tiny_model, slices, caplog):
    generator = tiny_model.eval().proposal_generator
    generator.rpn_head = _Branches(generator.rpn_head)
    expected = tiny_model(slices)
    tiny_cfg.MODEL.INFERENCE.ENGINE = "openvino"
    with pytest.raises(CTMaskNetError, match="OpenVINO computes another rpn_p3 than this model"):
        inference_model(tiny_cfg, tiny_model)
    tiny_cfg.MODEL.INFERENCE.ENGINE = "auto"
    with caplog.at_level(logging.WARNING):
        found = inference_model(tiny_cfg, tiny_model)(slices)
    assert "another rpn_p3 than this model; set it to torch (which is done)" in caplog.text
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["logits"] - theirs["logits"]).abs().max() < 1e-4


@needs_openvino
def test_it_is_taken_unless_the_configuration_says_otherwise(tiny_cfg, tiny_model):
    assert isinstance(inference_model(tiny_cfg, tiny_model.eval()).backbone.compiled, Compiled)
    tiny_cfg.MODEL.INFERENCE.ENGINE = "torch"
    assert inference_model(tiny_cfg, tiny_model) is tiny_model


@needs_openvino
def test_a_diverged_model_is_left_to_torch(tiny_cfg, tiny_model, slices):
    nn.init.constant_(tiny_model.eval().proposal_generator.rpn_head.conv.bias, float("nan"))
    with pytest.raises(CTMaskNetError, match=r"0\.png: the model's region proposal network gives"):
        inference_model(tiny_cfg, tiny_model)(slices)


def test_which_engine_computes(tiny_cfg, monkeypatch, caplog):
    monkeypatch.setattr(inference, "installed", lambda: True)
    assert inference_engine(tiny_cfg) == "openvino"
    tiny_cfg.MODEL.INFERENCE.ENGINE = "torch"
    assert inference_engine(tiny_cfg) == "torch"
    tiny_cfg.MODEL.INFERENCE.ENGINE = "openvino"
    tiny_cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(CTMaskNetError, match=r"but MODEL\.DEVICE is cuda; set the first"):
        inference_engine(tiny_cfg)
    tiny_cfg.MODEL.DEVICE = "cpu"
    monkeypatch.setattr(inference, "installed", lambda: False)
    with pytest.raises(CTMaskNetError, match="not installed; `pip install openvino`, or set it"):
        inference_engine(tiny_cfg)
    tiny_cfg.MODEL.INFERENCE.ENGINE = "auto"
    inference._say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        assert inference_engine(tiny_cfg) == inference_engine(tiny_cfg) == "torch"
    assert caplog.text.count("`pip install openvino`") == 1
