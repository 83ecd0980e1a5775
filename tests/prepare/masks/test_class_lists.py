"""Lists of names alone, whose class the list's name or a folder says."""

import json

import pytest

from tests.helpers.running import run_tool
from tests.prepare.small_sets import write_image, write_list


@pytest.fixture
def prepare(repository, tmp_path):
    def run(*words) -> int:
        fixed = ["--output-root", tmp_path / "out", "--name", "set", "--workers", "1"]
        fixed += ["--images", tmp_path / "img"]
        return run_tool(repository, "datasets/prepare_covidx_ct.py", *fixed, *words)

    return run


def classes_of(tmp_path, split):
    document = json.loads((tmp_path / f"out/set/slices/{split}.json").read_text())
    return {one["file"]: document["classes"][one["label"]] for one in document["slices"]}


@pytest.fixture
def raw(tmp_path):
    for name in ("a/x 1.png", "a/y2.jpeg", "b/z3.png", "b/w4.png"):
        write_image(tmp_path / "img" / name)
    return tmp_path


def test_the_name_of_a_list_is_the_class(prepare, raw):
    covid = write_list(raw / "covid.txt", "x 1.png", "a\\y2.png")
    normal = write_list(raw / "normal.txt", "z3", "./b/w4.png")
    words = ("--class-list", covid, "--class-list", normal, "--split", "train:0.5,test:0.5")
    assert prepare(*words) == 0
    found = classes_of(raw, "train") | classes_of(raw, "test")
    assert found == {
        "a/x 1.png": "covid",
        "a/y2.jpeg": "covid",
        "b/z3.png": "normal",
        "b/w4.png": "normal",
    }
    summary = json.loads((raw / "out/set/slices_summary.json").read_text())
    assert summary["classes"] == ["normal", "covid"]


def test_a_list_of_a_class_and_split(prepare, raw):
    words = []
    for key, name in (("train:C", "x 1"), ("test:C", "y2"), ("train:N", "z3"), ("test:N", "w4")):
        file = write_list(raw / f"{key.replace(':', '_')}.txt", name)
        words += ["--class-list", f"{key}={file}"]
    assert prepare(*words) == 0
    assert classes_of(raw, "test") == {"a/y2.jpeg": "C", "b/w4.png": "N"}


def test_the_folder_says_the_class_and_the_list_the_split(prepare, raw, capsys):
    folders = ("--class-folder", "normal=b", "--class-folder", "covid=a")
    train = write_list(raw / "train.txt", "x 1.png", "z3.png")
    test = write_list(raw / "test.txt", "a/y2.jpeg", "w4.png")
    lists = ("--list", f"train={train}", "--list", f"test={test}")
    assert prepare(*folders, *lists) == 0
    assert classes_of(raw, "train") == {"a/x 1.png": "covid", "b/z3.png": "normal"}
    write_list(test, "v5.png")
    write_image(raw / "img/c/v5.png")
    assert prepare(*folders, *lists) == 2
    assert "test.txt:1: v5.png is in no folder of --class-folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("w4.png", "q.png"), "img/q.png: no such file or folder"),
        (("w4.png", "x 1.png"), "covid.txt:1: a/x 1.png is listed twice, first at "),
        (("t.png",), "normal.txt:1: t.png may be a/t.png or b/t.png; write the folder"),
    ],
)
def test_names_of_none_of_two_and_of_several(prepare, raw, capsys, lines, message):
    write_image(raw / "img/a/t.png")
    write_image(raw / "img/b/t.png")
    covid = write_list(raw / "covid.txt", "x 1.png")
    normal = write_list(raw / "normal.txt", *lines)
    words = ("--class-list", covid, "--class-list", normal, "--split", "train:0.5,test:0.5")
    assert prepare(*words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and "Traceback" not in error
