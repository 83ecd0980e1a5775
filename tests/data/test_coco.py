"""COCO files from any hand: read right, or refused with file, annotation and fault."""

import copy
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from pycocotools import mask as rle

from ctmasknet.data.coco import checked_coco, read_coco
from ctmasknet.data.registry import dataset_dicts, register_cncb_lesions
from ctmasknet.errors import CTMaskNetError

SHAPE = 20, 30  # (H, W) px


def code(mask: np.ndarray) -> dict:
    found = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def block(x0, y0, x1, y1) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def runs_of(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], mask.ravel(order="F")])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff([0, *edges, mask.size]).tolist()


@pytest.fixture
def document() -> dict:
    """Two images of which the first has two lesions."""
    lesions = [(block(2, 3, 12, 13), 1), (block(15, 1, 29, 19), 2)]
    return {
        "info": {"image_root": "image"},
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 20, "width": 30, "patient": str(i)}
            for i in (1, 2)
        ],
        "categories": [{"id": 1, "name": "ggo"}, {"id": 2, "name": "consolidation"}],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": category,
                "bbox": rle.toBbox(rle.encode(np.asfortranarray(mask))).tolist(),
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": code(mask),
            }
            for number, (mask, category) in enumerate(lesions, 1)
        ],
    }


def test_what_the_preparation_writes_stays_as_it_is(document):
    before = copy.deepcopy(document)
    assert checked_coco(document, "a.json") == document == before


def _ids_from_0(d):
    for number, item in enumerate(d["annotations"]):
        item["id"] = number


def _one_id_for_all(d):
    for item in d["annotations"]:
        item["id"] = 7


def _ids_as_text(d):
    for item in (*d["images"], *d["annotations"], *d["categories"]):
        item["id"] = str(item["id"])
    for item in d["annotations"]:
        item |= {key: str(item[key]) for key in ("image_id", "category_id")}
    for item in d["images"]:
        item |= {"height": "20", "width": 30.0}


def _no_area_crowd_box_info(d):
    del d["info"]
    for item in d["annotations"]:
        del item["area"], item["iscrowd"], item["bbox"]


def _plain_runs(d):
    for item in d["annotations"]:
        mask = rle.decode(item["segmentation"])
        item["segmentation"]["counts"] = runs_of(mask)


def _image_ids_as_text(d):
    for item in d["images"]:
        item["id"] = str(item["id"])
    for item in d["annotations"]:
        item["image_id"] = str(item["image_id"])


def _sizes_as_floats(d):
    for item in d["annotations"]:
        item["segmentation"]["size"] = [20.0, 30.0]


def _empty_runs(d):
    for item in d["annotations"]:
        first, *others = runs_of(rle.decode(item["segmentation"]))
        item["segmentation"]["counts"] = [first - 1, 0, 1, *others]
        del item["bbox"]


