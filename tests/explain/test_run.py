"""Attributions of files: what is written, where boxes lie, what is refused."""

import argparse
import json
import os

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from ctmasknet.ct.scan import Window
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.errors import CTMaskNetError
from ctmasknet.explain import run
from ctmasknet.explain.attribution import occlude
from ctmasknet.explain.run import explain_from_command_line, explain_slices
from ctmasknet.predict import CTPredictor
from tests.helpers import ct_samples

CLASSES = ["normal", "pneumonia", "covid"]


@pytest.fixture
def entries(tmp_path):
    """Three noise slices in files; the last is cropped when its box is asked for."""
    rng = np.random.default_rng(0)
    found = []
    for number, size in enumerate([(64, 64), (64, 64), (100, 90)]):
        path = tmp_path / "slices" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
        entry = {"file_name": str(path), "image_id": f"set/{number}.png", "label": number}
        found.append(entry | {"patient": "7", "scan": "1", "body_box": [0, 0, 64, 64]})
    found[2]["body_box"] = [20, 30, 84, 94]
    return found


@pytest.fixture
def small_cfg(tiny_cfg):
    tiny_cfg.INPUT.MIN_SIZE_TEST = tiny_cfg.INPUT.MAX_SIZE_TEST = 128
    tiny_cfg.INPUT.CROP_TO_BODY = True
    tiny_cfg.TEST.IMS_PER_BATCH = 2
    tiny_cfg.MODEL.RANKED_BOXES.NUM = 16
    return tiny_cfg


def lines(folder):
    return [json.loads(line) for line in (folder / "attributions.jsonl").open()]


def test_a_line_and_a_picture_a_slice(tiny_model, small_cfg, entries, tmp_path):
    tiny_model.eval()
    out = tmp_path / "out"
    left = out / "pictures" / ".000_0.png.ab12.tmp"  # of a run that was killed
    left.parent.mkdir(parents=True)
    left.touch()
    assert explain_slices(CTPredictor(small_cfg, model=tiny_model), entries, out, most=3) == 3
    assert not left.exists()
    assert tiny_model.return_ranked_instances is False
    records = lines(out)
    assert [record["file"] for record in records] == [f"set/{n}.png" for n in range(3)]
    assert sorted(os.listdir(out)) == ["attributions.jsonl", "pictures"]
    for number, record in enumerate(records):
        assert record["label"] == CLASSES[number] and record["classes"] == CLASSES
        assert record["note"] == "input to the decision, not cause"
        assert record["picture"] == f"pictures/{number + 1:03d}_{number}.png"
        # All three were seen as 64 x 64 px, two slices side by side
        assert Image.open(out / record["picture"]).size == (2 * 576 + 30, 750)
        assert record["target"] == record["pred"] == CLASSES[int(np.argmax(record["logits"]))]
        assert sum(box["rows"] for box in record["boxes"]) == 16
        scores = [box["score"] for box in record["boxes"]]
        assert scores == sorted(scores, reverse=True)
        total = np.sum([box["weights"] for box in record["boxes"]], axis=0)
        expected = np.subtract(record["logits"], record["without_boxes"]) - record["rest"]
        assert total == pytest.approx(expected, abs=1e-5)


def test_numbers_and_places_are_those_of_the_model(tiny_model, small_cfg, entries, tmp_path):
    tiny_model.eval()
    explain_slices(CTPredictor(small_cfg, model=tiny_model), entries[2:], tmp_path, pictures=False)
    (record,) = lines(tmp_path)
    assert "picture" not in record
    pixels = np.asarray(Image.open(entries[2]["file_name"]))[30:94, 20:84]
    doubled = np.asarray(Image.fromarray(pixels).resize((128, 128), Image.BILINEAR))
    image = torch.as_tensor(doubled.copy()).float().expand(3, -1, -1)
    tiny_model.return_ranked_instances = True
    result = tiny_model([{"image": image, "height": 64, "width": 64}])[0]
    boxes = result["ranked_instances"].pred_boxes.tensor + torch.tensor([20, 30, 20, 30])
    assert [box["box_px"] for box in record["boxes"]] == pytest.approx(
        np.array(boxes.tolist()), abs=0.01
    )
    assert np.array([box["box_px"] for box in record["boxes"]]).min() >= 20
    found = occlude(tiny_model.image_head, result["ranked_boxes"], len(boxes))
    assert np.array([box["weights"] for box in record["boxes"]]) == pytest.approx(
        found.weights.numpy(), abs=1e-5
    )


