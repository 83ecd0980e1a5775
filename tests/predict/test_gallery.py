"""The loop over slices: what is chosen, written and refused. The model is a stand-in."""

import argparse
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from ctmasknet.ct.scan import Window
from ctmasknet.data.registry import unregister
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict import gallery
from ctmasknet.predict.gallery import CONTACT_SHEET, draw_from_command_line, draw_gallery
from ctmasknet.predict.shown import ShownSlices, pick, writable_folder

SIDE = 64


@pytest.fixture
def slices(tmp_path):
    """Three files, of which two share a stem."""
    files = [tmp_path / "slices" / name for name in ("1/7.png", "2/7.png", "2/8.jpg")]
    for number, path in enumerate(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE), 60 * number, dtype=np.uint8)).save(path)
    return files


def arguments(output, **given):
    values = {"config_file": "", "opts": [], "weights": None, "dataset": None, "input": None}
    values |= {"rescale": None, "axes": None, "augmented": False}
    values |= {"output": str(output)}
    values |= {
        "limit": None,
        "seed": None,
        "score_threshold": 0.75,
        "ground_truth_only": False,
        "augmented": False,
    }
    return argparse.Namespace(**(values | given))


class Finding:
    """In a predictor's place: one lesion a slice, and a class."""

    model = None

    def __init__(self, cfg=None, *, crop_box=None, found=None, lesions=True):
        self.crop_box, self.found = crop_box, found

    def mapped(self, entry, pixels):
        return {**entry, "crop_box": self.crop_box}

    def predict(self, items):
        instances = Instances((SIDE, SIDE))
        instances.pred_boxes = Boxes(torch.tensor([[8.0, 8, 56, 56]]))
        instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([0])
        scores = torch.tensor([0.1, 0.8])
        found = {"instances": instances, "pred_class": 1, "scores": scores}
        return [found if self.found is None else self.found for _ in items]


