import copy
import functools

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast import inference
from ctmasknet.modeling.fast import layers as fused_layers
from ctmasknet.modeling.fast.inference import inference_model, rechecked, to_inference
from ctmasknet.modeling.fast.layers import FusedConv2d, has_bfloat16
from tests.helpers.running import needs_bfloat16
from tests.modeling.fast.results import assert_near, assert_same


@pytest.fixture(params=[pytest.param("oneDNN", marks=needs_bfloat16), "plain steps"])
def bfloat16(request, monkeypatch):
    """bfloat16 as oneDNN computes in it, and in the plain steps that torch has for every CPU."""
    if request.param == "plain steps":
        monkeypatch.setattr(fused_layers, "_one_dnn", lambda x: False)
        monkeypatch.setattr(inference, "has_bfloat16", lambda device: True)


@pytest.mark.parametrize("one_dnn", [True, False])
def test_rows_and_logits_are_those_of_the_model(model, slices, one_dnn, monkeypatch):
    if not one_dnn:
        monkeypatch.setattr(fused_layers, "_one_dnn", lambda x: False)
    before = copy.deepcopy(model.state_dict())
    model.return_instances = True
    expected = model(slices)
    copied = to_inference(model)
    for found in (copied(slices), copied(slices)):
        assert_same(found, expected)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in copied.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bfloat16_is_near_and_decodes_in_float32(model, slices, bfloat16):
    expected = model(slices)
    copied = to_inference(model, torch.bfloat16)
    copied.return_instances = True
    for ours, theirs in zip(copied(slices), expected, strict=True):
        assert ours["logits"].dtype == ours["ranked_boxes"].dtype == torch.float32
        assert_near(ours["ranked_boxes"], theirs["ranked_boxes"])


def test_a_box_head_with_convolutions_stays_in_float32(tiny_cfg, slices, bfloat16):
    tiny_cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 1
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    copied = to_inference(model, torch.bfloat16)
    assert copied.roi_heads.box_head.conv1.weight.dtype == torch.float32
    for ours, theirs in zip(copied(slices), model(slices), strict=True):
        assert_near(ours["ranked_boxes"], theirs["ranked_boxes"])


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param("half", marks=needs_bfloat16)])
@pytest.mark.parametrize("deep", [True, False])
def test_a_copy_of_a_copy_gives_the_same(model, slices, dtype, deep):
    dtype = torch.bfloat16 if dtype == "half" else dtype
    again = copy.deepcopy if deep else functools.partial(to_inference, dtype=dtype)
    copied = to_inference(model, dtype)
    early, expected = again(copied), copied(slices)  # weights change their layout at first use
    for found in (again(copied), early, copied):
        for ours, theirs in zip(found(slices), expected, strict=True):
            assert torch.equal(ours["ranked_boxes"], theirs["ranked_boxes"])
            assert torch.equal(ours["logits"], theirs["logits"])
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    with pytest.raises(CTMaskNetError, match="is an inference copy in torch"):
        to_inference(copied, other)


@pytest.mark.parametrize("norm", [None, "BN", "FrozenBN"])
@pytest.mark.parametrize("with_add", [False, True])
def test_fused_convolution(norm, with_add):
    generator = torch.Generator().manual_seed(2)
    norms = {None: None, "BN": nn.BatchNorm2d(12), "FrozenBN": FrozenBatchNorm2d(12)}
    conv = Conv2d(8, 12, 3, stride=2, padding=1, bias=norm is None, norm=norms[norm]).eval()
    if norm:
        for value in (conv.norm.running_mean, conv.norm.weight, conv.norm.bias):
            value.data.copy_(torch.randn(12, generator=generator))
        conv.norm.running_var.copy_(torch.rand(12, generator=generator) + 0.5)
    x = torch.randn(2, 8, 9, 7, generator=generator)
    expected = conv(x).detach()
    add = torch.randn(expected.shape, generator=generator) if with_add else None
    expected = (expected + add if with_add else expected).relu()
    found = FusedConv2d(conv, relu=True, dtype=torch.float32)(x, add)
    assert 0 < (expected == 0).float().mean() < 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_other_normalisations_stay_in_float32_and_are_refused_in_bfloat16(
    tiny_cfg, slices, monkeypatch
):
    # It is refused before anything is computed
    monkeypatch.setattr(inference, "has_bfloat16", lambda device: True)
    tiny_cfg.MODEL.RESNETS.NORM = "GN"
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    found, expected = to_inference(model)(slices), model(slices)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["logits"] - theirs["logits"]).abs().max() < 1e-4
    with pytest.raises(CTMaskNetError, match=r"backbone\.\S+ has a normalisation \(GroupNorm\)"):
        to_inference(model, torch.bfloat16)


def test_close_calls_are_decided_in_float32(tiny_cfg, model, slices, bfloat16):
    half = to_inference(model, torch.bfloat16)(slices)
    judge = to_inference(model)
    full = [judge([one])[0] for one in slices]  # a batch's close calls are a batch of their own
    best = [result["logits"].topk(2).values for result in half]
    margins = sorted(float(two[0] - two[1]) for two in best)
    tiny_cfg.MODEL.INFERENCE.DTYPE = "bfloat16"
    tiny_cfg.MODEL.INFERENCE.RECHECK_MARGIN = (margins[0] + margins[1]) / 2
    found = inference_model(tiny_cfg, model)(slices)
    for one, half_one, full_one, two in zip(found, half, full, best, strict=True):
        close = float(two[0] - two[1]) == margins[0]
        expected, other = (full_one, half_one) if close else (half_one, full_one)
        assert torch.equal(one["logits"], expected["logits"])
        assert not torch.equal(one["logits"], other["logits"])


@pytest.mark.parametrize("margin", [0.0, float("inf")])
def test_another_copy_decides_with_all_its_results(model, slices, margin):
    fast, judge = to_inference(model), to_inference(model)
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


def test_keys(tiny_cfg, tiny_model, monkeypatch):
    assert inference_model(tiny_cfg, tiny_model) is not tiny_model
    tiny_cfg.MODEL.INFERENCE.FUSED = False
    assert inference_model(tiny_cfg, tiny_model) is tiny_model
    tiny_cfg.MODEL.INFERENCE.DTYPE = "bfloat16"
    with pytest.raises(CTMaskNetError, match=r"MODEL\.INFERENCE\.FUSED is False"):
        inference_model(tiny_cfg, tiny_model)
    tiny_cfg.MODEL.INFERENCE.FUSED = True
    monkeypatch.setattr(inference, "has_bfloat16", lambda device: False)
    with pytest.raises(CTMaskNetError, match="does not compute in"):
        inference_model(tiny_cfg, tiny_model)
    tiny_cfg.MODEL.INFERENCE.DTYPE = "int8"
    with pytest.raises(CTMaskNetError, match=r"MODEL\.INFERENCE\.DTYPE is 'int8'"):
        inference_model(tiny_cfg, tiny_model)
