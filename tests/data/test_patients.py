"""Shared patients: which sets can be compared, what is refused, what is only said."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ctmasknet.data.patients import (
    check_held_out,
    check_patients_disjoint,
    numbering_of,
    overlap_lines,
    overlaps,
)
from ctmasknet.data.registry import dataset_dicts, register_prepared
from ctmasknet.data.splits import read_list, spelled_otherwise
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import PatientRule
from ctmasknet.prepare.pairs import LesionPair, split_by_lists
from tests.helpers.running import run_tool


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch, clean_catalogs) -> Path:
    """Root of the prepared sets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def write_set(root):
    """Write one prepared split of slices whose patients are these."""

    def write(name: str, split: str, patients: str, ids: str | None = None) -> Path:
        home = root / name
        (home / "image").mkdir(parents=True, exist_ok=True)
        common = {"label": 0, "scan": "1", "slice": "1"}
        slices = [{"file": f"{p}.png", "patient": p, **common} for p in patients.split()]
        (home / "image" / slices[0]["file"]).touch()
        path = home / "slices" / f"{split}.json"
        path.parent.mkdir(exist_ok=True)
        info = {"image_root": "image", "patient_ids": ids}
        path.write_text(json.dumps({"info": info, "classes": ["a", "b"], "slices": slices}))
        return path

    return write


@pytest.mark.parametrize(
    ("first", "second", "same_folder", "compared"),
    [
        ("clinic", "clinic", False, True),
        ("clinic", "other", False, False),
        ("clinic", "other", True, False),
        ("clinic", None, False, False),
        (None, None, False, False),
        (None, None, True, True),
    ],
)
def test_ids_are_compared_within_one_numbering_or_one_prepared_set(
    write_set, caplog, first, second, same_folder, compared
):
    caplog.set_level(logging.INFO, logger="ctmasknet")
    write_set("one", "train", "17 18", first)
    name = "one" if same_folder else "two"
    held_out = "test"
    if same_folder and compared:  # splits of one set that leak cannot even be registered
        write_set(name, held_out, "18 19", second)
        register_prepared()
        with pytest.raises(CTMaskNetError, match="patient 18 is in two splits"):
            dataset_dicts(f"{name}_{held_out}")
        return
    write_set(name, held_out, "18 19", second)
    names = ["one_train", f"{name}_{held_out}"]
    if compared:
        with pytest.raises(
            CTMaskNetError,
            match=r"patient 18 is in two splits, one_train and two_test; .*SHARED_PATIENTS warn",
        ):
            check_patients_disjoint(names)
        return
    check_patients_disjoint(names)
    (message,) = [r.getMessage() for r in caplog.records if "not compared" in r.getMessage()]
    assert f"one_train (ids: {first or 'not stated'})" in message
    assert f"{names[1]} (ids: {second or 'not stated'})" in message


def test_warn_goes_on(write_set, caplog):
    write_set("one", "train", "17 18", "clinic")
    write_set("two", "test", "18", "clinic")
    check_patients_disjoint(["one_train", "two_test"], "warn")
    assert "patient 18 is in two splits" in caplog.text


def test_splits_of_a_run_are_compared_each_with_the_others(write_set):
    for name, patients in (("a", "1 2"), ("b", "3 4"), ("c", "4 5"), ("d", "5 1")):
        write_set(name, "train", patients, "clinic")
    a, b, c, d = (f"{name}_train" for name in "abcd")
    check_held_out([a], [b], [b])  # one set for both, as the authors' lesion lists
    check_held_out([a], [c], [c, b, a][:1])
    for sets in (([a], [d], []), ([a], [], [d]), ([a], [b], [c])):
        with pytest.raises(CTMaskNetError, match="is in two splits"):
            check_held_out(*sets)


