"""How much a tool says: asked for on its command line, heard by every process that it starts."""

from __future__ import annotations

import logging
import os

#: Less to more: results, warnings and errors alone; progress and notes too; every message whole.
VERBOSITIES = ("quiet", "usual", "verbose")
#: Processes that a tool starts see it too.
VERBOSITY_VARIABLE = "CTMASKNET_VERBOSITY"


def verbosity() -> str:
    """One of :data:`VERBOSITIES`."""
    asked = os.environ.get(VERBOSITY_VARIABLE, "")
    return asked if asked in VERBOSITIES else "usual"


def set_verbosity(asked: str) -> None:
    """From now on, here and in processes that are started: one of :data:`VERBOSITIES`."""
    os.environ[VERBOSITY_VARIABLE] = asked
    if asked == "verbose":  # by a tool that sets up no log
        logging.lastResort.setLevel(logging.INFO)
        logging.getLogger("ctmasknet").setLevel(logging.INFO)