def test_other_ways_and_another_class(tiny_model, small_cfg, entries, tmp_path):
    tiny_model.eval()
    options = {"target": "covid", "pictures": False}
    for name, given in (
        ("zero", {}),
        ("removed", {"hidden": "removed"}),
        ("gradients", {"method": "integrated_gradients"}),
    ):
        explain_slices(
            CTPredictor(small_cfg, model=tiny_model),
            entries[:1],
            tmp_path / name,
            **options,
            **given,
        )
    zero, removed, gradients = (
        lines(tmp_path / name)[0] for name in ("zero", "removed", "gradients")
    )
    assert zero["target"] == "covid" and zero["method"] == removed["method"] == "occlusion"
    assert removed["hidden"] == "removed" and gradients["method"] == "integrated_gradients"
    assert zero["complete"] is None and gradients["complete"] is True
    for key in ("file", "logits", "without_boxes", "pred"):
        assert zero[key] == removed[key] == gradients[key]
    weights = [
        np.array([box["weights"] for box in record["boxes"]])
        for record in (zero, removed, gradients)
    ]
    assert np.abs(weights[0] - weights[1]).max() > 1e-3 < np.abs(weights[0] - weights[2]).max()


def test_a_model_that_finds_nothing(tiny_model, small_cfg, entries, tmp_path):
    tiny_model.roi_heads.ranked_score_thresh = 1.0
    explain_slices(CTPredictor(small_cfg, model=tiny_model), entries[:1], tmp_path)
    (record,) = lines(tmp_path)
    assert record["boxes"] == [] and record["logits"] == record["without_boxes"]
    assert (tmp_path / record["picture"]).is_file()


def test_a_bad_slice_leaves_no_half_file(tiny_model, small_cfg, entries, tmp_path):
    with open(entries[2]["file_name"], "r+b") as stream:
        stream.truncate(60)
    with pytest.raises(CTMaskNetError, match=r"2\.png: unreadable or truncated"):
        explain_slices(
            CTPredictor(small_cfg, model=tiny_model), entries, tmp_path / "out", pictures=False
        )
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["attribute", "read_entry"])
def test_an_error_while_computing_is_not_told_as_one_of_writing(
    name, tiny_model, small_cfg, entries, tmp_path, monkeypatch
):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "attribute", fails)
    read = fails if name == "read_entry" else run.read_entry
    with pytest.raises(OSError, match="No space left"):
        explain_slices(CTPredictor(small_cfg, model=tiny_model), entries, tmp_path, read=read)
    assert os.listdir(tmp_path) == ["slices"]


def test_a_dicom_series_and_a_volume_give_the_same(
    tiny_model, small_cfg, tmp_path, repository, monkeypatch
):
    """Read through the window, named as read_scans names them, and drawn."""
    small_cfg.INPUT.CROP_TO_BODY = False
    hu = ct_samples.volume(slices=2)
    ct_samples.dicom_series(tmp_path / "series", hu)
    nib.save(ct_samples.nifti(hu), tmp_path / "volume.nii.gz")
    monkeypatch.setattr(run, "model_cfg", lambda _: small_cfg)
    monkeypatch.setattr(run, "CTPredictor", lambda cfg: CTPredictor(cfg, model=tiny_model))
    found = []
    for name in ("series", "volume.nii.gz"):
        out = tmp_path / f"out_{name}"
        given = {"input": [str(tmp_path / name)], "pictures": name != "series"}
        assert explain_from_command_line(arguments(out, **given)) == 2
        found.append(lines(out))
    dicom, nifti = found
    assert nifti[1]["file"].endswith("volume.nii.gz#0001") and dicom[0]["scan"]
    assert nifti[1]["picture"] == "pictures/002_volume.nii.gz_0001.png"
    assert (tmp_path / "out_volume.nii.gz" / nifti[1]["picture"]).is_file()
    for one, other in zip(dicom, nifti, strict=True):
        assert one["boxes"] == other["boxes"] and one["logits"] == other["logits"]
    expected = Window().to_uint8(hu[1])
    item = SliceMapper(small_cfg, is_train=False).map_pixels({"file_name": ""}, expected)
    assert tiny_model([item])[0]["logits"].tolist() == pytest.approx(dicom[1]["logits"], abs=1e-5)


def arguments(output, **given):
    values = {"config_file": "", "opts": [], "weights": None, "dataset": None, "input": None}
    values |= {"rescale": None, "axes": None}
    values |= {"output": str(output)}
    values |= {"limit": None, "seed": None, "method": "occlusion", "hidden": "zero"}
    values |= {"target": None, "boxes": 10, "pictures": True}
    return argparse.Namespace(**(values | given))


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        ("cls", {"input": None}, "either `dataset` NAME or `input`"),
        ("cls", {"boxes": 0}, "`boxes`: 0"),
        ("cls", {"method": "guess"}, "'guess' is unknown"),
        ("seg", {}, "a lesion detector has no decision"),
        ("cls", {"target": "flu"}, "'flu' is no class; choose one of normal, pneumonia, covid"),
        ("cls", {"input": ["absent"]}, "absent: no such file"),
    ],
)
def test_bad_arguments_are_one_clear_error(entries, tmp_path, repository, config, given, message):
    weights = tmp_path / "weights.pth"
    torch.save({"model": {}}, weights)
    values = {
        "config_file": str(repository / "configs" / f"{config}.yaml"),
        "input": [entries[0]["file_name"]],
        "opts": ["MODEL.WEIGHTS", str(weights)],
    }
    with pytest.raises(CTMaskNetError, match=message):
        explain_from_command_line(arguments(tmp_path / "out", **(values | given)))
    assert not (tmp_path / "out").exists()
