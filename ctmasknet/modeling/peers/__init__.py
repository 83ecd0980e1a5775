"""The systems that the paper is compared with, as parts registered with Detectron2."""

from ctmasknet.modeling.peers import mask_feature_heads, two_branch

__all__ = ["mask_feature_heads", "two_branch"]
