"""A kind of file, and how most of them are damaged and written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz import mutations


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        damage: (folder, source of chance) -> a damaged file written into the empty folder.
        read: what a tool does with it; raises CTMaskNetError for what it refuses.
    """

    damage: Callable[[Path, random.Random], Path]
    read: Callable[[Path], object]


def written(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode(errors="surrogatepass") if isinstance(data, str) else data)
    return path


def bytes_or(rng: random.Random, text: str, changed: Callable[[], str]) -> bytes:
    """One time in five the bytes are damaged, else what they mean."""
    if rng.random() < 0.2:
        return mutations.raw(text.encode(), rng)
    return changed().encode(errors="surrogatepass")


def json_bytes(rng: random.Random, content: Any) -> bytes:
    return bytes_or(rng, json.dumps(content), lambda: json.dumps(mutations.tree(content, rng)))


def csv_bytes(rng: random.Random, text: str) -> bytes:
    return bytes_or(rng, text, lambda: mutations.table(text, rng))
