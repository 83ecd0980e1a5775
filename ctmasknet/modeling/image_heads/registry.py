"""The registry of image heads, and the one that a configuration names."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from ctmasknet.errors import CTMaskNetError

IMAGE_HEAD_REGISTRY = Registry("IMAGE_HEAD")
IMAGE_HEAD_REGISTRY.__doc__ = """
Heads from ranked boxes to slice classes: built from a config, called with rows (B, N, D), returning
logits (B, C). ``READS`` of the class names what it can read beside score and deltas (see
:mod:`ctmasknet.modeling.ranked_boxes`), without it D is 5; ``NEEDS`` what it cannot do
without.
"""


def build_image_head(cfg: CfgNode) -> nn.Module:
    """Build the head named by ``MODEL.IMAGE_HEAD.NAME``.

    Raises:
        CTMaskNetError: ``MODEL.IMAGE_HEAD.READS`` is not for it.
    """
    head = IMAGE_HEAD_REGISTRY.get(cfg.MODEL.IMAGE_HEAD.NAME)
    check_reads(head, tuple(cfg.MODEL.IMAGE_HEAD.READS))
    return head(cfg)


def check_reads(head: type, reads: tuple[str, ...]) -> None:
    """Refuse ``MODEL.IMAGE_HEAD.READS`` that a head cannot use, or that lack what it needs.

    Heads without ``READS`` of their own read the five numbers alone.

    Raises:
        CTMaskNetError: says what to set.
    """
    able = getattr(head, "READS", ())
    useless = [name for name in reads if name not in able]
    if useless:
        raise CTMaskNetError(
            f"MODEL.IMAGE_HEAD.READS is {list(reads)}, but {head.__name__} reads "
            f"{', '.join(able) or 'scores and deltas alone'}; leave {', '.join(useless)} out"
        )
    missing = [name for name in getattr(head, "NEEDS", ()) if name not in reads]
    if missing:
        raise CTMaskNetError(
            f"MODEL.IMAGE_HEAD.READS is {list(reads)}, but {head.__name__} needs "
            f"{', '.join(missing)}; add it"
        )
