import json

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from ctmasknet.engine import setup
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.engine.export import load_exported
from ctmasknet.engine.setup import built_model, inference_cfg, load_model, read_cfg, resolve_epochs
from ctmasknet.errors import CTMaskNetError
from tests.helpers.running import run_tool


@pytest.mark.parametrize(
    ("config", "slices", "iterations", "period"),
    [("seg", 650, 65_000, 6_500), ("cls", 3_000, 18_750, 1_875), ("cls", 3_001, 18_757, 1_876)],
)
def test_the_papers_epochs(repository, config, slices, iterations, period):
    cfg = read_cfg(str(repository / "configs" / f"{config}.yaml"))
    resolve_epochs(cfg, slices)
    assert iterations == cfg.SOLVER.MAX_ITER
    assert cfg.TEST.EVAL_PERIOD == cfg.SOLVER.CHECKPOINT_PERIOD == period


def test_iterations_of_the_command_line_decide(tiny_cfg):
    tiny_cfg.SOLVER.MAX_ITER = 3
    resolve_epochs(tiny_cfg, 100, ["SOLVER.MAX_ITER", "3"])
    assert (tiny_cfg.SOLVER.MAX_ITER, tiny_cfg.SOLVER.MAX_EPOCHS) == (3, 0)
    assert tiny_cfg.TEST.EVAL_PERIOD == 63


def test_both_units_on_the_command_line(tiny_cfg):
    given = ["SOLVER.MAX_ITER", 3, "SOLVER.MAX_EPOCHS", 5]
    tiny_cfg.merge_from_list(given)
    with pytest.raises(CTMaskNetError, match="are both given"):
        resolve_epochs(tiny_cfg, 100, given)


def test_negative(tiny_cfg):
    tiny_cfg.TEST.EVAL_EPOCHS = -1
    with pytest.raises(CTMaskNetError, match=r"TEST.EVAL_EPOCHS is -1"):
        resolve_epochs(tiny_cfg, 100)


def test_light_configurations_keep_iterations(repository):
    cfg = read_cfg(str(repository / "configs" / "cls_light.yaml"))
    resolve_epochs(cfg, 77)
    assert (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD) == (1000, 250)


TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.IMAGE_HEAD.FC_DIM", 8),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 8, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 16, "INPUT.MIN_SIZE_TEST", 64),
]
TWO = ["normal", "covid"]


@pytest.fixture
def config(repository):
    return repository / "configs" / "cls_light.yaml"


@pytest.fixture
def two(config, tmp_path):
    """A classifier of two classes on 8 rows: its checkpoint."""
    names = json.dumps(TWO)
    cfg = read_cfg(config, [*TINY, "MODEL.IMAGE_HEAD.CLASSES", names, "MODEL.RANKED_BOXES.NUM", 8])
    cfg.INPUT.WINDOW_WIDTH_HU = 400.0
    torch.manual_seed(0)
    CTMaskNetCheckpointer(build_model(cfg), str(tmp_path), spec=spec_of(cfg)).save("two")
    return tmp_path / "two.pth"


