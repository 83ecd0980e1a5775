"""The order and augmentation of training data depend on seed and position alone; slices that no
training can use are told before its first step."""

import json
import random
import re
import shutil

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from PIL import Image

from ctmasknet.data.bad_slices import REPORT, BadSlices
from ctmasknet.engine import train_data
from ctmasknet.engine.setup import built_model, read_cfg
from ctmasknet.engine.train_data import (
    SeededMapping,
    TrainingBatches,
    build_train_loader,
    look_at_slices,
    training_dicts,
)
from ctmasknet.errors import CTMaskNetError
from tests.helpers.running import run_tool
from tests.test_train_net import TINY

DICTS = [{"file_name": f"{number}.png"} for number in range(10)]


def draw(entry):
    return {**entry, "drawn": float(np.random.rand()), "python": random.random()}


def first(cfg, count, start=0, **given):
    loader = build_train_loader(cfg, draw, DICTS, **given)
    loader.batch_sampler.start = start
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.SEED = 5
    tiny_cfg.SOLVER.IMS_PER_BATCH = 4
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    return tiny_cfg


def test_a_later_start_draws_what_would_have_come(cfg):
    whole = first(cfg, 8)
    assert first(cfg, 3, start=5) == whole[5:]
    assert len({item["drawn"] for batch in whole for item in batch}) == 32
    cfg.SEED = 6
    assert first(cfg, 1) != whole[:1]


def test_workers_do_not_change_what_is_drawn(cfg):
    assert first(cfg, 4, num_workers=2) == first(cfg, 4)


def test_own_random_states_are_left_alone(cfg):
    np.random.seed(1)
    random.seed(1)
    want = np.random.rand(), random.random()
    np.random.seed(1)
    random.seed(1)
    SeededMapping(DICTS, draw, seed=5)[(0, 0)]
    assert (np.random.rand(), random.random()) == want


def test_two_processes_share_the_batches_of_one():
    def batches(rank, world):
        sampler = TrainingSampler(10, seed=5)
        sampler._rank, sampler._world_size = rank, world
        found = iter(TrainingBatches(sampler, 4 // world, None, rank, world))
        return [next(found) for _ in range(5)]

    one, first_of_two, second_of_two = batches(0, 1), batches(0, 2), batches(1, 2)
    for whole, left, right in zip(one, first_of_two, second_of_two, strict=True):
        assert sorted(left + right) == sorted(whole)


def test_wide_and_tall_images_are_not_mixed(cfg):
    sampler = TrainingSampler(10, seed=5)
    groups = [number % 2 for number in range(10)]
    batches = iter(TrainingBatches(sampler, 3, groups))
    for _ in range(6):
        assert len({groups[index] for _, index in next(batches)}) == 1


def test_a_training_on_some_patients_of_each_class(cfg, monkeypatch):
    dicts = [
        {"file_name": f"{patient} {n}.png", "label": patient % 2, "patient": patient}
        for patient in range(10)
        for n in range(3)
    ]
    monkeypatch.setattr(train_data, "get_detection_dataset_dicts", lambda *_, **__: dicts)

    def patients(number):
        cfg.DATASETS.TRAIN_PATIENTS = number
        found = training_dicts(cfg)
        assert len(training_dicts(cfg, every=True)) == 30
        chosen = sorted({entry["patient"] for entry in found})
        assert len(found) == 3 * len(chosen)  # with all their slices
        return chosen

    few, more = patients(2), patients(3)
    assert [sum(patient % 2 == label for patient in few) for label in (0, 1)] == [2, 2]
    assert len(more) == 6 and set(few) < set(more)
    assert patients(3) == more and len(patients(0)) == 10
    cfg.SEED = 6
    assert patients(3) != more
    with pytest.raises(CTMaskNetError, match=r"TRAIN_PATIENTS is 6, but .* 5 patients of class 0"):
        patients(6)
    dicts[4].pop("patient")
    with pytest.raises(CTMaskNetError, match=r"TRAIN_PATIENTS: .* names no patients; set it to 0"):
        patients(2)


def test_unknown_sampler(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "Best"
    with pytest.raises(CTMaskNetError, match="SAMPLER_TRAIN is 'Best'"):
        build_train_loader(cfg, draw, DICTS)


@pytest.fixture
def slices(tmp_path, tiny_cfg):
    """Entries of a set, one a kind of picture, all in order; and how to look at them."""
    entries = []
    for name in ("a.png", "b.png", "c.jpg", "d.bmp", "e.tif"):
        Image.effect_noise((64, 48), 60).save(tmp_path / name)
        entry = {"width": 64, "height": 48, "body_box": [0, 0, 32, 32], "annotations": []}
        entries.append({"file_name": str(tmp_path / name), **entry})
    return tiny_cfg, entries


def look(slices, folder=""):
    """Look at them as sets of two and of three; returns what is known of bad ones."""
    cfg, entries = slices
    bad = BadSlices.from_cfg(cfg, {"one": 2, "two": 3})
    look_at_slices(cfg, {"one": entries[:2], "two": entries[2:]}, bad, folder)
    return bad


def test_slices_in_order(slices):
    cfg, entries = slices
    look(slices)
    cfg.INPUT.CROP_TO_BODY = True
    look(slices)
    with open(entries[0]["file_name"], "ab") as stream:  # what follows a picture is none of it
        stream.write(b"\0" * 200)
    look(slices)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("left", [0, 20, 0.7, 0.9])
def test_a_truncated_slice(slices, tmp_path, number, left):
    cfg, entries = slices
    path = entries[number]["file_name"]
    with open(path, "rb+") as stream:
        size = stream.seek(0, 2)
        stream.truncate(int(left * size) if left < 1 else left)
    with pytest.raises(CTMaskNetError, match=rf"^{re.escape(path)}: .*BAD_SLICES skip\)$"):
        look(slices)
    cfg.DATALOADER.BAD_SLICES, cfg.DATALOADER.MAX_BAD_SHARE = "skip", 0.5
    name = "one" if number < 2 else "two"
    assert look(slices, tmp_path).files(name).keys() == {path}
    assert not (tmp_path / REPORT).exists()
    cfg.DATALOADER.MAX_BAD_SHARE = 0.3
    with pytest.raises(CTMaskNetError, match=rf"^{name}: 1 of . slices are bad .*{REPORT}$"):
        look(slices, tmp_path)
    assert path in (tmp_path / REPORT).read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "none.png"}, "none.png: "),
        ({"width": 65}, r"b\.png: is 64 x 48 px, but its annotation says 65 x 48"),
        ({"body_box": None}, r"b\.png: has no body box to crop to"),
        ({"body_box": [0, 0, 70, 20]}, r"b\.png: body box \[0, 0, 70, 20\] lies outside"),
    ],
)
def test_a_slice_that_is_not_what_its_set_says(slices, change, message):
    cfg, entries = slices
    cfg.INPUT.CROP_TO_BODY = True
    entries[1].update(change)
    with pytest.raises(CTMaskNetError, match=message):
        look(slices)


