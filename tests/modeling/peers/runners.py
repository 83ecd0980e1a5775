"""Which function runs a golden, by the start of its name."""

from collections.abc import Callable
from pathlib import Path

RUNNERS: dict[str, Callable[[Path], None]] = {}
