"""Figures 1 and 2 on three slices whose lesions are known, and a detector with random weights."""

import argparse
import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from PIL import Image

from ctmasknet.config_file import read_cfg
from ctmasknet.data.statistics import lesion_statistics
from ctmasknet.draw.lesion_statistics import _rounded_up, figure_1
from ctmasknet.errors import CTMaskNetError
from ctmasknet.paper.suppression import choose, detect, figure_2

OVERRIDES = [
    *("MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.LESION_CLASSES", "['ggo', 'consolidation']", "MODEL.ROI_HEADS.NUM_CLASSES", "2"),
]


def test_counts_and_areas_are_those_of_the_set(lesion_set):
    numbers = lesion_statistics(lesion_set)
    ggo, consolidation = numbers["classes"]["ggo"], numbers["classes"]["consolidation"]
    assert numbers["images"] == 3
    assert ggo["per_image"] == [2, 1, 0] and consolidation["per_image"] == [1, 0, 0]
    # 80, 16, 400 and 80 of 1600 px
    assert ggo["area_percent"] == pytest.approx([5.0, 1.0, 25.0])
    assert consolidation["area_percent"] == pytest.approx([5.0])
    assert ggo["images_without"] == 1 and consolidation["images_without"] == 2
    assert ggo["median_area_percent"] == pytest.approx(5.0)
    assert ggo["below_percent"] == pytest.approx({"1": 0.0, "2": 1 / 3, "5": 1 / 3})


def test_figure_1_draws_every_instance_and_tells_its_numbers(lesion_set, tmp_path):
    numbers = figure_1(lesion_set, tmp_path / "fig1.png")
    ggo = numbers["classes"]["ggo"]
    assert ggo["count_bars"] == [1, 1, 1]
    assert numbers["classes"]["consolidation"]["count_bars"] == [2, 1, 0]
    assert sum(ggo["area_bars"]["counts"]) == ggo["instances"] == 3
    assert ggo["area_bars"]["edges"][-1] == 30
    assert json.loads((tmp_path / "fig1.json").read_text()) == numbers
    pixels = np.asarray(Image.open(tmp_path / "fig1.png").convert("RGB")).reshape(-1, 3)
    for color in ((64, 176, 255), (255, 128, 32)):
        assert (pixels == color).all(1).sum() > 1000, "bars in the class's colour"


@pytest.mark.parametrize(
    ("largest", "end"), [(0, 1), (0.7, 0.8), (1, 1), (1.2, 1.5), (25, 30), (99, 100)]
)
def test_axes_end_at_a_round_number(largest, end):
    assert _rounded_up(largest) == pytest.approx(end)


@pytest.fixture
def arguments(lesion_set, tmp_path, repository):
    """The command line of Figure 2 with the weights of a tiny random detector."""
    config = str(repository / "configs" / "seg_light.yaml")
    torch.manual_seed(0)
    model = build_model(read_cfg(config, OVERRIDES))
    # Random weights give every box the same score; this makes GGO sure enough to be drawn
    model.roi_heads.box_predictor.cls_score.bias.data[0] += 4
    DetectionCheckpointer(model, str(tmp_path)).save("tiny")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "tiny.pth")]

    def make(**given):
        values = {"config_file": config, "dataset": lesion_set, "opts": [*OVERRIDES, *weights]}
        values |= {"output": str(tmp_path / "fig2.png"), "image_id": None, "index": None}
        values |= {"seed": None, "weights": None, "nms": [0.25, 0.75]}
        values |= {"score_threshold": 0.75, "mask_threshold": 0.5}
        return argparse.Namespace(**(values | given))

    return make


def test_figure_2_shows_two_thresholds_beside_ground_truth(arguments, tmp_path):
    numbers = figure_2(arguments())
    assert numbers["thresholds"] == {"nms": [0.25, 0.75], "score": 0.75, "mask_probability": 0.5}
    both, alone = numbers["slices"]
    assert (both["image_id"], alone["image_id"]) == (1, 2)
    assert (both["ground_truth"], alone["ground_truth"]) == (3, 1)
    low, high = both["predictions"]
    assert 0 < low < high, "a higher threshold lets more overlapping boxes through"
    assert json.loads((tmp_path / "fig2.json").read_text()) == numbers
    with Image.open(tmp_path / "fig2.png") as picture:
        # Slices of 40 px are enlarged 15 times
        assert picture.width > 3 * 600 and picture.height > 2 * 600
    none = figure_2(arguments(score_threshold=1.0, index=[2]))
    assert none["slices"][0]["predictions"] == [0, 0] and none["slices"][0]["ground_truth"] == 0


def test_a_threshold_is_set_for_one_detection_only():
    class Roi:
        class box_predictor:
            test_nms_thresh = 0.5

    class Predictor:
        class model:
            roi_heads = Roi

        def predict(self, items):
            return [{"instances": self.model.roi_heads.box_predictor.test_nms_thresh}]

    predictor = Predictor()
    assert [detect(predictor, {}, iou) for iou in (0.25, 0.75)] == [0.25, 0.75]
    assert Roi.box_predictor.test_nms_thresh == 0.5


def test_slices_are_chosen_by_id_place_or_seed(lesion_set):
    def ids(*given):
        return [entry["image_id"] for entry in choose(lesion_set, *given)]

    assert ids() == [1, 2], "every class, then the first alone"
    assert ids(["3", "1"]) == [3, 1] and ids(None, [2]) == [3]
    assert ids(None, None, 4) == ids(None, None, 4)
    assert {ids(None, None, seed)[0] for seed in range(8)} == {1, 2}, "never one without lesions"
    for given, words in (
        ((["9"],), "`image_id`: .* has no image 9"),
        ((None, [3]), "`index`: 3 is not within 0..2"),
        ((["1"], [0]), "give only one of"),
        ((None, None, -1), "seed is -1"),
    ):
        with pytest.raises(CTMaskNetError, match=words):
            choose(lesion_set, *given)


def test_bad_input_is_one_clear_error_and_leaves_no_file(arguments, tmp_path, repository):
    classifier = str(repository / "configs" / "cls_light.yaml")
    for given, words in (
        ({"nms": [0.25, 7.0]}, "`nms`"),
        ({"output": str(tmp_path / "fig2.jpg")}, "PNG"),
        ({"dataset": "no_such_set"}, "not registered"),
        ({"config_file": classifier}, "is a classifier; Figure 2 shows a detector"),
    ):
        with pytest.raises(CTMaskNetError, match=words):
            figure_2(arguments(**given))
    assert not list(tmp_path.glob("fig2*"))
