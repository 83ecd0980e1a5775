"""What a checkpoint states of the configuration it was trained with.

Its specification holds the entries of :data:`SPEC_KEYS` under names of their own, and every other
key that input, boxes or scores depend on under ``configuration``.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode

from ctmasknet.classes import MASK_TYPES
from ctmasknet.config import is_classifier, leaves, ranks_boxes
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.ranked_boxes import ROW_FEATURES
from ctmasknet.registration import IMPORT_KEY, refuse_import
from ctmasknet.weights.entries import CONFIGURATION

_LOGGER = logging.getLogger(__name__)
#: Which configuration key holds what a specification's entry states.
SPEC_KEYS = {
    "lesion_classes": "MODEL.LESION_CLASSES",
    "anchors_rounded": "MODEL.ANCHOR_GENERATOR.ROUND",
    "window_center_hu": "INPUT.WINDOW_CENTER_HU",
    "window_width_hu": "INPUT.WINDOW_WIDTH_HU",
    "num_boxes": "MODEL.RANKED_BOXES.NUM",
    "image_classes": "MODEL.IMAGE_HEAD.CLASSES",
}
#: All other keys of model and input, but those of training and speed alone, those of parts that no
#: model here has, and the number of classes, which follows from their names.
_STATED = re.compile(
    r"(?!MODEL\.(DEVICE|WEIGHTS|TRANSFER|UNLIKE_CHECKPOINT|TRAINABLE|INFERENCE|LOAD_PROPOSALS|KEYPOINT_ON"
    r"|ROI_KEYPOINT_HEAD|SEM_SEG_HEAD|PANOPTIC_FPN|RETINANET|ROI_BOX_CASCADE_HEAD"
    r"|BACKBONE\.FREEZE_AT|RANKED_BOXES\.CACHE|ROI_HEADS\.(NUM_CLASSES|PROPOSAL_APPEND_GT)"
    r"|ROI_BOX_HEAD\.(TRAIN_ON_PRED_BOXES|USE_FED_LOSS|FED_LOSS)|ROI_MASK_HEAD\.TARGETS"
    r"|RPN\.BOUNDARY_THRESH|TWO_BRANCH\.COPY_WHEN"
    r"|\w+\.(BATCH_SIZE_PER_IMAGE|IOU_LABELS|IOU_THRESHOLDS|POSITIVE_FRACTION|SMOOTH_L1_BETA"
    r"|(BBOX_REG_)?LOSS_\w+|BBOX_REG_LOSS_TYPE|\w+_TOPK_TRAIN))"
    r"|INPUT\.(AUGMENTATION|CROP\b|MASK_FORMAT|RANDOM_FLIP|\w+_TRAIN))(MODEL|INPUT)\."
)
#: What only a classifier depends on.
_CLASSIFIERS = (
    "MODEL.RANKED_BOXES.",
    "MODEL.IMAGE_HEAD.",
    "MODEL.PATCHES.",
    "MODEL.LESION_HEAD.",
    "INPUT.CROP_TO_BODY",
    "INPUT.LUNGS_ONLY",
)
#: What the image head of a transfer may have of its own.
_LEARNT_ANEW = ("image_classes", "num_boxes")
#: Which of the lesions found are given out, and how: whoever looks at them may choose anew.
FREE_KEYS = (
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
    *("MODEL.MASK_ON", "MODEL.ROI_MASK_HEAD.PASTE", "TEST.DETECTIONS_PER_IMAGE"),
)
#: What a training may choose anew for the weights it starts from.
START_KEYS = (*FREE_KEYS, "MODEL.META_ARCHITECTURE")


def spec_of(cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint of this configuration has to carry to be used rightly."""
    lesions = list(cfg.MODEL.LESION_CLASSES)
    mask_types = [name for name, classes in MASK_TYPES.items() if list(classes) == lesions]
    spec = {
        "task": "classification" if is_classifier(cfg) else "segmentation",
        "mask_type": mask_types[0] if mask_types else "custom",
        "lesion_classes": lesions,
        "anchors_rounded": bool(cfg.MODEL.ANCHOR_GENERATOR.ROUND),
        "window_center_hu": float(cfg.INPUT.WINDOW_CENTER_HU),
        "window_width_hu": float(cfg.INPUT.WINDOW_WIDTH_HU),
    }
    if ranks_boxes(cfg):
        spec["num_boxes"] = cfg.MODEL.RANKED_BOXES.NUM
        spec["row_features"] = list(ROW_FEATURES)
    if is_classifier(cfg):
        spec["image_classes"] = list(cfg.MODEL.IMAGE_HEAD.CLASSES)
    others = () if is_classifier(cfg) else _CLASSIFIERS
    spec[CONFIGURATION] = {
        key: value
        for key, value in leaves(cfg)
        if _is_stated(key) and key not in SPEC_KEYS.values() and not key.startswith(others)
    }
    return spec