def test_several_processes_look_at_their_shares(slices, monkeypatch):
    _, entries = slices
    seen = []
    monkeypatch.setattr(train_data, "_look_at", lambda entry, **_: seen.append(entry["file_name"]))
    monkeypatch.setattr(train_data.comm, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(train_data.comm, "get_rank", lambda rank=rank: rank)
        look(slices)
        assert len(seen) in (3, 5)
    assert sorted(seen) == [entry["file_name"] for entry in entries]


def test_a_run_ends_before_its_first_step(repository, prepared, tmp_path, monkeypatch, capsys):
    sets = tmp_path / "sets"
    shutil.copytree(prepared / "cncb_lesions", sets / "cncb_lesions")
    for path in sets.rglob("*.json"):
        document = json.loads(path.read_text())
        root = document["info"].get("image_root")
        if root:
            document["info"]["image_root"] = str(tmp_path / "images")
            old = (prepared / path.relative_to(sets)).parent / root
            shutil.copytree(old, tmp_path / "images", dirs_exist_ok=True)
            path.write_text(json.dumps(document))
    val = json.loads(next(sets.rglob("merge_val.json")).read_text())
    damaged = tmp_path / "images" / val["images"][0]["file_name"]
    damaged.write_bytes(damaged.read_bytes()[:900])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(sets))
    monkeypatch.chdir(repository)
    words = ["--config-file", "configs/seg_light.yaml", *TINY, "OUTPUT_DIR", tmp_path / "out"]
    for flags in ([], ["--eval-only"]):
        given = [*flags, *words, "SOLVER.MAX_ITER", 1, "MODEL.WEIGHTS"]
        weights = tmp_path / "w.pth" if flags else ""
        if flags:
            model = built_model(read_cfg("configs/seg_light.yaml", TINY))
            torch.save({"model": model.state_dict()}, weights)
        assert run_tool(repository, "tools/train_net.py", *given, weights) == 2
        assert f"error: {damaged}: unreadable or truncated image" in capsys.readouterr().err
    assert "Start inference" not in (tmp_path / "out" / "log.txt").read_text()
    assert "Starting training" not in (tmp_path / "out" / "log.txt").read_text()
