"""COCO jsons as annotation tools write them."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ctmasknet.data.registry import register_prepared
from tests.helpers.running import run_tool

FIVE = ["ground glass", "consolidation", "crazy paving", "effusion", "nodule"]
SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]


def square(**more):
    """A lesion of 8 x 8 px as a polygon; ``iscrowd`` and the like by name."""
    return {"segmentation": [SQUARE], **more}


def runs(height=20, width=24):
    """The same as uncompressed run lengths."""
    mask = np.zeros((height, width), bool)
    mask[4:12, 4:12] = True
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [height, width], "counts": np.diff([0, *edges, flat.size]).tolist()}


@pytest.fixture
def raw(tmp_path):
    """Pictures of five patients; a json whose ids start at 0 and have gaps, without info."""
    for patient in range(5):
        for number in range(2):
            path = tmp_path / "pictures" / f"p{patient}" / f"s{patient}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 24), 90 + number, np.uint8)).save(path)
    ids = [0, 3, 4, 9, 12]
    categories = [{"id": i, "name": name} for i, name in zip(ids, FIVE, strict=True)]
    images, annotations = [], []
    for index in range(10):
        file = f"s{index // 2}_{index % 2}.png"
        images.append({"id": 7 * index, "file_name": file, "height": 20, "width": 24})
        shape = square() if index % 2 else {"segmentation": runs()}
        annotations.append(
            {"id": index, "image_id": 7 * index, "category_id": ids[index % 5], **shape}
        )
    images[0]["file_name"] = "upload/1/0a1b2c3d-s0_0.png"
    images[1]["file_name"] = "task\\p0\\s0_1.png"
    images[2] |= {"file_name": "/data/local-files/?d=all%2Fp1%2Fs1_0.png"}
    del images[3]["height"], images[3]["width"]
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [*categories, {"id": 40, "name": "unused"}],
    }

    def write(change=lambda document: None):
        change(document)
        (tmp_path / "coco.json").write_text(json.dumps(document))
        return tmp_path

    return write


def prepare(repository, root, *words):
    given = ["--coco", root / "coco.json", "--images", root / "pictures", "--name", "mine"]
    given += ["--output-root", root / "root", "--patient-pattern", "^(?P<patient>p[0-9]+)/"]
    return run_tool(repository, "datasets/prepare_lesions.py", *given, *words)


def test_any_categories_become_a_registered_set(repository, raw, capfd, caplog):
    root = raw()
    assert prepare(repository, root, "--split", "train:0.6,val:0.4") in (0, None)
    out = capfd.readouterr()
    assert "mine_lesions_train, mine_lesions_val" in out.out
    assert "no lesion is of unused" in out.err + caplog.text
    assert register_prepared(root / "root") == ["mine_lesions_train", "mine_lesions_val"]
    metadata = MetadataCatalog.get("mine_lesions_train")
    assert metadata.thing_classes == FIVE and len(set(metadata.thing_colors)) == 5
    dicts = [d for s in ("train", "val") for d in DatasetCatalog.get(f"mine_lesions_{s}")]
    found = {d["file_name"].rpartition("/")[2]: d for d in dicts}
    assert sorted(found) == [f"s{p}_{n}.png" for p in range(5) for n in range(2)]
    for index in range(10):
        entry = found[f"s{index // 2}_{index % 2}.png"]
        (lesion,) = entry["annotations"]
        assert (entry["patient"], lesion["category_id"]) == (f"p{index // 2}", index % 5)
        assert lesion["bbox"] == [4, 4, 8, 8]


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (lambda d: d["images"][4].update(file_name="no.png"), (), "no.png is not below"),
        (lambda d: d["images"][4].update(height=21), (), "its RLE is [20, 24]"),
        (lambda d: d["images"][5].update(height=24, width=20), (), "is 24 x 20 px, but"),
        (lambda d: d["images"][4].update(file_name="s3_1.png"), (), "two images"),
        (lambda d: [a.update(iscrowd=1) for a in d["annotations"]], (), "--crowds lesion"),
        (lambda d: None, ("--classes", "nodule"), "also has lesions of consolidation, crazy"),
        (lambda d: None, ("--min-area-px", "3"), "`--min-area-px`: does not go"),
    ],
)
def test_what_cannot_be_vouched_for_is_one_line(repository, raw, capfd, change, words, message):
    root = raw(change)
    assert prepare(repository, root, *words) not in (0, None)
    err = capfd.readouterr().err
    assert message.replace("`", "") in err.replace("`", ""), err
    assert not list(root.glob("root/*/annotations/*"))


def test_bad_pictures_and_annotations_are_left_out_and_named(repository, raw, capfd):
    def change(document):
        document["images"][4]["file_name"] = "no.png"
        document["images"][5].update(height=24, width=20)  # and so its mask does not fit
        document["annotations"][6]["segmentation"] = [[1, 2, 3]]
        document["annotations"].append({**document["annotations"][6], "segmentation": [SQUARE]})
        document["annotations"].append({**document["annotations"][1], "image_id": 999})
        del document["images"][8]["file_name"]
        (root / "pictures" / "p4" / "s4_1.png").write_bytes(b"no picture")

    root = raw()
    raw(change)
    assert prepare(repository, root, "--bad", "skip", "--max-bad-share", "0.3") == 2
    assert "6 of 11 files are bad" in capfd.readouterr().err
    assert not list(root.glob("root/*/annotations/*"))
    assert prepare(repository, root, "--bad", "skip", "--max-bad-share", "0.7") in (0, None)
    report = json.loads((root / "root" / "mine" / "bad_slices.json").read_text())
    (found,) = report["sets"].values()
    named = {one["file"].rpartition("/")[2]: one["reason"] for one in found["files"]}
    assert sorted(named) == [
        *("coco.json#annotation-1", "coco.json#image-56"),
        *("no.png", "s2_1.png", "s3_0.png", "s4_1.png"),
    ]
    assert "annotation 6 of s3_0.png: a polygon has 3 numbers" in named["s3_0.png"]
    register_prepared(root / "root")
    dicts = [d for s in ("train", "val") for d in DatasetCatalog.get(f"mine_lesions_{s}")]
    files = sorted(d["file_name"].rpartition("/")[2] for d in dicts)
    assert files == ["s0_0.png", "s0_1.png", "s1_0.png", "s1_1.png", "s3_1.png"]
    assert all(len(d["annotations"]) == 1 for d in dicts)


def test_images_of_one_id_are_all_left_out(repository, raw):
    """Nothing tells whose the annotations of that id are."""
    root = raw(lambda document: document["images"][3].update(id=14))
    assert prepare(repository, root, "--bad", "skip", "--max-bad-share", "0.7") in (0, None)
    (found,) = json.loads((root / "root/mine/bad_slices.json").read_text())["sets"].values()
    named = {one["file"].rpartition("/")[2] for one in found["files"]}
    assert {"?d=all%2Fp1%2Fs1_0.png", "s1_1.png"} <= named
    register_prepared(root / "root")
    dicts = [d for s in ("train", "val") for d in DatasetCatalog.get(f"mine_lesions_{s}")]
    assert not [d for d in dicts if "/s1_" in d["file_name"]] and len(dicts) == 8


def test_a_folder_given_relatively(repository, raw, monkeypatch):
    monkeypatch.chdir(raw())
    words = ["--coco", "coco.json", "--images", "pictures", "--output-root", "root"]
    words += ["--name", "mine", "--patient-pattern", "^(?P<patient>p[0-9]+)/"]
    assert run_tool(repository, "datasets/prepare_lesions.py", *words) in (0, None)


def test_masks_of_a_brush_are_lesions_where_said(repository, raw):
    root = raw(lambda d: [a.update(iscrowd=1) for a in d["annotations"]])
    assert prepare(repository, root, "--crowds", "lesion") in (0, None)
    register_prepared(root / "root")
    dicts = DatasetCatalog.get("mine_lesions_train")
    assert dicts and not any(a["iscrowd"] for d in dicts for a in d["annotations"])
