"""The kill table in short, and that it sees what it looks for."""

import os
import random
import signal
import subprocess
import sys

import pydicom
import pytest
from pydicom.data import get_testdata_file

from tests.kills import __main__ as table
from tests.kills.content import content_of, unlike
from tests.kills.runner import Moment, Ran
from tests.kills.works import Work

WORKS = ["phantoms", "conversion-slices"]


def test_one_kill_of_quick_works_leaves_nothing(repository):
    command = [sys.executable, "-m", "tests.kills", "--seed", "2", "--kills", "1", "--only", *WORKS]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[-len(WORKS) :]]
    assert rows == [[name, "1", "0", "0", "1", "1", "0"] for name in WORKS]


@pytest.mark.parametrize(
    ("ended", "left", "again", "fault"),
    [
        ((-9, ""), {}, {"a.json": '{"a": 1, "seconds": 3}'}, None),
        ((-9, ""), {}, {"a.json": '{"a": 2}'}, "not equal: a.json a"),
        ((-9, ""), {}, {}, "not equal: a.json is missing"),
        ((-9, ""), {}, {"a.json": '{"a": 1}', ".a.tmp": ""}, "left behind: .a.tmp"),
        ((0, ""), {}, {"a.json": '{"a": 1}'}, "exit code 0"),
        ((143, "ended by SIGTERM: x"), {}, {"a.json": '{"a": 1}'}, None),
        ((143, "ended by SIGTERM: x"), {".b.x.tmp": ""}, {"a.json": '{"a": 1}'}, "half-made"),
        ((130, "interrupted: x"), {}, {"a.json": '{"a": 1}'}, "exit code 130"),
        ((143, "Traceback\nended by SIGTERM: x"), {}, {"a.json": '{"a": 1}'}, "a traceback"),
        ((143, "good bye"), {}, {"a.json": '{"a": 1}'}, "its last line: good bye"),
    ],
)
def test_what_must_not_be_is_seen(ended, left, again, fault, tmp_path, monkeypatch):
    number = signal.SIGKILL if ended[0] == -9 or not ended[1] else signal.SIGTERM
    runs = [(Ran(0, "", (0.0, 1.0)), {"a.json": '{"a": 1, "seconds": 5}'})]
    runs += [(Ran(*ended), left), (Ran(0, ""), again)]

    def run(tool, words, watched, log, moment=None, **kind):
        ran, files = runs.pop(0)
        for name, text in files.items():
            (tmp_path / "out" / name).write_text(text)
        if not runs:
            for path in (tmp_path / "out").iterdir():
                if path.name not in files:
                    path.unlink()
        return ran

    monkeypatch.setattr(table, "run", run)
    monkeypatch.setattr(table, "_moments", lambda *args: iter([Moment(number, step=1)]))
    row = table.kill_often(Work("tool", [], []), tmp_path / "out", tmp_path / "log", 1, None)
    assert (not row.faults) if fault is None else (fault in row.faults[0]), row.faults
    assert row.equal + row.clean == 2 - ("not equal" in str(fault)) - ("behind" in str(fault))


def test_moments_of_a_tool_in_a_process_of_its_own_are_seconds_alone():
    whole = Ran(0, "", (3.0, 9.0))
    found = list(table._moments(whole, 30, random.Random(1), steps=False))
    assert all(3 <= one.seconds <= 9 and not one.step for one in found)
    assert {one.number for one in found} == set(table.SIGNALS)
    assert any(one.step for one in table._moments(whole, 30, random.Random(1), steps=True))


def test_what_clocks_say_is_no_content(tmp_path):
    for number, name in enumerate(("a", "b")):
        (tmp_path / name / "empty").mkdir(parents=True)
        for log in ("log.txt", "log.txt.rank1"):
            (tmp_path / name / log).write_text(name)
        dicom = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dicom.ContentDate, dicom.ContentTime = "20200101", f"12000{number}"
        dicom.save_as(tmp_path / name / "lesions.dcm")
        (tmp_path / name / f"events.out.tfevents.{name}").touch()
    ours, theirs = content_of(tmp_path / "a"), content_of(tmp_path / "b")
    assert ours == theirs and "empty/" in ours
    (tmp_path / "b" / "c.png").write_bytes(b"c")
    assert unlike(ours, content_of(tmp_path / "b")) == ["c.png is missing"]
    (tmp_path / "b" / "c.png").unlink()
    dicom.PatientID = "another"
    dicom.save_as(tmp_path / "b" / "lesions.dcm")
    assert [one.split()[0] for one in unlike(ours, content_of(tmp_path / "b"))] == ["lesions.dcm"]
