"""Patient-whole splits, list files, leak check."""

import itertools

import numpy as np
import pytest

from ctmasknet.data.splits import (
    check_disjoint,
    parse_shares,
    read_list,
    split_patients,
    tell_numbered,
)
from ctmasknet.errors import CTMaskNetError


def unequal_patients(seed: int = 3, n: int = 60) -> tuple[dict[str, str], dict[str, str]]:
    """Patients with 1 to 12 slices each, all of one of three unequally frequent classes."""
    rng = np.random.default_rng(seed)
    patients, strata = {}, {}
    for patient in range(n):
        label = rng.choice(["a", "b", "c"], p=[0.6, 0.3, 0.1])
        for s in range(rng.integers(1, 13)):
            patients[f"{patient}_{s}"] = str(patient)
            strata[f"{patient}_{s}"] = str(label)
    return patients, strata


def test_shares_are_met_and_patients_stay_whole():
    patients, strata = unequal_patients()
    shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    result = split_patients(patients, shares, seed=1, strata=strata)
    assert sorted(item for items in result.values() for item in items) == sorted(patients)
    check_disjoint({name: [patients[i] for i in items] for name, items in result.items()})
    for name, items in result.items():
        assert len(items) == pytest.approx(shares[name] * len(patients), abs=3)
        for value in "abc":
            total = sum(v == value for v in strata.values())
            here = sum(strata[i] == value for i in items)
            assert here == pytest.approx(shares[name] * total, abs=4)


def test_class_and_lesion_presence_at_once():
    """Patients of three classes whose slices show lesions or not; every combination is shared."""
    rng = np.random.default_rng(5)
    patients, strata = {}, {}
    for patient in range(200):
        label = int(rng.choice(3, p=[0.2, 0.3, 0.5]))
        for s in range(rng.integers(3, 12)):
            patients[f"{patient}_{s}"] = str(patient)
            strata[f"{patient}_{s}"] = label, bool(label and rng.random() < 0.7)
    shares = {"train": 0.6, "val": 0.15, "test": 0.25}
    result = split_patients(patients, shares, 1, strata)
    assert len(set(strata.values())) == 5
    for value in set(strata.values()):
        total = sum(v == value for v in strata.values())
        for name, items in result.items():
            here = sum(strata[item] == value for item in items)
            assert here == pytest.approx(shares[name] * total, rel=0.06)


def test_placed_patients_stay_and_the_others_make_up_for_it():
    patients, strata = unequal_patients()
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    placed = {str(p): "test" if p % 2 else "train" for p in range(16)} | {"nobody": "val"}
    result = split_patients(patients, shares, 2, strata, placed)
    for name, items in result.items():
        assert len(items) == pytest.approx(shares[name] * len(patients), abs=4)
        for item in items:
            assert placed.get(patients[item], name) == name
    with pytest.raises(CTMaskNetError, match="patient 1 is placed in val, which has no share"):
        split_patients({"a": "1", "b": "2"}, {"train": 0.5, "test": 0.5}, 0, placed={"1": "val"})
    everybody = {"1": "train", "2": "train"}
    with pytest.raises(CTMaskNetError, match="split test: stays empty"):
        split_patients({"a": "1", "b": "2"}, {"train": 0.5, "test": 0.5}, 0, placed=everybody)


def test_equal_patients_are_split_exactly():
    patients = {f"{p}_{s}": str(p) for p in range(150) for s in range(5)}
    result = split_patients(patients, {"train": 0.8, "val": 0.2}, seed=0)
    assert {name: len(items) for name, items in result.items()} == {"train": 600, "val": 150}


def test_split_is_nearly_always_the_best_there_is():
    """Against all ways to divide 9 patients of 1 to 9 slices, 7 to 3."""
    misses = 0
    for seed in range(30):
        sizes = np.random.default_rng(seed).integers(1, 10, 9)
        patients = {f"{p}_{s}": str(p) for p in range(9) for s in range(sizes[p])}
        wanted = 0.7 * len(patients)
        best = min(
            abs(sizes[list(chosen)].sum() - wanted)
            for k in range(1, 9)
            for chosen in itertools.combinations(range(9), k)
        )
        train = split_patients(patients, {"train": 0.7, "val": 0.3}, seed)["train"]
        misses += abs(len(train) - wanted) > best + 1e-6
    assert misses <= 2


def test_items_keep_their_order_and_the_seed_decides():
    patients, strata = unequal_patients()
    shares = {"train": 0.8, "val": 0.2}
    first = split_patients(patients, shares, 7, strata)
    assert first == split_patients(patients, shares, 7, strata)
    assert first["val"] != split_patients(patients, shares, 8, strata)["val"]
    order = list(patients)
    assert first["val"] == sorted(first["val"], key=order.index)


def test_a_rare_stratum_reaches_both_splits():
    patients = {str(i): str(i) for i in range(20)}
    strata = {str(i): i in (4, 5) for i in range(20)}
    for seed in range(5):
        result = split_patients(patients, {"train": 0.5, "val": 0.5}, seed, strata)
        assert [sum(strata[i] for i in items) for items in result.values()] == [1, 1]


