"""Which files are the input: order, hidden names, links, depth."""

import os

import pytest

from ctmasknet.ct.find import find_files, list_folder


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def paths(root, **options):
    return [os.path.relpath(found.path, root) for found in find_files([root], **options)]


def test_files_come_in_natural_order_each_folder_before_the_folders_in_it(tmp_path):
    make(tmp_path, "b10/1.png", "b9/x/2.png", "b9/z.png", "s2.png", "s10.png", ".hidden/1.png")
    make(tmp_path, "a/.cache", "a/1.png")
    assert paths(tmp_path) == [
        *("s2.png", "s10.png", "a/1.png", "b9/z.png", "b9/x/2.png", "b10/1.png")
    ]


def test_equal_numbers_are_put_in_order_by_their_names(tmp_path, monkeypatch):
    """A file system may list them in any order."""
    make(tmp_path, "s1.png", "s01.png", "s001.png")
    listed = {}
    scandir = os.scandir

    class Reversed(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    for name, turn in (("as it is", list), ("reversed", lambda found: list(found)[::-1])):
        monkeypatch.setattr(os, "scandir", lambda at, turn=turn: Reversed(turn(scandir(at))))
        listed[name] = paths(tmp_path)
    assert listed["as it is"] == listed["reversed"] == ["s001.png", "s01.png", "s1.png"]


def test_each_folder_of_an_input_comes_once(tmp_path):
    make(tmp_path, "series/1.png")
    (tmp_path / "again").symlink_to(tmp_path / "series")
    (tmp_path / "series/up").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert paths(tmp_path) == ["loop", "again/1.png"]


def test_inputs_keep_their_order_and_number(tmp_path):
    make(tmp_path, "b/1.png", "a.png")
    given = [tmp_path / "b", tmp_path / "a.png", tmp_path / "none", tmp_path / "b"]
    found = [(os.path.relpath(f.path, tmp_path), f.given, f.alone) for f in find_files(given)]
    assert found == [
        *(("b/1.png", 0, False), ("a.png", 1, True), ("none", 2, True), ("b/1.png", 3, False))
    ]


def test_folders_may_be_nested_deeper_than_calls(tmp_path):
    folders = [tmp_path]
    for _ in range(1200):
        folders.append(folders[-1] / "d")
        os.mkdir(folders[-1])
    assert paths(tmp_path) == []
    for folder in folders[:0:-1]:  # what removes the test's folder may not reach so deep
        os.rmdir(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root lists every folder")
def test_a_folder_that_cannot_be_listed_is_returned(tmp_path):
    make(tmp_path, "closed/1.png", "open/1.png")
    (tmp_path / "closed").chmod(0)
    try:
        assert paths(tmp_path) == ["closed", "open/1.png"]
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_what_cannot_be_listed_raises_where_one_folder_is_asked_for(tmp_path):
    make(tmp_path, "a.png", "b/1.png")
    assert list_folder(tmp_path) == ([f"{tmp_path}/a.png"], [f"{tmp_path}/b"])
    with pytest.raises(OSError):
        list_folder(tmp_path / "a.png")
