"""The fuzzer sees what it looks for, and makes the same inputs from one seed."""

import multiprocessing
import os
import random
import signal

import pytest

from ctmasknet.errors import CTMaskNetError
from tests.fuzz import mutations, runner
from tests.fuzz.targets import all_targets

#: Kinds that are changed in other ways too, or not sound as a whole.
_CHANGED_BEYOND_MUTATIONS = {
    *("yaml", "pickle", "checkpoint", "import", "volumes", "last", "zip", "itk", "tensorflow"),
    *("array", "bases", "upload"),
}


def refuses(path):
    raise CTMaskNetError(f"{path}: no such thing; give another")


def says_nothing(path):
    raise CTMaskNetError(" ")


def is_large(path):
    return len(bytearray(2**30 + 2**28))


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda path: None, "read"),
        (refuses, "refused"),
        (says_nothing, "no line"),
        (lambda path: {}[path], "traceback"),
        (lambda path: os.kill(os.getpid(), signal.SIGSEGV), "died"),
        (lambda path: os._exit(3), "died"),
        (is_large, "large"),
        (lambda path: bytearray(2**34), "traceback"),
        (lambda path: (path.parent / "marker").touch(), "executed"),
    ],
)
def test_what_became_of_an_input(tmp_path, read, kind):
    outcome = runner.attempt(read, tmp_path / "x", tmp_path / "marker")
    assert outcome.kind == kind, outcome


def test_a_reader_without_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SECONDS", 0.25)

    def forever(path):
        while True:
            signal.pause()

    def busy(path):
        while True:
            pass

    for read in (forever, busy):
        assert runner.attempt(read, tmp_path / "x", tmp_path / "marker").kind == "hung"


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    return all_targets(folder / "sound", folder / "marker")


def test_one_seed_makes_one_input(targets, tmp_path):
    for name, target in targets.items():
        made = []
        for attempt in ("a", "b", "c", "d"):
            folder = tmp_path / name / attempt
            folder.mkdir(parents=True)
            seed = f"1 {name} {'same' if attempt in 'ab' else attempt}"
            path = target.damage(folder, random.Random(seed))
            assert path.is_relative_to(folder)
            made.append(
                {
                    one.relative_to(folder): one.read_bytes()
                    for one in sorted(folder.rglob("*"))
                    if one.is_file()
                }
            )
        assert made[0] == made[1], name
        assert made[0] != made[2] or made[0] != made[3], name


def test_trees_change_and_leave_their_source_alone():
    sound = {"a": [1, 2, {"b": "c"}], "d": 0.5}
    made = [mutations.tree(sound, random.Random(seed)) for seed in range(50)]
    assert sound == {"a": [1, 2, {"b": "c"}], "d": 0.5}
    assert sum(repr(value) != repr(sound) for value in made) > 45


def attempt_undamaged(folder):
    """What becomes of the undamaged file of every kind."""
    runner.be_forkable()
    for damage in ("tree", "table", "raw"):
        setattr(mutations, damage, lambda value, rng: value)
    outcomes = {}
    for name, target in all_targets(folder / "sound", folder / "marker").items():
        if name not in _CHANGED_BEYOND_MUTATIONS:
            (folder / name).mkdir()
            path = target.damage(folder / name, random.Random(1))
            outcomes[name] = runner.attempt(target.read, path, folder / "marker")
    return outcomes


def test_what_is_not_damaged_is_read(tmp_path):
    """Else a reader that refuses everything would pass."""
    # In a process of its own: a fork of this one would wait for locks of its threads
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        outcomes = fresh.apply(attempt_undamaged, (tmp_path,))
    assert len(outcomes) > 30
    assert {name: one for name, one in outcomes.items() if one.kind != "read"} == {}


def test_many_inputs_of_every_kind_are_made(targets, tmp_path):
    for name in ("yaml", "coco", "slices", "predictions", "record", "manifest", "list", "groups"):
        for number in range(150):
            (tmp_path / name / str(number)).mkdir(parents=True)
            targets[name].damage(tmp_path / name / str(number), random.Random(number))
