"""The one shape of every tool's command line: options that mean the same wherever they are, and
``KEY VALUE`` overrides of a configuration behind everything else, before it, or in between."""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ctmasknet.console.verbosity import set_verbosity
from ctmasknet.errors import CTMaskNetError, as_options

#: Detectron2's keys that stand in no section.
KEYS = ("OUTPUT_DIR", "SEED", "CUDNN_BENCHMARK", "FLOAT32_PRECISION", "VIS_PERIOD", "VERSION")
_KEY = re.compile(rf"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|{'|'.join(KEYS)}")
_OPTION = re.compile(r"--?[a-z][a-z0-9-]*(=.*)?", re.DOTALL)
_DASHES = "-" * 2
#: Processes that a tool takes unless told otherwise, where there are as many cores.
_MOST_WORKERS = 8


def usual_workers() -> int:
    """The processes that a tool takes unless told otherwise: one a core, up to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, _MOST_WORKERS)


#: What each option is that several tools have; in their help, others stand in backquotes.
COMMON_OPTIONS: dict[str, dict[str, Any]] = {
    "config_file": {
        "default": "",
        "metavar": "FILE",
        "help": "configs/seg.yaml, configs/cls.yaml, ...",
    },
    "weights": {"metavar": "FILE", "help": "the model file, which also states its configuration"},
    "input": {
        "nargs": "+",
        "metavar": "PATH",
        "help": "pictures, DICOM and volumes, as files and as folders of any depth",
    },
    "rescale": {
        "metavar": "SLOPE,INTERCEPT",
        "help": "slope and intercept to HU of pictures of more than 8 bits, DICOM without rescale "
        "and volumes not in HU; grey: their values are grey levels 0..255",
    },
    "axes": {
        "metavar": "ORDER",
        "help": "axes of .npy and .npz: zyx for slices, rows, columns; ct:zyx for the array ct",
    },
    "output": {"metavar": "DIR", "help": "folder for everything written"},
    "dataset": {"metavar": "NAME", "help": "name of a prepared data set"},
    "limit": {"type": int, "metavar": "N", "help": "at most so many slices (default: all)"},
    "score_threshold": {
        "type": float,
        "default": 0.75,
        "metavar": "SCORE",
        "help": "lesions must score more, 0..1 (default: %(default)s)",
    },
    "bad": {
        "choices": ("error", "skip"),
        "default": "error",
        "help": "what to do with a slice or file that cannot be read: end with an error, or leave "
        "it out and list it in bad_slices.json (default: %(default)s)",
    },
    "max_bad_share": {
        "type": float,
        "default": 0.01,
        "metavar": "SHARE",
        "help": "with `bad` skip: more than this share of them, 0..1, is an error "
        "(default: %(default)s)",
    },
    "resamples": {
        "type": int,
        "default": 1000,
        "metavar": "N",
        "help": "of the patients, for intervals (default: %(default)s)",
    },
    "normal_class": {"metavar": "NAME", "help": "default: the class called normal, if any"},
    "seed": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "of everything drawn at random (default: %(default)s)",
    },
    "workers": {
        "type": int,
        "default": usual_workers(),
        "metavar": "N",
        "help": f"processes (default: one a core, up to {_MOST_WORKERS}: here %(default)s)",
    },
    "num_gpus": {
        "type": int,
        "default": 1,
        "metavar": "N",
        "help": "processes of this machine, on a CPU too (default: %(default)s)",
    },
    "num_machines": {
        "type": int,
        "default": 1,
        "metavar": "N",
        "help": "they have to share the output folder (default: %(default)s)",
    },
    "machine_rank": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "of this machine, from 0 (default: %(default)s)",
    },
    "dist_url": {
        "default": "auto",
        "metavar": "URL",
        "help": "tcp://HOST:PORT of the first machine (default: one that is free here)",
    },
}
#: What help calls the value of an option that is a path.
_PATHS = ("PATH", "FILE", "DIR", "CSV")
#: Of every tool.
_SAYS = {
    "quiet": "no progress and no notes: results, warnings and errors alone",
    "verbose": "every message whole, those of the libraries too",
    "debug": "of an error, its traceback",
}


class ToolParser(argparse.ArgumentParser):
    """The parser of a tool, with the options that every tool has.

    Help keeps the line breaks of the description. What cannot be parsed is one line.
    """

    def __init__(self, *args, **settings):
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **settings)
        says = self.add_argument_group("what is said")
        for name, text in _SAYS.items():
            says.add_argument(
                _DASHES + name, action="store_true", default=argparse.SUPPRESS, help=text
            )

    def add(self, name: str, **changed: Any) -> argparse.Action:
        """Add an option of :data:`COMMON_OPTIONS`.

        Args:
            name: its Python name.
            changed: what is otherwise in this tool, as for ``add_argument``.
        """
        settings = {**COMMON_OPTIONS[name], **changed}
        settings["help"] = as_options(settings["help"])
        return self.add_argument(_DASHES + name.replace("_", "-"), **settings)

    def parse_args(self, args=None, namespace=None):
        """Raises: CTMaskNetError: a word that is not understood; an empty one for a path."""
        self._refuse_empty(sys.argv[1:] if args is None else list(map(str, args)))
        found = super().parse_args(args, namespace)
        asked = [name for name in _SAYS if vars(found).pop(name, False) and name != "debug"]
        if len(asked) > 1:
            raise CTMaskNetError("`quiet` and `verbose`: give one of the two")
        if asked:
            set_verbosity(asked[0])
        return found

    def _refuse_empty(self, words: list[str]) -> None:
        """An empty path would be the folder that the tool is called in."""
        options = _options(self)
        for before, word in itertools.pairwise(["", *words]):
            option, equals, value = word.partition("=")
            if word and not (option in options and equals and not value):
                continue
            option = option or before
            action = options.get(option)
            if not action or action.type is Path or action.metavar in _PATHS:
                what = option if action else "an argument"
                raise CTMaskNetError(
                    f"{what}: is empty, as a shell's variable that is not set; give a path, or "
                    "leave it out"
                )

    def error(self, message: str) -> NoReturn:
        remedy = f"{self.prog} {_DASHES}help lists the options"
        unknown = message.partition("unrecognized arguments: ")[2].split()
        options = [word for word in unknown if word.startswith("-")]
        near = difflib.get_close_matches(options[0], _options(self), n=1) if options else []
        if near:
            remedy = f"did you mean {near[0]}? {remedy}"
        elif unknown and _KEY.fullmatch(unknown[0]):
            remedy = "no configuration is read here, so leave out KEY VALUE"
        raise CTMaskNetError(f"{message}; {remedy}")


class OverrideParser(ToolParser):
    """A parser with ``opts``, the overrides, wherever they stand among the options.

    argparse alone takes everything behind the first ``KEY`` for overrides, other options included,
    and the first ``KEY`` for one more value of an option that takes several.
    """

    def parse_args(self, args=None, namespace=None):
        options = _options(self)

        def takes_value(word: str) -> bool:
            return any(o.startswith(word) and a.nargs in (None, "+") for o, a in options.items())

        given = sys.argv[1:] if args is None else args
        words, overrides = split_overrides(given, takes_value)
        found = super().parse_args(words, namespace)
        found.opts = overrides
        return found

    def format_help(self) -> str:
        return (
            f"{super().format_help()}\nKEY VALUE pairs override the configuration, such as "
            f"MODEL.DEVICE cpu; they stand anywhere,\nor behind {_DASHES}opts.\n"
        )


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Every option of a parser and of those below it."""
    found: dict[str, argparse.Action] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found |= _options(below)
        found |= dict.fromkeys(action.option_strings, action)
    return found


