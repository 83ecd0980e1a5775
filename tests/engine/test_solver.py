"""The optimiser's numbers; half precision: what runs in it, what stays float32, refusals."""

import copy
from collections import defaultdict

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import RoIPool

from ctmasknet.config_file import read_cfg
from ctmasknet.engine import solver as precision
from ctmasknet.engine.solver import (
    AutocastTrainer,
    amp_dtype,
    build_optimizer,
    build_schedule,
    build_step_trainer,
)
from ctmasknet.errors import CTMaskNetError
from tests.helpers.running import needs_bfloat16


def groups_of(optimizer, model) -> dict[str, dict]:
    """Name of a weight -> the optimiser's group that it is in."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


class TestOptimizer:
    @pytest.mark.parametrize("config", ["seg", "cls"])
    def test_of_the_paper_is_adam_with_one_decay_for_all(self, repository, tiny_cfg, config):
        solver = read_cfg(repository / "configs" / f"{config}.yaml").SOLVER
        tiny_cfg.SOLVER = solver
        tiny_cfg.MODEL.META_ARCHITECTURE = {"seg": "GeneralizedRCNN", "cls": "CTMaskNet"}[config]
        tiny_cfg.MODEL.TRAINABLE = "full"
        model = build_model(tiny_cfg)
        optimizer = build_optimizer(tiny_cfg, model)
        assert type(optimizer) is torch.optim.Adam
        groups = groups_of(optimizer, model)
        assert set(groups) == {name for name, p in model.named_parameters() if p.requires_grad}
        # Biases and batch normalisation are decayed like the rest
        assert {name.split(".")[-1] for name in groups} == {"weight", "bias"}
        assert any(".norm." in name for name in groups)
        for group in groups.values():
            found = [group[key] for key in ("lr", "weight_decay", "betas", "eps", "amsgrad")]
            assert found == [1e-5, 1e-3, (0.9, 0.999), 1e-8, False]

    def test_sgd_has_momentum(self, tiny_cfg, tiny_model):
        tiny_cfg.SOLVER.OPTIMIZER, tiny_cfg.SOLVER.MOMENTUM = "SGD", 0.8
        tiny_cfg.SOLVER.NESTEROV = True
        optimizer = build_optimizer(tiny_cfg, tiny_model)
        assert type(optimizer) is torch.optim.SGD
        for group in optimizer.param_groups:
            found = [group[key] for key in ("lr", "weight_decay", "momentum", "nesterov")]
            assert found == [1e-5, 1e-3, 0.8, True]

    @pytest.mark.parametrize(
        ("name", "weight"),
        [("ADAM", 2 - 0.1), ("ADAMW", 2 - 0.1 * 0.25 * 2), ("SGD", 2 - 0.1 * 0.25 * 2)],
    )
    def test_a_step_of_decay_alone(self, tiny_cfg, name, weight):
        """Without a loss a weight 2 falls by lr (Adam, whatever the size) or by lr * decay * 2."""
        tiny_cfg.SOLVER.OPTIMIZER = name
        tiny_cfg.SOLVER.BASE_LR, tiny_cfg.SOLVER.WEIGHT_DECAY = 0.1, 0.25
        model = torch.nn.Linear(1, 1)
        optimizer = build_optimizer(tiny_cfg, model)
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 2.0)
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for parameter in model.parameters():
            assert parameter.item() == pytest.approx(weight)

    @pytest.mark.parametrize("task", ["GeneralizedRCNN", "CTMaskNet"])
    def test_detector_lr_factor_is_the_classifiers_detectors(self, tiny_cfg, task):
        tiny_cfg.MODEL.META_ARCHITECTURE, tiny_cfg.MODEL.TRAINABLE = task, "full"
        tiny_cfg.SOLVER.BASE_LR, tiny_cfg.SOLVER.DETECTOR_LR_FACTOR = 0.01, 0.3
        model = build_model(tiny_cfg)
        rates = {
            name: group["lr"]
            for name, group in groups_of(build_optimizer(tiny_cfg, model), model).items()
        }
        assert rates["backbone.fpn_lateral3.weight"] == rates["roi_heads.box_head.fc1.bias"]
        if task == "CTMaskNet":
            assert rates["backbone.fpn_lateral3.weight"] == pytest.approx(0.003)
            assert {rate for name, rate in rates.items() if name.startswith("image_head.")} == {
                0.01
            }
        else:
            assert set(rates.values()) == {0.01}

    def test_norms_and_biases_apart_where_asked_for(self, tiny_cfg):
        tiny_cfg.MODEL.TRAINABLE = "full"
        tiny_cfg.SOLVER.WEIGHT_DECAY_NORM, tiny_cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.5, 0.25
        tiny_cfg.SOLVER.BIAS_LR_FACTOR = 2.0
        model = build_model(tiny_cfg)
        groups = groups_of(build_optimizer(tiny_cfg, model), model)
        stem = "backbone.bottom_up.stem.conv1.norm.weight"
        found = [groups[name] for name in (stem, "image_head.fc1.bias", "image_head.fc1.weight")]
        assert [group["weight_decay"] for group in found] == [0.5, 0.25, 1e-3]
        assert [group["lr"] for group in found] == [1e-5, 2e-5, 1e-5]

    def test_gradients_are_clipped_where_asked_for(self, tiny_cfg):
        tiny_cfg.SOLVER.OPTIMIZER, tiny_cfg.SOLVER.BASE_LR = "SGD", 1.0
        tiny_cfg.SOLVER.WEIGHT_DECAY = 0.0
        tiny_cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
        tiny_cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
        model = torch.nn.Linear(1, 1)
        optimizer = build_optimizer(tiny_cfg, model)
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 2.0)
            parameter.grad = torch.full_like(parameter, 8.0)
        optimizer.step()
        assert [parameter.item() for parameter in model.parameters()] == [1.5, 1.5]


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"], [1, 1e-1, 1e-2, 1e-3, 1e-3]),
        (["SOLVER.STEPS", (2,)], [1, 1, 1e-1, 1e-1, 1e-1]),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"], [1, 0.8535534, 0.5, 0.1464466, 0]),
        (["SOLVER.WARMUP_ITERS", 100, "SOLVER.WARMUP_FACTOR", 0.5], [0.5, 0.625, 0.75, 0.875, 1]),
    ],
)
def test_a_schedule_has_a_rate_for_every_iteration_and_after_the_last(tiny_cfg, overrides, rates):
    tiny_cfg.SOLVER.MAX_ITER, tiny_cfg.SOLVER.BASE_LR = 4, 1.0
    tiny_cfg.merge_from_list(overrides)
    optimizer = build_optimizer(tiny_cfg, torch.nn.Linear(1, 1))
    scheduler = build_schedule(tiny_cfg, optimizer)
    found = []
    for _ in rates:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(found) < len(rates) else None
    assert found == pytest.approx(rates, abs=1e-6)


def test_a_schedule_without_a_rate_for_some_iteration_is_refused(tiny_cfg):
    tiny_cfg.SOLVER.STEPS, tiny_cfg.SOLVER.MAX_ITER = (3, 2), 9
    optimizer = build_optimizer(tiny_cfg, torch.nn.Linear(1, 1))
    with pytest.raises(CTMaskNetError, match=r"has no rate for every .*SOLVER.STEPS \(3, 2\)"):
        build_schedule(tiny_cfg, optimizer)


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


class BoxArithmetic(TorchDispatchMode):
    """Notes what boxes are pooled and suppressed in: operator -> types of its floating inputs."""

    OPERATORS = ("torchvision::roi_align", "torchvision::nms", "aten::_embedding_bag")

    def __init__(self):
        super().__init__()
        self.types = defaultdict(set)
        self.boxes = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name().split(".")[0]
        if name.startswith(self.OPERATORS):
            given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            self.types[name] |= {x.dtype for x in given if x.is_floating_point()}
            if name == "torchvision::nms":
                self.boxes.append(args[0])
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("pooler", ["ROIAlign", "ROIAlignV2", "ROIPool"])
@pytest.mark.parametrize("task", ["GeneralizedRCNN", "CTMaskNet"])
def test_boxes_are_never_rounded(amp_cfg, slices, monkeypatch, task, pooler):
    amp_cfg.MODEL.META_ARCHITECTURE = task
    amp_cfg.MODEL.TRAINABLE = "full"
    amp_cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = pooler
    if pooler == "ROIPool":
        amp_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = pooler
    model = build_model(amp_cfg).train()
    precision.keep_predictions_float32(model)
    coded, pooled = set(), []
    apply = Box2BoxTransform.apply_deltas

    def apply_deltas(transform, deltas, boxes):
        found = apply(transform, deltas, boxes)
        coded.update(one.dtype for one in (deltas, boxes, found))
        return found

    pool = RoIPool.forward

    def roi_pool(layer, maps, boxes):
        pooled.extend(one.dtype for one in (maps, boxes))
        return pool(layer, maps, boxes)

    monkeypatch.setattr(Box2BoxTransform, "apply_deltas", apply_deltas)
    monkeypatch.setattr(RoIPool, "forward", roi_pool)
    batch = [detector_input(item) for item in slices[:2]]
    with EventStorage(), BoxArithmetic() as seen, torch.autocast("cpu", torch.bfloat16):
        model(batch)
        model.eval()(batch)
    assert coded == {torch.float32}
    assert set(pooled) == ({torch.float32} if pooler == "ROIPool" else set())
    expected = {"torchvision::nms"}
    if pooler != "ROIPool":
        expected.add("aten::_embedding_bag")
        expected |= {"torchvision::roi_align"} if task == "GeneralizedRCNN" else set()
    assert set(seen.types) >= expected
    assert all(types == {torch.float32} for types in seen.types.values()), dict(seen.types)
    assert any(not torch.equal(boxes, boxes.bfloat16().float()) for boxes in seen.boxes)


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
    amp_cfg.MODEL.TRAINABLE = "full"
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


@needs_bfloat16
def test_layers_in_bfloat16_lie_channels_last_and_give_the_same_loss(amp_cfg, slices):
    amp_cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    batch, losses, seen = [detector_input(item) for item in slices[:2]], [], []
    for build in (build_step_trainer, step_trainer):
        torch.manual_seed(0)
        model = build_model(amp_cfg).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        batches = [batch] if build is build_step_trainer else batch
        optimizer = build_optimizer(amp_cfg, model)
        step = build(amp_cfg, model, batches, optimizer)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        model.backbone.fpn_lateral3.register_forward_hook(
            lambda layer, x, y: seen.append(y.is_contiguous(memory_format=torch.channels_last))
        )
        torch.manual_seed(0)
        with EventStorage() as storage:
            step.run_step()
            losses.append(storage.latest()["total_loss"][0])
    assert seen == [True, False]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_ranked_rows_are_float32(amp_cfg, slices):
    model = build_model(amp_cfg).eval()
    precision.keep_predictions_float32(model)
    with torch.autocast("cpu", torch.bfloat16):
        rows = model(slices)[0]["ranked_boxes"]
    assert rows.dtype == torch.float32
    assert not torch.equal(rows, rows.bfloat16().float())


def test_a_copy_computes_with_its_own_weights(amp_cfg, slices):
    model = build_model(amp_cfg).eval()
    precision.keep_predictions_float32(model)
    precision.keep_predictions_float32(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (copied.image_head.logits, copied.roi_heads.box_predictor.cls_score):
            layer.weight.zero_()
            layer.bias.copy_(torch.arange(len(layer.bias)))
    with torch.autocast("cpu", torch.bfloat16):
        before = model(slices)[0]
        found = copied(slices)[0]
    assert found["logits"].tolist() == [0, 1, 2]
    assert found["ranked_boxes"][0, 0] == pytest.approx(float(torch.arange(3.0).softmax(0)[1]))
    assert found["logits"].dtype == before["logits"].dtype == torch.float32
    assert before["logits"].tolist() != [0, 1, 2]


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
