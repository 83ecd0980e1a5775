"""The optimiser of a training (paper section 4: Adam) and what takes its steps.

In half precision convolutions and linear layers run in ``SOLVER.AMP.DTYPE``. What the heads predict
is turned to float32 before anything is decoded, ranked or lost, and boxes are pooled in float32, so
proposals, ranked rows, logits and losses are float32; so are the weights, their optimiser's state
and the checkpoints. None of this has been run on a GPU.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.solver.build import (
    build_lr_scheduler,
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
)
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from ctmasknet.config import is_classifier
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast.inference import has_bfloat16


def _adam(kind: type[torch.optim.Optimizer]) -> Callable:
    return lambda parameters, cfg: kind(
        parameters,
        lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        # One pass over the weights instead of one an operation; on CUDA torch chooses.
        fused=True if cfg.MODEL.DEVICE == "cpu" else None,
    )


_OPTIMIZERS = {
    "ADAM": _adam(torch.optim.Adam),
    "ADAMW": _adam(torch.optim.AdamW),
    "SGD": lambda parameters, cfg: torch.optim.SGD(
        parameters,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    ),
}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """``SOLVER.OPTIMIZER`` over the trainable weights of ``model``."""
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: _lr_factor(cfg, name),
    )
    return maybe_add_gradient_clipping(cfg, _OPTIMIZERS[cfg.SOLVER.OPTIMIZER](parameters, cfg))


def build_schedule(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Detectron2's learning rate by iteration, asked once before it is needed.

    Raises:
        CTMaskNetError: it has no rate for some iteration.
    """
    solver, last = cfg.SOLVER, cfg.SOLVER.MAX_ITER
    try:
        scheduler = build_lr_scheduler(cfg, optimizer)
        if solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
            # It has none behind the last iteration, where no step follows but it is asked.
            scheduler._multiplier = _BeforeTheEnd(scheduler._multiplier, 1 - 0.5 / last)
        for at in {*range(0, last, 1 + last // 1000), last - 1, last}:
            scheduler._multiplier(at / last)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError) as error:
        raise CTMaskNetError(
            f"SOLVER.LR_SCHEDULER_NAME {solver.LR_SCHEDULER_NAME} has no rate for every iteration "
            f"({type(error).__name__}: {error}) with SOLVER.MAX_ITER {last}, SOLVER.STEPS "
            f"{solver.STEPS}, SOLVER.NUM_DECAYS {solver.NUM_DECAYS}, SOLVER.WARMUP_ITERS "
            f"{solver.WARMUP_ITERS}; train longer, or with fewer steps"
        ) from error
    return scheduler


class _BeforeTheEnd(ParamScheduler):
    """A schedule whose rate stays what it is at ``end``, as a share of all iterations."""

    def __init__(self, schedule: ParamScheduler, end: float):
        self._schedule, self._end = schedule, end

    def __call__(self, where: float) -> float:
        return self._schedule(min(where, self._end))


def _lr_factor(cfg: CfgNode, parameter: str) -> float:
    in_detector = is_classifier(cfg) and not parameter.startswith("image_head.")
    return cfg.SOLVER.DETECTOR_LR_FACTOR if in_detector else 1.0


_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The type that ``SOLVER.AMP`` asks for on ``MODEL.DEVICE``; None for plain float32.

    Raises:
        CTMaskNetError: an unknown type, or one that the hardware does not compute in.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    name = cfg.SOLVER.AMP.DTYPE or ("float16" if on_gpu else "bfloat16")
    if name not in _DTYPES:
        raise CTMaskNetError(
            f"SOLVER.AMP.DTYPE is {name!r}; choose one of {', '.join(_DTYPES)}, or '' for the "
            "device's usual one"
        )
    lacking = None
    if not on_gpu and name == "float16":
        lacking = "a CPU does not train in float16; set it to bfloat16"
    elif name == "bfloat16" and not has_bfloat16(cfg.MODEL.DEVICE):
        lacking = (
            "this GPU does not compute in bfloat16; set it to float16"
            if on_gpu
            else "this CPU does not compute in bfloat16; set SOLVER.AMP.ENABLED False"
        )
    if lacking:
        raise CTMaskNetError(f"SOLVER.AMP.DTYPE {name}: {lacking}")
    return _DTYPES[name]


def build_step_trainer(
    cfg: CfgNode,
    model: nn.Module,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    lesion_loader: Callable[[int], Any] | None = None,
) -> SimpleTrainer:
    """The part of a trainer that takes a step, in the precision that ``cfg`` asks for.

    Gradients are dropped before the forward pass, not after it, so that they and what the pass
    keeps for the way back are never held together.

    Args:
        lesion_loader: of a model of two branches, see :class:`AlternatingTrainer`.

    Raises:
        CTMaskNetError: see :func:`amp_dtype`.
    """
    dtype = amp_dtype(cfg)
    if lesion_loader is not None:
        previous = cfg.MODEL.TWO_BRANCH.COPY_WHEN == "previous"
        return AlternatingTrainer(model, loader, optimizer, lesion_loader, previous=previous)
    if dtype is None:
        return SimpleTrainer(model, loader, optimizer, zero_grad_before_forward=True)
    keep_predictions_float32(model)
    logging.getLogger(__name__).info("Training in %s, losses and weights in float32", dtype)
    if cfg.MODEL.DEVICE.startswith("cuda"):
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        half = {"grad_scaler": scaler, "precision": dtype}
        return AMPTrainer(model, loader, optimizer, zero_grad_before_forward=True, **half)
    if not isinstance(model, DistributedDataParallel):  # which has planned its gradients already
        channels_last(model)
    return AutocastTrainer(model, loader, optimizer, dtype)


def channels_last(model: nn.Module) -> None:
    """Let the weights of 2-d convolutions lie channels last, which their outputs follow. Values,
    checkpoints and optimisers stay as they are; in bfloat16 oneDNN then reorders less."""
    for weight in model.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


class AlternatingTrainer(SimpleTrainer):
    """Steps of a model of two branches: lesion slices teach the detector, then labelled slices
    backbone and image head, each with a step of the optimiser; then the second branch may be
    copied from the first (``MODEL.TWO_BRANCH.COPY_WHEN``)."""

    def __init__(
        self,
        model: nn.Module,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        lesion_loader: Callable[[int], Any],
        *,
        previous: bool = False,
    ):
        """
        Args:
            model: a ``TwoBranchNet``.
            loader: of labelled slices.
            lesion_loader: makes the loader of lesion slices of the seed of ``loader``.
            previous: copy where the lesion loss beats that of the step before, not every one.
        """
        super().__init__(model, loader, optimizer)
        self._lesion_loader, self._previous = lesion_loader, previous
        self._lesions: Iterator[Any] | None = None
        #: Sum of lesion losses below which the branch is copied.
        self.to_beat = math.inf

    def run_step(self) -> None:
        begin = time.perf_counter()
        if self._lesions is None:
            loader = self._lesion_loader(self.data_loader.dataset.seed)
            loader.batch_sampler.start = self.iter
            self._lesions = iter(loader)
        lesions, slices = next(self._lesions), next(self._data_loader_iter)
        waited = time.perf_counter() - begin
        losses = self._stepped(lesions)
        found = float(sum(losses.values()))
        if found < self.to_beat:
            self.model.roi_heads.copy_branch()
        if self._previous or found < self.to_beat:
            self.to_beat = found
        self._write_metrics(losses | self._stepped(slices), waited)

    def _stepped(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Losses of a batch after a step by them; weights that they do not reach stay."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.model(batch)
        sum(losses.values()).backward()
        self.after_backward()
        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "to_beat": self.to_beat}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.to_beat = state["to_beat"]


class AutocastTrainer(SimpleTrainer):
    """Steps on the CPU under autocast; bfloat16 has float32's range, so gradients need no scaling.

    Detectron2's ``AMPTrainer`` is for CUDA alone.
    """

    def __init__(
        self, model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer, dtype: torch.dtype
    ):
        super().__init__(model, loader, optimizer)
        self._dtype = dtype

    def run_step(self) -> None:
        begin = time.perf_counter()
        batch = next(self._data_loader_iter)
        waited = time.perf_counter() - begin
        self.optimizer.zero_grad()
        with torch.autocast("cpu", self._dtype):
            losses = self.model(batch)
        sum(losses.values()).backward()
        self.after_backward()
        self._write_metrics(losses, waited)
        self.optimizer.step()


def keep_predictions_float32(model: nn.Module) -> None:
    """Let the last layer of every head compute in float32, whatever autocast says.

    Decoding, ranking and losses only ever see what these layers give. Autocast would also make
    losses of half-precision inputs; that of a float32 input stays float32.
    """
    for name, module in model.named_modules():
        if name.split(".")[-1] in _LAST and not isinstance(module, _InFloat32):
            # Its class and not its forward, which a copy of the model would share with it.
            module.__class__ = _in_float32(type(module))


#: The layers whose outputs are decoded, ranked or lost: RPN, box head, mask head, image head.
_LAST = ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred", "predictor", "logits")


class _InFloat32:
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


@functools.cache
def _in_float32(layer: type[nn.Module]) -> type[nn.Module]:
    return type(layer.__name__, (_InFloat32, layer), {})
