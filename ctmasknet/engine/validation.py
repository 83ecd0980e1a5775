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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import Checkpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ctmasknet.config import is_classifier
from ctmasknet.console.progress import tracked
from ctmasknet.data.bad_slices import BadSlices, Guarded
from ctmasknet.data.mapper import LesionMapper
from ctmasknet.data.registry import dataset_dicts
from ctmasknet.data.training.recipe import without_augmentation
from ctmasknet.engine.checkpoint import BEST
from ctmasknet.engine.random_states import random_state, set_random_state
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.lesions.coco import ap_names, lesion_free_metrics, use_fast_coco
from ctmasknet.evaluation.lesions.dice import DICE_KINDS, dice_maps
from ctmasknet.evaluation.metrics import classification_metrics
from ctmasknet.evaluation.pooling import POOLED_LEVELS
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
        before: Callable[[], None] | None = None,
    ):
        """
        Args:
            evaluate: results as Detectron2's evaluators give them; called in every process.
            period: iterations from one evaluation to the next; 0: only after the last.
            checkpointer: saves ``model_best``.
            metric: its best value chooses the checkpoint, such as ``segm/AP50``; empty: no choice.
                Losses, counts of false positives and calibration errors are better when lower.
            patience: evaluations without a better value after which training ends; 0: never.
            before: called in every process before an evaluation, to write a checkpoint.
        """
        self._evaluate = evaluate
        self._period = period
        self._checkpointer = checkpointer
        self._metric = metric
        self._patience = patience
        self._before = before
        #: Best value so far, the iteration it was seen at, evaluations since, whether that ended
        #: the training, what the last evaluation gave, and whether one is still to be made.
        self.state: dict[str, Any] = {
            "best": None,
            "best_iteration": None,
            "since_best": 0,
            "stopped": False,
            "results": None,
            "pending": False,
        }

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done != self.trainer.max_iter and (self._period <= 0 or done % self._period):
            return
        if self._before is not None:
            self.state["pending"] = True
            self._before()
            self.state["pending"] = False
        states = random_state()
        results = self._evaluate() or {}
        set_random_state(states)
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
            raise _unknown_metric(self._metric, results)
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
        if not math.isfinite(value):
            _LOGGER.warning(
                "SOLVER.BEST_METRIC %s is no number at iteration %d: this model is not the best, "
                "whatever it finds (best so far: %s)",
                *(self._metric, self.trainer.iter, shown),
            )
            return 0 < self._patience <= self.state["since_best"]
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


def check_validation(cfg: CfgNode) -> None:
    """Refuse, before a training starts, what its first evaluation would fail at.

    Args:
        cfg: with the classes of its data sets, and epochs as iterations.

    Raises:
        CTMaskNetError: ``SOLVER.BEST_METRIC`` is no figure of the evaluation, or one that is no
            number on ``DATASETS.VAL``; evaluations that patience would wait for are not made;
            ``TEST.COCO_FAST`` always without the library.
    """
    if not cfg.DATASETS.VAL:
        return
    if not is_classifier(cfg):
        use_fast_coco(cfg.TEST.COCO_FAST)
    solver = cfg.SOLVER
    if solver.EARLY_STOPPING_PATIENCE and not cfg.TEST.EVAL_PERIOD:
        raise CTMaskNetError(
            f"SOLVER.EARLY_STOPPING_PATIENCE is {solver.EARLY_STOPPING_PATIENCE}, but the model is "
            "evaluated after the last iteration only; set TEST.EVAL_PERIOD or TEST.EVAL_EPOCHS, or "
            "patience to 0"
        )
    metric = solver.BEST_METRIC
    if not metric:
        return
    figures = _figures(cfg)
    if metric not in figures:
        raise _unknown_metric(metric, figures)
    if why := figures[metric]:
        numbers = ", ".join(name for name, why in figures.items() if not why)
        raise CTMaskNetError(
            f"SOLVER.BEST_METRIC is {metric!r}, which will be no number: {why}; choose one of "
            f"{numbers}, or another set for DATASETS.VAL"
        )


