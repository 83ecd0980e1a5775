"""Every tool has one shape of command line."""

import argparse
import os

import pytest

from ctmasknet.console.verbosity import VERBOSITY_VARIABLE, verbosity
from ctmasknet.data.bad_slices import BAD_SLICE_MODES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.overrides import COMMON_OPTIONS, OverrideParser, ToolParser
from tests.console.parsers import all_parsers
from tests.helpers.running import run_tool

#: Where an option that several tools have is otherwise on purpose, its default there.
OTHERWISE = {
    # The table in README.md
    "tools/demo.py": {"seed": 1, "output": "output/demo"},
    # Without a seed nothing is drawn at random
    "tools/explain.py": {"seed": None},
    "tools/visualize.py": {"seed": None},
    "tools/paper_figures.py figure2": {"seed": None},
    "datasets/measure_window.py": {"limit": 200},
}
#: Two spellings of one option.
OLD_SPELLINGS = {("--input", "--images"), ("--input", "--scans")}
#: What they measure does not depend on the machine's cores; the configuration is a default.
BENCHMARK = "tools/benchmark.py "
#: Before overrides, whatever a tool cannot do without.
NEEDS = {
    "tools/explain.py": "--output O",
    "tools/export.py": "--output O",
    "tools/gpu_check.py": "",
    "tools/paper_figures.py": "figure2 --dataset D --output O",
    "tools/predict.py": "--output O",
    "tools/report.py": "FOLDER",
    "tools/serve.py": "--weights W",
    "tools/train_net.py": "--resume",
    "tools/visualize.py": "--output O",
}
OVERRIDES = ["MODEL.DEVICE", "cpu", "SEED", "3"]


@pytest.fixture(scope="module")
def parsers(repository):
    return all_parsers(repository)


def options_of(parser):
    return [action for action in parser._actions if action.option_strings]


def test_every_tool_is_looked_at(parsers, repository):
    scripts = [*repository.glob("tools/*.py"), *repository.glob("datasets/*.py")]
    names = {path.relative_to(repository).as_posix() for path in scripts if path.stem[0] != "_"}
    assert {name.split()[0] for name in parsers} == names
    assert all(isinstance(parser, ToolParser) for parser in parsers.values())


def test_an_option_is_the_same_in_every_tool(parsers):
    odd = []
    for tool, parser in parsers.items():
        for action in options_of(parser):
            long = [word for word in action.option_strings if word.startswith("--")]
            name = long[0].removeprefix("--").replace("-", "_") if long else ""
            if name not in COMMON_OPTIONS or (tool.startswith(BENCHMARK) and name != "seed"):
                continue
            usual = COMMON_OPTIONS[name]
            default = OTHERWISE.get(tool, {}).get(name, usual.get("default"))
            expected = (default, usual.get("type"), usual.get("choices"))
            found = (action.default, action.type, action.choices)
            if name == "output":  # a path, of whatever type
                expected, found = default, action.default
            # What a report is of lies in one folder
            if name == "input" and tool != "tools/report.py":
                expected, found = "+", action.nargs
            if found != expected:
                odd.append(f"{tool} --{name}: {found}, elsewhere {expected}")
    assert not odd, "\n".join(odd)
    assert COMMON_OPTIONS["bad"]["choices"] == BAD_SLICE_MODES


def test_every_option_says_what_it_is(parsers):
    silent = [
        f"{tool} {action.option_strings or action.dest}"
        for tool, parser in parsers.items()
        for action in parser._actions
        if not (action.help or isinstance(action, argparse._SubParsersAction))
    ]
    assert not silent
    assert all(parser.format_help() for parser in parsers.values())  # no stray % in it


def test_one_spelling_of_an_option(parsers):
    twice = {
        tuple(action.option_strings)
        for parser in parsers.values()
        for action in options_of(parser)
        if len(action.option_strings) > 1 and action.option_strings != ["-h", "--help"]
    }
    assert twice <= OLD_SPELLINGS


def test_what_reads_a_configuration_takes_overrides(parsers):
    reads = {
        tool.split()[0]
        for tool, parser in parsers.items()
        for action in options_of(parser)
        if action.dest in ("config_file", "weights") and not tool.startswith(BENCHMARK)
    }
    takes = {tool for tool, parser in parsers.items() if isinstance(parser, OverrideParser)}
    # The check makes its models of the configurations that the paper has
    reads.add("tools/gpu_check.py")
    assert reads == {tool for tool in takes if " " not in tool} == set(NEEDS)


@pytest.mark.parametrize("tool", NEEDS)
def test_overrides_stand_anywhere(parsers, tool, monkeypatch):
    monkeypatch.setenv(VERBOSITY_VARIABLE, "usual")
    parser, words = parsers[tool], NEEDS[tool].split()
    flags = ["--quiet"]
    if tool == "tools/predict.py":
        words += ["--input", "a", "b", "--masks", "nifti"]
    behind = parser.parse_args([*words, *flags, *OVERRIDES])
    assert behind.opts == OVERRIDES
    for line in (
        [*words, *OVERRIDES, *flags],
        [*words, "--opts", *OVERRIDES],
        [*OVERRIDES, *words, *flags],
        [*words, *OVERRIDES[:2], *flags, *OVERRIDES[2:]],
    ):
        assert parser.parse_args(line) == behind


def test_help_keeps_its_line_breaks(parsers):
    for name in ("tools/train_net.py", "tools/predict.py", "datasets/prepare_lesions.py"):
        assert f"    python {name} --" in parsers[name].format_help()
    text = parsers["tools/train_net.py"].format_help()
    assert "KEY VALUE pairs override the configuration" in text and "Lazy" not in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--output", "x", "--overwritte"], "did you mean --overwrite? "),
        (["--output", "x", "SEED", "1"], "no configuration is read here, so leave out KEY VALUE"),
        (["--output", "x", "--quiet", "--verbose"], "--quiet and --verbose: give one of the two"),
        ([], "the following arguments are required: --output; "),
        (["--output", ""], "--output: is empty, as a shell's variable that is not set; "),
        (["--seed", "1", "--output="], "--output: is empty, "),
    ],
)
def test_a_command_line_that_is_not_understood_is_one_line(repository, words, line, capsys):
    assert run_tool(repository, "datasets/prepare_phantom.py", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert line in error


@pytest.mark.parametrize(
    ("tool", "words", "named"),
    [
        ("tools/predict.py", ["--input", "a", "", "--output", "b"], "an argument"),
        ("tools/predict.py", ["--input", "a", "--output", "b", "--weights", ""], "--weights"),
        ("tools/report.py", ["", "--viewer"], "an argument"),
        ("datasets/prepare_lesions.py", ["--source", ""], "--source"),
    ],
)
def test_an_empty_path_is_refused(parsers, tool, words, named):
    with pytest.raises(CTMaskNetError, match=f"^{named}: is empty, as a shell's variable"):
        parsers[tool].parse_args(words)
    # As a value of the configuration it has a meaning
    assert parsers["tools/train_net.py"].parse_args(["MODEL.WEIGHTS", ""]).opts[1] == ""


def test_how_much_is_said_is_heard_by_processes_that_are_started(parsers, monkeypatch):
    monkeypatch.delenv(VERBOSITY_VARIABLE, raising=False)
    assert verbosity() == "usual"
    parsers["tools/compare.py"].parse_args(["s.csv", "--output", "O", "--quiet"])
    assert verbosity() == "quiet" == os.environ[VERBOSITY_VARIABLE]
