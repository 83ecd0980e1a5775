"""Heads that name a slice from its ranked boxes.

S, the paper's, is in :mod:`ctmasknet.modeling.image_heads.s`.
"""