def test_every_slice_has_its_picture_and_all_are_on_the_sheet(slices, tmp_path):
    entries = [{"file_name": str(path), "label": 1} for path in slices]
    out = tmp_path / "out"
    classes = {"lesion_classes": ["ggo"], "image_classes": ["normal", "covid"]}
    paths = draw_gallery(entries, out, predictor=Finding(), **classes)
    assert [path.name for path in paths] == ["001_7.png", "002_7.png", "003_8.png"]
    assert sorted(os.listdir(out)) == ["001_7.png", "002_7.png", "003_8.png", CONTACT_SHEET]
    picture = np.asarray(Image.open(paths[0]))
    sheet = np.asarray(Image.open(out / CONTACT_SHEET))
    assert sheet.shape[1] == pytest.approx(3 * 810)
    right = picture[:, picture.shape[1] // 2 :].astype(int)
    assert ((right[..., 2] - right[..., 0]) > 100).sum() > 500, "the box is blue"


def test_what_the_model_saw_is_drawn_when_it_saw_a_crop(slices, tmp_path):
    cropping = Finding(crop_box=[0, 0, SIDE, SIDE // 2], found={})
    entry = {"file_name": str(slices[1])}
    (whole,) = draw_gallery([entry], tmp_path / "a", predictor=None, lesion_classes=[])
    (cut,) = draw_gallery([entry], tmp_path / "b", predictor=cropping, lesion_classes=[])
    assert Image.open(whole).height - Image.open(cut).height == 9 * SIDE // 2


@pytest.mark.parametrize(
    ("count", "limit", "seed", "expected"),
    [(3, None, None, [0, 1, 2]), (3, 5, 1, [0, 1, 2]), (10, 4, None, [0, 2, 5, 7])],
)
def test_pick_spreads_evenly(count, limit, seed, expected):
    assert pick(count, limit, seed) == expected


def test_pick_with_a_seed_is_a_repeatable_choice():
    assert pick(100, 5, 1) == pick(100, 5, 1) != pick(100, 5, 2)
    chosen = pick(100, 5, 1)
    assert chosen == sorted(set(chosen)) and len(chosen) == 5
    with pytest.raises(CTMaskNetError, match="`limit`"):
        pick(10, 0, None)


def test_folders_are_listed_and_bad_paths_are_one_clear_error(slices, tmp_path):
    def names(*given):
        found = ShownSlices.from_arguments(arguments("", input=[str(path) for path in given]))
        return [entry["file_name"] for entry in found.entries]

    assert names(slices[1].parent, slices[0]) == [
        str(path) for path in (slices[1], slices[2], slices[0])
    ]
    shutil.copy(slices[0], slices[1].parent / "10.png")
    (slices[1].parent / "._8.jpg").touch()
    listed = names(slices[1].parent)
    assert [os.path.basename(name) for name in listed] == ["7.png", "8.jpg", "10.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CTMaskNetError, match=r"empty: holds no files"):
        names(tmp_path / "empty")
    with pytest.raises(CTMaskNetError, match="absent: no such file"):
        names(tmp_path / "absent")


def test_an_unreadable_image_is_one_clear_error_and_leaves_no_half_picture(slices, tmp_path):
    slices[1].write_bytes(slices[1].read_bytes()[:60])
    entries = [{"file_name": str(path)} for path in slices]
    with pytest.raises(CTMaskNetError, match=r"2/7\.png: unreadable or truncated"):
        draw_gallery(entries, tmp_path / "out", predictor=None, lesion_classes=[])
    assert os.listdir(tmp_path / "out") == ["001_7.png"]


def test_an_output_that_cannot_be_written_is_one_clear_error(slices, tmp_path, monkeypatch):
    with pytest.raises(CTMaskNetError, match=r"7\.png: cannot be written"):
        writable_folder(slices[0])
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CTMaskNetError, match="no permission"):
        writable_folder(tmp_path)


def test_pictures_that_do_not_fit_are_told_before_the_first(slices, tmp_path, monkeypatch):
    shown = ShownSlices.from_arguments(arguments("", input=[str(path.parent) for path in slices]))
    assert len(shown.entries) == 3
    stated = [{"file_name": "gone", "height": 100, "width": 100}]
    files = [{"file_name": str(path)} for path in slices]
    half = sum(path.stat().st_size for path in slices) / 2
    for entries, sources, least in (
        (shown.entries, shown.sources, 3 * SIDE * SIDE * 0.2),
        (stated, {}, 100 * 100 * 0.2),
        (files, {}, half),
    ):
        for free in (least, least - 1):
            there = SimpleNamespace(free=free)
            monkeypatch.setattr(shutil, "disk_usage", lambda _, there=there: there)
            output = tmp_path / "out" / str(free)
            if free == least:
                assert writable_folder(output, entries, sources).is_dir()
                continue
            told = rf"the pictures of {len(entries)} slices need .* draw fewer with `limit`"
            with pytest.raises(CTMaskNetError, match=told):
                writable_folder(output, entries, sources)
            assert not output.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either `dataset` NAME or `input`"),
        ({"dataset": "x", "input": ["y"]}, "either `dataset` NAME or `input`"),
        ({"input": ["."], "ground_truth_only": True}, "files have no ground truth"),
        ({"dataset": "absent_both_val"}, "absent_both_val"),
        ({"dataset": "x", "axes": "zyx"}, "`axes`: x holds pictures; leave it out"),
        ({"input": ["."], "score_threshold": 75.0}, "`score_threshold`: 75.0 is no score"),
    ],
)
def test_contradicting_arguments_are_one_clear_error(tmp_path, given, message):
    with pytest.raises(CTMaskNetError, match=message):
        draw_from_command_line(arguments(tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


def test_arrays_lie_as_stated(tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 400, (3, 20, 24))
    np.save(tmp_path / "a.npy", hu.T)
    given = arguments(tmp_path / "out", input=[str(tmp_path)], axes="xyz")
    shown = ShownSlices.from_arguments(given)
    drawn = [shown.pixels(entry, Window()) for entry in shown.entries]
    np.testing.assert_array_equal(drawn, Window().to_uint8(hu))


@pytest.fixture
def prepared(slices, tmp_path, monkeypatch):
    """A prepared set of each task over the three files."""
    root = tmp_path / "datasets"
    lesions = {
        "info": {"mask_type": "ggo", "image_root": str(tmp_path / "slices")},
        "images": [
            {"id": 1, "file_name": "1/7.png", "height": SIDE, "width": SIDE, "patient": "1"}
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [8, 8, 48, 48],
                "area": 2304,
                "iscrowd": 0,
                "segmentation": [[8, 8, 56, 8, 56, 56, 8, 56]],
            }
        ],
        "categories": [{"id": 1, "name": "ggo"}],
    }
    classified = {
        "info": {"image_root": str(tmp_path / "slices")},
        "classes": ["normal", "covid"],
        "slices": [
            {
                "file": f"{n}/7.png",
                "label": n - 1,
                "patient": str(n),
                "scan": "1",
                "slice": "7",
                "body_box": None,
            }
            for n in (1, 2)
        ],
    }
    for path, content in (
        (root / "drawn" / "annotations" / "ggo_test.json", lesions),
        (root / "drawn" / "slices" / "test.json", classified),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    yield "drawn_ggo_test", "drawn_test"
    for name in ("drawn_ggo_test", "drawn_test"):
        unregister(name)


def test_ground_truth_needs_no_model(prepared, tmp_path):
    for name, count in zip(prepared, (1, 2), strict=True):
        args = arguments(tmp_path / name, dataset=name, ground_truth_only=True)
        assert len(draw_from_command_line(args)) == count
    lesions = np.asarray(Image.open(tmp_path / prepared[0] / "001_7.png")).astype(int)
    assert (lesions[..., 2] - lesions[..., 0] > 20).sum() > 10000, "the lesion is blue"


@pytest.mark.parametrize(("config", "which"), [("seg", 0), ("cls", 1)])
def test_the_drawn_set_names_the_classes_of_the_model(
    prepared, tmp_path, monkeypatch, repository, config, which
):
    seen = []

    def stand_in(cfg, **options):
        seen.append(cfg)
        return Finding(found=None if config == "cls" else {})

    monkeypatch.setattr(gallery, "CTPredictor", stand_in)
    monkeypatch.setattr(Finding, "window", None, raising=False)
    weights = tmp_path / "weights.pth"
    torch.save({"model": {}}, weights)
    args = arguments(
        tmp_path / "out",
        config_file=str(repository / "configs" / f"{config}.yaml"),
        dataset=prepared[which],
        opts=["MODEL.WEIGHTS", str(weights)],
        limit=1,
    )
    assert len(draw_from_command_line(args)) == 1
    (cfg,) = seen
    assert (prepared[which],) == cfg.DATASETS.TEST
    assert args.opts == ["MODEL.WEIGHTS", str(weights)]
    if config == "seg":
        assert list(cfg.MODEL.LESION_CLASSES) == ["ggo"]
    else:
        assert list(cfg.MODEL.IMAGE_HEAD.CLASSES) == ["normal", "covid"]


def test_a_classifier_of_other_lesions_is_one_clear_error(prepared, tmp_path, repository):
    weights = tmp_path / "weights.pth"
    torch.save({"model": {}}, weights)
    args = arguments(
        tmp_path / "out",
        config_file=str(repository / "configs" / "cls.yaml"),
        dataset=prepared[0],
        opts=["MODEL.WEIGHTS", str(weights)],
    )
    with pytest.raises(CTMaskNetError, match=r"drawn_ggo_test: has lesion classes \['ggo'\]"):
        draw_from_command_line(args)
    assert not (tmp_path / "out").exists()