def _is_stated(key: str) -> bool:
    return key in FREE_KEYS or _STATED.match(key) is not None


def stated(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Every key that a specification states, with its value."""
    named = {key: spec[name] for name, key in SPEC_KEYS.items() if name in spec}
    return {**spec.get(CONFIGURATION, {}), **named}


def unlike(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys that both state, but with other values: key -> (found, expected)."""
    return {
        key: (found[key], expected[key])
        for key in found.keys() & expected.keys()
        if _tuples(found[key]) != _tuples(expected[key])
    }


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def check_spec(
    path: str,
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    in_use: bool = False,
    transfer: bool = False,
) -> None:
    """Compare a checkpoint's specification with the configuration's, entry by entry both have.

    Where a model is used (``in_use``) another window is an override, by somebody who knows through
    which one the pictures were made: it is taken, with a warning. Other classes may start anew
    (``transfer``), but the lesions of a classifier, whose boxes it reads.

    Raises:
        CTMaskNetError: they disagree; names the key, both values and the override that would agree.
    """
    if tuple(found.get("row_features", ROW_FEATURES)) != ROW_FEATURES:
        raise CTMaskNetError(
            f"{path}: its image head reads {', '.join(found['row_features'])} of a box, but the "
            f"detector here gives {', '.join(ROW_FEATURES)}; use a checkpoint of this version"
        )
    for name, key in SPEC_KEYS.items():
        if name not in found or name not in expected or found[name] == expected[name]:
            continue
        learnt = _LEARNT_ANEW if expected.get("task") == "classification" else ("lesion_classes",)
        if transfer and name in learnt:
            continue
        if in_use and name.startswith("window_"):
            _LOGGER.warning(
                "%s: %s is %s in this checkpoint but %s in the configuration, which is used",
                *(path, key, found[name], expected[name]),
            )
            continue
        fix = f'{key} "{found[name]}"'
        if name == "lesion_classes" and len(found[name]) != len(expected[name]):
            fix += f" MODEL.ROI_HEADS.NUM_CLASSES {len(found[name])}"
        if not in_use and name in learnt:
            fix += ", or start what depends on it anew with MODEL.TRANSFER on"
        raise CTMaskNetError(
            f"{path}: {key} is {found[name]} in this checkpoint but {expected[name]} in the "
            f"configuration or its data set; use a checkpoint that fits, or {fix}"
        )


def put_stated(
    cfg: CfgNode, path: str, keys: Mapping[str, Any], config_file: str, given: Mapping[str, Any]
) -> None:
    """Put what a checkpoint states into ``cfg``; a warning names what the file says otherwise.

    Raises:
        CTMaskNetError: a value that the key does not take; a module to import.
    """
    refuse_import(keys.get(IMPORT_KEY), path)
    before = {key: value for key, value in leaves(cfg) if _is_stated(key)}
    unknown = sorted(keys.keys() - before.keys())
    if unknown:
        _LOGGER.warning(
            "%s states keys that this version does not know and leaves out: %s",
            *(path, ", ".join(unknown)),
        )
    for key in keys.keys() & before.keys():
        try:
            *above, name = key.split(".")
            node = functools.reduce(CfgNode.__getitem__, above, cfg)
            node.merge_from_other_cfg(CfgNode({name: _alike(keys[key], before[key])}))
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise CTMaskNetError(
                f"{path}: states {key} {_short(keys[key])}, which is no such value "
                f"({' '.join(str(error).split())}); get the file anew"
            ) from error
    differing = unlike(dict(keys), before) if config_file else {}
    told = [
        f"{key} {_short(theirs)} (file: {_short(ours)})"
        for key, (theirs, ours) in sorted(differing.items())
        if key not in given
    ]
    if told:
        _LOGGER.warning(
            "%s was trained with other values than those of %s; its own are used: %s",
            *(path, config_file, ", ".join(told)),
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _alike(value: Any, usual: Any) -> Any:
    """A stated value, with whole numbers as float where the key's usual value is one.

    Raises:
        TypeError: it, or something in it, is of another kind than the usual value.
    """
    if isinstance(usual, float) and type(value) is int:
        return float(value)
    listed = isinstance(usual, list | tuple)
    kinds = set(map(_kind, _flat(usual))) if listed else {type(usual)}
    found = set(map(_kind, _flat(value))) if listed else {type(value)}
    if listed != isinstance(value, list | tuple) or (kinds and not found <= kinds):
        raise TypeError("a value of another type is expected")
    return value


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_flat, value))
    else:
        yield value


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)
