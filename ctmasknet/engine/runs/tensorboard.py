"""What TensorBoard shows of a training beside its curves: what the model says of some validation
slices, and what the training's settings led to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import get_event_storage
from torch import nn

from ctmasknet.config import add_ctmasknet_config, is_classifier, leaves, names_scans
from ctmasknet.ct.pictures import read_rgb
from ctmasknet.data.mapper import task_mapper
from ctmasknet.data.registry import dataset_dicts
from ctmasknet.draw.canvas import as_rgb, enlarged, legible_scale
from ctmasknet.draw.lesions import SliceCall, call_chunks, draw_lesions, side_by_side
from ctmasknet.draw.pages import Panel, compose_page
from ctmasknet.errors import CTMaskNetError

#: Lesions drawn have to score more; of a classifier so many of its ranked boxes are drawn.
_SCORE, _BOXES = 0.5, 5
#: Settings that stand beside every training's figures, as they are and as they usually are.
_ALWAYS = (
    *("SOLVER.BASE_LR", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.OPTIMIZER"),
    *("SOLVER.WEIGHT_DECAY", "MODEL.META_ARCHITECTURE", "MODEL.IMAGE_HEAD.NAME", "SEED"),
    *("MODEL.TRAINABLE", "MODEL.RANKED_BOXES.NUM", "MODEL.RESNETS.DEPTH", "INPUT.MIN_SIZE_TEST"),
)


def varied_slices(
    entries: Sequence[Mapping[str, Any]], count: int, seed: int
) -> list[Mapping[str, Any]]:
    """So many dataset dicts, drawn by ``seed``, of every class (or kinds of lesions) in turn."""
    turns: Counter = Counter()
    order = []
    for index in np.random.default_rng(max(seed, 0)).permutation(len(entries)).tolist():
        entry = entries[index]
        kind = (
            entry.get("label"),
            frozenset(lesion["category_id"] for lesion in entry.get("annotations", ())),
        )
        order.append((turns[kind], index))
        turns[kind] += 1
    return [entries[index] for _, index in sorted(order)[:count]]


def show_predictions(cfg: CfgNode, model: nn.Module) -> None:
    """Put a picture of each of ``TEST.PICTURES`` slices of every set of ``DATASETS.VAL`` into the
    event storage: of a detector true lesions and found ones, of a classifier the class and the best
    ranked boxes. The same slices each time; one that cannot be read is left out.

    Args:
        cfg: of the training.
        model: its parts in training or evaluation mode, and left in it.
    """
    if not cfg.TEST.PICTURES or names_scans(cfg):
        return
    mapper = task_mapper(cfg, is_train=False)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    boxes = hasattr(model, "return_ranked_instances")
    if boxes:
        model.return_ranked_instances = True
    try:
        for name in cfg.DATASETS.VAL:
            for entry in varied_slices(dataset_dicts(name), cfg.TEST.PICTURES, cfg.SEED):
                try:
                    item = mapper(entry)
                    pixels = as_rgb(read_rgb(entry["file_name"]), item.get("crop_box"))
                except CTMaskNetError:  # the evaluation has told or refused it
                    continue
                with torch.no_grad():
                    (found,) = model([item])
                picture = _picture(cfg, name, entry, pixels, found)
                get_event_storage().put_image(
                    f"predictions/{name}/{_title(entry)}",
                    torch.from_numpy(picture.transpose(2, 0, 1)),
                )
    finally:
        if boxes:
            model.return_ranked_instances = False
        for module, mode in modes.items():
            module.training = mode


def _picture(
    cfg: CfgNode,
    dataset: str,
    entry: Mapping[str, Any],
    pixels: np.ndarray,
    found: Mapping[str, Any],
) -> np.ndarray:
    """(H', W', 3) uint8."""
    lesions = list(cfg.MODEL.LESION_CLASSES)
    if not is_classifier(cfg):
        given = {"class_names": lesions, "title": _title(entry), "score_threshold": _SCORE}
        return side_by_side(pixels, entry["annotations"], found["instances"], **given)
    panels = [Panel("slice", enlarged(pixels, legible_scale(*pixels.shape[:2])))]
    if (boxes := found.get("ranked_instances")) is not None:
        best = boxes[:_BOXES]
        drawn = draw_lesions(pixels, best, lesions, score_threshold=-1.0)
        panels.append(Panel(f"its {len(best)} best ranked boxes", drawn))
    names = MetadataCatalog.get(dataset).image_classes
    call = SliceCall(names, found["pred_class"], entry.get("label"), found["scores"].tolist())
    return compose_page(panels, title=_title(entry), header=call_chunks(call))


def _title(entry: Mapping[str, Any]) -> str:
    """The slice's id in its set where that is a name, else file and folder."""
    name = entry.get("image_id")
    return name if isinstance(name, str) else "/".join(Path(entry["file_name"]).parts[-2:])


class HyperParameters(HookBase):
    """Writes what a training that ends was set to, and its last evaluation, for TensorBoard's table
    of hyper-parameters: the settings that differ from the defaults, and some of all trainings."""

    def after_step(self) -> None:
        trainer = self.trainer
        if trainer.iter + 1 != trainer.max_iter and not trainer.is_stopping:
            return
        results = flatten_results_dict(trainer.last_results or {})
        # Undefined figures are None
        figures = {f"final/{name}": float(x) for name, x in results.items() if x is not None}
        if trainer.best["best"] is not None:
            figures[f"best/{trainer.cfg.SOLVER.BEST_METRIC}"] = trainer.best["best"]
        # Not before it is needed, for it takes a second
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        with SummaryWriter(trainer.cfg.OUTPUT_DIR, filename_suffix=".settings") as writer:
            for part in hparams(settings_shown(trainer.cfg), figures):
                writer.file_writer.add_summary(part, trainer.iter)
            for name, value in figures.items():
                writer.add_scalar(name, value, trainer.iter)


def settings_shown(cfg: CfgNode) -> dict[str, bool | int | float | str]:
    """Keys with their values, those that are no number, word or truth value as text."""
    usual = get_cfg()
    add_ctmasknet_config(usual)
    default = {key: _plain(value) for key, value in leaves(usual)}
    values = {key: _plain(value) for key, value in leaves(cfg)}
    left_out = ("OUTPUT_DIR", "MODEL.DEVICE", "VERSION")
    return {
        key: value
        for key, value in values.items()
        if key in _ALWAYS or (value != default.get(key) and key not in left_out)
    }


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, list):
        value = tuple(value)
    return value if isinstance(value, bool | int | float | str) else str(value)
