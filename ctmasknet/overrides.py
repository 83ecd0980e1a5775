"""``KEY VALUE`` overrides on a command line: behind everything else, before it, or in between."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from ctmasknet.errors import CTMaskNetError

#: Detectron2's keys that stand in no section.
KEYS = ("OUTPUT_DIR", "SEED", "CUDNN_BENCHMARK", "FLOAT32_PRECISION", "VIS_PERIOD", "VERSION")
_KEY = re.compile(rf"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|{'|'.join(KEYS)}")
_OPTION = re.compile(r"--?[a-z][a-z0-9-]*(=.*)?", re.DOTALL)


class OverrideParser(argparse.ArgumentParser):
    """A parser with ``opts``, the overrides, wherever they stand among the options.

    argparse alone takes everything behind the first ``KEY`` for overrides, other options included,
    and the first ``KEY`` for one more value of an option that takes several.
    """

    def parse_args(self, args=None, namespace=None):
        words, overrides = split_overrides(sys.argv[1:] if args is None else args)
        found = super().parse_args(words, namespace)
        found.opts = overrides
        return found

    def format_help(self) -> str:
        return f"{super().format_help()}\nKEY VALUE pairs override the configuration.\n"

    def format_usage(self) -> str:
        return f"{super().format_usage().rstrip()} [KEY VALUE ...]\n"


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without the pairs ``KEY VALUE``, and these pairs.

    A key is in capitals with dots (or one of :data:`KEYS`) and no file of that name. A value may be
    anything but an option: ``-600`` is one. The option ``opts`` before the pairs says nothing more.

    Raises:
        CTMaskNetError: a key without a value.
    """
    rest: list[str] = []
    overrides: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not _KEY.fullmatch(word) or os.path.exists(word):
            rest.append(word)
        elif not waiting or _OPTION.fullmatch(waiting[0]):
            raise CTMaskNetError(f"{word}: no value behind it; overrides are pairs KEY VALUE")
        else:
            if rest and rest[-1] == "-" * 2 + "opts":
                rest.pop()
            overrides += [word, waiting.pop(0)]
    return rest, overrides
