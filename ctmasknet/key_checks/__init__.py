"""Which configuration keys are refused, because nothing reads them or no code knows their value,
and which a training's other keys leave without effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode, get_cfg

from ctmasknet.bounds import check_together, check_value
from ctmasknet.config import add_ctmasknet_config, is_classifier, leaves
from ctmasknet.errors import CTMaskNetError
from ctmasknet.key_checks.choices import CHOICES, REGISTRIES, ROTATED
from ctmasknet.key_checks.effects import IDLE_WHERE, WITHOUT_EFFECT, WITHOUT_EFFECT_WHERE
from ctmasknet.modeling.image_heads import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.image_heads.registry import check_reads
from ctmasknet.modeling.ranked_boxes import RowLayout


def check_keys(cfg: CfgNode) -> None:
    """Refuse keys that are set without having an effect, and values that no code knows.

    Raises:
        CTMaskNetError: names the key, its value, why it is refused and what to do instead.
    """
    usual = get_cfg()
    add_ctmasknet_config(usual)
    default = dict(leaves(usual))
    for key, value in leaves(cfg):
        if key in CHOICES and value not in CHOICES[key]:
            known = ", ".join(word or '""' for word in CHOICES[key])
            raise CTMaskNetError(f"{key} is {value!r}; choose one of {known}")
        if key in REGISTRIES and (value not in REGISTRIES[key] or value in ROTATED):
            known = ", ".join(sorted({name for name, _ in REGISTRIES[key]} - set(ROTATED)))
            raise CTMaskNetError(
                f"{key} is {value!r}; choose one of those registered: {known}; a module of yours "
                "that registers more is named on the command line, as DATASETS.IMPORT"
            )
        check_value(key, value)
        changed = key in default and _tuples(value) != _tuples(default[key])
        reason = _without_effect(key, cfg) if changed else None
        if reason:
            raise CTMaskNetError(
                f"{key} is {value!r}, which has no effect: {reason}; leave it at {default[key]!r}"
            )
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise CTMaskNetError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}, but INPUT.MIN_SIZE_TRAIN_SAMPLING range draws "
            "between two; give the least and the largest shorter side, px"
        )
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        raise CTMaskNetError(
            "MODEL.BACKBONE.NAME is 'build_resnet_backbone', which has no feature pyramid for the "
            "RPN to look at; set it to build_resnet_fpn_without_p6_backbone"
        )
    check_together(cfg)
    _check_reads(cfg)


def _check_reads(cfg: CfgNode) -> None:
    """Refuse a ``MODEL.IMAGE_HEAD.READS`` that the head or the detector has no use for."""
    reads = RowLayout.from_config(cfg).reads
    check_reads(IMAGE_HEAD_REGISTRY.get(cfg.MODEL.IMAGE_HEAD.NAME), reads)
    if not is_classifier(cfg):
        return
    for name, key, without in (
        ("features", "MODEL.ROI_BOX_HEAD.NUM_FC", not cfg.MODEL.ROI_BOX_HEAD.NUM_FC),
        ("masks", "MODEL.MASK_ON", not cfg.MODEL.MASK_ON),
    ):
        if name in reads and without:
            raise CTMaskNetError(
                f"MODEL.IMAGE_HEAD.READS names {name}, but {key} is "
                f"{'0' if name == 'features' else 'False'}; leave {name} out"
            )


def idle_keys(cfg: CfgNode) -> Iterator[str]:
    """Keys of a training that its other keys leave without effect, each as a line that says why.

    They are not refused, for configurations inherit them.
    """
    usual = get_cfg()
    add_ctmasknet_config(usual)
    default = dict(leaves(usual))
    for key, value in leaves(cfg):
        if key not in default or _tuples(value) == _tuples(default[key]):
            continue
        for starts, condition, reason in IDLE_WHERE:
            if key.startswith(starts) and condition(cfg):
                yield f"{key} {value!r} has no effect: {reason}"
                break


def check_averages(cfg: CfgNode, given: Sequence[str], averages: bool) -> None:
    """Refuse more than one look (``TEST.AUG``, ``TEST.ENSEMBLE``) of a run that takes none.

    Args:
        given: keys of the command line that the model's file states too.
        averages: whether the run takes more looks.

    Raises:
        CTMaskNetError: it does not; or ``given`` would hold for one model of an ensemble alone.
    """
    for key, asked in (
        ("TEST.AUG.ENABLED", cfg.TEST.AUG.ENABLED),
        ("TEST.ENSEMBLE", cfg.TEST.ENSEMBLE),
    ):
        if asked and not averages:
            raise CTMaskNetError(
                f"{key} is {asked}, but only evaluation (tools/train_net.py) and tools/predict.py "
                "look at a slice more than once; leave it out"
            )
    if cfg.TEST.ENSEMBLE and given:
        raise CTMaskNetError(
            f"{given[0]}: an ensemble's models are used as their files state it; leave it out, or "
            "give one model"
        )


def _tuples(value: object) -> object:
    """A sequence as tuples all through, for a file that was dumped has lists in their place."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _without_effect(key: str, cfg: CfgNode) -> str | None:
    for start, reason in WITHOUT_EFFECT.items():
        if key.startswith(start):
            return reason
    for starts, condition, reason in WITHOUT_EFFECT_WHERE:
        if key.startswith(starts) and condition(cfg):
            return reason
    return None
