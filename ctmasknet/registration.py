"""A user's registration module: Python that registers data sets, mappers, heads or backbones.

It is code, so who starts a run names it: as ``DATASETS.IMPORT`` on the command line, or in the
environment variable :data:`IMPORT_VARIABLE`. Configurations and checkpoints come from anybody, and
are refused where they name one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctmasknet.errors import CTMaskNetError

IMPORT_KEY = "DATASETS.IMPORT"
IMPORT_VARIABLE = "CTMASKNET_IMPORT"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
#: What has been imported, by module name or absolute path: a part is registered once.
_done: set[str] = set()


def import_registrations(overrides: Sequence[Any] = ()) -> None:
    """Import the user's module, once a process: a Python file (``.py``), or the name of a module
    that Python finds.

    Args:
        overrides: ``KEY VALUE`` pairs of a command line; :data:`IMPORT_KEY` among them goes before
            the environment, and "" there is none.

    Raises:
        CTMaskNetError: no such file or module, or it cannot be imported; names it and the fault.
    """
    given = dict(zip(map(str, overrides[::2]), map(str, overrides[1::2]), strict=False))
    said_by = IMPORT_KEY if IMPORT_KEY in given else IMPORT_VARIABLE
    name = given.get(IMPORT_KEY, os.environ.get(IMPORT_VARIABLE, "")).strip("'\"")
    if not name:
        return
    if name.endswith(".py"):
        path = os.path.realpath(os.path.expanduser(name))
        if path not in _done:
            _import(f"{said_by} {name}", path)
            _done.add(path)
        return
    if not _MODULE.fullmatch(name):
        raise CTMaskNetError(
            f"{said_by} {name!r}: neither a Python file nor the name of a module; give a file such "
            "as my_sets.py"
        )
    if name not in _done:
        _import(f"{said_by} {name}", None)
        _done.add(name)


def refuse_import(named: object, where: str) -> None:
    """Refuse a module that a file names.

    Raises:
        CTMaskNetError: it names one.
    """
    if named:
        raise CTMaskNetError(
            f"{where}: {IMPORT_KEY} is {named!r:.200}, which runs code, so a file may not name it; "
            f"remove the key, and name a module that you trust on the command line or in "
            f"{IMPORT_VARIABLE}"
        )


def _import(said: str, path: str | None) -> None:
    """Import a file, or without one the module that ``said`` ends with."""
    name = said.split(" ", 1)[1]
    if path is not None and not os.path.isfile(path):
        raise CTMaskNetError(f"{said}: no such file; correct the path")
    try:
        if path is None:
            importlib.import_module(name)
        else:
            _run_file(path)
    except CTMaskNetError as error:  # of what it called
        raise CTMaskNetError(f"{said}: {error}") from error
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and _is_or_holds(error.name, name) and not path:
            beside = f"{name.replace('.', '/')}.py"
            fix = f"{beside}, which is there" if Path(beside).is_file() else "its file"
            raise CTMaskNetError(
                f"{said}: Python finds no module of this name; give {fix}, or add its folder to "
                "PYTHONPATH"
            ) from None
        raise CTMaskNetError(f"{said}: {_fault(error, path)}; correct the module") from error


def _run_file(path: str) -> None:
    # A name of its own, so that my.py or json.py shadows nothing
    name = f"ctmasknet_import_{re.sub(r'[^A-Za-z0-9]', '_', Path(path).stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _is_or_holds(missing: str | None, name: str) -> bool:
    return missing is not None and f"{name}.".startswith(f"{missing}.")


def _fault(error: BaseException, path: str | None) -> str:
    """``line 3: NameError: name 'x' is not defined``; of a module by name, its file too."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, SyntaxError):
        where, line, text = error.filename, error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if frame.filename == path] if path else frames[-1:]
        where, line = (ours[-1].filename, ours[-1].lineno) if ours else (path, None)
    at = "" if line is None else f"line {line}: "
    if where != path and where:
        at = f"{where}: {at}"
    return f"{at}{type(error).__name__}: {text}"
