"""The one kind of error a user of the tools is meant to read."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


class CTMaskNetError(Exception):
    """Bad input: the message names the file or key, what is wrong and what to do about it."""


def command_line(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a tool's ``main``: a :class:`CTMaskNetError` ends as one line on stderr and exit code 2.

    Every other exception keeps its traceback, because it is a defect and not bad input.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except CTMaskNetError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return wrapped
