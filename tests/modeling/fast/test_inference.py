import copy

import pytest
import torch
from torch import nn

from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast import inference
from ctmasknet.modeling.fast.inference import has_bfloat16, in_torch, inference_model, rechecked
from tests.helpers.running import needs_bfloat16
from tests.modeling.fast.results import assert_near


@needs_bfloat16
def test_bfloat16_is_near_and_decodes_in_float32(model, slices):
    expected = model(slices)
    copied = in_torch(model, torch.bfloat16)
    copied.return_instances = True
    for ours, theirs in zip(copied(slices), expected, strict=True):
        assert ours["logits"].dtype == ours["ranked_boxes"].dtype == torch.float32
        assert_near(ours["ranked_boxes"], theirs["ranked_boxes"])


@needs_bfloat16
def test_close_calls_are_decided_in_float32(tiny_cfg, model, slices):
    half = in_torch(model, torch.bfloat16)(slices)
    full = [
        model.eval()([one])[0] for one in slices
    ]  # a batch's close calls are a batch of their own
    best = [result["logits"].topk(2).values for result in half]
    margins = sorted(float(two[0] - two[1]) for two in best)
    tiny_cfg.MODEL.INFERENCE.ENGINE = "torch"
    tiny_cfg.MODEL.INFERENCE.DTYPE = "bfloat16"
    tiny_cfg.MODEL.INFERENCE.RECHECK_MARGIN = (margins[0] + margins[1]) / 2
    form = inference_model(tiny_cfg, model.train())
    found = form(slices)
    assert model.training and form.judge is not model
    for one, half_one, full_one, two in zip(found, half, full, best, strict=True):
        close = float(two[0] - two[1]) == margins[0]
        expected, other = (full_one, half_one) if close else (half_one, full_one)
        assert torch.equal(one["logits"], expected["logits"])
        assert not torch.equal(one["logits"], other["logits"])


@pytest.mark.parametrize("margin", [0.0, float("inf")])
def test_another_copy_decides_with_all_its_results(model, slices, margin):
    fast, judge = copy.deepcopy(model), copy.deepcopy(model)
    nn.init.normal_(judge.image_head.logits.weight)
    for one in (fast, judge):
        one.return_instances = True
    expected = (judge if margin else fast)(slices)
    judge.return_instances = False
    for ours, theirs in zip(rechecked(fast, judge, margin)(slices), expected, strict=True):
        assert (ours["logits"] - theirs["logits"]).abs().max() < 1e-5
        assert len(ours["instances"]) == len(theirs["instances"]) > 0


def test_bfloat16_is_asked_of_the_device_and_never_of_a_torch_without_one_dnn(monkeypatch):
    if torch.backends.mkldnn.is_available():
        assert has_bfloat16(torch.device("cpu")) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for answer in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated, a=answer: a)
        assert has_bfloat16("cuda:0") == answer
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_bfloat16("cpu")


def test_what_a_precision_needs(tiny_cfg, tiny_model, monkeypatch):
    tiny_cfg.MODEL.INFERENCE.ENGINE = "torch"
    assert inference_model(tiny_cfg, tiny_model) is tiny_model
    tiny_cfg.MODEL.INFERENCE.DTYPE = "bfloat16"
    monkeypatch.setattr(inference, "has_bfloat16", lambda device: False)
    with pytest.raises(CTMaskNetError, match="does not compute in"):
        inference_model(tiny_cfg, tiny_model)
    tiny_cfg.MODEL.INFERENCE.DTYPE = "int4"
    with pytest.raises(CTMaskNetError, match=r"MODEL\.INFERENCE\.DTYPE is 'int4'"):
        inference_model(tiny_cfg, tiny_model)


def test_a_file_of_an_earlier_version_is_read(repository, tmp_path):
    base = f"_BASE_: {repository / 'configs' / 'cls.yaml'}\n"
    (tmp_path / "config.yaml").write_text(f"{base}MODEL: {{INFERENCE: {{FUSED: true}}}}")
    assert "FUSED" not in read_cfg(tmp_path / "config.yaml").MODEL.INFERENCE
