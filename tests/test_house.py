"""The rules of the house: who may import whom, one place a name, small folders, flags in tools."""

import ast
import itertools
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: A room imports rooms of an earlier row; rooms of one row do not import each other.
ROWS = (
    {"errors"},
    {"console"},
    {"classes", "files", "overrides", "schema", "workers"},
    {"csv_tables"},
    {"names", "registration"},
    {"ct", "modeling", "model_zoo", "bounds"},
    {"config"},
    {"key_checks"},
    {"config_file"},
    {"data"},
    {"prepare", "phantom", "evaluation", "weights", "draw"},
    # The quicker copies of the models: for engine and above, never for modeling
    {"modeling.fast"},
    {"engine"},
    {"predict"},
    {"explain", "paper"},
    {"report"},
    # Nobody imports these, not even one the other
    {"benchmarks", "demo", "experiments", "serve"},
)
ROW_OF = {room: number for number, row in enumerate(ROWS, start=1) for room in row}
# The first word of a CSS variable follows a bracket
_FLAG = re.compile(r"(?<![\w(-])--[a-z][a-z-]*")


def _files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def _room(module: str) -> str | None:
    """The room of a module such as ``ctmasknet.ct.read``; None of all that is none of ours."""
    words = module.split(".")
    if words[0] != "ctmasknet":
        return None
    return next((room for n in (3, 2) if (room := ".".join(words[1:n])) in ROW_OF), None)


def _imports(tree: ast.AST, package: str) -> set[str]:
    """Modules that are imported anywhere, in functions too, by their full names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level]
            origin = ".".join([*(base if node.level else ()), *filter(None, [node.module])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def upward_imports(path: Path, text: str) -> list[str]:
    """Imports of a file in ``ctmasknet/`` that do not lead to an earlier row."""
    words = path.relative_to(ROOT).with_suffix("").parts
    own = _room(".".join(words))
    if own is None:  # ctmasknet/__init__.py registers the parts
        return []
    rooms = {module: _room(module) for module in _imports(ast.parse(text), ".".join(words[:-1]))}
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for module, room in sorted(rooms.items())
        if module.startswith(("tools.", "datasets."))
        or (room not in (None, own) and ROW_OF[room] >= ROW_OF[own])
    ]


def _public_names(path: Path) -> list[str]:
    """Functions, classes and constants that a module defines at its top level."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            stored = itertools.chain.from_iterable(ast.walk(target) for target in targets)
            names += [n.id for n in stored if isinstance(n, ast.Name) and n.id.isupper()]
    return [name for name in names if not name.startswith("_")]


def _flags(path: Path) -> list[str]:
    """Options in a file's text, but for those that it calls git with."""
    text = path.read_text(encoding="utf-8")
    lines = dict(enumerate(text.splitlines(), start=1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "git":
            for number in range(node.lineno, node.end_lineno + 1):
                lines.pop(number, None)
    where = path.relative_to(ROOT)
    return [f"{where}:{n}: {flag}" for n, line in lines.items() for flag in _FLAG.findall(line)]


def test_rooms_import_rooms_of_earlier_rows_only():
    files = _files("ctmasknet")
    found = [up for path in files for up in upward_imports(path, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "line", "room"),
    [
        ("data/mapper.py", "from ctmasknet.engine import setup", "engine"),
        ("data/mapper.py", "def f():\n    import ctmasknet.evaluation.metrics", "evaluation"),
        ("evaluation/slices.py", "from ctmasknet import draw", "draw"),
        ("modeling/masks.py", "from .fast import layers", "modeling.fast"),
        ("report/page.py", "from ..demo import main", "demo"),
        ("classes.py", "from ctmasknet.names import PatientRule", "names"),
        ("predict/run.py", "from tools.predict import main", "tools"),
    ],
)
def test_an_import_that_runs_back_up_is_found(file, line, room):
    found = upward_imports(ROOT / "ctmasknet" / file, line)
    assert len(found) == 1 and re.search(rf"imports (ctmasknet\.)?{room}\b", found[0])


def test_every_module_has_a_room():
    homeless = [
        str(path.relative_to(ROOT))
        for path in _files("ctmasknet")
        if _room(".".join(path.relative_to(ROOT).with_suffix("").parts)) is None
    ]
    assert homeless == ["ctmasknet/__init__.py"]


def test_no_public_name_is_defined_in_two_modules():
    homes = defaultdict(list)
    for path in _files("ctmasknet"):
        for name in set(_public_names(path)):
            homes[name].append(str(path.relative_to(ROOT)))
    twice = [f"{name}: {', '.join(found)}" for name, found in homes.items() if len(found) > 1]
    assert not twice, "\n".join(sorted(twice))


def test_folders_and_files_are_small():
    files = [*_files("ctmasknet"), *_files("tests")]
    counts = Counter(path.parent.relative_to(ROOT) for path in files)
    found = [f"{folder}: {count} files" for folder, count in counts.items() if count > 15]
    for path in files:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        found += [f"{path.relative_to(ROOT)}: {lines} lines"] if lines > 500 else []
    assert not found, "\n".join(found)


def test_only_tools_and_datasets_write_flags():
    # They run tools and say how: they write command lines
    outside = [ROOT / "ctmasknet" / name for name in ("demo.py", "benchmarks", "experiments")]
    files = [p for p in _files("ctmasknet") if not any(p.is_relative_to(o) for o in outside)]
    found = [flag for path in files for flag in _flags(path)]
    assert not found, "\n".join(found)