def split_overrides(
    words: Sequence[str], takes_value: Callable[[str], bool] = lambda word: False
) -> tuple[list[str], list[str]]:
    """The words without the pairs ``KEY VALUE``, and these pairs.

    A key is in capitals with dots (or one of :data:`KEYS`), no file of that name, and not the value
    of an option. A value may be anything but an option: ``-600`` is one. Behind the option
    ``opts``, every word up to the next option is of a pair.

    Args:
        words: of the command line.
        takes_value: whether the word behind this option is its value, whatever it looks like.

    Raises:
        CTMaskNetError: a key without a value, or one with ``=``.
    """
    rest: list[str] = []
    overrides: list[str] = []
    waiting = list(words)
    pairs = False
    while waiting:
        word = waiting.pop(0)
        if _OPTION.fullmatch(word):
            pairs = word == f"{_DASHES}opts"
            if not pairs:
                rest.append(word)
            continue
        of_option = bool(rest) and _OPTION.fullmatch(rest[-1]) and takes_value(rest[-1])
        key, equals, _ = word.partition("=")
        if not pairs and (of_option or not _KEY.fullmatch(key) or os.path.exists(word)):
            rest.append(word)
        elif equals and _KEY.fullmatch(key):
            raise CTMaskNetError(f"{word}: overrides are pairs KEY VALUE, with a blank for the =")
        elif not waiting or _OPTION.fullmatch(waiting[0]):
            raise CTMaskNetError(f"{word}: no value behind it; overrides are pairs KEY VALUE")
        else:
            overrides += [word, waiting.pop(0)]
    return rest, overrides
