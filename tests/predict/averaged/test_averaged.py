"""What is averaged is the mean, of models as their files state them, and left stays left."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn

from ctmasknet.config_file import read_cfg
from ctmasknet.ct.pictures import read_rgb
from ctmasknet.data.registry import dataset_dicts
from ctmasknet.engine.checkpoint import store_calibration
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.averaged import MEMBER_INPUTS, AveragedClassifier, mean_score_logits
from ctmasknet.predict import CTPredictor
from tests.helpers.running import run_tool
from tests.helpers.small_world import SMALL, save_model, words

FLIPS = ("TEST.AUG.ENABLED", "True")


@pytest.fixture(scope="module")
def second(repository, detector, tmp_path_factory):
    """A classifier with another window, side and number of rows than the first."""
    cfg = read_cfg(
        str(repository / "configs" / "cls_light.yaml"),
        [*SMALL, "MODEL.RANKED_BOXES.NUM", 8, "INPUT.WINDOW_CENTER_HU", -400.0]
        + ["INPUT.MIN_SIZE_TEST", 80],
    )
    return save_model(cfg, tmp_path_factory.mktemp("second"), "cls", detector)


def predictor(*models, overrides=(), **options):
    paths = [str(model.weights) for model in models]
    return CTPredictor.from_config_file(
        "", paths, ["MODEL.DEVICE", "cpu", *overrides], num_workers=0, **options
    )


def slices_of(found, scans):
    return [one for scan in found(scans) for one in scan.slices]


def test_logits_of_a_mean_of_scores():
    # The sigmoids of 0 and log 3 are 1/2 and 3/4, whose mean is 5/8
    logits = torch.tensor([[0.0, 200.0, 80.0], [np.log(3), -200.0, 90.0]])
    found = mean_score_logits(logits)
    torch.testing.assert_close(found[:2], torch.tensor([np.log(5 / 3), 0.0]))
    assert 80 < found[2] < 81, "finite where the sigmoids are 1"


class Left(nn.Module):
    """Logits: the mean of the left half times ``weight``, and the whole one's."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, batch):
        halves = [
            (one["image"][..., :2].mean() * self.weight, one["image"].mean()) for one in batch
        ]
        return [
            {"logits": torch.stack(pair), "boxes": item}
            for pair, item in zip(halves, batch, strict=True)
        ]


def test_flips_are_averaged_as_logits_and_models_as_scores():
    image = torch.tensor([4.0, 2.0, 1.0, 1.0]).expand(3, 1, 4)
    item = {"image": image, MEMBER_INPUTS: [{"image": image - 1}]}
    (found,) = AveragedClassifier([Left(1.0)], flip=True)([item])
    # Left half 3, mirrored 1; the whole is 2 either way
    assert found["logits"].tolist() == [2.0, 2.0] and found["boxes"] is item
    (found,) = AveragedClassifier([Left(1.0), Left(-1.0)], flip=True)([item])
    expected = expit([[2.0, 2.0], [-1.0, 1.0]]).mean(0)
    np.testing.assert_allclose(found["scores"], expected, rtol=1e-6)
    assert found["pred_class"] == 1
    with pytest.raises(CTMaskNetError, match="ENABLED: cached rows hold no slice"):
        AveragedClassifier([Left(1.0)], flip=True)([{"ranked_rows": image}])


def test_the_box_around_the_lungs_is_mirrored_with_the_slice():
    model = Left(1.0)
    item = {"image": torch.zeros(3, 4, 10), "lung_box": (1.0, 0.0, 4.0, 3.0)}
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    AveragedClassifier([model], flip=True)([item, item | {"lung_box": None}])
    boxes = [one["lung_box"] for one in seen]
    assert boxes == [(1.0, 0.0, 4.0, 3.0), None, (6.0, 0.0, 9.0, 3.0), None]


