"""Joined sets ``a+b``: what they hold, what cannot be joined, leaks across their parts."""

import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image

from ctmasknet.data.patients import check_held_out
from ctmasknet.data.registry import (
    dataset_dicts,
    known_sets,
    lesion_truth,
    parts_of,
    register_prepared,
)
from ctmasknet.engine.record import describe_dataset
from ctmasknet.engine.trained_on import check_trained_on, training_record
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import read_predictions_csv
from ctmasknet.files import read_json
from tests.helpers.running import run_tool
from tests.test_train_net import TINY

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def write_set(tmp_path, monkeypatch):
    """Write one prepared split of slices: a picture of noise for each patient."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def write(name, split, patients, *, ids=None, classes=("no", "yes"), window=None, people=None):
        home = tmp_path / name
        slices = []
        for number, patient in enumerate(patients.split()):
            path = home / "image" / f"{patient}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([ord(name[0]), int(patient)]).integers(0, 255, (48, 48))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            row = {"file": path.name, "label": number % 2, "patient": patient}
            slices.append({**row, "scan": "1", "slice": "1"})
        info = {"image_root": "image", "patient_ids": ids, "window_hu": window}
        document = {"info": info, "classes": list(classes), "slices": slices}
        document["patients"] = people or {}
        (home / "slices").mkdir(exist_ok=True)
        (home / "slices" / f"{split}.json").write_text(json.dumps(document))

    return write


def held(name, *keys):
    return [tuple(entry[key] for key in keys) for entry in dataset_dicts(name)]


def test_ids_patients_and_sources_are_kept_apart(write_set):
    write_set("a", "train", "1 2", ids="clinic", people={"1": {"source": "north", "sex": "F"}})
    write_set("b", "train", "2 3", ids="ward")
    write_set("c", "train", "2 4", ids="clinic")
    assert held("a_train+b_train", "image_id", "patient", "label") == [
        ("a/image/1.png", "clinic:1", 0),
        ("a/image/2.png", "clinic:2", 1),
        ("b/image/2.png", "ward:2", 0),
        ("b/image/3.png", "ward:3", 1),
    ]
    found = held("a_train+b_train", "metadata")
    assert [row["source"] for (row,) in found] == ["north", "a", "b", "b"]
    # One numbering is one patient, with one source
    assert held("a_train+c_train", "patient") == [("1",), ("2",), ("2",), ("4",)]
    sources = [row["source"] for (row,) in held("a_train+c_train", "metadata")]
    assert sources == ["north", "a", "a", "c"]
    metadata = MetadataCatalog.get("a_train+c_train")
    assert (metadata.patient_ids, metadata.image_classes) == ("clinic", ["no", "yes"])
    assert MetadataCatalog.get("a_train+b_train").patient_ids is None
    assert parts_of("a_train+b_train") == ["a_train", "b_train"]
    assert known_sets(["gone", "b_train+c_train", "a_train+gone"]) == ["b_train+c_train"]


def test_ids_without_a_numbering_are_those_of_one_folder(write_set):
    write_set("a", "train", "1")
    write_set("a", "val", "2")
    write_set("b", "train", "1")
    assert held("a_train+a_val", "patient") == [("1",), ("2",)]
    assert held("a_train+b_train", "patient") == [("a:1",), ("b:1",)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_train+c_train", r"c_train has the classes yes, no, but a_train no, yes; prepare both"),
        ("a_train+w_train", r"unlike windows .*a_train -600,1500, w_train 40,400\); prepare all"),
        ("a_train+a_train", r"'a_train\+a_train': a_train is in it twice"),
        ("a_train+", r"'a_train\+': a part has no name"),
        ("a_train+gone_train", r"gone_train \(part of a_train\+gone_train\): not registered"),
        ("a_train+lesions", r"of a_train and lesions one is of lesions and one of classes"),
        ("a_train+bare", r"bare has neither thing_classes nor image_classes"),
        ("a_train+copy", r"a_train and copy both hold .*1\.png; join sets that share no slice"),
        ("a_train+broken_train", r"broken_train\.json|train\.json: broken data set file"),
    ],
)
def test_what_cannot_be_joined_is_one_line(write_set, tmp_path, name, message):
    write_set("a", "train", "1 2", window=[-600, 1500])
    write_set("c", "train", "3", classes=("yes", "no"))
    write_set("w", "train", "4", window=[40.0, 400.0])
    write_set("broken", "train", "5")
    (tmp_path / "broken" / "slices" / "train.json").write_text("{")
    DatasetCatalog.register("lesions", lambda: [])
    MetadataCatalog.get("lesions").thing_classes = ["x"]
    DatasetCatalog.register("bare", lambda: [{"file_name": "x"}])
    one = {"file_name": str(tmp_path / "a" / "image" / "1.png"), "image_id": 1, "label": 0}
    DatasetCatalog.register("copy", lambda: [one])
    MetadataCatalog.get("copy").image_classes = ["no", "yes"]
    with pytest.raises(CTMaskNetError, match=message) as error:
        dataset_dicts(name)
    assert "\n" not in str(error.value)


def test_a_window_that_one_part_alone_states_is_told(write_set, caplog):
    write_set("a", "train", "1", window=[-600, 1500])
    write_set("b", "train", "2")
    dataset_dicts("b_train+a_train")
    assert "b_train states no window, and a_train was written through -600,1500" in caplog.text
    assert MetadataCatalog.get("b_train+a_train").window_hu == [-600, 1500]


def test_leaks_are_looked_for_across_all_parts(write_set, repository, capsys, caplog):
    write_set("a", "train", "1 2", ids="clinic")
    write_set("b", "train", "1 2", ids="ward")
    write_set("c", "test", "3 4", ids="clinic")
    write_set("d", "test", "2 9", ids="ward")
    train, test = "a_train+b_train", "c_test+d_test"
    register_prepared()
    with pytest.raises(CTMaskNetError, match="patient 2 is in two splits, b_train and d_test"):
        check_held_out([train], [test], [])
    check_held_out([train], ["c_test"], [])
    with pytest.raises(CTMaskNetError, match="b_train is in both"):
        check_held_out([train], ["b_train+c_test"], [])
    record = training_record([train], "classification", "heads")
    assert [(entry["dataset"], entry["patient_ids"]) for entry in record] == [
        ("a_train", "clinic"),
        ("b_train", "ward"),
    ]
    check_trained_on("x.pth", record, ["c_test"], "refuse")
    with pytest.raises(CTMaskNetError, match=r"patient 2 of d_test is in b_train too \(ids: ward"):
        check_trained_on("x.pth", record, [test], "refuse")
    with caplog.at_level(logging.WARNING):
        check_trained_on("x.pth", record, ["a_train+c_test"], "refuse")
    assert "a_train is a set that x.pth was trained on" in caplog.text
    assert run_tool(repository, "datasets/check_leaks.py", train, test) == 1
    said = capsys.readouterr().out
    assert "patients of a_train and c_test: none shared" in said
    assert "patients of b_train and d_test: 1 shared: 2" in said
    assert "patients of a_train and b_train" not in said
    found = describe_dataset(train)
    assert (found["images"], found["patients"]) == (4, 4)
    assert [(part["name"], part["images"]) for part in found["parts"]] == [
        ("a_train", 2),
        ("b_train", 2),
    ]


def test_a_part_that_has_changed_is_joined_anew(write_set):
    write_set("a", "train", "1")
    write_set("b", "train", "2")
    assert len(dataset_dicts("a_train+b_train")) == 2
    write_set("b", "train", "2 3", classes=("no", "maybe"))
    register_prepared()
    with pytest.raises(CTMaskNetError, match="b_train has the classes no, maybe"):
        dataset_dicts("a_train+b_train")


def test_lesions_of_parts_have_ids_of_their_own(tmp_path):
    for number, name in enumerate(("one", "two")):
        lesion = {"bbox": [number, 0, 4, 5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": number}
        entry = {"image_id": 7, "height": 20, "width": 30, "annotations": [lesion]}
        entry |= {"file_name": str(tmp_path / f"{name}.png"), "patient": "1"}
        DatasetCatalog.register(name, lambda entry=entry: [entry])
        MetadataCatalog.get(name).set(thing_classes=["x", "y"])
    assert held("one+two", "image_id") == [(1,), (2,)]
    truth = lesion_truth("one+two")
    assert [image["patient"] for image in truth.imgs.values()] == ["one:1", "two:1"]
    assert [(a["image_id"], a["bbox"][0], a["category_id"]) for a in truth.anns.values()] == [
        (1, 0, 1),
        (2, 1, 2),
    ]
    assert MetadataCatalog.get("one+two").thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}


def test_sets_that_state_their_classes_when_they_are_loaded(tmp_path):
    """As ``register_coco_instances`` does."""
    document = {
        "images": [{"id": 3, "file_name": "0.png", "height": 20, "width": 30}],
        "categories": [{"id": 5, "name": "x"}],
        "annotations": [{"id": 1, "image_id": 3, "category_id": 5, "bbox": [1, 2, 4, 5]}],
    }
    document["annotations"][0] |= {"area": 20, "iscrowd": 0}
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
        register_coco_instances(name, {}, tmp_path / f"{name}.json", str(tmp_path / name))
    assert held("one+two", "image_id") == [(1,), (2,)]
    assert [a["category_id"] for a in lesion_truth("one+two").anns.values()] == [1, 1]


def test_joined_sets_are_trained_on_and_evaluated_by_source(write_set, repository, tmp_path):
    for name, split, patients in (("a", "train", "1 2"), ("b", "train", "1 2")):
        write_set(name, split, patients)
    for name, patients in (("c", "1 2"), ("d", "1 2 3")):
        write_set(name, "test", patients)
    out = tmp_path / "out"
    words = [
        *("tools/train_net.py", "--config-file", "configs/cls_light.yaml", *TINY),
        *("OUTPUT_DIR", out, "SOLVER.MAX_ITER", 1),
        *("DATASETS.TRAIN", "('a_train+b_train',)", "DATASETS.VAL", "('c_test+d_test',)"),
        *("DATASETS.TEST", "('c_test+d_test',)"),
    ]
    assert run_tool(repository, *words, "MODEL.WEIGHTS", "") == 0
    assert run_tool(repository, *words, "--eval-only") == 0
    folder = out / "inference" / "c_test+d_test"
    rows, _ = read_predictions_csv(folder / "predictions.csv")
    assert [(row.file, row.patient, row.metadata["source"]) for row in rows] == [
        ("c/image/1.png", "c:1", "c"),
        ("c/image/2.png", "c:2", "c"),
        *((f"d/image/{n}.png", f"d:{n}", "d") for n in (1, 2, 3)),
    ]
    by_source = read_json(folder / "slices_metrics.json")["subgroups"]["columns"]["source"]
    assert {name: group["patients"] for name, group in by_source.items()} == {"c": 2, "d": 3}
    training, _ = read_json(out / "run.json")["entries"]
    (described,) = training["datasets"]["train"]
    assert [part["name"] for part in described["parts"]] == ["a_train", "b_train"]
    assert run_tool(repository, "tools/report.py", out, "--output", tmp_path / "page.html") == 0
    assert "d (small)" in (tmp_path / "page.html").read_text()
