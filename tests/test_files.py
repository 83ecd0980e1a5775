"""Files that are whole or absent, and JSON that every reader takes."""

import errno
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import pytest
import torch

from ctmasknet import files
from ctmasknet.config_file import read_cfg
from ctmasknet.csv_tables import read_csv_rows, safe_cell, text_of_cell
from ctmasknet.data.splits import read_list
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer
from ctmasknet.engine.metrics import read_metrics
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import read_predictions_csv
from ctmasknet.files import (
    atomic_write,
    check_room,
    check_writable,
    folder_of_one,
    has_control_character,
    parse_json,
    read_json,
    replace_between_marks,
    write_json,
    writing,
)
from ctmasknet.paper.runs import find_runs
from ctmasknet.paper.table import write_text
from ctmasknet.prepare.class_lists import rows_of_class_lists
from ctmasknet.prepare.metadata import PatientMetadata
from ctmasknet.prepare.pairs.stated import read_pairing
from ctmasknet.prepare.staging import staging_folder
from ctmasknet.report.comparison import read_comparison
from ctmasknet.report.source import json_lines
from ctmasknet.weights.tensorflow.bundle import whole_file
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
        list(read_csv_rows(path, ("path",), ("patient",)))


def test_only_the_columns_asked_for_are_kept(tmp_path):
    """A short file of many columns would be gigabytes: each row has them all."""
    path = tmp_path / "list.csv"
    names = ",".join(f"c{n}" for n in range(2000))
    path.write_text(f"a,{names},b\n" + "x\n" * 500 + "\n" + f"y,{'0,' * 2000}z,more\n")
    tracemalloc.start()
    try:
        rows = list(read_csv_rows(path, ("a",), ("b", "missing")))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rows[0] == (2, {"a": "x", "b": "", "missing": ""}) and len(rows) == 501
    assert rows[-1] == (503, {"a": "y", "b": "z", "missing": ""})
    assert peak < 5e6


def test_names_that_are_too_long_are_no_files(tmp_path):
    """The system refuses to look for them."""
    (tmp_path / "a.png").write_bytes(b"")
    name = "x" * 5000
    for text in (name, f"{name}/a.png"):
        (tmp_path / "covid.txt").write_text(f"{text}\n")
        (tmp_path / "normal.txt").write_text("a.png\n")
        lists = {word: [("", tmp_path / f"{word}.txt")] for word in ("normal", "covid")}
        _, rows = rows_of_class_lists(tmp_path, lists)
        assert rows[1][1]["path"] == text
        (tmp_path / "pairs.csv").write_text(f"image,mask\na.png,{text}\n")
        with pytest.raises(CTMaskNetError, match="no such mask"):
            read_pairing(str(tmp_path / "pairs.csv")).masks_of(["a.png"], tmp_path, tmp_path)


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


@pytest.mark.parametrize("read", [parse_json, read_json])
def test_json_nested_too_deeply_is_an_error_of_its_content(read, tmp_path):
    text = "[" * 200_000
    if read is not parse_json:
        (tmp_path / "deep.json").write_text(text)
        text = tmp_path / "deep.json"
    with pytest.raises(ValueError, match="nested too deeply"):
        read(text)


def test_json_with_an_endless_number_is_an_error_of_its_content():
    with pytest.raises(ValueError, match="holds a number of thousands of digits"):
        parse_json('{"n": ' + "1" * 5000 + "}")


@pytest.mark.parametrize("encoded", [str.encode, str])
def test_json_of_more_lists_than_any_file_has_is_an_error_of_its_content(encoded, monkeypatch):
    """Each of them takes 20 times its bytes."""
    monkeypatch.setattr(files, "_MOST_IN_JSON", 5)
    assert parse_json(encoded("[[],{},[],[]]")) == [[], {}, [], []]
    with pytest.raises(ValueError, match="holds more than 5 lists and objects"):
        parse_json(encoded("[[],{},[],[],{}]"))


def test_json_is_read_without_looking_through_what_is_read(monkeypatch):
    looked = []
    monkeypatch.setattr(gc, "callbacks", [lambda phase, info: looked.append(phase)])
    assert len(parse_json("[" + "[]," * 100_000 + "[]]")) == 100_001
    assert not looked and gc.isenabled()


def in_the_way(folder):
    (folder / "out").mkdir()
    return folder / "out"


def below_a_file(folder):
    (folder / "file").touch()
    return folder / "file" / "out"


def link(folder):
    (folder / "out").symlink_to(folder / "nowhere/at/all")
    return folder / "out"


def pipe(folder):
    os.mkfifo(folder / "out")
    return folder / "out"


def long_name(folder):
    return folder / "new" / ("x" * 256)


@pytest.mark.parametrize("place", [in_the_way, below_a_file, link, pipe, long_name])
def test_a_place_that_cannot_be_written_is_told_and_left_as_it_was(place, tmp_path):
    path = place(tmp_path)
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(CTMaskNetError, match=rf"{path}: cannot be written .* another `output`"):
        check_writable(path)
    if place is not in_the_way:
        with pytest.raises(CTMaskNetError, match=f"{path}: cannot be written") as told:
            check_writable(path, folder=True)
        assert ("out is a link that leads nowhere" in str(told.value)) == (place is link)
    with pytest.raises(OSError) as caught, atomic_write(path) as stream:
        stream.write("a")
    assert caught.value.filename.startswith(str(path)) or place is below_a_file
    (tmp_path / "new").is_dir() and (tmp_path / "new").rmdir()
    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.parametrize("folder", [False, True])