def _unknown_metric(metric: str, known: Iterable[str]) -> CTMaskNetError:
    return CTMaskNetError(
        f"SOLVER.BEST_METRIC is {metric!r}, which the evaluation does not give; "
        f"choose one of {', '.join(sorted(known)) or 'none: DATASETS.VAL is empty'}"
    )


def _figures(cfg: CfgNode) -> dict[str, str]:
    """What an evaluation on ``DATASETS.VAL`` gives: name of each figure, and why it will be no
    number ("" where it will be one)."""
    sets = {name: dataset_dicts(name) for name in cfg.DATASETS.VAL}
    of_task = _slice_figures if is_classifier(cfg) else _lesion_figures
    figures = {
        f"{name}/{figure}" if len(sets) > 1 else figure: f"{name} {why}" if why else ""
        for name, dicts in sets.items()
        for figure, why in of_task(cfg, dicts).items()
    }
    if cfg.TEST.VALIDATION_LOSS:
        losses = ["total_loss"]
        if not is_classifier(cfg):
            if cfg.MODEL.META_ARCHITECTURE == "SemanticLesionNet":
                losses += ["loss_map"]
                losses += ["loss_edge"] if cfg.MODEL.SEMANTIC.NAME == "infnet" else []
            else:
                losses += ["loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"]
                losses += ["loss_mask"] if cfg.MODEL.MASK_ON else []
            if not any(_with_losses(cfg, dicts) for dicts in sets.values()):
                losses = []
        elif len(sets) > 1:
            losses = []
        figures |= dict.fromkeys((f"validation/{loss}" for loss in losses), "")
    return figures


def _lesion_figures(cfg: CfgNode, dicts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    names = cfg.MODEL.LESION_CLASSES
    found = [entry.get("annotations") or [] for entry in dicts]
    lesions = Counter(item["category_id"] for of_slice in found for item in of_slice)
    figures = {}
    for task in ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",):
        for figure in ap_names(names):
            of_class = [i for i, name in enumerate(names) if figure == f"AP-{name}"]
            there = lesions[of_class[0]] if of_class else sum(lesions.values())
            lacking = f"has no {names[of_class[0]]}" if of_class else "has no lesion"
            figures[f"{task}/{figure}"] = "" if there else lacking
    free = sum(not of_slice for of_slice in found)
    for figure in lesion_free_metrics([], 0.5):
        of_none = figure.startswith("false-positives-per-slice") and not free
        figures[f"lesion_free/{figure}"] = "has lesions on every slice" if of_none else ""
    if cfg.MODEL.MASK_ON:
        figures |= dict.fromkeys(("per_image/AP", "per_image/AP50", "per_image/AP75"), "")
        for name, classes in dice_maps(names).items():
            lacking = "" if any(lesions[index] for index in classes) else f"has no {name}"
            for kind in DICE_KINDS:
                figures[f"dice/{kind}-{name}"] = lacking if kind != "slices" else ""
    return figures


def _slice_figures(cfg: CfgNode, dicts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    names = cfg.MODEL.IMAGE_HEAD.CLASSES
    labels = {entry.get("label") for entry in dicts} - {None}
    missing = {
        f"sensitivity-{name}": f"has no slice of {name}"
        for index, name in enumerate(names)
        if index not in labels
    }
    metrics = classification_metrics(np.zeros((len(names), len(names))), names)
    levels = [
        level
        for level, fields in POOLED_LEVELS.items()
        if any(all(entry.get(field) not in (None, "") for field in fields) for entry in dicts)
    ]
    figures = {f"{level}/{m}": missing.get(m, "") for level in ("slices", *levels) for m in metrics}
    figures["slices/loss"] = ""
    return figures if labels else dict.fromkeys(figures, "has no slice with a class")


def _with_losses(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The slices of a detector's set that count in its losses."""
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return list(dicts)
    return [entry for entry in dicts if entry.get("annotations")]


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
    cfg = without_augmentation(cfg)
    sets = {name: _with_losses(cfg, dataset_dicts(name)) for name in cfg.DATASETS.VAL}
    sets = {name: dicts for name, dicts in sets.items() if dicts}
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
            items = bad.readable(loader, name)
            shown = comm.is_main_process()
            for (item,) in tracked(items, f"losses of {name}", len(loader), shown=shown):
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
