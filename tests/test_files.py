"""Files that are whole or absent, and JSON that every reader takes."""

import json
import signal
import subprocess
import sys

import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import (
    has_control_character,
    read_csv_rows,
    safe_cell,
    text_of_cell,
    write_json,
    writing,
)
from tests.helpers.holding import held


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": [float("nan"), 1.5, (2, float("-inf"))], "b": None})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    expected = {"a": [None, 1.5, [2, None]], "b": None}
    assert json.loads(path.read_text(), parse_constant=refuse) == expected


def test_json_that_cannot_be_written_leaves_the_file_before(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": 2, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_file_s_next_writing_removes_what_a_killed_one_left(tmp_path):
    kill = """if True:
        import os, pathlib, signal, sys
        from ctmasknet.files import atomic_write
        with atomic_write(pathlib.Path(sys.argv[1]) / "a.json"):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", kill, tmp_path]).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    others = [".b.a.json.12345678.tmp", ".a.json.tmp", ".axjson.12345678.tmp", ".a.json.123.tmp"]
    for name in others:
        (tmp_path / name).touch()
    with held(tmp_path, "x", name=".a.json.abcdefgh.tmp"):
        write_json(tmp_path / "a.json", 1)
        found = {path.name for path in tmp_path.iterdir()}
    assert found == {"a.json", ".a.json.abcdefgh.tmp", *others}


def test_what_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "a.json"
    with (
        pytest.raises(CTMaskNetError, match=r"a\.json: cannot be written \((File|Not)"),
        writing(path),
    ):
        write_json(path, {})


CONTROL = ["a\nb", "a\rb", "a\tb", "a\x00b", "a\x0bb", "a\x1cb", "a\x85b", "a\u2028b"]


@pytest.mark.parametrize("text", CONTROL)
def test_control_characters_of_names_and_cells(text, tmp_path):
    assert has_control_character(text)
    path = tmp_path / "list.csv"
    path.write_text(f'path,patient\nx,"{text}"\n', newline="")
    with pytest.raises(CTMaskNetError, match=r"list\.csv:\d: patient '.*' holds a line break"):
        read_csv_rows(path, ("path",), ("patient",))


@pytest.mark.parametrize("text", ["Ren\u00e9 (1).png", "a\u00a0b", "\u80ba", "a\u200db", ""])
def test_other_names_hold_none(text):
    assert not has_control_character(text)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_a_formula_and_all_read_back(start):
    for text in (f"{start}1+1", start, f"'{start}x", f"''{start}x"):
        assert safe_cell(text)[0] == "'" and text_of_cell(safe_cell(text)) == text


def test_other_cells_stay_as_they_are():
    for text in ("", "a=1", "'a", "''", "1", " =1"):
        assert safe_cell(text) == text == text_of_cell(text)
