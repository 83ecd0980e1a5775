"""Peak memory of a training, in the log and in timings.json."""

from __future__ import annotations

import logging
import re
import resource
from pathlib import Path

import torch
from detectron2.engine import HookBase

#: Name of the scalar.
MAX_MEMORY = "max_memory_mb"


def peak_memory_mb(device: str) -> float:
    """Most memory held so far, MB (10^6 bytes): by tensors on CUDA, by the process on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[1]) * 1024 / 1e6
    except (OSError, TypeError):
        # Not on Linux. There, this figure would also count the process that started this one.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


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