def test_no_split_is_empty_however_small_its_share():
    patients = {str(i): str(i) for i in range(4)}
    result = split_patients(patients, {"train": 0.98, "val": 0.01, "test": 0.01}, 0)
    assert sorted(map(len, result.values())) == [1, 1, 2]


def test_a_split_is_not_emptied_to_fill_another():
    """One patient is placed in val and the large one joins him; the small one must stay alone in
    train, so that only val has one to spare for test."""
    sizes = {"placed": 1, "large": 20, "small": 1}
    patients = {f"{name}_{s}": name for name, size in sizes.items() for s in range(size)}
    shares = {"train": 0.1, "val": 0.8, "test": 0.1}
    for seed in range(6):
        result = split_patients(patients, shares, seed, placed={"placed": "val"})
        homes = {name: {patients[item] for item in items} for name, items in result.items()}
        assert homes["val"] == {"placed"}
        assert homes["train"] | homes["test"] == {"large", "small"}


def test_every_slice_its_own_patient_is_split_at_once(monkeypatch):
    """3,000 patients of two kinds. Patients are not held against all others one by one: that would
    call flatnonzero as often as there are patients."""
    calls = []
    flatnonzero = np.flatnonzero
    monkeypatch.setattr(np, "flatnonzero", lambda a: calls.append(1) or flatnonzero(a))
    patients = {item: str(item) for item in range(3_000)}
    strata = {item: item % 3 == 0 for item in patients}
    result = split_patients(patients, {"train": 0.6, "val": 0.2, "test": 0.2}, 0, strata)
    assert [len(items) for items in result.values()] == [1_800, 600, 600]
    assert [sum(strata[i] for i in items) for items in result.values()] == [600, 200, 200]
    assert len(calls) < 100


@pytest.mark.parametrize(
    ("patients", "shares", "message"),
    [
        ({}, {"train": 1.0}, "empty"),
        ({"a": "1"}, {"train": 0.5, "val": 0.5}, "1 patient"),
        ({"a": "1"}, {"train": 0.5}, "sum to 0.5"),
        ({"a": "1"}, {"holdout": 1.0}, "'holdout'"),
        ({"a": "1"}, {"train": 1.5, "val": -0.5}, "train: the share 1.5"),
    ],
)
def test_bad_shares(patients, shares, message):
    with pytest.raises(CTMaskNetError, match=message):
        split_patients(patients, shares, 0)


def test_parse_shares():
    assert parse_shares("train:0.8, val:0.2") == {"train": 0.8, "val": 0.2}
    for text in ("train", "train:much", "train:0.5,train:0.5", ""):
        with pytest.raises(CTMaskNetError):
            parse_shares(text)


def test_check_disjoint_names_patient_and_splits():
    check_disjoint({"train": ["1", "2", "2"], "val": ["3"]})
    with pytest.raises(CTMaskNetError, match=r"patient 2 is in two splits, train and val"):
        check_disjoint({"train": ["1", "2"], "val": ["3", "2"]})


def test_read_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\ufeff1_2.jpg\r\n\r\n 3_4.jpg \n", encoding="utf-8")
    assert read_list(path) == [(1, "1_2.jpg"), (3, "3_4.jpg")]
    path.write_text("1_2.jpg\n3_4.jpg\n1_2.jpg\n")
    with pytest.raises(CTMaskNetError, match=r"list\.txt:3: 1_2\.jpg is already on line 1"):
        read_list(path)
    path.write_text("\n\n")
    with pytest.raises(CTMaskNetError, match="empty"):
        read_list(path)
    with pytest.raises(CTMaskNetError, match=r"absent\.txt: no such list"):
        read_list(tmp_path / "absent.txt")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CTMaskNetError, match="cannot be read"):
        read_list(path)


def test_published_lesion_lists(shared):
    """650 and 100 slices of 130 and 20 patients, none in both (reference)."""
    sides = {
        side: [
            line.split("_")[0]
            for _, line in read_list(shared / "data" / "splits" / f"author_seg_{side}.txt")
        ]
        for side in ("train", "test")
    }
    assert {k: (len(v), len(set(v))) for k, v in sides.items()} == {
        "train": (650, 130),
        "test": (100, 20),
    }
    check_disjoint(sides)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            "coronacases_001 radiopaedia_10_85902_1 radiopaedia_10_85902_3",
            "2 radiopaedia_10_85902_1",
        ),
        ("a/P1_1 b/P1_2 c/P2_1", "2 a/P1_1 and b/P1_2"),
        ("NCP_1_2_0003 NCP_1_2_0004 NCP_2_2_0003", "2 NCP_1_2_0003 and NCP_1_2_0004"),
        ("a (1) b (1)", None),
        ("x y z", None),
        ("", None),
    ],
)
def test_files_numbered_alike_are_told_where_each_is_a_patient(caplog, files, told):
    tell_numbered(files.replace(" (", "(").split())
    assert bool(caplog.records) == bool(told)
    if told:
        count, names = told.split(" ", 1)
        assert caplog.messages[0].startswith(f"{count} files are patients of their own")
        assert f"such as {names}" in caplog.messages[0]


def test_files_that_are_all_numbered_alike_are_a_risk(caplog):
    tell_numbered(["ct0/study_0001", "ct1/study_0002", "ct1/study_0003"])
    assert caplog.messages[0].startswith("all 3 files are patients of their own and numbered alike")
