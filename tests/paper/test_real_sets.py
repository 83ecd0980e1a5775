"""docs/real_sets.py: two halves that share no group and no study, each with both classes."""

import collections
import importlib.util

import pytest

from ctmasknet.errors import CTMaskNetError
from tests.helpers.golden_state import REPOSITORY

_SPEC = importlib.util.spec_from_file_location("real_sets", REPOSITORY / "docs" / "real_sets.py")
real_sets = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(real_sets)


def _written(folder, name, header, rows):
    folder.mkdir()
    (folder / name).write_text("\n".join([header, *rows]) + "\n")


def test_mosmed_halves_have_both_classes_and_no_study_in_common(tmp_path):
    rows = [
        f"ct{g}/{g}{n}.jpg,{g}{n},{g}" for g, many in ((0, 4), (1, 9), (2, 3)) for n in range(many)
    ]
    _written(tmp_path / "mosmed", "studies.csv", "file,study,ct_grade", rows)
    found = real_sets.mosmed(tmp_path)
    assert sorted(found) == ["ct1_a", "ct1_b", "ct2_a", "ct2_b"]
    counted = {
        half: collections.Counter((split, name) for _, name, _, split in of_half)
        for half, of_half in found.items()
    }
    assert counted["ct1_a"] == dict.fromkeys(
        [(s, c) for s in ("train", "test") for c in ("normal", "covid")], 2
    )
    assert counted["ct2_a"]["train", "covid"] == 2 and counted["ct2_a"]["test", "covid"] == 1
    for grade in ("ct1", "ct2"):
        sides = [{row[0]: row[3] for row in found[f"{grade}_{half}"]} for half in "ab"]
        assert all(sides[0][file] != sides[1][file] for file in sides[0])
    (tmp_path / "mosmed" / "studies.csv").write_text("file,study,ct_grade\nct0/1.jpg,1,0\n")
    with pytest.raises(
        CTMaskNetError, match=r"studies\.csv: has 1 studies of ct_grade 0; needs two"
    ):
        real_sets.mosmed(tmp_path)


def test_soares_halves_keep_groups_whole(tmp_path):
    rows = [f"covid/{n}.png,covid,s{n // 2}" for n in range(8)] + ["n/9.png,noncovid,s9"]
    _written(tmp_path / "soares", "index.csv", "file,class,group", rows)
    found = real_sets.soares(tmp_path)
    of_group = collections.defaultdict(set)
    for _, _, group, split in found["a"]:
        of_group[group].add(split)
    assert of_group == {
        "s0": {"train"},
        "s1": {"test"},
        "s2": {"train"},
        "s3": {"test"},
        "s9": {"train"},
    }
    assert [row[3] for row in found["b"][:4]] == ["test", "test", "train", "train"]
    assert found["a"][-1] == ["n/9.png", "normal", "s9", "train"]
