"""What each speed-up of ctmasknet pays: the whole work against the same without that one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from detectron2.modeling import StandardROIHeads
from detectron2.modeling.poolers import ROIPooler
from torch import nn

from ctmasknet.benchmarks.harness import Apart, comparison, interleaved
from ctmasknet.benchmarks.inference import calibrated_classifier, noise_slices
from ctmasknet.benchmarks.training import KINDS, kind_cfg, step_trainer, stepper
from ctmasknet.modeling.fast.inference import in_torch
from ctmasknet.modeling.fast.openvino import installed, to_openvino
from ctmasknet.modeling.meta_arch import CTMaskNet
from ctmasknet.modeling.roi_align import BagROIPooler
from ctmasknet.modeling.roi_heads import RankedBoxROIHeads

_WHOLE = "ctmasknet"
#: Kinds that are not a training step -> what the classifier computes in.
_INFERENCE = {"inference": torch.float32, "inference-bfloat16": torch.bfloat16}
PART_KINDS = (*_INFERENCE, *KINDS)


def parts(*, kind: str, batch: int, side: int, repeats: int, seed: int) -> dict[str, Any]:
    """The whole, and the whole without one speed-up at a time; ratios below 1 are what it pays.

    Args:
        kind: one of :data:`PART_KINDS`: inference, by OpenVINO where it is installed, or a
            training step.
        batch: slices a call or a step.
        side: of the slices, px.
    """
    calls = (_inference_calls if kind in _INFERENCE else _training_calls)(kind, batch, side, seed)
    with Apart(_whole, kind, batch, side, seed) as plain:
        calls["without: freed memory kept"] = plain
        timings = interleaved(calls, repeats, warm=1)
    of = "heads" if kind in _INFERENCE else kind
    return comparison(
        f"{'classifier ' if kind in _INFERENCE else 'training step of '}{kind}, {batch} slices of "
        f"{side} px, part by part",
        timings,
        _WHOLE,
        kind_cfg(of).MODEL.DEVICE,
        config_file=KINDS[of],
    )


def _whole(kind: str, batch: int, side: int, seed: int) -> Callable[[], None]:
    """All parts, in a process that has not been told to keep memory; it gives nothing back, for
    results of inference need not come over."""
    if kind not in _INFERENCE:
        return stepper(step_trainer(kind, batch, side, seed))
    slices, model = _classifier(side, batch, seed)
    form = _form(model, kind)

    def call() -> None:
        form(slices)

    return call


def _form(model: CTMaskNet, kind: str) -> nn.Module:
    form = (to_openvino if installed() else in_torch)(model, _INFERENCE[kind])
    return copy.deepcopy(form) if form is model else form


def _classifier(side: int, batch: int, seed: int) -> tuple[list[dict[str, Any]], CTMaskNet]:
    slices = noise_slices(batch, side, seed)
    cfg = kind_cfg("heads", "INPUT.MIN_SIZE_TEST", str(side))
    return slices, calibrated_classifier(cfg, seed, slices)


def _training_calls(kind: str, batch: int, side: int, seed: int) -> dict[str, Callable[[], Any]]:
    changes: dict[str, Callable[[Any], None]] = {
        "RoIAlign as one sum": lambda trainer: _pool_box_by_box(trainer.model),
        "Adam in one pass": _plain_adam,
    }
    if kind == "segmentation":
        changes["shared mask targets"] = lambda trainer: _copied_masks(trainer.model)
    if kind in ("heads_bn", "full"):
        changes["gradients of ranked boxes alone"] = lambda trainer: _keep_all(trainer.model)
    calls = {_WHOLE: stepper(step_trainer(kind, batch, side, seed))}
    for name, change in changes.items():
        trainer = step_trainer(kind, batch, side, seed)
        change(trainer)
        calls[f"without: {name}"] = stepper(trainer)
    return calls


def _inference_calls(kind: str, batch: int, side: int, seed: int) -> dict[str, Callable[[], Any]]:
    slices, model = _classifier(side, batch, seed)
    whole, other = _form(model, kind), _form(model, kind)
    _pool_box_by_box(other)
    return {_WHOLE: lambda: whole(slices), "without: RoIAlign as one sum": lambda: other(slices)}


class _PoolsBoxByBox(ROIPooler):
    def forward(self, x, box_lists):
        # torchvision's operator knows no bfloat16 on the CPU
        return super().forward([level.float() for level in x], box_lists)


class _CopiesMasks(RankedBoxROIHeads):
    label_and_sample_proposals = StandardROIHeads.label_and_sample_proposals


def _pool_box_by_box(model: nn.Module) -> None:
    for module in model.roi_heads.box_pooler.modules():
        if isinstance(module, BagROIPooler):
            module.__class__ = _PoolsBoxByBox


def _copied_masks(model: nn.Module) -> None:
    model.roi_heads.__class__ = _CopiesMasks


def _keep_all(model: CTMaskNet) -> None:
    model.roi_heads.keep_ranked = lambda features, proposals: proposals


def _plain_adam(trainer: Any) -> None:
    for group in trainer.optimizer.param_groups:
        group["fused"] = False