def test_slices_trained_on_choose_no_model(write_set, root, caplog):
    for name, patients in (("a", "1 2"), ("b", "3 4"), ("copy", "1 5")):
        write_set(name, "train", patients, name)
    (root / "copy" / "image" / "1.png").unlink()
    (root / "copy" / "image" / "1.png").symlink_to(root / "a" / "image" / "1.png")
    a, b, copy = (f"{name}_train" for name in ("a", "b", "copy"))
    with pytest.raises(CTMaskNetError, match=r"DATASETS\.VAL hold the same slices: a_train"):
        check_held_out([b, a], [a], [])
    with pytest.raises(
        CTMaskNetError, match=r"same slices: 1 of copy_train are in a_train too, .*1"
    ):
        check_held_out([a], [copy], [])
    assert "same slices" not in caplog.text
    check_held_out([a], [a], [], "warn")
    assert "TRAIN and DATASETS.VAL hold the same slices: a_train" in caplog.text
    check_held_out([a], [b], [copy, a])
    assert "TRAIN and DATASETS.TEST hold the same slices: a_train" in caplog.text
    assert "TRAIN and DATASETS.TEST hold the same slices: 1 of copy_train" in caplog.text


def test_leaking_splits_of_one_set_do_not_bar_the_third_nor_stay_refused(write_set, caplog):
    write_set("ct", "train", "1 2")
    write_set("ct", "val", "3 4")
    write_set("ct", "test", "4 5")
    write_set("other", "val", "4 5")
    register_prepared()
    assert "ct_val cannot be used" in caplog.text
    assert len(dataset_dicts("ct_train")) == len(dataset_dicts("other_val")) == 2
    for name in ("ct_val", "ct_test"):
        with pytest.raises(CTMaskNetError, match=r"json: patient 4 is in two splits") as error:
            dataset_dicts(name)
        assert f"{name.removeprefix('ct_')}.json" in str(error.value)
    write_set("ct", "test", "6 5")
    register_prepared()
    assert len(dataset_dicts("ct_val")) == len(dataset_dicts("ct_test")) == 2


def test_sets_of_other_packages(write_set):
    write_set("one", "train", "17 18", "clinic")
    DatasetCatalog.register("theirs", lambda: [{"patient": 18}])
    MetadataCatalog.get("theirs").patient_ids = "clinic"
    with pytest.raises(CTMaskNetError, match="patient 18"):
        check_patients_disjoint(["one_train", "theirs"])
    DatasetCatalog.register("nobody", lambda: [{"file_name": "a.png"}])
    DatasetCatalog.register("nobody_else", lambda: [{"file_name": "b.png"}])
    nobody, others = overlaps(["nobody", "one_train", "nobody_else"])[:2]
    assert not nobody.comparable and not others.comparable


def test_overlaps_in_words(write_set):
    write_set("one", "train", "1 2 3 4 5", "clinic")
    write_set("two", "val", "5 4 3 2", "clinic")
    write_set("three", "val", "1")
    assert overlap_lines(overlaps(["one_train", "two_val", "three_val"])) == [
        "patients of one_train and two_val: 4 shared: 2, 3, 4 (and 1 more)",
        "patients of one_train and three_val: not compared (ids: clinic and not stated)",
        "patients of two_val and three_val: not compared (ids: clinic and not stated)",
    ]


def test_what_states_a_numbering(tmp_path):
    images = tmp_path / "raw" / "images"
    images.mkdir(parents=True)
    assert numbering_of(images) is None
    assert numbering_of(images, None, "covidx_ct") == "covidx_ct"
    recipe = {"recipe": {"version": 1, "seed": 3}}
    (tmp_path / "raw" / "phantom.json").write_text(json.dumps(recipe))
    assert numbering_of(images, None, "covidx_ct") == "phantom-v1-seed3"
    assert numbering_of(images, "clinic", "covidx_ct") == "clinic"
    with pytest.raises(CTMaskNetError, match="`patient_ids` 'a b'"):
        numbering_of(images, "a b")


