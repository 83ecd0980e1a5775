"""A user's own module: who may name it, what it registers, what its sets have to hold."""

import csv
import re

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from ctmasknet import registration
from ctmasknet.config_file import read_cfg
from ctmasknet.data.patients import check_patients_disjoint, overlap_lines, overlaps
from ctmasknet.data.registry import dataset_dicts, lesion_truth
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.image_heads import IMAGE_HEAD_REGISTRY
from ctmasknet.weights.spec import put_stated
from tests.helpers.running import run_tool
from tests.test_train_net import TINY

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to be in, where no module has been imported."""
    monkeypatch.setattr(registration, "_done", set())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def example(repository) -> str:
    text = (repository / "docs" / "data.md").read_text(encoding="utf-8")
    return re.search(r"^## A module of your own\n.*?^```python\n(.*?)^```", text, re.M | re.S)[1]


def test_the_documented_module_trains_resumes_evaluates_and_predicts(repository, place, capsys):
    (place / "my_sets.py").write_text(example(repository))
    (place / "pictures").mkdir()
    for split, patients in (("train", "abcd"), ("val", "ef")):
        with (place / f"{split}.csv").open("w", newline="") as stream:
            write = csv.writer(stream).writerow
            write(["file", "class", "patient"])
            for number, patient in enumerate(patients):
                grey = np.full((96, 96), 40 + 120 * (number % 2), np.uint8)
                Image.fromarray(grey).save(place / "pictures" / f"{patient}.png")
                write([f"pictures/{patient}.png", ["normal", "covid"][number % 2], patient])
    train = [
        *("tools/train_net.py", "--config-file", "configs/cls_light.yaml", *TINY),
        *("OUTPUT_DIR", "out", "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 2),
        *("DATASETS.TRAIN", "('my_train',)", "DATASETS.VAL", "('my_val',)"),
        *("DATASETS.TEST", "('my_val',)", "MODEL.IMAGE_HEAD.NAME", "BestBoxImageHead"),
    ]
    imports = ["DATASETS.IMPORT", "my_sets.py"]
    try:
        assert run_tool(repository, *train) == 2
        assert "DATASETS.IMPORT" in capsys.readouterr().err  # the head is not registered yet
        assert run_tool(repository, *train, *imports) == 0
        assert "my_sets" not in (place / "out" / "config.yaml").read_text()
        known = torch.load(place / "out" / "model_best.pth", weights_only=True)
        assert known["ctmasknet"]["image_classes"] == ["normal", "covid"]
        assert [len(entry["patients"]) for entry in known["trained_on"]] == [4]
        resumed = [*train, "--resume", "SOLVER.MAX_ITER", 3]
        assert run_tool(repository, *resumed, *imports) == 0
        saved = ["tools/train_net.py", "--config-file", "out/config.yaml", "--eval-only"]
        assert run_tool(repository, *saved, *imports) == 0
        assert (place / "out" / "inference" / "my_val" / "predictions.csv").is_file()
        predict = ["tools/predict.py", "--input", "pictures", "--output", "predicted", *imports]
        weights = ["MODEL.WEIGHTS", "out/model_best.pth", "MODEL.DEVICE", "cpu"]
        assert run_tool(repository, *predict, *weights) == 0
        assert len((place / "predicted" / "predictions.csv").read_text().splitlines()) == 7
    finally:
        IMAGE_HEAD_REGISTRY._obj_map.pop("BestBoxImageHead", None)


def test_no_file_may_name_a_module(place, tiny_cfg):
    (place / "evil.py").write_text("open('ran', 'w')")
    (place / "base.yaml").write_text("DATASETS:\n  IMPORT: evil.py\n")
    (place / "child.yaml").write_text("_BASE_: base.yaml\n")
    for name in ("base.yaml", "child.yaml"):
        with pytest.raises(CTMaskNetError, match=rf"{name}: DATASETS\.IMPORT is 'evil\.py', which"):
            read_cfg(place / name)
    with pytest.raises(CTMaskNetError, match=r"x\.pth: DATASETS\.IMPORT is 'evil\.py'"):
        put_stated(tiny_cfg, "x.pth", {"DATASETS.IMPORT": "evil.py"}, "", {})
    assert not (place / "ran").exists()
    (place / "plain.yaml").write_text(tiny_cfg.dump())
    cfg = read_cfg(place / "plain.yaml", ["DATASETS.IMPORT", "evil.py"])
    assert (place / "ran").exists() and cfg.DATASETS.IMPORT == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", r"mine\.py: line 1: SyntaxError: '\(' was never closed; correct"),
        ("import os\n\nundefined()\n", r"mine\.py: line 3: NameError: name 'undefined' is not"),
        ("import no_such_thing\n", r"line 1: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("raise SystemExit(0)\n", r"line 1: SystemExit: 0"),
        (
            "from ctmasknet.data.registry import register_covidx_ct\n"
            "register_covidx_ct('a', 'gone.json')\n",
            r"mine\.py: .*gone\.json: no such file",
        ),
        (None, r"DATASETS\.IMPORT mine\.py: no such file; correct the path"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(place, text, message):
    if text is not None:
        (place / "mine.py").write_text(text)
    with pytest.raises(CTMaskNetError, match=message) as error:
        registration.import_registrations(["DATASETS.IMPORT", "mine.py"])
    assert "\n" not in str(error.value)


def test_modules_by_name_and_from_the_environment(place, monkeypatch):
    with pytest.raises(CTMaskNetError, match=r"'a/b': neither a Python file"):
        registration.import_registrations(["DATASETS.IMPORT", "a/b"])
    (place / "some_sets_of_mine.py").write_text(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "DatasetCatalog.register('of_env', lambda: [{'file_name': 'a', 'image_id': 1, 'label': 0}])"
        "\nMetadataCatalog.get('of_env').image_classes = ['a', 'b']\n"
    )
    with pytest.raises(CTMaskNetError, match=r"give some_sets_of_mine\.py, which is there, or"):
        registration.import_registrations(["DATASETS.IMPORT", "some_sets_of_mine"])
    with pytest.raises(CTMaskNetError, match=r"of_env: not registered.*CTMASKNET_IMPORT"):
        dataset_dicts("of_env")
    monkeypatch.setenv("CTMASKNET_IMPORT", "some_sets_of_mine")
    monkeypatch.syspath_prepend(place)
    assert dataset_dicts("of_env")[0]["label"] == 0


LESION = {"bbox": [2, 3, 4, 5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
SLICE = {"file_name": "a.png", "image_id": "a", "label": 1, "patient": "p"}
OF_LESIONS = {
    **{"file_name": "a.png", "image_id": 7, "height": 20, "width": 30, "patient": "p"},
    "annotations": [LESION],
}


@pytest.mark.parametrize(
    ("good", "change", "message"),
    [
        (SLICE, {"label": None}, "dict 1 lacks 'label'"),
        (SLICE, {"label": 2}, "dict 1 has the label 2, of 2 classes"),
        (SLICE, {"label": True}, "dict 1 has the label True, of 2 classes"),
        (SLICE, {"file_name": None, "image_id": None}, "dict 1 lacks 'file_name', 'image_id'"),
        (SLICE, {"image_id": "a"}, "dict 1 has the image_id 'a' of dict 0"),
        (SLICE, {"patient": None}, "dict 1 lacks 'patient'"),
        (SLICE, {"patient": "a\nb"}, r"dict 1 has the patient 'a\\nb', no name"),
        (OF_LESIONS, {"image_id": "b"}, "dict 1 has the image_id 'b', no whole number"),
        (OF_LESIONS, {"height": None}, "dict 1 lacks 'height'"),
        (OF_LESIONS, {"width": 30.5}, "dict 1 has the width 30.5, no number of px"),
        (OF_LESIONS, {"annotations": None}, "dict 1 lacks 'annotations'"),
        (OF_LESIONS, {"annotations": [{"bbox": [1]}]}, r"annotations\[0\] without 'bbox_mode'"),
        (OF_LESIONS, {"annotations": [{**LESION, "bbox": "ab"}]}, "the bbox 'ab', no four numbers"),
        (OF_LESIONS, {"annotations": [{**LESION, "category_id": 2}]}, "the category_id 2, of 2"),
        (OF_LESIONS, {"annotations": [{**LESION, "bbox": [2, 3, 99, 5]}]}, "data set own: annot"),
    ],
)
def test_a_dict_that_lacks_something_is_named(good, change, message):
    other = "b" if good is SLICE else 8
    dicts = [good, {**good, "image_id": other, **change}]
    DatasetCatalog.register("own", lambda: dicts)
    classes = {"image_classes" if good is SLICE else "thing_classes": ["x", "y"]}
    MetadataCatalog.get("own").set(**classes)
    with pytest.raises(CTMaskNetError, match=f"data set own: .*{message}|{message}"):
        dataset_dicts("own")
    del dicts[1]
    DatasetCatalog.remove("own")
    DatasetCatalog.register("own", lambda: dicts)
    assert dataset_dicts("own") == [good]


def test_lesions_without_a_json_have_the_truth_of_their_dicts():
    DatasetCatalog.register("own", lambda: [OF_LESIONS, {**OF_LESIONS, "image_id": 3}])
    MetadataCatalog.get("own").set(thing_classes=["x", "y"])
    truth = lesion_truth("own")
    assert [(a["image_id"], a["bbox"], a["category_id"]) for a in truth.anns.values()] == [
        (7, [2, 3, 4, 5], 1),
        (3, [2, 3, 4, 5], 1),
    ]
    assert [cat["name"] for cat in truth.cats.values()] == ["x", "y"]


def test_without_patients_nothing_is_vouched_for(caplog):
    for name in ("one", "two"):
        DatasetCatalog.register(name, lambda: [{"file_name": "a", "image_id": "a", "label": 0}])
        MetadataCatalog.get(name).set(image_classes=["x", "y"], patient_ids="clinic")
    check_patients_disjoint(["one", "two"])
    assert "one and two names no patients" in caplog.text
    assert "nothing vouches that one and two share none" in caplog.text
    assert overlap_lines(overlaps(["one", "two"])) == [
        "patients of one and two: not compared (one and two names none)"
    ]
