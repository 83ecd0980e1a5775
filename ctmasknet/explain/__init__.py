"""Why this class: which ranked boxes moved a slice's logits, as numbers, pictures and files. The
door is :func:`attribute`."""

from ctmasknet.explain.attribution import attribute

__all__ = ["attribute"]