def _polygons(d):
    for item in d["annotations"]:
        x, y, w, h = item["bbox"]
        item["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]


@pytest.mark.parametrize(
    "change",
    [
        *(_ids_from_0, _one_id_for_all, _ids_as_text, _no_area_crowd_box_info, _plain_runs),
        *(_empty_runs, _polygons, _sizes_as_floats),
    ],
)
def test_files_of_another_hand_are_read_as_the_same(document, change):
    wanted = copy.deepcopy(document)
    change(document)
    found = checked_coco(document, "a.json")
    assert {**found, "info": wanted["info"]} == wanted


def test_a_polygon_may_reach_over_the_edge_and_is_cut_there(document):
    document["annotations"][1] |= {"segmentation": [[15, 1, 33, 1, 33, 25, 15, 25]]}
    (_, found) = checked_coco(document, "a.json")["annotations"]
    assert (rle.decode(found["segmentation"]) == block(15, 1, 30, 20)).all()


@pytest.mark.parametrize("nothing", [None, []])
def test_boxes_alone(document, nothing):
    for item in document["annotations"]:
        item["segmentation"] = nothing
        del item["area"]
    found = checked_coco(document, "a.json")["annotations"]
    assert [item["area"] for item in found] == [10 * 10, 14 * 18]
    assert not any("segmentation" in item for item in found)


def test_predictions_may_have_empty_masks(document):
    lesion = document["annotations"][0] | {"segmentation": code(block(0, 0, 0, 0)), "score": 0.9}
    document["annotations"] = [lesion]
    (found,) = checked_coco(document, "a.json")["annotations"]
    assert (rle.area(found["segmentation"]), found["score"]) == (0, 0.9)


BIG = 2**31
RLES = {
    "malformed": {"size": [20, 30], "counts": "abc\x7f~~~"},
    "unfinished": {"size": [20, 30], "counts": "oooo"},
    "not of letters": {"size": [20, 30], "counts": "é"},
    "a number of ten bytes": {"size": [20, 30], "counts": "oooooooooo0"},
    "empty": {"size": [20, 30], "counts": ""},
    "missing": {"size": [20, 30]},
    "short": {"size": [20, 30], "counts": [5]},
    "long": {"size": [20, 30], "counts": [0, 601]},
    "negative": {"size": [20, 30], "counts": [-10, 20, 590]},
    "negative, compressed": {"size": [20, 30], "counts": "ZO"},
    "of fractions": {"size": [20, 30], "counts": [0.5, 599.5]},
    "huge": {"size": [20, 30], "counts": [10**30]},
}
SIZES = {
    "turned": {"size": [30, 20], "counts": code(block(2, 3, 4, 5))["counts"]},
    "huge": {"size": [BIG - 1, BIG - 1], "counts": "P`0"},
    "text": {"size": "20", "counts": "P`0"},
    "no size": {"counts": "P`0"},
}
POLYGONS = {
    "2^31": ([[0, 0, BIG, 0, BIG, BIG]], "far outside"),
    "1e30": ([[0, 0, 1e30, 0, 1e30, 1e30]], "far outside"),
    "not a number": ([[float("nan")] * 6], "finite numbers"),
    "400 digits": ([[0, 0, 10**400, 0, 9, 9]], "finite numbers"),
    "infinite": ([[0, 0, float("inf"), 0, 9, 9]], "finite numbers"),
    "of text": ([["1", "2", "3", "4", "5", "6"]], "finite numbers"),
    "one level less": ([1, 1, 9, 1, 9, 9], "finite numbers"),
    "of pairs": ([[[1, 1], [9, 1], [9, 9]]], "finite numbers"),
    "two points": ([[5, 5, 9, 9]], "has 4 numbers"),
    "half a point": ([[5, 5, 9, 9, 3, 3, 4]], "has 7 numbers"),
    "a short one beside a sound one": ([[1, 1, 9, 1, 9, 9], [5, 5, 9, 9]], "has 4 numbers"),
    "empty one": ([[]], "has 0 numbers"),
    "none": ([], "has no mask"),
    "null": (None, "has no mask"),
    "text": ("P`0", "has no mask"),
    "outside": ([[-9, -9, -2, -9, -2, -2]], "covers no px"),
    "a line": ([[3, 3, 9, 3, 6, 3]], "covers no px"),
    "endless": ([[0, 0, 30, 20] * 5000], "outline of"),
}
MASKS = [
    *((name, value, "counts of its RLE") for name, value in RLES.items()),
    *((name, value, "size of its RLE") for name, value in SIZES.items()),
    *((name, *value) for name, value in POLYGONS.items()),
    ("no px", code(block(0, 0, 0, 0)), "covers no px"),
]


@pytest.mark.parametrize(("value", "message"), [pytest.param(v, m, id=n) for n, v, m in MASKS])
def test_malformed_masks_are_refused_by_annotation(document, value, message):
    document["annotations"][1]["segmentation"] = value
    with pytest.raises(CTMaskNetError, match=rf"^a\.json: annotation 2 of 1\.png: .*{message}"):
        checked_coco(document, "a.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 999}, "image_id=999 is of no image"),
        ({"image_id": [1]}, "is of no image"),
        ({"category_id": 0}, "category_id=0 is of no category"),
        ({"category_id": None}, "category_id=None is of no category"),
        ({"area": "large"}, "area='large' is no number"),
        ({"area": float("nan")}, "area=nan is no number"),
        ({"area": -3}, "area=-3 is no number"),
        ({"iscrowd": 2}, "iscrowd=2"),
        ({"iscrowd": "yes"}, "iscrowd='yes'"),
        ({"ignore": 1}, "ignore"),
        ({"score": float("nan")}, "score=nan"),
        ({"score": 1.5}, "score=1.5"),
        ({"bbox": []}, r"bbox=\[\]"),
        ({"bbox": [1, 2, 3, 10**400]}, "bbox=.* is not"),
        ({"bbox": [1, 2, 3, 10**300]}, "empty or reaches over"),
        ({"area": 10**400}, "area=1000"),
        ({"bbox": [1, 2, "3", 4]}, "bbox=.* is not"),
        ({"bbox": [1, 2, 0, 4]}, "empty or reaches over the image of 30 x 20 px"),
        ({"bbox": [1, 1, 14, 18]}, r"is not that of its mask, \[15.0, 1.0, 14.0, 18.0\]"),
        ({"bbox": [15, 1, 29, 19]}, "empty or reaches over the image of 30 x 20 px"),  # x0 y0 x1 y1
    ],
)
def test_what_does_not_belong_together_is_refused_by_annotation(document, change, message):
    document["annotations"][1] |= change
    with pytest.raises(CTMaskNetError, match=rf"^a\.json: annotation 2( of 1\.png)?: .*{message}"):
        checked_coco(document, "a.json")


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("images", {"id": 1}, "image 1: another has this id"),
        ("images", {"id": "one"}, "image 'one': its id is no whole number"),
        ("images", {"id": None}, r"image number 2 \(without id\): its id"),
        ("images", {"height": 0}, "image 2: 2.png states no height and width"),
        ("images", {"width": None}, "image 2: 2.png states no height and width"),
        ("images", {"width": 1_000_000}, "2.png: the width is 1000000 px, above the limit"),
        ("images", {"file_name": ""}, "image 2: states no file_name"),
        ("images", {"file_name": "a\nb.png"}, "line break"),
        ("categories", {"id": 1.5}, "category 1.5: its id"),
        ("categories", {"name": None}, "category 2: has no name"),
        ("categories", {"name": "ggo"}, "two categories have one name"),
    ],
)
def test_images_and_categories(document, key, change, message):
    document[key][1] |= change
    with pytest.raises(CTMaskNetError, match=rf"^a\.json: .*{message}"):
        checked_coco(document, "a.json")


