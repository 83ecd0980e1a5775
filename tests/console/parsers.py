"""The parsers of all tools, as they stand when a command line reaches them."""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from ctmasknet.overrides import ToolParser


class _Reached(BaseException):
    """Carries a tool's parser past everything that a tool catches."""


def _reached(parser: ToolParser, *_) -> None:
    raise _Reached(parser)


def parser_of(script: Path) -> argparse.ArgumentParser:
    """The parser of a script in tools/ or datasets/."""
    main = runpy.run_path(str(script))["main"]
    try:
        with mock.patch.object(argparse.ArgumentParser, "parse_known_args", _reached):
            main([])
    except _Reached as reached:
        return reached.args[0]
    raise AssertionError(f"{script} parses no command line")


def with_sub_commands(
    name: str, parser: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A parser and, behind its name, those of its sub-commands."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from with_sub_commands(f"{name} {word}", below)


def all_parsers(repository: Path) -> dict[str, argparse.ArgumentParser]:
    """``tools/predict.py`` and the like, and ``tools/benchmark.py parts``, to their parsers."""
    scripts = [*repository.glob("tools/*.py"), *repository.glob("datasets/*.py")]
    found = {}
    for script in sorted(path for path in scripts if not path.stem.startswith("_")):
        name = script.relative_to(repository).as_posix()
        found |= with_sub_commands(name, parser_of(script))
    return found
