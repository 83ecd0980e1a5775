"""Seconds and memory of a card: forward passes and training steps, stock Detectron2 beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from ctmasknet.benchmarks.gpu.point import Point, held_to
from ctmasknet.benchmarks.harness import comparison, interleaved
from ctmasknet.benchmarks.inference import bfloat16_notes, calibrated_classifier, noise_slices
from ctmasknet.benchmarks.peers import StockClassifier, stock_cfg
from ctmasknet.benchmarks.training import KINDS, step_trainer, stepper
from ctmasknet.modeling.fast.inference import has_bfloat16, inference_model

_STOCK, _OURS, _AMP = "stock Detectron2", "ctmasknet", "ctmasknet in half precision"
#: Anchors and small boxes as Detectron2 has them, so that stock's logits are to be the same.
_SAME = ("MODEL.ANCHOR_GENERATOR.ROUND", "False", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "0")
Part = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def forward(point: Point) -> Part:
    """Naming and marking slices, one a call and ``batch`` of them.

    Returns:
        results as of :func:`ctmasknet.benchmarks.harness.comparison`, and what has to hold.
    """
    counts = sorted({1, point.batch})
    results = [_naming(point, count) for count in counts]
    return [*results, *(_marking(point, count) for count in counts)], []


def _naming(point: Point, count: int) -> dict[str, Any]:
    cfg = point.cfg("heads", *_SAME)
    slices = noise_slices(count, point.side, point.seed)
    ours = calibrated_classifier(cfg, point.seed, slices)
    stock = StockClassifier(cfg).to(point.device).eval().take_weights(ours)
    makers = {
        _STOCK: lambda: stock.requires_grad_(False),
        "ctmasknet, model as trained": lambda: ours,
    }
    makers["ctmasknet, inference copy"] = lambda: inference_model(cfg, ours)
    if has_bfloat16(point.device):
        half = cfg.clone()
        half.defrost()
        half.MODEL.INFERENCE.DTYPE = "bfloat16"
        half.MODEL.INFERENCE.RECHECK_MARGIN = 0.0
        makers["ctmasknet, inference copy in bfloat16"] = lambda: inference_model(half, ours)
    timings, memory = _measured(point, {n: _on(make, slices) for n, make in makers.items()})
    plain = [found["logits"] for found in ours(slices)]
    difference = max(float((a - b).abs().max()) for a, b in zip(plain, stock(slices), strict=True))
    return comparison(
        f"classifier inference, {count} x {point.side} px",
        timings,
        _STOCK,
        point.device,
        figures={"largest logit difference, model and stock": difference},
        peak_memory_mb=memory,
        notes=bfloat16_notes(point.device),
        config_file=KINDS["heads"],
    )


def _marking(point: Point, count: int) -> dict[str, Any]:
    cfg = point.cfg("segmentation", *_SAME)
    slices = noise_slices(count, point.side, point.seed)
    ours = calibrated_classifier(cfg, point.seed, slices)
    stock = build_model(stock_cfg(cfg)).eval()
    stock.load_state_dict(ours.state_dict(), strict=False)
    makers = {_STOCK: lambda: stock, "ctmasknet, model as trained": lambda: ours}
    makers["ctmasknet, inference copy"] = lambda: inference_model(cfg, ours)
    timings, memory = _measured(point, {n: _on(make, slices) for n, make in makers.items()})
    return comparison(
        f"detector with masks, {count} x {point.side} px",
        timings,
        _STOCK,
        point.device,
        peak_memory_mb=memory,
        config_file=KINDS["segmentation"],
    )


def _on(make: Callable[[], Any], slices: list[dict[str, Any]]) -> Callable[[], Callable[[], Any]]:
    def made() -> Callable[[], Any]:
        model = make()

        def call() -> None:
            with torch.no_grad():
                model(slices)

        return call

    return made


def steps(kind: str, point: Point) -> Part:
    """A training step of a kind, ours in half precision too.

    Returns:
        as :func:`forward`; the loss in half precision is to be near that in float32.
    """
    amp = point.on_gpu or has_bfloat16(point.device)
    ways = {_STOCK: {"stock": True}, _OURS: {}}
    if amp:
        ways[_AMP] = {"more": ("SOLVER.AMP.ENABLED", "True")}
    trainers: dict[str, SimpleTrainer] = {}

    def maker(way: str) -> Callable[[], Callable[[], Any]]:
        def make() -> Callable[[], Any]:
            how = dict(ways[way])
            words = point.words(*how.pop("more", ()))
            given = (kind, point.batch, point.side, point.seed)
            trainers[way] = step_trainer(*given, overrides=words, **how)
            return stepper(trainers[way])

        return make

    timings, memory = _measured(point, {way: maker(way) for way in ways})
    losses = {way: _loss(trainers[way], point.seed) for way in ways if way != _STOCK}
    result = comparison(
        f"training step of {kind}, {point.batch} slices of {point.side} px",
        timings,
        _STOCK,
        point.device,
        figures={f"loss, {way}": loss for way, loss in losses.items()},
        peak_memory_mb=memory,
        notes=() if amp else ("No step in half precision: this CPU has no bfloat16",),
        config_file=KINDS[kind],
    )
    if not amp:
        return [result], []
    share = abs(losses[_AMP] / losses[_OURS] - 1)
    return [result], [held_to(f"{kind}: loss in half precision, share off float32's", share, 0.1)]


def _loss(trainer: SimpleTrainer, seed: int) -> float:
    """Of a step with these samples; the rate is 0, so every step is of the same weights."""
    torch.manual_seed(seed)
    with EventStorage() as storage:
        trainer.run_step()
        return float(storage.latest()["total_loss"][0])


def _measured(
    point: Point, makers: dict[str, Callable[[], Callable[[], Any]]]
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Times of ways in turn, and peak memory of each by itself: its weights, and two calls."""
    calls, memory = {}, {}
    for way, make in makers.items():
        before = point.held()
        calls[way] = point.waited(make())
        calls[way]()
        calls[way]()
        peak = point.peak_mb(before)
        if peak is not None:
            memory[way] = peak
    return interleaved(calls, point.repeats, warm=1), memory