def test_a_split_like_that_of_the_other_task(root, repository, capsys):
    """Slices of one clinic's patients, whose lesions are split already, follow that split."""
    source = root / "source"
    lesion_patients, slice_patients = range(1, 9), range(5, 21)
    for kind in ("image", "mask"):
        (source / kind).mkdir(parents=True)
        for p in lesion_patients:
            Image.new("L", (16, 16), 2).save(source / kind / f"{p}_1.png")
    for p in slice_patients:
        folder = source / ("sick" if p < 13 else "well")
        folder.mkdir(exist_ok=True)
        Image.new("L", (16, 16)).save(folder / f"{p}_1.png")

    def prepare(tool, *words):
        more = ["--split", "train:0.5,val:0.5", "--workers", 1, *words]
        return run_tool(repository, f"datasets/prepare_{tool}.py", *more)

    ids = ["--patient-ids", "clinic"]
    slices = ["--images", source, "--class-folder", "covid=sick", "--class-folder", "normal=well"]
    slices += ["--name", "scans", "--patient-pattern", r"(?P<patient>\d+)_1"]
    lesions = ["--source", source, "--min-area-px", 1, "--name", "lesions"]
    assert prepare("cncb_lesions", *lesions, *ids) == 0
    like = ["--split-like", "lesions"]
    assert prepare("covidx_ct", *slices, *like) == 2
    assert "numbered by clinic, those of the new set by nothing stated" in capsys.readouterr().err
    assert prepare("covidx_ct", *slices, *like, *ids) == 0
    for split, other in (("train", "val"), ("val", "train")):
        check_patients_disjoint([f"lesions_both_{split}", f"scans_{other}"])
        assert len(dataset_dicts(f"scans_{split}")) == 8
    # The other way round, with the split of the slices.
    assert prepare("cncb_lesions", *lesions, *ids, "--seed", 7, "--split-like", "scans") == 0
    check_patients_disjoint(["lesions_both_train", "scans_val"])
    assert prepare("cncb_lesions", *lesions, *ids, "--split-like", "nothing") == 2
    assert "nothing: holds no prepared data set" in capsys.readouterr().err


class TestPublishedLists:
    @pytest.fixture
    def lesion_patients(self, shared):
        folder = shared / "data" / "splits"
        return {
            int(line.split("_")[0])
            for side in ("train", "test")
            for _, line in read_list(folder / f"author_seg_{side}.txt")
        }

    def test_the_two_cncb_numberings_are_not_one(self, shared, lesion_patients):
        """All lesion patients have COVID and are numbered 0..149 without a gap; 12 of these numbers
        are pneumonia patients in COVIDx-CT. So equal numbers do not mean equal persons."""
        class_of = {}
        for split in ("train", "val", "test"):
            for _, line in read_list(shared / "data" / "splits" / f"covidx_ct1_{split}.txt"):
                label, patient, *_ = line.split("_")
                class_of[int(patient)] = label
        assert lesion_patients == set(range(150))
        both = [class_of[number] for number in lesion_patients if number in class_of]
        assert (len(both), both.count("CP"), both.count("NCP")) == (101, 12, 89)

    def test_a_lesion_patient_moved_is_refused_by_name(self, shared, tmp_path):
        lines = {
            side: [line for _, line in read_list(shared / "data/splits" / f"author_seg_{side}.txt")]
            for side in ("train", "test")
        }
        rule = PatientRule()
        pairs = [
            LesionPair(rule.key(file), file, Path(file), Path(file), rule.read(file).patient)
            for file in lines["train"] + lines["test"]
        ]
        lines["train"].append(lines["test"].pop())
        moved = rule.read(lines["train"][-1]).patient
        lists = {}
        for split, side in (("train", "train"), ("val", "test")):
            lists[split] = tmp_path / f"{split}.txt"
            lists[split].write_text("\n".join(lines[side]))
        with pytest.raises(CTMaskNetError, match=f"patient {moved} is in two splits, train and"):
            split_by_lists(pairs, lists, rule.key)


