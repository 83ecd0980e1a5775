"""The registry of image heads, and the one that a configuration names."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

IMAGE_HEAD_REGISTRY = Registry("IMAGE_HEAD")
IMAGE_HEAD_REGISTRY.__doc__ = """
Heads from ranked boxes to slice classes: built from a config, called with rows (B, N, 5), returning
logits (B, C).
"""


def build_image_head(cfg: CfgNode) -> nn.Module:
    """Build the head named by ``MODEL.IMAGE_HEAD.NAME``."""
    return IMAGE_HEAD_REGISTRY.get(cfg.MODEL.IMAGE_HEAD.NAME)(cfg)
