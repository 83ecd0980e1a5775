"""The one kind of error a user of the tools is meant to read.

Which seeds a command line may give.
"""

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


def check_seed(seed: int) -> None:
    """Refuse a seed that not every generator takes (scikit-learn's take 32 bits).

    Raises:
        CTMaskNetError: a seed outside 0..2^32 - 1; a negative one does not mean a random seed here.
    """
    if not 0 <= seed < 2**32:
        raise CTMaskNetError(f"seed is {seed}; give a number within 0..{2**32 - 1}")