def test_what_the_checkpoint_states_comes_before_the_file(config, two):
    cfg, spec = inference_cfg(config, TINY, two)
    assert cfg.MODEL.IMAGE_HEAD.CLASSES == spec["image_classes"] == TWO
    assert (cfg.MODEL.RANKED_BOXES.NUM, cfg.INPUT.WINDOW_WIDTH_HU) == (8, 400.0)
    assert (cfg.MODEL.LESION_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (["lesion"], 1)
    assert cfg.is_frozen() and str(two) == cfg.MODEL.WEIGHTS
    assert load_model(cfg).image_head.logits.out_features == 2


def test_an_override_comes_before_the_checkpoint(config, two):
    words = [*TINY, "MODEL.WEIGHTS", str(two), "MODEL.RANKED_BOXES.NUM", 16]
    cfg, _ = inference_cfg(config, words)
    assert cfg.MODEL.RANKED_BOXES.NUM == 16
    with pytest.raises(CTMaskNetError, match="NUM is 8 in this checkpoint but 16"):
        load_model(cfg)


def test_a_data_set_has_to_agree_with_the_checkpoint(config, two, prepared, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    assert inference_cfg(config, TINY, two)[0].MODEL.IMAGE_HEAD.CLASSES == TWO
    with pytest.raises(CTMaskNetError, match=r"covidx_ct_test: its image_classes are .*pneumonia"):
        inference_cfg(config, TINY, two, test_sets=True)


def test_a_checkpoint_that_states_nothing_leaves_it_to_file_and_data_set(
    config, two, prepared, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    torch.save({"model": torch.load(two, weights_only=True)["model"]}, two)
    words = [*TINY, "MODEL.IMAGE_HEAD.CLASSES", json.dumps(TWO)]
    for config_words, sets, classes in (
        (TINY, False, ["normal", "pneumonia", "covid"]),
        (words, False, TWO),
        (words, True, ["normal", "pneumonia", "covid"]),
    ):
        cfg, spec = inference_cfg(config, config_words, two, test_sets=sets)
        assert (cfg.MODEL.IMAGE_HEAD.CLASSES, spec) == (classes, {})


def test_the_other_tasks_checkpoint_and_missing_weights_are_refused(repository, config, two):
    with pytest.raises(CTMaskNetError, match=r"two\.pth: a checkpoint for classification, but"):
        inference_cfg(repository / "configs" / "seg_light.yaml", TINY, two)
    with pytest.raises(CTMaskNetError, match=r"none/model_best\.pth: no such weights file; train"):
        inference_cfg(config, [*TINY, "OUTPUT_DIR", "none"])
    with pytest.raises(CTMaskNetError, match=r"MODEL\.WEIGHTS is empty, and random weights"):
        inference_cfg(config, [*TINY, "MODEL.WEIGHTS", ""])


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "set it to cpu or cuda"), ("mps", "cpu or cuda"), ("cuda:99", "torch finds")],
)
def test_a_device_that_is_not_there_is_refused_at_the_start(config, two, device, message):
    with pytest.raises(CTMaskNetError, match=f"MODEL.DEVICE is '{device}'.*{message}"):
        inference_cfg(config, [*TINY, "MODEL.DEVICE", device], two)


def test_a_type_that_the_device_does_not_compute_in_is_refused_at_the_start(
    config, two, monkeypatch
):
    words = [*TINY, "MODEL.INFERENCE.DTYPE", "bfloat16"]
    for has in (False, True):
        monkeypatch.setattr(setup, "has_bfloat16", lambda device, has=has: has)
        if has:
            assert inference_cfg(config, words, two)[0].MODEL.INFERENCE.DTYPE == "bfloat16"
        else:
            with pytest.raises(CTMaskNetError, match="DTYPE is bfloat16, which device cpu does"):
                inference_cfg(config, words, two)


def test_two_classes_are_exported_and_drawn_without_their_data_set(
    repository, config, two, tmp_path, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))
    picture, program = tmp_path / "slice.png", tmp_path / "two.pt2"
    Image.new("L", (64, 64), 90).save(picture)
    words = ["--config-file", config, "--output"]
    sides = ["--height", 64, "--width", 64]
    weights = [*TINY, "MODEL.WEIGHTS", two]
    assert run_tool(repository, "tools/export.py", *words, program, *sides, *weights) == 0
    logits, _ = load_exported(program)(torch.zeros(1, 3, 64, 64))
    assert logits.shape == (1, 2)
    drawn = ["--input", picture, "--limit", 1, *weights]
    assert run_tool(repository, "tools/visualize.py", *words, tmp_path / "drawn", *drawn) == 0
    assert len(list((tmp_path / "drawn").glob("*_slice.png"))) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.FPN.NORM", "GN"),  # 32 groups of 16 channels
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", 2**62),
        ("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
    ],
)
def test_parts_that_do_not_fit_are_one_line(tiny_cfg, key, value):
    tiny_cfg.MODEL.FPN.OUT_CHANNELS = 16
    tiny_cfg.merge_from_list([key, value])
    with pytest.raises(CTMaskNetError, match=r"^MODEL: no model can be built as .*; correct the"):
        built_model(tiny_cfg)
