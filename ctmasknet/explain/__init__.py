"""Why this class: which ranked boxes moved a slice's logits, as numbers, pictures and files."""

from ctmasknet.explain.attribution import (
    CAVEAT,
    HIDDEN,
    METHODS,
    BoxAttribution,
    attribute,
    integrate_gradients,
    occlude,
)

__all__ = [
    "CAVEAT",
    "HIDDEN",
    "METHODS",
    "BoxAttribution",
    "attribute",
    "integrate_gradients",
    "occlude",
]
