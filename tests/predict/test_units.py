"""Inputs cut into units: nothing twice, nothing missing, in one order."""

import os

import pytest
from small_world import hu_volume, write_pictures, write_series

from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict import units
from ctmasknet.predict.units import list_units
from ctmasknet.predict.work import read_unit


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for patient in (2, 10):
        write_series(root / f"p{patient}" / "s1", hu_volume(patient, 3), patient=f"P{patient}")
    write_pictures(root / "p11", 1, ["a.png", "b.png"])
    write_pictures(root, 2, ["loose10.png", "loose9.png"])
    (root / "readme.txt").write_text("about")
    (root / "notes").mkdir()
    (root / "notes" / "more.txt").write_text("about")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.png").write_text("no picture")
    os.symlink(root, root / "p11" / "loop")
    return root


def names(unit_list):
    found = [scan for unit in unit_list for scan in read_unit(unit, skip_bad=False)[0]]
    return [os.path.basename(one.file) for scan in found for one in scan.slices]


def test_a_folder_that_is_not_too_large_is_one_unit(tree):
    found, _ = list_units([tree])
    assert [unit.paths for unit in found] == [(str(tree),)]
    assert found[0].weight == 12


def test_a_large_folder_is_cut_and_gives_the_same_slices(tree, monkeypatch):
    whole, digest = list_units([tree])
    monkeypatch.setattr(units, "UNIT_FILES", 4)
    with pytest.raises(CTMaskNetError, match="loop: leads to a folder that is among the inputs"):
        list_units([tree])
    (tree / "p11" / "loop").unlink()
    cut, same = list_units([tree])
    assert same == digest
    assert [tuple(os.path.relpath(path, tree) for path in unit.paths) for unit in cut] == [
        ("loose9.png", "loose10.png", "readme.txt"),
        ("notes",),
        ("p2",),
        ("p10",),
        ("p11",),
    ]
    assert names(cut) == names(whole) != []


def test_named_files_are_read_together_and_volumes_alone(tree, tmp_path):
    volume = tmp_path / "ct.nii.gz"
    volume.write_bytes(b"-")
    series = sorted((tree / "p2" / "s1").iterdir())
    found, _ = list_units([series[0], volume, series[1]])
    assert [unit.paths for unit in found] == [
        (str(series[0]), str(series[1])),
        (str(volume),),
    ]


def test_the_hash_tells_of_every_change(tree):
    before = list_units([tree])[1]
    assert list_units([tree])[1] == before
    os.utime(tree / "p11" / "a.png", (1, 1))
    changed = list_units([tree])[1]
    (tree / "p11" / "b.png").unlink()
    assert len({before, changed, list_units([tree])[1]}) == 3
