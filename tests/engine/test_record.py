"""``run.json``: what it says of a training and an evaluation, and which entries it keeps."""

import argparse
import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ctmasknet.engine.record import describe_dataset, fingerprint, read_record, recorded
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import parse_slice_name
from ctmasknet.paper.published import LISTS

NAME = "recorded_slices"
DICTS = [
    {"file_name": f"{n}.png", "label": n % 3, "patient": str(n // 2), "scan": "1", "slice": str(n)}
    for n in range(6)
]


def arguments(**given):
    values = {"config_file": "configs/cls.yaml", "opts": ["SEED", 3], "eval_only": False}
    values["words"] = ["--config-file", "configs/cls.yaml", "SEED", "3"]
    return argparse.Namespace(**(values | {"resume": False, "num_gpus": 1} | given))


@pytest.fixture
def cfg(tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for entry in DICTS:
        (tmp_path / entry["file_name"]).write_text(entry["file_name"])
    DatasetCatalog.register(NAME, lambda: DICTS)
    MetadataCatalog.get(NAME).set(image_root=str(tmp_path / "raw" / "images"))
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "out")
    tiny_cfg.SEED = 3
    tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = (NAME,)
    tiny_cfg.DATASETS.VAL = ()
    tiny_cfg.SOLVER.MAX_ITER = 50
    yield tiny_cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def entries(cfg):
    with open(f"{cfg.OUTPUT_DIR}/run.json", encoding="utf-8") as stream:
        return json.load(stream)["entries"]


def test_a_training_is_recorded_when_it_begins_and_when_it_ends(cfg):
    with recorded(cfg, arguments()) as record:
        (running,) = entries(cfg)
        assert running["status"] == "running" and "end" not in running
        record["metrics"] = {"slices": {"accuracy": 90.0, "loss": float("nan")}}
    (done,) = entries(cfg)
    assert done["metrics"] == {"slices": {"accuracy": 90.0, "loss": None}}
    assert done["config"]["SOLVER"]["MAX_ITER"] == 50
    assert (done["kind"], done["status"], done["iterations"]) == ("training", "finished", 50)
    assert done["command"] == "python tools/train_net.py --config-file configs/cls.yaml SEED 3"
    assert done["seed"] == 3 and done["seconds"] >= 0 and done["overrides"] == ["SEED", "3"]
    (data,) = done["datasets"]["train"]
    assert (data["name"], data["images"], data["patients"]) == (NAME, 6, 3)
    assert done["hardware"]["device"] == "cpu" and done["hardware"]["gpu"] is None
    assert done["hardware"]["cores"] >= 1 and done["hardware"]["cpu"]
    assert done["hardware"]["threads"] == torch.get_num_threads()
    assert {"torch", "detectron2", "ctmasknet"} < done["versions"].keys()
    assert "train_patients" not in done
    cfg.DATASETS.TRAIN_PATIENTS = 2
    with recorded(cfg, arguments()):
        assert entries(cfg)[-1]["train_patients"] == 2


def test_a_stopped_training_says_how_far_it_came(cfg, tmp_path):
    with pytest.raises(CTMaskNetError), recorded(cfg, arguments()):
        (tmp_path / "out" / "metrics.json").write_text('{"iteration": 9}\n{"iteration": 19}\n')
        raise CTMaskNetError("no more")
    (entry,) = entries(cfg)
    assert (entry["status"], entry["iterations"]) == ("stopped", 20)
    assert entry["error"] == "CTMaskNetError: no more"


def test_what_stops_before_it_made_anything_leaves_the_record_as_it_was(cfg, tmp_path):
    path = tmp_path / "out" / "run.json"
    metrics = tmp_path / "out" / "metrics.json"

    def stop(**given):
        with pytest.raises(CTMaskNetError), recorded(cfg, arguments(**given)):
            assert entries(cfg)[-1]["status"] == "running"
            raise CTMaskNetError("another architecture")

    stop()
    assert not path.exists()
    for given in ({}, {"eval_only": True}):
        with recorded(cfg, arguments(**given)):
            metrics.write_text('{"iteration": 49}\n')
    before = path.read_text()
    stop()
    stop(eval_only=True)
    assert path.read_text() == before, "metrics.json has lines of the earlier training only"


def test_a_record_that_is_no_text_is_one_line_or_replaced(cfg, tmp_path):
    path = tmp_path / "out" / "run.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\xff")
    evaluates = recorded(cfg, arguments(eval_only=True))
    with pytest.raises(CTMaskNetError, match="not a run's record"), evaluates:
        raise AssertionError("begun")
    assert path.read_bytes() == b"\xff"
    with recorded(cfg, arguments()):
        (path.parent / "metrics.json").write_text("[]\n")
    assert [entry["kind"] for entry in entries(cfg)] == ["training"]


def test_entries_stay_while_they_are_true_of_the_folder(cfg):
    def kinds(**given):
        with recorded(cfg, arguments(**given)):
            pass
        return [entry["kind"] for entry in entries(cfg)]

    assert kinds() == ["training"]
    assert kinds(eval_only=True) == ["training", "evaluation"]
    assert kinds(eval_only=True) == ["training", "evaluation"], "the same data set again"
    assert kinds(resume=True) == ["training", "training"], "no evaluation is of the new weights"
    assert kinds() == ["training"]


@pytest.mark.parametrize(
    "entry",
    [
        *("x", {"kind": ["training"]}, {"kind": "evaluation", "datasets": {"test": [{}]}}),
        *({"kind": "training", "status": 1}, {"kind": "evaluation", "datasets": []}),
    ],
)
def test_a_record_of_another_form_is_one_line(entry, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"entries": [entry]}))
    with pytest.raises(CTMaskNetError, match=r"run\.json: not a run's record \(entries\[0\]"):
        read_record(tmp_path)


