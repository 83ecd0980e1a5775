"""What a model found in a slice, drawn: its best lesions, and which boxes moved the decision."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctmasknet.data.mapper import LesionMapper, SliceMapper
from ctmasknet.engine.checkpoint import is_classifier
from ctmasknet.engine.setup import BEST_CHECKPOINT, load_model
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.explain.attribution import CAVEAT, attribute
from ctmasknet.explain.drawing import draw_box_weights, heaviest
from ctmasknet.lesion_list import lesions_of
from ctmasknet.modeling.inference import inference_model
from ctmasknet.predict.setup import prediction_cfg
from ctmasknet.report.pictures import Painter
from ctmasknet.report.run_files import run_folders
from ctmasknet.report.slice_files import FoundSlice
from ctmasknet.visualize import draw_lesions

#: Lesions and box weights drawn of a slice. An error often comes of lesions that score low, so none
#: is left out for its score, as other pictures do.
_MOST = 5
#: Scores of the model that draws may differ by so much from those reported (half precision, GPU).
_SAME_SCORE = 0.1


def evidence_painter(
    config_file: str, opts: Sequence[str], run: str | os.PathLike, class_names: Sequence[str]
) -> Painter:
    """Load the model and return what draws a slice's lesions and, for a classifier, the weights of
    its boxes for the called class (exact occlusion, see :mod:`ctmasknet.explain`).

    Args:
        config_file: of a classifier or a detector.
        opts: ``KEY VALUE`` overrides.
        run: folder of the run, or of one of its data sets, whose ``model_best.pth`` is used unless
            ``opts`` name weights or OUTPUT_DIR.
        class_names: of the predictions; a classifier has to have the same.

    Raises:
        CTMaskNetError: see :func:`prediction_cfg` and :func:`load_model`; other classes. The
            painter raises it for a slice that the model scores otherwise than reported.
    """
    opts = list(opts)
    named = {"MODEL.WEIGHTS", "OUTPUT_DIR"} & set(opts[::2])
    places = [] if named else run_folders(Path(run))
    own = [place for place in places if (place / BEST_CHECKPOINT).is_file()]
    opts += ["OUTPUT_DIR", str(own[0])] if own else []
    # Classes are those of the weights: the data set need not be on this machine
    cfg, _ = prediction_cfg(config_file, opts)
    classifies = is_classifier(cfg)
    if classifies and list(cfg.MODEL.IMAGE_HEAD.CLASSES) != list(class_names):
        raise CTMaskNetError(
            f"{config_file}: classes {', '.join(cfg.MODEL.IMAGE_HEAD.CLASSES)}, but the "
            f"predictions have {', '.join(class_names)}; give the model that made them"
        )
    model = inference_model(cfg, load_model(cfg))
    if classifies:
        model.return_instances = model.return_ranked_instances = True
    mapper = (SliceMapper if classifies else LesionMapper)(cfg, is_train=False)
    lesion_classes = list(cfg.MODEL.LESION_CLASSES)

    def paint(row: SlicePrediction, slice_: FoundSlice) -> list[tuple[np.ndarray, str]]:
        if classifies:
            item = mapper.map_pixels(dict(slice_.entry), slice_.pixels)
        elif slice_.is_picture:
            item = mapper(dict(slice_.entry))
        else:
            raise CTMaskNetError(
                f"{row.file}: a detector's configuration draws on pictures alone; give the "
                "classifier that made the predictions"
            )
        with torch.no_grad():
            found = model([item])[0]
        x0, y0, x1, y1 = item.get("crop_box") or (0, 0, *slice_.pixels.shape[1::-1])
        pixels = np.ascontiguousarray(slice_.pixels[y0:y1, x0:x1])
        drawn = [_lesions(pixels, found, lesion_classes)]
        if classifies:
            gap = np.abs(np.asarray(found["scores"].tolist()) - np.asarray(row.scores)).max()
            if gap > _SAME_SCORE:
                raise CTMaskNetError(
                    f"{row.file}: {cfg.MODEL.WEIGHTS} scores it otherwise than the predictions "
                    f"(by {gap:.2f}); give the weights that made them"
                )
            drawn.append(_box_weights(pixels, found, model.image_head, row.pred, class_names))
        return drawn

    return paint


def _lesions(
    pixels: np.ndarray, found: Mapping[str, Any], lesion_classes: Sequence[str]
) -> tuple[np.ndarray, str]:
    lesions = lesions_of(found["instances"], *pixels.shape[:2])
    best = sorted(lesions, key=lambda lesion: -lesion.score)[:_MOST]
    caption = "no lesion found"
    if best:
        caption = f"{len(best)} best of {len(lesions)} lesions, highest score {best[0].score:.2f}"
    # On a picture of this size labels would hide what they name
    return draw_lesions(pixels, best, lesion_classes, labels=False), caption


def _box_weights(
    pixels: np.ndarray,
    found: Mapping[str, Any],
    head: torch.nn.Module,
    target: int,
    class_names: Sequence[str],
) -> tuple[np.ndarray, str]:
    ranked = found["ranked_instances"]
    weights = attribute(head, found["ranked_boxes"], len(ranked)).weights[:, target].cpu().numpy()
    boxes = ranked.pred_boxes.tensor.cpu().numpy()
    caption = f"boxes that moved {class_names[target]} most, solid for, dashed against; {CAVEAT}"
    if not len(heaviest(weights, _MOST)):
        caption = f"no box moved {class_names[target]}"
    return draw_box_weights(pixels, boxes, weights, most=_MOST), caption
