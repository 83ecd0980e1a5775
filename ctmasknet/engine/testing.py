"""Evaluation of a model on data sets, in training and after it."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
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

from ctmasknet.config import finds_lesions, is_classifier, leaves, names_scans
from ctmasknet.data.mapper import task_mapper
from ctmasknet.engine.setup import inference_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import (
    DiceEvaluator,
    ImageClassificationEvaluator,
    LesionEvaluator,
    PerImageAPEvaluator,
)
from ctmasknet.files import write_json
from ctmasknet.modeling.averaged import MEMBER_INPUTS
from ctmasknet.modeling.fast.inference import inference_model, looks_text, second_looks
from ctmasknet.modeling.finite import NamingSlices


def inference_folder(cfg: CfgNode, dataset_name: str = "") -> str:
    """Where evaluation writes what it has to say about a data set (or about all of them)."""
    return os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)


def ensemble_members(cfg: CfgNode, *, test_sets: bool = False) -> list[CfgNode]:
    """The configurations of ``TEST.ENSEMBLE``, each as its file states it; all run as the first.

    Args:
        cfg: of the first model.
        test_sets: whether they are evaluated on ``DATASETS.TEST``.

    Raises:
        CTMaskNetError: see :func:`ctmasknet.engine.setup.inference_cfg`; a file that is given
            twice, of a detector, of other classes, or of scans beside one of slices.
    """
    shared = ("MODEL.DEVICE", "MODEL.INFERENCE.", "DATASETS.TEST", "DATASETS.SHARED_PATIENTS")
    overrides = [word for pair in leaves(cfg) if pair[0].startswith(shared) for word in pair]
    found, paths = [], [cfg.MODEL.WEIGHTS]
    for path in cfg.TEST.ENSEMBLE:
        if any(os.path.abspath(path) == os.path.abspath(other) for other in paths):
            raise CTMaskNetError(f"{path}: is in the ensemble twice; name each model once")
        paths.append(path)
        its, _ = inference_cfg("", overrides, path, test_sets=test_sets)
        if not is_classifier(its):
            raise CTMaskNetError(
                f"{path}: is a lesion detector, whose lesions are not averaged; leave it out, or "
                "give it as `lesion_weights`"
            )
        classes = [list(one.MODEL.IMAGE_HEAD.CLASSES) for one in (cfg, its)]
        if classes[0] != classes[1]:
            raise CTMaskNetError(
                f"{path}: its classes are {classes[1]}, but those of {paths[0]} are {classes[0]}; "
                "an ensemble's models have the same classes in the same order"
            )
        if names_scans(its) != names_scans(cfg):
            raise CTMaskNetError(
                f"{path}: one of it and {paths[0]} names whole scans, the other slices; name "
                "models of one kind"
            )
        found.append(its)
    return found


def check_finds_lesions(cfg: CfgNode) -> None:
    """Raise :class:`CTMaskNetError` where the model of ``cfg`` has no detector."""
    if not finds_lesions(cfg):
        raise CTMaskNetError(
            f"{cfg.MODEL.WEIGHTS}: a {cfg.MODEL.META_ARCHITECTURE} finds no lesions; leave lesions "
            "out, or name a lesion detector's weights as `lesion_weights`"
        )


class MembersMapper:
    """Dataset dict -> the first model's input, with those of an ensemble's others in it."""

    def __init__(self, cfgs: Sequence[CfgNode]):
        self.mappers = [task_mapper(cfg, is_train=False) for cfg in cfgs]

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        first, *others = (mapper(dataset_dict) for mapper in self.mappers)
        return {**first, MEMBER_INPUTS: others} if others else first


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """The evaluators of the task that ``cfg`` describes."""
    folder = inference_folder(cfg, dataset_name)
    if is_classifier(cfg):
        return ImageClassificationEvaluator(dataset_name, output_dir=folder)
    return lesion_evaluator(cfg, dataset_name, folder)


def lesion_evaluator(cfg: CfgNode, dataset_name: str, folder: str | None) -> DatasetEvaluator:
    """COCO's figures and, of a model with masks, per-image AP and Dice; COCO's predictions are
    written into ``folder``, where one is named."""
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
    as_used: Callable[[CfgNode, nn.Module], nn.Module] = inference_model,
) -> OrderedDict[str, Any]:
    """Evaluate on every data set of ``DATASETS.TEST``; every process has to call this.

    The model is used as ``MODEL.INFERENCE`` says, unless told otherwise. ``results.json`` beside
    each data set's predictions holds the figures; of a model that looks again in float32 also how
    often (``second_looks``).

    Args:
        cfg: the configuration.
        model: not wrapped for several processes, which may have unequal shares here.
        build_loader: data set -> its loader.
        evaluator_of: data set -> its evaluator.
        as_used: the configuration and the model -> what is called with a batch.

    Returns:
        on the main process what the evaluators say, by data set if there are several; on others
        nothing.
    """
    model = as_used(cfg, model)
    results: OrderedDict[str, Any] = OrderedDict()
    for name in cfg.DATASETS.TEST:
        before = second_looks(model)
        found = inference_on_dataset(NamingSlices(model), build_loader(name), evaluator_of(name))
        looks = [count - old for count, old in zip(second_looks(model), before, strict=True)]
        looks = [sum(counts) for counts in zip(*comm.all_gather(looks), strict=True)]
        if not comm.is_main_process():
            continue
        if looks[0]:
            logging.getLogger(__name__).info("%s: %s", name, looks_text(looks))
            found["second_looks"] = dict(zip(("looks", "again"), looks, strict=True))
        results[name] = found
        logging.getLogger(__name__).info("Results for %s in csv format:", name)
        # Which leaves names with a hyphen out; a task that has no others would be empty lines
        main = {task: its for task, its in found.items() if not all("-" in name for name in its)}
        print_csv_format(main)
        write_json(os.path.join(inference_folder(cfg, name), "results.json"), found, 1)
    return next(iter(results.values())) if len(results) == 1 else results