def test_phantoms_are_known_by_the_recipe_beside_them(cfg, tmp_path):
    assert describe_dataset(NAME)["phantoms"] is False
    (tmp_path / "raw" / "images").mkdir(parents=True)
    (tmp_path / "raw" / "phantom.json").write_text("{}")
    assert describe_dataset(NAME)["phantoms"] is True


def test_the_content_hash_is_of_images_and_labels(cfg, tmp_path):
    before = describe_dataset(NAME)
    (tmp_path / "3.png").write_text("another picture")
    after = describe_dataset(NAME)
    assert after["content_sha256"] != before["content_sha256"]
    assert after["fingerprint"] == before["fingerprint"]


def test_a_fingerprint_is_of_the_slices_alone():
    moved = [{**entry, "file_name": f"/else/{entry['file_name']}"} for entry in reversed(DICTS)]
    assert fingerprint(moved) == fingerprint(DICTS) != fingerprint(DICTS[1:])
    assert fingerprint([{**DICTS[0], "label": 1}]) != fingerprint(DICTS[:1])
    assert fingerprint([{"file_name": "image/110/104.jpg"}]) == fingerprint(
        [{"file_name": "flat/110_104.png"}]
    )
    assert fingerprint([{"file_name": "no number.jpg"}]) is None


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("covidx_ct1_test.txt", "COVIDx-CT-1 test list"),
        ("author_cls_train.txt", "authors' training list of 3,000 slices"),
        ("author_seg_test.txt", "authors' lesion validation list"),
    ],
)
def test_published_lists_are_recognised(shared, file, name):
    words = (shared / "data" / "splits" / file).read_text().split("\n")
    files = [line.split()[0] for line in words if line.strip()]
    dicts = [{"file_name": path} for path in files]
    if "seg" not in file:
        dicts = [{"file_name": path, **vars(parse_slice_name(path))} for path in files]
    assert LISTS[fingerprint(dicts)] == name


def test_the_command_is_the_one_that_was_given(cfg):
    words = ["--config-file", "configs/cls.yaml", "--eval-only", "--num-gpus", "2"]
    with recorded(cfg, arguments(eval_only=True, words=[*words, "OUTPUT_DIR", "a b"])):
        pass
    assert entries(cfg)[0]["command"] == (
        "python tools/train_net.py --config-file configs/cls.yaml --eval-only --num-gpus 2 "
        "OUTPUT_DIR 'a b'"
    )
