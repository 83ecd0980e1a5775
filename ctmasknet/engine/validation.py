"""Evaluation while training runs: the best checkpoint, stopping early, and a detector's losses on
slices it does not train on."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.checkpoint import Checkpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ctmasknet.data.bad_slices import BadSlices, Guarded
from ctmasknet.data.mapper import LesionMapper
from ctmasknet.engine.checkpoint import BEST
from ctmasknet.engine.random_states import random_state, set_random_state
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import plain
from ctmasknet.modeling.finite import NamingSlices

_LOGGER = logging.getLogger(__name__)
#: Figures that are better when lower: losses, counts of false positives, calibration errors.
_LESS_IS_BETTER = re.compile(
    r"(?:^|/)(?:(?:total_)?loss(?:_\w+)?|(?:slices-with-)?false-positives\b[^/]*|ece(?:-[^/]*)?)$"
)


class EarlyStop(BaseException):
    """Ends the training loop in good order; not an error, and so not logged as one."""


class Validation(HookBase):
    """Evaluates every ``period`` iterations and after the last one, saves the best model so far and
    ends a training that has stopped to improve.

    Other than Detectron2's ``EvalHook`` and ``BestCheckpointer`` it keeps its state in the
    checkpoint, evaluates the last iteration within that iteration, so that a training killed there
    evaluates again, and leaves the random states as they were. It belongs before the hooks that
    write metrics and checkpoints.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, Any]],
        period: int,
        checkpointer: Checkpointer,
        metric: str = "",
        patience: int = 0,
    ):
        """
        Args:
            evaluate: results as Detectron2's evaluators give them; called in every process.
            period: iterations from one evaluation to the next; 0: only after the last.
            checkpointer: saves ``model_best``.
            metric: its best value chooses the checkpoint, such as ``segm/AP50``; empty: no choice.
                Losses, counts of false positives and calibration errors are better when lower.
            patience: evaluations without a better value after which training ends; 0: never.
        """
        self._evaluate = evaluate
        self._period = period
        self._checkpointer = checkpointer
        self._metric = metric
        self._patience = patience
        #: Best value so far, the iteration it was seen at, evaluations since, whether that ended
        #: the training, and what the last evaluation gave.
        self.state: dict[str, Any] = {
            "best": None,
            "best_iteration": None,
            "since_best": 0,
            "stopped": False,
            "results": None,
        }

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done != self.trainer.max_iter and (self._period <= 0 or done % self._period):
            return
        before = random_state()
        results = self._evaluate() or {}
        set_random_state(before)
        comm.synchronize()
        stop = False
        if comm.is_main_process():
            # Python's own numbers: a checkpoint with others is not read again.
            self.state["results"] = json.loads(json.dumps(plain(results), default=float))
            flat = {name: float(x) for name, x in flatten_results_dict(results).items()}
            self.trainer.storage.put_scalars(**flat, smoothing_hint=False)
            if self._metric:
                stop = self._choose(flat)
        self.state["stopped"] = bool(comm.all_gather(stop)[0])

    def _choose(self, results: dict[str, float]) -> bool:
        """Save the model if it is the best; returns whether training should end."""
        if self._metric not in results:
            raise CTMaskNetError(
                f"SOLVER.BEST_METRIC is {self._metric!r}, which the evaluation does not give; "
                f"choose one of {', '.join(sorted(results)) or 'none: DATASETS.VAL is empty'}"
            )
        value, best = results[self._metric], self.state["best"]
        shown = "none" if best is None else f"{best:.5f}"
        lower = bool(_LESS_IS_BETTER.search(self._metric))
        better = best is None or (value < best if lower else value > best)
        if math.isfinite(value) and better:
            self.state.update(best=value, best_iteration=self.trainer.iter, since_best=0)
            self._checkpointer.save(BEST, iteration=self.trainer.iter)
            _LOGGER.info(
                "%s %.5f at iteration %d is the best so far (before: %s)",
                self._metric,
                *(value, self.trainer.iter, shown),
            )
            return False
        self.state["since_best"] += 1
        _LOGGER.info(
            "%s %.5f is not better than %s of iteration %s",
            self._metric,
            *(value, shown, self.state["best_iteration"]),
        )
        return 0 < self._patience <= self.state["since_best"]

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state.update(state)


class EndIfStopped(HookBase):
    """Ends the training once :class:`Validation` has decided so; belongs after the checkpoint."""

    def __init__(self, validation: Validation):
        self._validation = validation

    def after_step(self) -> None:
        if self._validation.state["stopped"]:
            _LOGGER.info(
                "Training ends early at iteration %d: no better value in %d evaluations",
                self.trainer.iter,
                self._validation.state["since_best"],
            )
            raise EarlyStop


@torch.no_grad()
def detector_losses(
    cfg: CfgNode, model: nn.Module, bad: BadSlices | None = None
) -> dict[str, float]:
    """Mean losses of a detector on ``DATASETS.VAL``, slice by slice.

    Batch normalisation behaves as in evaluation. Anchors and proposals are sampled as in training,
    for each slice by its own name, so that the same weights give the same numbers, whatever was
    drawn before and however many processes share the work. Slices without lesions count if
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` lets training see them.

    Args:
        cfg: the configuration.
        model: not wrapped for several processes; modes and random states are left as they were.
        bad: what to do with slices that cannot be read; they do not count.

    Returns:
        each of the model's losses, and ``total_loss``; empty without any such slice.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = "none", (), 0
    names = cfg.DATASETS.VAL
    sets = {name: get_detection_dataset_dicts(name, filter_empty=False) for name in names}
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        sets = {name: [d for d in dicts if d["annotations"]] for name, dicts in sets.items()}
    bad = bad or BadSlices.from_cfg(cfg, {name: len(dicts) for name, dicts in sets.items()})
    count, sums, naming = 0, Counter(), NamingSlices(model)
    devices = [torch.cuda.current_device()] if model.device.type == "cuda" else []
    with _losses_without_learning(model), EventStorage(), torch.random.fork_rng(devices):
        for name, dicts in sets.items():
            loader = build_detection_test_loader(
                dicts,
                mapper=Guarded(LesionMapper(cfg, True)),
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            )
            for (item,) in bad.readable(loader, name):
                torch.manual_seed(zlib.crc32(str(item["image_id"]).encode()))
                count += 1
                losses = naming([item])
                sums.update({key: float(loss) for key, loss in losses.items()})
    shares = comm.all_gather((count, sums))
    count, total = sum(n for n, _ in shares), Counter()
    for _, share in shares:
        total.update(share)
    if not total:
        return {}
    means = {name: value / count for name, value in total.items()}
    return {**means, "total_loss": sum(means.values())}


@contextlib.contextmanager
def _losses_without_learning(model: nn.Module) -> Iterator[None]:
    """The model returns losses, but batch normalisation keeps its statistics."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module in modes:
        if isinstance(module, _BatchNorm):
            module.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
