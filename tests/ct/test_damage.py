import random

import pytest

from tests.helpers import ct_damage, ct_samples


def test_damaged_files_are_read_rightly_or_refused_in_one_line(tmp_path):
    seeds = ct_samples.damage_seeds(tmp_path / "sound")
    paths = [*ct_damage.mutated(tmp_path, seeds, 220, seed=20), *ct_damage.crafted(tmp_path, seeds)]
    assert len(paths) > 280
    found = ct_damage.read_all([*seeds, *paths])
    sound = {str(seed): found.pop(str(seed)) for seed in seeds}
    assert [value["reason"] for value in sound.values()] == [None] * len(seeds)
    assert ct_damage.faults(found, sound) == []
    assert len(found) == len(paths)
    refused = [path for path, value in found.items() if value["reason"]]
    assert 0.4 * len(paths) < len(refused) < len(paths)
    unread = {path.name for path in paths if "crafted" in path.name} - {
        path.rpartition("/")[2] for path in refused
    }
    assert unread == {"crafted_bomb.png"}  # large, and within the limits
    for name, reason in (
        ("claim1.nii", "4096 x 4096 x 32767 voxels, more than the 2147483648 that are read"),
        ("bomb.nii.gz", "claims to expand"),
        ("longer.nii.gz", "holds far more than its header says"),
        ("bomb.dcm", "inflates further than any CT does"),
        ("stream.jpeg2000.dcm", "compressed as 60000 x 60000 px"),
        ("claim5000.png", "longest side read is 4096 px"),
    ):
        assert reason in found[str(tmp_path / f"crafted_{name}")]["reason"]


def test_faults_are_seen(tmp_path):
    sound = {"/s/a.png": {"sums": [1], "reason": None}}
    good = {"reason": None, "sums": [1], "seconds": 0.1, "bytes": 1}
    found = {
        "/d/00000_truncated_a.png": good | {"sums": [2]},
        "/d/00001_bits_a.png": good | {"seconds": 9.0},
        "/d/00002_bits_a.png": good | {"bytes": 2**31},
        "/d/00003_bits_a.png": {"died": "exit code -11"},
        "/d/00004_bits_a.png": good | {"reason": "two\nlines"},
        "/d/00005_truncated_a.png": good,
    }
    assert [fault[:5] for fault in ct_damage.faults(found, sound)] == [
        f"{number:05d}" for number in range(5)
    ]


def test_a_reader_that_dies_names_the_file(tmp_path, monkeypatch):
    reader = """
import json, os, sys
for path in sys.stdin.read().split():
    print(json.dumps({{"file": path}}), flush=True)
    if "bad" in path:
        os.abort()
    print(json.dumps({{"reason": None}}), flush=True)
"""
    monkeypatch.setattr(ct_damage, "_READER", reader)
    found = ct_damage.read_all([tmp_path / "good", tmp_path / "bad", tmp_path / "late"])
    assert found[str(tmp_path / "good")] == {"reason": None}
    assert "exit code -6" in found[str(tmp_path / "bad")]["died"]
    assert len(found) == 2


@pytest.mark.parametrize(
    "mutate", tuple(dict.fromkeys(ct_damage.MUTATIONS)), ids=lambda mutate: mutate.__name__
)
def test_mutations_are_seeded_and_change_something(tmp_path, mutate):
    data = bytes(range(256)) * 8
    first, second = (mutate(bytearray(data), random.Random(5)) for _ in range(2))
    assert first == second != data