def test_an_ensemble_is_the_mean_of_models_as_they_are_alone(classifier, second, scans, caplog):
    found = slices_of(predictor(classifier, second), scans)
    alone = [slices_of(predictor(one), scans) for one in (classifier, second)]
    assert len(found) == 15
    for one, a, b in zip(found, *alone, strict=True):
        expected = (expit(a.logits) + expit(b.logits)) / 2
        np.testing.assert_allclose(one.scores, expected, rtol=1e-5)
        np.testing.assert_allclose(expit(one.logits), expected, rtol=1e-5)
        assert one.pred_class == int(expected.argmax())
        np.testing.assert_array_equal(one.ranked_boxes, a.ranked_boxes)
        assert one.top_boxes == a.top_boxes
        assert np.abs(a.logits - b.logits).max() > 1e-3, "the test needs unlike models"


def test_flips_of_a_classifier(classifier, scans):
    plain, flips = predictor(classifier), predictor(classifier, overrides=FLIPS)
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(5))
    item = {"image": image, "height": 64, "width": 64, "file_name": "a.png"}
    two = plain.predict([item, {**item, "image": image.flip(-1)}])
    (found,) = flips.predict([item])
    mean = (two[0]["logits"] + two[1]["logits"]) / 2
    torch.testing.assert_close(found["logits"], mean, rtol=1e-4, atol=1e-4)
    assert not torch.equal(two[0]["logits"], two[1]["logits"])
    boxes = two[0]["ranked_boxes"]
    torch.testing.assert_close(found["ranked_boxes"], boxes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("paste", ["detectron2", "published"])
def test_a_detector_finds_the_mirror_image_mirrored(detector, paste):
    """Lesions of a slice and of its mirror image are mirror images, as one look's are not."""
    overrides = ["MODEL.ROI_MASK_HEAD.PASTE", paste, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05]
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(6))
    items = [
        {"image": picture.to(torch.uint8), "height": 128, "width": 128, "file_name": "a.png"}
        for picture in (image, image.flip(-1))
    ]

    def mirrored(found):
        own, other = (one["instances"] for one in found.predict(items))
        boxes = other.pred_boxes.tensor[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
        boxes = boxes + torch.tensor([128.0, 0, 128, 0])
        alike = len(own) == len(other) and torch.allclose(own.pred_boxes.tensor, boxes, atol=1e-2)
        return alike, own, other

    alike, own, other = mirrored(predictor(detector, overrides=[*overrides, *FLIPS]))
    assert alike and len(own) == 6
    torch.testing.assert_close(own.scores, other.scores, rtol=1e-4, atol=1e-5)
    same = (own.pred_masks == other.pred_masks.flip(-1)).float().mean()
    assert own.pred_masks.any() and same > 0.999
    alike, _, _ = mirrored(predictor(detector, overrides=overrides))
    assert not alike, "the test needs a detector that tells left from right"
    sizes = ["TEST.AUG.MIN_SIZES", "(48, 64)", *FLIPS]
    assert len(predictor(detector, overrides=sizes).predict(items[:1])[0]["instances"])


def test_what_cannot_be_averaged_is_one_line(
    repository, classifier, detector, second, tmp_path, capsys
):
    cfg = read_cfg(str(classifier.config), ["MODEL.IMAGE_HEAD.CLASSES", ["normal", "ill", "covid"]])
    (tmp_path / "other").mkdir()
    other = save_model(cfg, tmp_path / "other", "cls", detector)
    window = ["INPUT.WINDOW_CENTER_HU", -500.0]
    for models, overrides, message in (
        ([classifier, classifier], (), "cls.pth: is in the ensemble twice"),
        ([classifier, detector], (), "seg.pth: is a lesion detector, whose lesions are not"),
        ([detector, classifier], (), "TEST.ENSEMBLE is .*no effect.*detectors' lesions are not"),
        ([classifier, other], (), r"its classes are \['normal', 'ill', 'covid'\], but those of"),
        ([classifier, second], window, "INPUT.WINDOW_CENTER_HU: an ensemble's models are used as"),
        ([classifier, tmp_path], (), "no weights file"),
        ([classifier], ["TEST.AUG.FLIP", "False"], "TEST.AUG.FLIP is False, which has no effect"),
        ([classifier], ["TEST.AUG.MIN_SIZES", "(48,)", *FLIPS], "a detector alone looks at other"),
        ([classifier], ["TEST.AUG.FLIP", "False", *FLIPS], "TEST.AUG.ENABLED is True.*as it is"),
    ):
        models = [SimpleNamespace(weights=one) if one is tmp_path else one for one in models]
        with pytest.raises(CTMaskNetError, match=message):
            predictor(*models, overrides=overrides)
    export = ["--weights", classifier.weights, "--output", tmp_path / "a.pt2", *FLIPS]
    assert run_tool(repository, "tools/export.py", *export) == 2
    assert "TEST.AUG.ENABLED is True, but only evaluation" in capsys.readouterr().err


def test_a_prediction_says_what_was_averaged_and_is_resumed_as_such(
    tool, own_classifier, second, scans, tmp_path, caplog
):
    calibration = {"format": "ctmasknet calibration 1", "class_names": ["normal", "pneumonia"]}
    calibration["class_names"].append("covid")
    calibration["pooling"] = {"name": "max", "top_k": 5, "normal_class": "normal", "learned": None}
    calibration["temperatures"] = {}
    store_calibration(own_classifier.weights, calibration)
    output, pictures = tmp_path / "answer", scans / "c_pictures"
    given = ["--weights", own_classifier.weights, second.weights, "--input", pictures, "--lesions"]
    given += ["--output", output]
    assert predictor(own_classifier, second).pooler.name == "mean"
    assert "calibration is of this model alone and not used" in caplog.text
    assert predictor(own_classifier).pooler.name == "max"
    assert tool(*given, *FLIPS)[0] == 0
    text = "ensemble of 2 models (mean of their scores), flips (mean of logits)"
    state = json.loads((output / "prediction.json").read_text())
    assert state["settings"]["options"]["averaged"] == state["summary"]["averaged"] == text
    assert len(state["settings"]["options"]["ensemble"]) == 1
    (entry,) = json.loads((output / "run.json").read_text())["entries"]
    assert entry["averaged"] == text and entry["pooling"] == "mean"
    assert entry["weights"] == [str(own_classifier.weights), str(second.weights)]
    code, line = tool(*given, "--resume")
    assert code == 2 and "holds another run's prediction, of another configuration" in line
    alone = ["--weights", own_classifier.weights, *given[3:], "--resume", *FLIPS]
    assert "of other options" in tool(*alone)[1]
    assert tool(*given, "--resume", *FLIPS) == (0, "")


def test_an_evaluation_averages_as_a_prediction_does(
    repository, clean_catalogs, prepared, classifier, second, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    given = words(classifier, [], "")[:2] + ["--eval-only", "MODEL.WEIGHTS", classifier.weights]
    given += ["TEST.ENSEMBLE", str((str(second.weights),)), *FLIPS, "MODEL.DEVICE", "cpu"]
    given += ["DATASETS.TEST", "('covidx_ct_test',)", "OUTPUT_DIR", tmp_path]
    cached = ["MODEL.RANKED_BOXES.CACHE_DIR", tmp_path / "rows"]
    assert run_tool(repository, "tools/train_net.py", *given, *cached) == 2
    assert "cached rows are one model's of slices as they are" in capsys.readouterr().err
    assert run_tool(repository, "tools/train_net.py", *given) == 0
    with (tmp_path / "inference" / "covidx_ct_test" / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    found = predictor(classifier, second, overrides=FLIPS)
    entries = dataset_dicts("covidx_ct_test")
    assert len(rows) == len(entries) > 5
    for row, entry in zip(rows, entries, strict=True):
        pixels = read_rgb(entry["file_name"])
        (output,) = found.predict([found.mapped(entry, pixels, lambda window, own=pixels: own)])
        assert float(row["logit_covid"]) == pytest.approx(float(output["logits"][2]), abs=1e-4)
    with pytest.raises(CTMaskNetError, match="sees HU through the window -400,1000, the first"):
        found.mapped(entries[0], pixels)
    entry = json.loads((tmp_path / "run.json").read_text())["entries"][-1]
    assert entry["averaged"].startswith("ensemble of 2 models")
