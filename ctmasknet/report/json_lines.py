"""Files of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctmasknet.errors import CTMaskNetError


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a ``.jsonl`` file, one after the other.

    Raises:
        CTMaskNetError: a file that cannot be read, or a line that is no object.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                item = json.loads(line)
                if not isinstance(item, dict):
                    raise ValueError(f"no object: {line[:40]!r}")
                yield item
    except (OSError, ValueError) as error:
        raise CTMaskNetError(f"{path}: cannot be read ({error}); write the file anew") from error
