"""Detectron2's trainer for both tasks: the detector and the classifier."""

from __future__ import annotations

import math
import os
import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn

from ctmasknet.data.datasets import dataset_dicts
from ctmasknet.data.mapper import LesionMapper, SliceMapper
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, is_classifier, spec_of
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import (
    ImageClassificationEvaluator,
    LesionEvaluator,
    PerImageAPEvaluator,
)
from ctmasknet.files import write_json

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
    ``BEST_METRIC``."""

    def __init__(self, cfg: CfgNode):
        # Detectron2 evaluates DATASETS.TEST while training; here the test set is not to be seen.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = cfg.DATASETS.VAL
        cfg.freeze()
        super().__init__(cfg)

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
    def build_train_loader(cls, cfg: CfgNode):
        return build_detection_train_loader(cfg, mapper=build_mapper(cfg, is_train=True))

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

    def build_hooks(self):
        # The first place where a subclass can put its own checkpointer, before hooks hold on to it.
        self.checkpointer = CTMaskNetCheckpointer(
            self._trainer.model,
            self.cfg.OUTPUT_DIR,
            spec=spec_of(self.cfg),
            trainer=weakref.proxy(self),
        )
        found = super().build_hooks()
        metric = self.cfg.SOLVER.BEST_METRIC
        if metric and self.cfg.DATASETS.TEST and comm.is_main_process():
            best = hooks.BestCheckpointer(
                self.cfg.TEST.EVAL_PERIOD,
                self.checkpointer,
                metric,
                mode="min" if "loss" in metric else "max",
            )
            evaluation = next(i for i, hook in enumerate(found) if isinstance(hook, hooks.EvalHook))
            found.insert(evaluation + 1, best)
        return found


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
