"""Peak memory of a training, in the log and in timings.json."""

from __future__ import annotations

import logging
import resource
import sys

import torch
from detectron2.engine import HookBase

#: Name of the scalar.
MAX_MEMORY = "max_memory_mb"


def peak_memory_mb(device: str) -> float:
    """Most memory held so far, MB (10^6 bytes): by tensors on CUDA, by the process on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


class PeakMemory(HookBase):
    """Puts the peak so far among the scalars, and into the log at the end."""

    def __init__(self, device: str, period: int):
        """
        Args:
            device: ``MODEL.DEVICE``.
            period: iterations from one line of metrics to the next.
        """
        self._device = device
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self.trainer.storage.put_scalar(
                MAX_MEMORY, peak_memory_mb(self._device), smoothing_hint=False
            )

    def after_train(self) -> None:
        logging.getLogger(__name__).info(
            "Peak memory: %.0f MB (%s)",
            peak_memory_mb(self._device),
            "allocated on the GPU" if self._device.startswith("cuda") else "of the process",
        )