def test_a_place_that_can_be_written_is_left_as_it_was(folder, tmp_path):
    path = tmp_path / "a" / "b" / "c"
    assert check_writable(path, folder=folder) == path
    assert not list(tmp_path.iterdir())
    path.parent.mkdir(parents=True)
    (path.mkdir if folder else path.touch)()
    assert check_writable(path, folder=folder) == path
    assert list(path.parent.iterdir()) == [path]
    assert not folder or not list(path.iterdir())


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("é" * 127)
    with atomic_write(check_writable(path)) as stream:
        stream.write("a")
    assert path.read_text() == "a" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file_and_not_its_temporary_one(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "a") as stream:
        stream.write("a")
    assert caught.value.filename == str(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_that_torch_meets_is_told_as_such(tmp_path):
    def full(content):
        if len(content) > 1000:  # torch closes its archive then, in which a part is missing
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(content)

    told = r"a\.pth: cannot be written \(No space left"
    path = tmp_path / "a.pth"
    with pytest.raises(CTMaskNetError, match=told), writing(path), atomic_write(path, "wb") as file:
        torch.save({"a": torch.zeros(10_000)}, SimpleNamespace(write=full, flush=file.flush))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_locked_on_a_full_disk_is_left_as_it_was(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(CTMaskNetError, match="No space left"), folder_of_one(tmp_path, "training"):
        raise AssertionError("held")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path):
    check_room(tmp_path / "new" / "folder", 1e3, "rows", "take fewer")
    assert not list(tmp_path.iterdir())
    place = re.escape(str(tmp_path / "new"))
    told = rf"{place}: rows need about 1000000000\.0 GB, and the disk has [\d.]+ .B free; .* fewer"
    with pytest.raises(CTMaskNetError, match=told):
        check_room(tmp_path / "new", 1e18, "rows", "take fewer")


def test_little_room_is_told_in_units_that_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=800))
    with pytest.raises(CTMaskNetError, match=r"need about 1\.5 kB, and the disk has 800 bytes"):
        check_room(tmp_path, 1500, "rows", "take fewer")


def test_text_that_is_no_unicode_is_written_with_question_marks(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("<!-- demo: begin -->\n<!-- demo: end -->\n")
    replace_between_marks(page, "demo", "cpu \ud800")
    write_text(tmp_path / "t.md", "cpu \ud800")
    assert "cpu ?\n" in page.read_text() and (tmp_path / "t.md").read_text() == "cpu ?"


def read_marks(path):
    replace_between_marks(path, "demo", "text")


def read_base(path):
    config = path.with_name("cls.yaml")
    config.write_text(f"_BASE_: {path.name}\n")
    read_cfg(config)


def read_last(path):
    path.rename(path.with_name("last_checkpoint"))
    CTMaskNetCheckpointer(torch.nn.Linear(1, 1), path.parent, spec={}).get_checkpoint_file()


def read_config(path):
    (path.parent / "inference").mkdir()
    path.rename(path.with_name("config.yaml"))
    find_runs([path.parent], [])


READERS = [
    *(read_json, read_marks, read_predictions_csv, read_list, read_base, read_last, read_metrics),
    *(
        lambda path: list(read_csv_rows(path, ("a",))),
        lambda path: list(json_lines(path)),
        read_config,
    ),
    *(PatientMetadata, read_comparison, lambda path: whole_file(path, 9)),
]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_is_not_waited_for(make, tmp_path):
    def stop(*_):
        raise AssertionError(f"{read} waits")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for number, read in enumerate(READERS):
            (tmp_path / str(number)).mkdir()
            make(path := tmp_path / str(number) / "x.json")
            signal.alarm(5)
            with pytest.raises((OSError, CTMaskNetError)) as caught:
                read(path)
            assert "\n" not in str(caught.value)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_ctrl_c_while_a_file_is_made_leaves_nothing(tmp_path, monkeypatch):
    opens = os.open

    def opened_and_interrupted(path, flags, *args, **kwargs):
        handle = opens(path, flags, *args, **kwargs)
        if not str(path).startswith(str(tmp_path)):
            return handle
        os.close(handle)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", opened_and_interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "a.json", 1)
    with pytest.raises(KeyboardInterrupt):
        check_writable(tmp_path, folder=True)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_staged_set_is_cleared_leaves_nothing(tmp_path, monkeypatch):
    removes, asked = os.unlink, []

    def interrupted(path, *args, **kwargs):
        if not asked:
            asked.append(path)
            raise KeyboardInterrupt
        removes(path, *args, **kwargs)

    def prepare():
        with staging_folder(tmp_path / "set") as staging:
            for name in "ab":
                (staging / name).touch()
            monkeypatch.setattr(os, "unlink", interrupted)

    with pytest.raises(KeyboardInterrupt):
        prepare()
    assert asked and not list(tmp_path.iterdir())
