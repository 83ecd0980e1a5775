"""Prepared sets in the catalogs: names, metadata, dataset dicts, errors."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as rle

from ctmasknet.data.registry import (
    dataset_dicts,
    lesion_colors,
    register_cncb_lesions,
    register_covidx_ct,
    register_prepared,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import PatientRule
from ctmasknet.prepare.lesions import prepare_lesions
from ctmasknet.prepare.masks_to_coco import Conversion

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "root"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    return folder


def lesion_mask(s: int) -> np.ndarray:
    mask = np.ones((40, 48), np.uint8)
    if s:
        mask[5:20, 5:20] = 3
    return mask


@pytest.fixture
def lesions(root) -> Path:
    """A prepared lesion set of five patients, two slices each, the first without lesion."""
    home = root / "toy"
    for patient in range(5):
        for s in range(2):
            for kind, suffix, array in (
                ("image", "jpg", np.full((40, 48), 90, np.uint8)),
                ("mask", "png", lesion_mask(s)),
            ):
                (home / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(home / kind / f"{patient}_{s}.{suffix}")
    prepare_lesions(
        home / "image",
        home / "mask",
        home,
        rule=PatientRule(),
        how=Conversion(),
        shares={"train": 0.6, "val": 0.4},
        progress=False,
    )
    return home


def write_slices(root: Path, split: str, patients: range, name: str = "ct", **changes) -> Path:
    home = root / name
    (home / "image").mkdir(parents=True, exist_ok=True)
    slices = []
    for patient in patients:
        file = f"CP_{patient}_3001_0007.png"
        Image.new("L", (8, 8)).save(home / "image" / file)
        slices.append(
            {
                "file": file,
                "label": 1,
                "patient": str(patient),
                "scan": "3001",
                "slice": "0007",
                "body_box": [1, 2, 7, 8] if patient % 2 else None,
            }
        )
    document = {
        "info": {"description": "toy", "image_root": "image", "seed": 0},
        "classes": ["normal", "pneumonia", "covid"],
        "slices": slices,
        **changes,
    }
    path = home / "slices" / f"{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def test_all_prepared_sets_are_registered_once(lesions, root):
    write_slices(root, "train", range(3))
    expected = [
        *("ct_train", "toy_both_train", "toy_both_val", "toy_ggo_train", "toy_ggo_val"),
        *("toy_merge_train", "toy_merge_val"),
    ]
    assert register_prepared() == expected
    loaders = dict(DatasetCatalog)
    assert register_prepared(root) == expected
    assert all(DatasetCatalog[name] is loaders[name] for name in expected)
    assert register_prepared(root / "nothing") == []


def test_lesion_set(lesions):
    register_prepared()
    meta = MetadataCatalog.get("toy_both_val")
    assert meta.thing_classes == ["ggo", "consolidation"]
    assert meta.thing_colors == [(64, 176, 255), (255, 128, 32)]
    assert meta.evaluator_type == "ct_lesions" and meta.mask_type == "both"
    assert meta.json_file == str(lesions / "annotations" / "both_val.json")
    assert meta.image_root == str(lesions / "image")
    dicts = dataset_dicts("toy_both_val")
    assert len(dicts) == 4 and {d["patient"] for d in dicts} == {
        Path(d["file_name"]).stem.split("_")[0] for d in dicts
    }
    empty, with_lesion = dicts[:2]
    assert empty["annotations"] == [] and (empty["height"], empty["width"]) == (40, 48)
    (lesion,) = with_lesion["annotations"]
    assert lesion["category_id"] == 1  # consolidation, counted from 0 here
    assert lesion["bbox"] == [5, 5, 15, 15] and lesion["bbox_mode"] == BoxMode.XYWH_ABS
    assert (rle.decode(lesion["segmentation"]) == (lesion_mask(1) == 3)).all()
    assert Path(with_lesion["file_name"]).is_file()


def test_slice_set(root):
    write_slices(root, "val", range(4, 6))
    assert dataset_dicts("ct_val")[1] == {
        "file_name": str(root / "ct" / "image" / "CP_5_3001_0007.png"),
        "image_id": "CP_5_3001_0007.png",
        "label": 1,
        "patient": "5",
        "scan": "3001",
        "slice": "0007",
        "body_box": [1, 2, 7, 8],
    }
    assert dataset_dicts("ct_val")[0]["body_box"] is None
    meta = MetadataCatalog.get("ct_val")
    assert meta.image_classes == ["normal", "pneumonia", "covid"]
    assert meta.evaluator_type == "ct_slices"
    assert meta.slices_json == str(root / "ct" / "slices" / "val.json")


def test_changing_a_dict_does_not_change_the_set(root):
    write_slices(root, "val", range(5, 6))
    dataset_dicts("ct_val")[0]["body_box"][0] = 99
    dataset_dicts("ct_val")[0]["label"] = 0
    assert dataset_dicts("ct_val")[0]["body_box"] == [1, 2, 7, 8]
    assert dataset_dicts("ct_val")[0]["label"] == 1


def test_a_set_of_the_same_name_from_elsewhere_replaces_the_first(root, tmp_path):
    write_slices(root, "val", range(2))
    register_prepared()
    other = tmp_path / "other"
    write_slices(other, "val", range(7), classes=["no", "yes"])
    register_prepared(other)
    assert len(dataset_dicts("ct_val")) == 7
    assert MetadataCatalog.get("ct_val").image_classes == ["no", "yes"]


def test_a_set_prepared_anew_is_read_anew(root):
    write_slices(root, "val", range(2))
    register_prepared()
    assert len(dataset_dicts("ct_val")) == 2
    write_slices(root, "val", range(3), classes=["no", "yes"])
    assert len(dataset_dicts("ct_val")) == 3
    register_prepared()
    assert MetadataCatalog.get("ct_val").image_classes == ["no", "yes"]


def test_explicit_registration_with_another_image_root(lesions, root, tmp_path):
    (tmp_path / "moved").mkdir()
    for file in (lesions / "image").iterdir():
        file.rename(tmp_path / "moved" / file.name)
    json_file = lesions / "annotations" / "merge_val.json"
    register_cncb_lesions("elsewhere", json_file, tmp_path / "moved")
    assert Path(dataset_dicts("elsewhere")[0]["file_name"]).parent == tmp_path / "moved"
    slices = write_slices(root, "val", range(2))
    register_covidx_ct("slices_here", slices)
    assert len(dataset_dicts("slices_here")) == 2


def test_names_of_other_packages_are_left_alone(root):
    path = write_slices(root, "val", range(2))
    DatasetCatalog.register("taken", lambda: [])
    with pytest.raises(CTMaskNetError, match="taken by a set of another package"):
        register_covidx_ct("taken", path)
    assert DatasetCatalog.get("taken") == []


def test_unknown_name_says_what_there_is_and_what_makes_it(root):
    write_slices(root, "val", range(2))
    with pytest.raises(CTMaskNetError) as error:
        dataset_dicts("cncb_lesions_both_train")
    text = str(error.value)
    assert str(root) in text and "ct_val" in text and "prepare_lesions.py" in text
    with pytest.raises(CTMaskNetError, match=r"prepare_slices\.py"):
        dataset_dicts("covidx_ct_train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "broken data set file"),
        ("[]", "has no 'info'"),
        ('{"info": {"image_root": "image"}}', "lacks 'classes' or 'slices'"),
        (
            '{"info": {"image_root": "image"}, "classes": ["a"], "slices": [{"file": "x"}]}',
            r"slices\[0\] lacks one of",
        ),
        (
            '{"info": {"image_root": "image"}, "classes": ["a"], "slices": [{"file": "x",'
            '"label": 1, "patient": "1", "scan": "1", "slice": "1"}]}',
            r"slices\[0\] has the label 1, of 1 classes",
        ),
        (
            '{"info": {"image_root": "image"}, "classes": ["a"], "slices": [{"file": "x",'
            '"label": "a\\nb", "patient": "1", "scan": "1", "slice": "1"}]}',
            r"slices\[0\] has the label 'a\\nb', of 1 classes",
        ),
        ('{"info": {"image_root": "i"}, "classes": [["a"]], "slices": []}', "classes are"),
        *(
            (
                '{"info": {"image_root": "image"}, "classes": ["a"], "slices": [{"file": "x", '
                f'"label": 0, "scan": "1", "slice": "1", {entry}}}]}}',
                rf"slices\[0\] has {message}",
            )
            for entry, message in (
                ('"patient": ["1"]', "a file, patient, scan or slice that is no name"),
                ('"patient": ""', "a file, patient, scan or slice that is no name"),
                ('"patient": "a\\nb"', "a file, patient, scan or slice that is no name"),
                ('"patient": "1", "body_box": [1, 2, 3]', "the body_box"),
                ('"patient": "1", "body_box": [1, 2, 3, "4"]', "the body_box"),
            )
        ),
        ('{"info": {"image_root": "i"}, "classes": ["a"], "slices": []}', "holds no image|missing"),
        ('{"info": {}, "classes": ["a"], "slices": []}', "info.image_root is missing"),
    ],
)
def test_broken_slice_files(root, text, message):
    good, bad = write_slices(root, "train", range(2)), write_slices(root, "val", range(2))
    bad.write_text(text)
    assert register_prepared() == ["ct_train", "ct_val"]
    assert len(dataset_dicts("ct_train")) == 2
    with pytest.raises(CTMaskNetError, match=message) as error:
        dataset_dicts("ct_val")
    assert str(bad) in str(error.value) and good.is_file()


def test_empty_set(root):
    write_slices(root, "val", range(0))
    with pytest.raises(CTMaskNetError, match=r"val\.json holds no image"):
        dataset_dicts("ct_val")


def test_broken_lesion_files(lesions):
    path = lesions / "annotations" / "both_val.json"
    document = json.loads(path.read_text())

    def error_of(**changes) -> str:
        path.write_text(json.dumps({**document, **changes}))
        with pytest.raises(CTMaskNetError) as error:
            register_cncb_lesions("bad", path)
            dataset_dicts("bad")
        assert str(path) in str(error.value)
        return str(error.value)

    without = [{k: v for k, v in i.items() if k != "patient"} for i in document["images"]]
    assert "'patient'" in error_of(images=without)
    assert "no categories" in error_of(categories=[])
    for odd in (5, 0.5, {}, "x"):
        assert "no list 'annotations'" in error_of(annotations=odd)
    wrong = [{**a, "category_id": 9} for a in document["annotations"]]
    assert "category_id=9" in error_of(annotations=wrong)
    same_id = [{**a, "id": 1} for a in document["annotations"]]
    assert "image folder" in error_of(annotations=same_id, info={"image_root": "gone"})
    assert "image folder" in error_of(info={**document["info"], "image_root": "gone"})
    path.unlink()
    with pytest.raises(CTMaskNetError, match="no such file"):
        register_cncb_lesions("bad", path)


def test_missing_images_and_a_set_removed_after_registration(lesions):
    register_prepared()
    for file in (lesions / "image").iterdir():
        file.unlink()
    with pytest.raises(CTMaskNetError, match=r"image .*\.jpg is missing"):
        dataset_dicts("toy_both_val")
    (lesions / "annotations" / "both_val.json").unlink()
    with pytest.raises(CTMaskNetError, match="no such file"):
        dataset_dicts("toy_both_val")


def test_unknown_lesion_names_get_colours_of_their_own():
    colors = lesion_colors(["nodule", "ggo", "cyst"])
    assert colors[1] == (64, 176, 255) and len(set(colors)) == 3
    assert all(0 <= c <= 255 for color in colors for c in color)
    own = ["crazy paving", "fibrosis", "effusion", "nodule", "cavity"]
    colors = lesion_colors(["ggo", "consolidation", "lesion", *own])
    apart = [np.abs(np.subtract(a, b)).max() for a, b in itertools.combinations(colors, 2)]
    assert min(apart) >= 64, colors
