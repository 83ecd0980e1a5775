"""Random states of a training, carried through a resume."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

_LOGGER = logging.getLogger(__name__)


def random_state() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators (CUDA's current device too), in types
    that a checkpoint may hold without pickled code."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class RandomStates(HookBase):
    """Collects the random states of all processes for a checkpoint, and puts them back when a
    resumed training starts.

    Has to be the last hook: what earlier hooks draw before training must not count.
    """

    def __init__(self):
        self._collected: list[dict[str, Any]] = []
        self._resumed: list[dict[str, Any]] | None = None

    def collect(self) -> None:
        """Gather the states of all processes; every process has to call this before a checkpoint is
        written."""
        self._collected = comm.gather(random_state())

    def before_train(self) -> None:
        if self._resumed is None:
            return
        if len(self._resumed) != comm.get_world_size():
            _LOGGER.warning(
                "The checkpoint was written by %d process(es), now there are %d: random states "
                "start anew, so the result will not be that of an unbroken run",
                len(self._resumed),
                comm.get_world_size(),
            )
            return
        set_random_state(self._resumed[comm.get_rank()])

    def state_dict(self) -> dict[str, Any]:
        return {"processes": self._collected}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: they are no random states.
        """
        before = random_state()
        try:
            for one in state["processes"]:
                set_random_state(one)
        except Exception as error:  # each library tells in its own way
            reason = " ".join(str(error).split())[:100]
            raise ValueError(f"its random states are none ({reason})") from None
        finally:
            set_random_state(before)
        self._resumed = state["processes"]
