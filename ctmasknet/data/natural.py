"""The order in which people read numbered names."""

from __future__ import annotations

import re


def natural_key(name: str) -> list:
    """A sort key that puts ``s2`` before ``s10``."""
    # Digits sit at odd places, so that a number is never compared with text.
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]
