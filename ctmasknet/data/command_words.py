"""Words of the preparation tools' command lines."""

from __future__ import annotations

from collections.abc import Sequence

from ctmasknet.errors import CTMaskNetError


def parse_assignments(values: Sequence[str], option: str) -> dict[str, str]:
    """``["train=a.txt", "val=b.txt"]`` -> ``{"train": "a.txt", "val": "b.txt"}``, order kept.

    Raises:
        CTMaskNetError: a value without ``=`` or a name given twice; it names ``option``.
    """
    assigned: dict[str, str] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise CTMaskNetError(f"{option} {value}: expected NAME=VALUE")
        if key in assigned:
            raise CTMaskNetError(f"{option} {value}: {key} is given twice")
        assigned[key] = text
    return assigned
