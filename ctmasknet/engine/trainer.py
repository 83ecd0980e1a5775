"""Detectron2's trainer for both tasks: the detector and the classifier."""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, TensorboardXWriter
from torch import nn
from torch.utils.data import DataLoader

from ctmasknet.data.datasets import dataset_dicts
from ctmasknet.data.mapper import LesionMapper, SliceMapper
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, is_classifier, spec_of
from ctmasknet.engine.periodic_checkpoint import PeriodicCheckpoint
from ctmasknet.engine.random_states import RandomStates
from ctmasknet.engine.train_data import build_train_loader
from ctmasknet.engine.validation import EarlyStop, EndIfStopped, Validation
from ctmasknet.engine.writers import MetricWriters
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import (
    ImageClassificationEvaluator,
    LesionEvaluator,
    PerImageAPEvaluator,
)
from ctmasknet.files import remove_unfinished, write_json

_LOGGER = logging.getLogger(__name__)
_OPTIMIZERS = {
    "ADAM": lambda parameters, cfg: torch.optim.Adam(
        parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
    ),
    "SGD": lambda parameters, cfg: torch.optim.SGD(
        parameters,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    ),
}


def build_mapper(cfg: CfgNode, is_train: bool) -> LesionMapper | SliceMapper:
    """The mapper of the task that ``cfg`` describes."""
    return (SliceMapper if is_classifier(cfg) else LesionMapper)(cfg, is_train)


class Trainer(DefaultTrainer):
    """Trains on ``DATASETS.TRAIN``, evaluates on ``DATASETS.VAL`` and keeps the best checkpoint by
    ``BEST_METRIC``.

    A training that is killed at any moment and resumed ends as it would have without: everything
    that the next iteration depends on is in the checkpoint, and what was written after it is
    written again. For that, an iteration ends with evaluation, metrics and checkpoint in this
    order.
    """

    def __init__(self, cfg: CfgNode):
        # Detectron2 evaluates DATASETS.TEST while training; here the test set is not to be seen.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = cfg.DATASETS.VAL
        cfg.freeze()
        # Not DefaultTrainer's, which hands GPU numbers to DistributedDataParallel on a CPU too.
        TrainerBase.__init__(self)
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        on_gpu = {} if cfg.MODEL.DEVICE.startswith("cuda") else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **on_gpu)
        self._trainer = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(
            model, loader, optimizer
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = CTMaskNetCheckpointer(
            model, cfg.OUTPUT_DIR, spec=spec_of(cfg), trainer=weakref.proxy(self)
        )
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """See Detectron2's. Without a checkpoint to resume from, what an earlier training left in
        the folder is not resumed later either."""
        if not (resume and self.checkpointer.has_checkpoint()):
            self.checkpointer.forget_last_checkpoint()
        if comm.is_main_process():
            remove_unfinished(self.cfg.OUTPUT_DIR)
        super().resume_or_load(resume)
        self._trainer.data_loader.batch_sampler.start = self.start_iter

    def train(self) -> OrderedDict[str, Any] | None:
        """See Detectron2's."""
        if self.start_iter >= self.max_iter or self.is_stopping:
            _LOGGER.info("This training has ended already at iteration %d", self.start_iter)
            return None
        try:
            return super().train()
        except EarlyStop:
            return None

    @property
    def is_stopping(self) -> bool:
        """Whether this iteration is the last because of early stopping."""
        return self._validation.state["stopped"]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "data_seed": self._trainer.data_loader.dataset.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's training state.

        Raises:
            CTMaskNetError: it is that of another configuration.
        """
        try:
            super().load_state_dict(state)
        except (ValueError, KeyError) as error:
            raise CTMaskNetError(
                f"{self.cfg.OUTPUT_DIR}: the last checkpoint's training state does not fit "
                f"({error}); resume with the configuration it was begun with, or start anew "
                "without --resume"
            ) from error
        if state["data_seed"] != self._trainer.data_loader.dataset.seed:
            self._trainer.reset_data_loader(
                lambda: self.build_train_loader(self.cfg, state["data_seed"])
            )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """``SOLVER.OPTIMIZER`` over the trainable weights (paper section 4: Adam)."""
        if cfg.SOLVER.OPTIMIZER not in _OPTIMIZERS:
            raise CTMaskNetError(
                f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; choose one of "
                f"{', '.join(_OPTIMIZERS)}"
            )
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            lr_factor_func=lambda name: _lr_factor(cfg, name),
        )
        optimizer = _OPTIMIZERS[cfg.SOLVER.OPTIMIZER](parameters, cfg)
        return maybe_add_gradient_clipping(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, seed: int | None = None) -> DataLoader:
        """See :func:`ctmasknet.engine.train_data.build_train_loader`."""
        return build_train_loader(cfg, build_mapper(cfg, is_train=True), seed=seed)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_detection_test_loader(
            dataset_dicts(dataset_name),
            mapper=build_mapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            batch_size=cfg.TEST.IMS_PER_BATCH,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = inference_folder(cfg, dataset_name)
        if is_classifier(cfg):
            return ImageClassificationEvaluator(dataset_name, output_dir=folder)
        coco = LesionEvaluator(
            dataset_name, output_dir=folder, max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE
        )
        if not cfg.MODEL.MASK_ON:
            return coco
        return DatasetEvaluators([coco, PerImageAPEvaluator(dataset_name)])

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> OrderedDict[str, Any]:
        """Evaluate on ``DATASETS.TEST``; ``results.json`` beside each data set's predictions holds
        the figures."""
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            per_dataset = results if len(cfg.DATASETS.TEST) > 1 else {cfg.DATASETS.TEST[0]: results}
            for name, figures in per_dataset.items():
                write_json(
                    os.path.join(inference_folder(cfg, name), "results.json"), _plain(figures), 1
                )
        return results

    def build_hooks(self) -> list[HookBase | None]:
        """In the order that an iteration ends in; see the class."""
        cfg = self.cfg
        random_states = RandomStates()
        self._validation = Validation(
            lambda: self.test(cfg, self.model),
            cfg.TEST.EVAL_PERIOD,
            self.checkpointer,
            cfg.SOLVER.BEST_METRIC if cfg.DATASETS.TEST else "",
            cfg.SOLVER.EARLY_STOPPING_PATIENCE,
        )
        main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._validation,
            MetricWriters(cfg.OUTPUT_DIR, self.build_writers, cfg.SOLVER.LOG_PERIOD)
            if main
            else None,
            PeriodicCheckpoint(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, random_states),
            EndIfStopped(self._validation),
            random_states,
        ]

    def build_writers(self) -> list[EventWriter]:
        """Terminal and TensorBoard; the JSON files are :class:`MetricWriters`' own."""
        return [
            CommonMetricPrinter(self.max_iter),
            # Events of iterations that a resumed training does again are dropped by TensorBoard.
            TensorboardXWriter(self.cfg.OUTPUT_DIR, purge_step=self.start_iter or None),
        ]


def _lr_factor(cfg: CfgNode, parameter: str) -> float:
    in_detector = is_classifier(cfg) and not parameter.startswith("image_head.")
    return cfg.SOLVER.DETECTOR_LR_FACTOR if in_detector else 1.0


def inference_folder(cfg: CfgNode, dataset_name: str) -> str:
    """Where evaluation writes what it has to say about a data set."""
    return os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)


def _plain(value: Any) -> Any:
    """JSON has no NaN: an undefined figure becomes null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
