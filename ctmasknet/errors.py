"""The one kind of error a user of the tools is meant to read, and how a tool shows it."""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Callable

#: An argument in a message, such as `max_bad_share`.
_ARGUMENT = re.compile(r"`([a-z][a-z0-9_]*)`")


class CTMaskNetError(Exception):
    """Bad input: the message names the file or key, what is wrong and what to do about it.

    Arguments stand in backquotes under their Python names; :func:`command_line` shows a tool's user
    the option instead, with hyphens for the underscores.
    """


def command_line(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a tool's ``main``: a :class:`CTMaskNetError` ends as one line on stderr and exit code 2.

    Every other exception keeps its traceback, because it is a defect and not bad input.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        # What is warned of before a log is set up
        logging.lastResort.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        try:
            return main(*args, **kwargs) or 0
        except CTMaskNetError as error:
            print(f"error: {_ARGUMENT.sub(_option, str(error))}", file=sys.stderr)
            return 2

    return wrapped


def _option(argument: re.Match) -> str:
    return f"--{argument[1].replace('_', '-')}"


def check_seed(seed: int) -> None:
    """Refuse a seed that not every generator takes (scikit-learn's take 32 bits).

    Raises:
        CTMaskNetError: a seed outside 0..2^32 - 1; a negative one does not mean a random seed here.
    """
    if not 0 <= seed < 2**32:
        raise CTMaskNetError(f"seed is {seed}; give a number within 0..{2**32 - 1}")
