"""Entries beside the weights: what means the same is taken, the rest is one line."""

import pytest
import torch

from ctmasknet.errors import CTMaskNetError
from ctmasknet.weights.entries import checked_entries

GOOD = {
    "task": "classification",
    "mask_type": "both",
    "lesion_classes": ["ggo", "consolidation"],
    "anchors_rounded": True,
    "window_center_hu": -600.0,
    "window_width_hu": 1500.0,
    "num_boxes": 16,
    "row_features": ["score", "dx"],
    "image_classes": ["normal", "covid"],
    "configuration": {"MODEL.MASK_ON": True, "MODEL.PIXEL_STD": [1.0, 2.0, 3.0]},
    "calibration": {
        "class_names": ["normal", "covid"],
        "pooling": {"name": "mean", "top_k": 5, "normal_class": None, "learned": None},
        "temperatures": {"slices": {"value": 1.5}},
    },
}
RECORD = [
    {"dataset": "a", "task": "segmentation", "patient_ids": "cncb", "patients": ["0f"]},
    {"dataset": "b", "task": "segmentation", "patient_ids": None, "patients": []},
]
FILE = {"model": {}, "ctmasknet": GOOD, "trained_on": RECORD, "iteration": 3}


def test_what_a_training_writes_comes_back_and_so_does_a_file_without_entries():
    assert checked_entries("x.pth", FILE) == FILE
    assert checked_entries("x.pth", {"model": {}, "other": 5}) == {"model": {}, "other": 5}


def test_whole_numbers_are_taken_for_numbers():
    spec = GOOD | {"window_center_hu": -600, "window_width_hu": 1500}
    found = checked_entries("x.pth", FILE | {"ctmasknet": spec})["ctmasknet"]
    assert found == GOOD and type(found["window_center_hu"]) is float
    assert spec["window_center_hu"] == -600 and type(spec["window_center_hu"]) is int


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("task", [None, 5, ["classification"]]),
        ("config_file", [None, 5, ["configs/cls.yaml"]]),
        ("lesion_classes", [None, 5, "ggo", [], ["ggo", 1], ["ggo", "ggo"], {"ggo": 1}]),
        ("image_classes", [None, 3, ["normal", None], ["covid", "covid"]]),
        ("anchors_rounded", [None, 1, "True"]),
        ("window_center_hu", [None, "wide", True, float("nan"), [1.0], torch.tensor(1.0)]),
        ("window_width_hu", [0, -1500.0, float("inf"), "1500", 10**400]),
        ("num_boxes", [None, 0, -16, 16.0, True, "16", 10**9]),
        ("configuration", [None, [], {5: 5}, {"A": {}}, {"A": torch.ones(1)}, {"A": float("nan")}]),
        ("calibration", [None, 5, [], {"class_names": "normal"}, {"pooling": {"top_k": 0}}]),
        ("calibration", [{"pooling": {"name": 5}}, {"pooling": {"normal_class": 1}}]),
        ("calibration", [{"temperatures": [1.0]}, {"temperatures": {"slices": 1.5}}]),
        (
            "calibration",
            [
                {"temperatures": {"slices": {"value": value}}}
                for value in (0, 0.0, -1.5, float("nan"), float("inf"), None, "1", True)
            ],
        ),
    ],
)
def test_an_entry_of_the_specification_is_named(name, values):
    for value in values:
        with pytest.raises(CTMaskNetError) as caught:
            checked_entries("x.pth", FILE | {"ctmasknet": GOOD | {name: value}})
        message = str(caught.value)
        assert message.startswith(f"x.pth: its entry ctmasknet.{name} is "), value
        assert message.endswith("; get the file anew") and "\n" not in message


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ctmasknet", [None, 5, "classification", [GOOD], {5: 5}]),
        ("iteration", [None, -1, 1.0, True, "3", torch.tensor(3)]),
        ("trained_on", [None, 5, {}, [5], ["cncb"], [{}], [{"dataset": "a"}]]),
        ("trained_on", [[RECORD[0] | {"patient_ids": 5}], [RECORD[0] | {"patients": "0f"}]]),
        ("trained_on", [[RECORD[0] | {"patients": [5]}], [RECORD[0] | {"dataset": None}]]),
    ],
)
def test_an_entry_of_the_file_is_named(name, values):
    for value in values:
        with pytest.raises(CTMaskNetError, match=rf"^x\.pth: its entry {name} is .* is expected"):
            checked_entries("x.pth", FILE | {name: value})


def test_deep_lists_are_refused_and_not_followed():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    spec = GOOD | {"configuration": {"MODEL.PIXEL_STD": deep}}
    with pytest.raises(CTMaskNetError, match=r"its entry ctmasknet\.configuration is"):
        checked_entries("x.pth", {"ctmasknet": spec})
