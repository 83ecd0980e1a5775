"""Every command that the pages and the tools' own help show is one that the tools understand."""

import os
import re
import shlex
import subprocess

import pytest

from ctmasknet.console.verbosity import VERBOSITY_VARIABLE
from ctmasknet.errors import CTMaskNetError
from tests.console.parsers import all_parsers

_BLOCK = re.compile(r"^ *```[a-z]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`((?:python |torchrun |ctmasknet )[^`]+)`")
_ASSIGNED = re.compile(r"^([A-Z]+)=(.*)$")
_TOOL = re.compile(r"(?:tools|datasets)/[a-z_]+\.py")


def shown_commands(text):
    """Command lines of a page: of its blocks, with what a shell's variables were set to, and those
    in a sentence that name an option."""
    lines, values = [], {}
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if assigned := _ASSIGNED.match(line):
                values[assigned[1]] = assigned[2].split(" #")[0].strip().strip('"')
            for name, value in values.items():
                line = re.sub(rf"\${name}\b", lambda _, value=value: value, line)
            if _TOOL.search(line) or "ctmasknet " in line:
                lines += re.split(r"&&|;", line)
    inline = [" ".join(found.split()) for found in _INLINE.findall(text)]
    return [line.strip() for line in lines] + [line for line in inline if " -" in line]


def tool_and_words(line):
    """``tools/predict.py`` and what follows it; None of another command."""
    if "..." in line or re.search(r"[\[{<]", line.split("#")[0].replace("{case}", "")):
        return None  # a form to be filled in
    words = shlex.split(line, comments=True)
    for at, word in enumerate(words):
        if _TOOL.fullmatch(word):
            return word, words[at + 1 :]
        if word == "ctmasknet" and len(words) > at + 1 and not words[at + 1].startswith("-"):
            return f"{words[at + 1]}", words[at + 2 :]
    return None


@pytest.fixture(scope="module")
def parsers(repository):
    return all_parsers(repository)


def not_understood(parsers, line):
    found = tool_and_words(line)
    if found is None:
        return None
    name, words = found
    parser = next((p for tool, p in parsers.items() if tool.endswith((name, f"/{name}.py"))), None)
    if parser is None:
        return f"{line}: no such tool"
    try:
        parser.parse_args([word for word in words if word != "--debug"])
    except CTMaskNetError as error:
        return f"{line}: {error}"
    except SystemExit:  # its help
        return None
    return None


def test_every_documented_command_is_understood(parsers, repository, monkeypatch):
    monkeypatch.setenv(VERBOSITY_VARIABLE, "usual")
    pages = [*repository.glob("docs/*.md"), repository / "README.md"]
    pages.append(repository / "datasets" / "README.md")
    count, faults = 0, []
    for page in pages:
        for line in shown_commands(page.read_text(encoding="utf-8")):
            count += tool_and_words(line) is not None
            fault = not_understood(parsers, line)
            faults += [f"{page.name}: {fault}"] if fault else []
    assert not faults, "\n".join(faults)
    assert count > 80


def test_examples_of_a_help_are_understood(parsers, monkeypatch):
    monkeypatch.setenv(VERBOSITY_VARIABLE, "usual")
    faults = []
    for parser in parsers.values():
        text = (parser.description or "").replace("\\\n", " ")
        for line in text.splitlines():
            fault = not_understood(parsers, line) if line.startswith("    ") else None
            faults += [fault] if fault else []
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("python tools/train_net.py --config-fil x --evalonly", "unrecognized arguments"),
        ("python tools/prdict.py --input a", "no such tool"),
        ("ctmasknet predict --input a  # without an output", "--output"),
    ],
)
def test_a_wrong_command_is_found(parsers, line, told):
    assert told in not_understood(parsers, line)


def test_every_study_is_of_one_task_of_the_array_that_is_shown(repository, tmp_path):
    """Three studies, five tasks: two have none, and predict nothing."""
    page = (repository / "docs/predict.md").read_text(encoding="utf-8")
    (script,) = (block for block in _BLOCK.findall(page) if block.startswith("#!/bin/bash"))
    studies = ["a study", "b", "c"]
    (tmp_path / "studies.txt").write_text("".join(f"{study}\n" for study in studies))
    # In place of Python: writes its words, one a line
    (tmp_path / "python").write_text('#!/bin/bash\nprintf "%s\\n" "$@" >> called\n')
    (tmp_path / "python").chmod(0o755)
    for task in range(5):
        variables = {
            "SLURM_ARRAY_TASK_COUNT": "5",
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_CPUS_PER_TASK": "2",
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        }
        subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=variables, check=True)
    called = (tmp_path / "called").read_text().splitlines()
    assert called.count("tools/predict.py") == 3
    behind = [called[at + 1] for at, word in enumerate(called) if word == "--input"]
    assert sorted(behind) == studies
