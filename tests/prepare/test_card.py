"""Cards of small sets whose contents and faults are known."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ctmasknet.data import registry as datasets
from ctmasknet.draw.card import draw_card
from ctmasknet.errors import CTMaskNetError
from ctmasknet.phantom.patient import phantom_patient
from ctmasknet.phantom.write import write_phantom_lesions
from ctmasknet.prepare.card import card_text, data_card
from tests.helpers.running import run_tool


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch, clean_catalogs):
    """Root of the prepared sets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def slices(root):
    """Two splits of pictures of 32 x 48 px with every kind of fault."""
    pictures = [phantom_patient("covid", 1, 96, 1, patient=n)[0].image for n in range(4)]
    arrays = {
        "a_1.png": np.full((32, 48), 10, np.uint8),
        "a_2.png": np.full((32, 48), 30, np.uint8),
        "b_1.png": pictures[0],
        "b_2.png": pictures[0],
        "c_1.png": np.asarray(Image.fromarray(pictures[0]).resize((48, 48))),
        "c_2.png": pictures[1],
    }
    home = root / "ct"
    (home / "image").mkdir(parents=True)
    (home / "slices").mkdir()
    for name, array in arrays.items():
        Image.fromarray(array).save(home / "image" / name)
    (home / "image" / "c_3.png").write_bytes(b"torn")
    for split, names in (("train", ["a_1", "a_2", "b_1", "b_2"]), ("val", ["c_1", "c_2", "c_3"])):
        records = [
            {
                "file": f"{name}.png",
                "label": int(name in ("a_2", "b_1", "b_2")),
                "patient": name[0],
                "scan": "1",
                "slice": name[2:],
            }
            for name in names
        ]
        info = {"image_root": "image", "patient_ids": None}
        document = {"info": info, "classes": ["normal", "covid"], "slices": records}
        (home / "slices" / f"{split}.json").write_text(json.dumps(document))
    return home / "image"


def test_contents_of_slice_sets(slices):
    train = data_card(["ct_train", "ct_val"])["sets"]["ct_train"]
    assert (train["images"], train["patients"], train["scans"]) == (4, 2, 2)
    assert train["slices_per_patient"] == {"min": 2, "median": 2.0, "max": 2}
    assert train["classes"] == {"normal": 1, "covid": 3}
    assert train["sizes"] == {"32x48": 2, "96x96": 2}
    grey = train["grey_levels"]
    pixels = np.concatenate(
        [
            np.asarray(Image.open(slices / f)).ravel()
            for f in ("a_1.png", "a_2.png", "b_1.png", "b_2.png")
        ]
    )
    assert grey["mean"] == pytest.approx(pixels.mean())
    assert grey["std"] == pytest.approx(pixels.std())
    assert grey["percentiles"]["50"] == np.percentile(pixels, 50, method="inverted_cdf")
    assert grey["histogram"] == np.bincount(pixels, minlength=256).tolist()


def test_faults_of_slice_sets(slices):
    card = data_card(["ct_train", "ct_val"])
    problems = card["problems"]
    (damaged,) = problems["damaged"]
    assert "c_3.png: unreadable" in damaged
    assert problems["mixed_labels"] == ["ct_train: scan 1 of patient a is normal and covid"]
    assert problems["same_pixels"] == [[str(slices / "b_1.png"), str(slices / "b_2.png")]]
    pairs = problems["near_duplicates"]["pairs"]
    assert {(p["first_file"][-7:], p["second_file"][-7:]) for p in pairs} == {
        ("b_1.png", "c_1.png"),
        ("b_2.png", "c_1.png"),
    }
    assert problems["shared_patients"] == problems["not_compared"] == []
    text = card_text(card)
    for line in (
        "| ct_val   | 3        | 1          | 1 ",
        "- damaged files: 1",
        "- scans of several classes: 1\n  - ct_train: scan 1 of patient a is normal and covid",
        "2 pair(s), of 1 pair(s) of patients",
    ):
        assert line in text


def test_command_on_lesion_sets(root, tmp_path, repository, capsys):
    write_phantom_lesions(tmp_path, seed=2, patients=4, slices=3, side_px=96, workers=1)
    source = ["--source", tmp_path / "cncb_lesions_raw", "--min-area-px", 6, "--workers", 1]
    assert run_tool(repository, "datasets/prepare_cncb_lesions.py", *source) == 0
    names = ["cncb_lesions_both_train", "cncb_lesions_both_val"]
    tool, output = "datasets/describe.py", tmp_path / "card"
    capsys.readouterr()
    assert run_tool(repository, tool, *names, "--output", output) == 0
    printed = capsys.readouterr().out
    assert (output / "card.md").read_text() in printed
    card = json.loads((output / "card.json").read_text())
    assert card == json.loads(json.dumps(data_card(names)))
    assert sum(one["images"] for one in card["sets"].values()) == 12
    for name in names:
        one = card["sets"][name]
        annotations = [a for d in datasets.dataset_dicts(name) for a in d["annotations"]]
        assert sum(one["classes"].values()) == len(annotations) > 0
        assert one["lesions"]["classes"]["ggo"]["instances"] == one["classes"]["ggo"]
        assert one["patient_ids"] == "phantom-v1-seed2"
    assert np.asarray(Image.open(output / "card.png").convert("L")).std() > 10
    first = datasets.dataset_dicts(names[0])[0]["file_name"]
    Image.new("L", (50, 40)).save(first)
    assert data_card(names)["problems"]["unlike_sizes"] == [
        f"{first}: 40x50 px, but {names[0]} says 96x96"
    ]
    assert run_tool(repository, tool, "nothing_train", "--output", tmp_path / "no") == 2
    assert not (tmp_path / "no").exists()
    with pytest.raises(CTMaskNetError, match="name at least one"):
        data_card([])


def test_a_set_whose_slices_name_no_patient(slices, tmp_path):
    files = sorted(slices.glob("a_*.png"))
    DatasetCatalog.register(
        "plain",
        lambda: [
            {"file_name": str(path), "image_id": path.name, "label": n}
            for n, path in enumerate(files)
        ],
    )
    MetadataCatalog.get("plain").set(image_classes=["normal", "covid"])
    card = data_card(["plain"])
    one = card["sets"]["plain"]
    assert one["patients"] is one["scans"] is one["slices_per_patient"] is None
    assert card["problems"]["mixed_labels"] == []
    assert "| plain | 2        | -          | -       | -  " in card_text(card)
    draw_card(card, tmp_path / "card.png")
    assert (tmp_path / "card.png").is_file()
