"""Evaluation of a model on data sets, in training and after it."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.utils import comm
from torch import nn

from ctmasknet.config import is_classifier
from ctmasknet.evaluation import (
    DiceEvaluator,
    ImageClassificationEvaluator,
    LesionEvaluator,
    PerImageAPEvaluator,
)
from ctmasknet.files import write_json
from ctmasknet.modeling.fast.inference import inference_model
from ctmasknet.modeling.finite import NamingSlices


def inference_folder(cfg: CfgNode, dataset_name: str = "") -> str:
    """Where evaluation writes what it has to say about a data set (or about all of them)."""
    return os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """The evaluators of the task that ``cfg`` describes."""
    folder = inference_folder(cfg, dataset_name)
    if is_classifier(cfg):
        return ImageClassificationEvaluator(dataset_name, output_dir=folder)
    coco = LesionEvaluator(
        dataset_name,
        output_dir=folder,
        max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        fast=cfg.TEST.COCO_FAST,
    )
    if not cfg.MODEL.MASK_ON:
        return coco
    return DatasetEvaluators([coco, PerImageAPEvaluator(dataset_name), DiceEvaluator(dataset_name)])


def evaluate(
    cfg: CfgNode,
    model: nn.Module,
    build_loader: Callable[[str], Iterable],
    evaluator_of: Callable[[str], DatasetEvaluator],
) -> OrderedDict[str, Any]:
    """Evaluate on every data set of ``DATASETS.TEST``; every process has to call this.

    The model is used as ``MODEL.INFERENCE`` says. ``results.json`` beside each data set's
    predictions holds the figures.

    Args:
        cfg: the configuration.
        model: not wrapped for several processes, which may have unequal shares here.
        build_loader: data set -> its loader.
        evaluator_of: data set -> its evaluator.

    Returns:
        on the main process what the evaluators say, by data set if there are several; on others
        nothing.
    """
    model = inference_model(cfg, model)
    results: OrderedDict[str, Any] = OrderedDict()
    for name in cfg.DATASETS.TEST:
        found = inference_on_dataset(NamingSlices(model), build_loader(name), evaluator_of(name))
        if not comm.is_main_process():
            continue
        results[name] = found
        logging.getLogger(__name__).info("Results for %s in csv format:", name)
        print_csv_format(found)
        write_json(os.path.join(inference_folder(cfg, name), "results.json"), found, 1)
    return next(iter(results.values())) if len(results) == 1 else results