@pytest.mark.parametrize("key", ["images", "categories", "annotations"])
@pytest.mark.parametrize("value", [None, {}, ["1"], "text"])
def test_no_lists_of_entries(document, key, value):
    with pytest.raises(CTMaskNetError, match=f"no list '{key}'"):
        checked_coco(document | {key: value}, "a.json")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "7"])
def test_no_such_document(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CTMaskNetError, match=r"a\.json: "):
        read_coco(tmp_path / "a.json")


@pytest.mark.usefixtures("clean_catalogs")
class TestRegistered:
    @pytest.fixture
    def register(self, tmp_path):
        (tmp_path / "image").mkdir()
        (tmp_path / "image" / "1.png").touch()

        def registered(document) -> list:
            path = tmp_path / "both_train.json"
            path.write_text(json.dumps(document))
            register_cncb_lesions("by_hand", path, tmp_path / "image")
            return dataset_dicts("by_hand")

        return registered

    @pytest.mark.parametrize(
        "change", [_ids_from_0, _one_id_for_all, _ids_as_text, _no_area_crowd_box_info, _polygons]
    )
    def test_dataset_dicts_do_not_tell_by_which_hand(self, register, document, change):
        wanted = register(document)
        assert [len(entry["annotations"]) for entry in wanted] == [2, 0]
        assert [lesion["category_id"] for lesion in wanted[0]["annotations"]] == [0, 1]
        change(document)
        assert register(document) == wanted

    def test_a_malformed_mask_is_told_when_the_set_is_registered(self, register, document):
        document["annotations"][1]["segmentation"] = [[0, 0, BIG, 0, BIG, BIG]]
        with pytest.raises(CTMaskNetError, match=r"both_train\.json: annotation 2 of 1\.png"):
            register(document)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d["annotations"][1].pop("id"), "an annotation has no id"),
            (lambda d: d["images"][1].pop("patient"), r"image 2 \(2\.png\) states no 'patient'"),
            (lambda d: d["info"].update(patient_ids=[1]), "info.patient_ids is"),
            (lambda d: d["info"].update(window_hu="lung"), "info.window_hu is"),
        ],
    )
    def test_what_a_registered_set_needs_besides(self, register, document, change, message):
        change(document)
        with pytest.raises(CTMaskNetError, match=message):
            register(document)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d["annotations"][1].update(segmentation=[[5, 5, 9, 9]]), "annotation 2 of"),
            (_image_ids_as_text, "ids of images are no whole numbers"),
        ],
    )
    def test_sets_that_detectron2_registers_are_checked_too(
        self, tmp_path, document, change, message
    ):
        path = tmp_path / "theirs.json"
        path.write_text(json.dumps(document))
        register_coco_instances("theirs", {}, str(path), str(tmp_path))
        try:
            assert len(dataset_dicts("theirs")) == 2
            change(document)
            path.write_text(json.dumps(document))
            with pytest.raises(CTMaskNetError, match=message):
                dataset_dicts("theirs")
        finally:
            DatasetCatalog.remove("theirs")
            MetadataCatalog.remove("theirs")