SPELLINGS = [
    *(("96", "096"), ("P7 ", "p007"), ("Pat1", "pat1"), ("Ren\u00e9", "Rene\u0301")),
    *(("p1", "p\uff11"), ("STRASSE", "stra\u00dfe"), ("\u212b", "\u00e5")),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_one_patient_spelled_otherwise(one, other):
    assert spelled_otherwise([one, "x"], [other, "y"]) == [(one, other)]
    assert spelled_otherwise([one, other, "x"]) == [tuple(sorted((one, other)))]


@pytest.mark.parametrize(
    ("one", "other"), [("96", "960"), ("1-10", "11-0"), ("a b", "ab"), ("p0", "p"), ("7", "7")]
)
def test_unlike_patients_are_no_spellings_of_one(one, other):
    assert spelled_otherwise([one], [other]) == spelled_otherwise([one, other]) == []


def test_published_patients_are_spelled_in_one_way(shared):
    for path in sorted((shared / "data/splits").glob("covidx_ct1_*.txt")):
        names = {line.split()[0] for line in path.read_text().splitlines()}
        patients = {n.split("_")[1] for n in names if n.split("_")[0] in ("Normal", "CP", "NCP")}
        assert patients and spelled_otherwise(patients) == []


class TestSpelledOtherwise:
    def test_a_run_warns_or_is_strict(self, write_set, caplog):
        write_set("one", "train", "17 018", "clinic")
        write_set("two", "test", "18 19", "clinic")
        check_held_out(["one_train"], [], ["two_test"])
        assert "patients '018' and '18' of one_train and two_test may be one" in caplog.text
        with pytest.raises(CTMaskNetError, match="patients '018' and '18' of one_train"):
            check_held_out(["one_train"], [], ["two_test"], "strict")

    def test_ids_of_two_numberings_are_not_compared(self, write_set, caplog):
        write_set("one", "train", "17 018", "clinic")
        write_set("two", "test", "18 19", "other")
        check_held_out(["one_train"], [], ["two_test"], "strict")
        assert "may be one" not in caplog.text

    def test_check_leaks(self, write_set, root, repository, capsys):
        for name, split, patients in (("one", "train", "17 018"), ("two", "test", "18 19")):
            folder = write_set(name, split, patients, "clinic").parent.parent / "image"
            for number, patient in enumerate(patients.split()):
                noise = np.random.default_rng(len(name) + ord(name[0]) + number)
                picture = noise.integers(0, 255, (64, 64), np.uint8)
                Image.fromarray(picture).save(folder / f"{patient}.png")
        words = ["datasets/check_leaks.py", "one_train", "two_test"]
        assert run_tool(repository, *words) == 0
        said = capsys.readouterr().out
        assert "none shared; may be one, spelled otherwise: '018' and '18'" in said
        assert run_tool(repository, *words, "--strict") == 1

    @pytest.mark.parametrize("kind", ["slices", "lesions"])
    def test_preparation(self, root, repository, capsys, caplog, kind):
        for patient in ("7", "007", "8"):
            for folder in ("image", "mask"):
                path = root / "raw" / folder / f"{patient}_1.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (30, 20)).save(path)
        pattern = r"(?P<patient>\d+)_1"
        if kind == "lesions":
            words = [
                "datasets/prepare_cncb_lesions.py",
                "--source",
                root / "raw",
                "--split",
                "val:1",
            ]
        else:
            words = ["datasets/prepare_covidx_ct.py", "--images", root / "raw", "--split", "val:1"]
            words += ["--class-folder", "a=image", "--class-folder", "b=mask"]
        words += ["--patient-pattern", pattern, "--name", "set", "--workers", "1"]
        assert run_tool(repository, *words, "--strict") == 2
        told = "patients '007' and '7' of set may be one, spelled otherwise"
        assert told in capsys.readouterr().err and not (root / "set").exists()
        assert run_tool(repository, *words) == 0
        assert told in caplog.text
