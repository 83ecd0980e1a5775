"""Half precision: what runs in it, what stays float32, and where it is refused."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from ctmasknet.engine import solver as precision
from ctmasknet.engine.solver import AutocastTrainer, amp_dtype, build_step_trainer
from ctmasknet.errors import CTMaskNetError
from tests.running import needs_bfloat16


@pytest.fixture
def amp_cfg(tiny_cfg):
    tiny_cfg.SOLVER.AMP.ENABLED = True
    return tiny_cfg


def step_trainer(cfg, model, batch, optimizer):
    """What the configuration asks for; autocast itself computes in bfloat16 on every CPU."""
    if not cfg.SOLVER.AMP.ENABLED:
        return build_step_trainer(cfg, model, [batch] * 3, optimizer)
    precision.keep_predictions_float32(model)
    return AutocastTrainer(model, [batch] * 3, optimizer, torch.bfloat16)


def detector_input(item):
    height, width = item["image"].shape[1:]
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[20.0, 20.0, 44.0, 40.0]]))
    instances.gt_classes = torch.tensor([1])
    masks = torch.zeros(1, height, width, dtype=torch.bool)
    masks[0, 20:40, 20:44] = True
    instances.gt_masks = BitMasks(masks)
    return {**item, "instances": instances}


@pytest.mark.parametrize("task", ["GeneralizedRCNN", "CTMaskNet"])
def test_layers_in_bfloat16_losses_in_float32(amp_cfg, slices, task):
    amp_cfg.MODEL.META_ARCHITECTURE = task
    amp_cfg.MODEL.TRAINABLE = "full"
    batch = [detector_input(item) for item in slices[:2]]
    losses = {}
    for enabled in (False, True):
        amp_cfg.SOLVER.AMP.ENABLED = enabled
        torch.manual_seed(0)
        model = build_model(amp_cfg).train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4)
        step = step_trainer(amp_cfg, model, batch, optimizer)
        assert isinstance(step, AutocastTrainer) == enabled
        seen = {}
        model.backbone.fpn_lateral3.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.update(lateral=output.dtype)
        )
        forward = model.forward
        model.forward = lambda inputs, f=forward, seen=seen: seen.setdefault("losses", f(inputs))
        torch.manual_seed(0)
        with EventStorage() as storage:
            step.run_step()
            losses[enabled] = storage.latest()["total_loss"][0]
        assert seen["lateral"] == (torch.bfloat16 if enabled else torch.float32)
        assert {loss.dtype for loss in seen["losses"].values()} == {torch.float32}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)


@pytest.mark.parametrize("enabled", [False, True])
def test_gradients_are_dropped_before_the_next_forward_pass(amp_cfg, slices, enabled):
    amp_cfg.SOLVER.AMP.ENABLED = enabled
    model = build_model(amp_cfg).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    step = step_trainer(amp_cfg, model, slices, torch.optim.SGD(trained, 1e-4))
    held = []
    forward = model.forward
    model.forward = lambda inputs: (
        held.append(any(parameter.grad is not None for parameter in trained)) or forward(inputs)
    )
    with EventStorage():
        step.run_step()
        assert any(parameter.grad is not None for parameter in trained)
        step.run_step()
    assert held == [False, False]


@needs_bfloat16
def test_the_key_trains_under_autocast(amp_cfg, slices):
    model = build_model(amp_cfg).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4)
    step = build_step_trainer(amp_cfg, model, [slices], optimizer)
    assert isinstance(step, AutocastTrainer)
    seen = {}
    for part in (model.backbone.fpn_lateral3, model.image_head.logits):
        part.register_forward_hook(lambda part, x, found: seen.update({part: found.dtype}))
    with EventStorage():
        step.run_step()
    assert list(seen.values()) == [torch.bfloat16, torch.float32]


def test_ranked_rows_are_float32(amp_cfg, slices):
    model = build_model(amp_cfg).eval()
    precision.keep_predictions_float32(model)
    with torch.autocast("cpu", torch.bfloat16):
        rows = model(slices)[0]["ranked_boxes"]
    assert rows.dtype == torch.float32
    assert not torch.equal(rows, rows.bfloat16().float())


def test_off_by_default(tiny_cfg):
    assert amp_dtype(tiny_cfg) is None


@pytest.mark.parametrize(
    ("device", "dtype", "has", "message"),
    [
        ("cpu", "float16", True, "a CPU does not train in float16; set it to bfloat16"),
        ("cpu", "bfloat16", False, "this CPU does not compute in bfloat16"),
        ("cpu", "", False, "this CPU does not compute in bfloat16"),
        ("cuda", "bfloat16", False, "this GPU does not compute in bfloat16; set it to float16"),
        ("cpu", "half", True, "SOLVER.AMP.DTYPE is 'half'; choose one of"),
    ],
)
def test_refusals(amp_cfg, monkeypatch, device, dtype, has, message):
    monkeypatch.setattr(precision, "has_bfloat16", lambda asked: has or asked != device)
    amp_cfg.MODEL.DEVICE, amp_cfg.SOLVER.AMP.DTYPE = device, dtype
    with pytest.raises(CTMaskNetError, match=message):
        amp_dtype(amp_cfg)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 needs a GPU")
def test_float16_on_a_gpu(amp_cfg, slices):
    amp_cfg.MODEL.DEVICE = "cuda"
    model = build_model(amp_cfg).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    step = build_step_trainer(amp_cfg, model, [slices] * 2, optimizer)
    with EventStorage():
        step.run_step()
    assert "grad_scaler" in step.state_dict()
