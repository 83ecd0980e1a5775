"""What the parts of a GPU check share: the point they measure, time, memory, limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode

from ctmasknet.benchmarks.training import kind_cfg


@dataclasses.dataclass(frozen=True)
class Point:
    """
    Args:
        device: ``cuda``, ``cuda:1`` or ``cpu``.
        side: of the slices, px.
        batch: slices a call or step.
        repeats: times each way is measured.
        seed: of weights, slices and samples.
        overrides: ``KEY VALUE`` words over every configuration.
    """

    device: str
    side: int
    batch: int
    repeats: int
    seed: int
    overrides: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def words(self, *more: Any, device: str | None = None) -> list[str]:
        """Overrides of a configuration: of this point, and ``more``."""
        side = str(self.side)
        sides = ["INPUT.MIN_SIZE_TEST", side, "INPUT.MAX_SIZE_TEST", str(2 * self.side)]
        return [
            *("MODEL.DEVICE", device or self.device, *sides),
            *(str(word) for word in (*self.overrides, *more)),
        ]

    def cfg(self, kind: str, *more: Any, device: str | None = None) -> CfgNode:
        """The configuration of a kind of training step, with random weights."""
        return kind_cfg(kind, *self.words(*more, device=device))

    def waited(self, call: Callable[[], Any]) -> Callable[[], None]:
        """``call``, which then ends when the device has done its work."""

        def whole() -> None:
            call()
            if self.on_gpu:
                torch.cuda.synchronize(self.device)

        return whole

    def held(self) -> int:
        """Bytes that tensors hold on the GPU; peaks are counted from here. 0 on the CPU."""
        if not self.on_gpu:
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak_mb(self, before: int) -> float | None:
        """Most memory that tensors have held beyond ``before``, from :meth:`held`, MB; None on the
        CPU, where a process cannot tell it apart."""
        if not self.on_gpu:
            return None
        return (torch.cuda.max_memory_allocated(self.device) - before) / 1e6


def held_to(check: str, figure: float, limit: float) -> dict[str, Any]:
    """Something that has to be: ``check``, its ``figure``, the ``limit`` that it may not exceed,
    and whether it ``holds``; no number does not."""
    return {"check": check, "figure": figure, "limit": limit, "holds": bool(figure <= limit)}


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference of two tensors over the largest value of the first."""
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))
