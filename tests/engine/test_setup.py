import json

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from ctmasknet.config_file import read_cfg
from ctmasknet.engine import setup
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.engine.export import load_exported
from ctmasknet.engine.runs.epochs import resolve_epochs
from ctmasknet.engine.setup import built_model, inference_cfg, load_model, training_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast import inference
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


def test_int8_is_looked_for_at_the_start_and_never_trained(config, two, monkeypatch):
    monkeypatch.setattr(inference, "installed", lambda: True)
    words = [*TINY, "MODEL.INFERENCE.DTYPE", "int8"]
    with pytest.raises(CTMaskNetError, match=r"two\.int8: no such file, which MODEL\.INFERENCE"):
        inference_cfg(config, words, two)
    with pytest.raises(CTMaskNetError, match=r"DTYPE is int8.* leave it out of a training"):
        training_cfg(config, words)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("m.int8", [], "name what the model was trained on as --dataset"),
        ("m.int8", ["--dataset", "x", "--width", 0], "--height, --width: int8 takes slices of any"),
        ("m.int8", ["--dataset", "x", "--slices", 3], "--slices: 3 are too few to calibrate on"),
        ("m.pt2", ["--slices", 4], "--dataset, --slices: are of .int8 files alone"),
    ],
)
def test_options_of_another_format_are_refused(
    repository, config, two, tmp_path, capsys, name, more, message
):
    words = ["--config-file", config, "--output", tmp_path / name, *more, "MODEL.WEIGHTS", two]
    assert run_tool(repository, "tools/export.py", *words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / name).exists()


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
    ("text", "words"),
    [
        ("- 1\n- 2\n", "not a mapping"),
        ("hello\n", "not a mapping"),
        ("", "not a mapping"),
        ("_BASE_: 5\n", "not a mapping of keys with a file's name as its _BASE_"),
        ("_BASE_: [a.yaml]\n", "a.yaml"),
        ("MODEL: seg\n", "not a mapping|MODEL"),
        ("MODEL:\n", "not a mapping|MODEL"),
        ("1: 2\n", "1 is no key"),
        ("A: " + "[" * 3000 + "]" * 3000 + "\n", "nested too deep"),
        ("MODEL: &a {A: *a}\n", "repeated values"),
        (
            "A0: &A0 {B: 1}\n"
            + "".join(f"A{n}: &A{n} [*A{n - 1}, *A{n - 1}]\n" for n in range(1, 40)),
            "repeated values",
        ),
        ("A: [" + "a, " * 30_000 + "]\n", "larger than any configuration"),
        ("_BASE_: x.yaml\n", "leads back to itself"),
        ("_BASE_: [x.yaml, x.yaml]\n", "leads back to itself"),
        ("_BASE_: missing.yaml\n", "missing.yaml"),
        ("_BASE_: .\n", "x.yaml"),
    ],
)
def test_configuration_files_of_odd_form_are_one_line(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(CTMaskNetError, match=words) as told:
        read_cfg(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_what_is_no_file_is_not_said_to_be_missing(repository, tmp_path):
    with pytest.raises(CTMaskNetError, match="a folder, device or pipe; give a YAML file"):
        read_cfg(tmp_path)
    with pytest.raises(CTMaskNetError, match="a folder, device or pipe, no weights file; train it"):
        inference_cfg(repository / "configs/cls.yaml", [], str(tmp_path))


def test_bases_that_fan_out_are_one_line(tmp_path):
    """11 files of 130 bytes that name 10**10 bases; and 20 bases that are large together."""
    for level in range(10):
        bases = ", ".join([f"{level + 1}.yaml"] * 10)
        (tmp_path / f"{level}.yaml").write_text(f"_BASE_: [{bases}]\n")
    (tmp_path / "10.yaml").write_text("{}\n")
    with pytest.raises(CTMaskNetError, match="or to more than 32 files"):
        read_cfg(tmp_path / "0.yaml")
    (tmp_path / "large.yaml").write_text("MODEL: {}\n" + "# a long remark\n" * 300)
    (tmp_path / "all.yaml").write_text(f"_BASE_: [{', '.join(['large.yaml'] * 20)}]\n")
    with pytest.raises(CTMaskNetError, match="with its _BASE_ larger than 64 KiB"):
        read_cfg(tmp_path / "all.yaml")


def test_a_python_configuration_is_named(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("model = 1\n")
    with pytest.raises(CTMaskNetError, match=r"Python \(LazyConfig\)"):
        read_cfg(path)


def test_a_file_that_says_otherwise_is_told_and_not_used(config, two, caplog):
    inference_cfg(config, TINY, two)
    assert "MODEL.RANKED_BOXES.NUM 8 (file: 32)" in caplog.text
    # What an override says anew is no matter of the file
    assert "MODEL.FPN.OUT_CHANNELS" not in caplog.text
    caplog.clear()
    inference_cfg("", ["MODEL.DEVICE", "cpu"], two)
    assert not caplog.text


#: Keys that rows, input or scores depend on, each with another value.
OTHER = {
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 80,
    "INPUT.CROP_TO_BODY": True,
    "MODEL.PIXEL_MEAN": [100.0, 100.0, 100.0],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[4, 8, 16, 32]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 4,
    "MODEL.RPN.NMS_THRESH": 0.3,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 10,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "MODEL.RPN.BBOX_REG_WEIGHTS": (2.0, 2.0, 2.0, 2.0),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 3,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
    "MODEL.RANKED_BOXES.NMS_THRESH": 0.1,
    "MODEL.RANKED_BOXES.SCORE_THRESH": 0.3,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.FPN.FUSE_TYPE": "avg",
}


@pytest.mark.parametrize("key", OTHER)
def test_an_override_that_differs_from_the_checkpoint_is_refused_by_key(config, two, key, caplog):
    words = [*TINY, key, OTHER[key]]
    for file in (config, ""):
        cfg, spec = inference_cfg(file, words, two)
        theirs = spec["configuration"][key]
        with pytest.raises(CTMaskNetError) as caught:
            load_model(cfg)
        told = str(caught.value)
        assert told.startswith(f"{two}: {key} is {theirs!r} in this checkpoint but ")
        assert f"leave {key} out" in told and "\n" not in told
    caplog.clear()
    cfg, _ = inference_cfg(config, [*words, "MODEL.UNLIKE_CHECKPOINT", "warn"], two)
    load_model(cfg)
    assert f"{key} is {theirs!r} in this checkpoint but " in caplog.text


def test_weights_that_do_not_fit_are_told_with_the_keys_that_differ(config, two):
    cfg, _ = inference_cfg(config, [*TINY, "MODEL.RESNETS.DEPTH", 34], two)
    with pytest.raises(CTMaskNetError, match=r"another arch.*MODEL\.RESNETS\.DEPTH 18 \(here: 34"):
        load_model(cfg)


def test_which_lesions_are_given_out_may_be_chosen_anew(config, two, caplog):
    cfg, _ = inference_cfg(config, [*TINY, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.5], two)
    assert load_model(cfg).roi_heads.box_predictor.test_score_thresh == 0.5
    assert "SCORE_THRESH_TEST is 0.05 in this checkpoint but 0.5" in caplog.text


def test_a_model_file_alone_is_enough(config, two):
    with_file, _ = inference_cfg(config, TINY, two)
    alone, _ = inference_cfg(weights=two)
    assert alone.MODEL.META_ARCHITECTURE == "CTMaskNet"
    assert spec_of(alone) == spec_of(with_file)
    image = torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(1)) * 255
    (one,), (other,) = (load_model(cfg)([{"image": image}]) for cfg in (with_file, alone))
    assert torch.equal(one["logits"], other["logits"])
    assert torch.equal(one["ranked_boxes"], other["ranked_boxes"])


def test_a_file_that_states_no_configuration_needs_one(two):
    content = torch.load(two, weights_only=True)
    del content["ctmasknet"]["configuration"]
    torch.save(content, two)
    with pytest.raises(CTMaskNetError, match=r"two\.pth: does not state its conf.*`config_file`"):
        inference_cfg(weights=two)
    with pytest.raises(CTMaskNetError, match="no configuration and no weights"):
        inference_cfg()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.RPN.NMS_THRESH", "wide", "MODEL.RPN.NMS_THRESH 'wide', which is no such value"),
        ("MODEL.RPN.NMS_THRESH", None, "MODEL.RPN.NMS_THRESH None"),
        ("MODEL.MASK_ON", 1, "MODEL.MASK_ON 1"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [["wide"]], "MODEL.ANCHOR_GENERATOR.SIZES"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", 5, "MODEL.ANCHOR_GENERATOR.SIZES 5"),
        ("MODEL.PIXEL_STD", [True, 1.0, 1.0], "MODEL.PIXEL_STD"),
        ("MODEL.PIXEL_STD", torch.ones(3), "ctmasknet.configuration is an object of"),
        (5, 5, "ctmasknet.configuration is an object of"),
    ],
)
def test_a_stated_value_of_another_kind_is_one_line(two, key, value, message):
    content = torch.load(two, weights_only=True)
    content["ctmasknet"]["configuration"][key] = value
    torch.save(content, two)
    with pytest.raises(CTMaskNetError) as caught:
        inference_cfg(weights=two)
    assert str(caught.value).startswith(f"{two}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stated_values_that_make_no_model_are_one_line(two):
    content = torch.load(two, weights_only=True)
    for key, value in (
        ("MODEL.RESNETS.DEPTH", 19),
        ("MODEL.FPN.IN_FEATURES", ["res9"]),
        ("MODEL.META_ARCHITECTURE", "Other"),
        ("MODEL.RPN.HEAD_NAME", "Other"),
    ):
        keys = content["ctmasknet"]["configuration"] | {key: value}
        spec = content["ctmasknet"] | {"configuration": keys}
        torch.save(content | {"ctmasknet": spec}, two)
        with pytest.raises(CTMaskNetError) as caught:
            load_model(inference_cfg("", ["MODEL.DEVICE", "cpu"], two)[0])
        assert "\n" not in str(caught.value)


def test_two_weights_are_one_too_many(config, two):
    with pytest.raises(
        CTMaskNetError, match=r"`weights` is .* but MODEL\.WEIGHTS other\.pth; give"
    ):
        inference_cfg(config, [*TINY, "MODEL.WEIGHTS", "other.pth"], two)
    inference_cfg(config, [*TINY, "MODEL.WEIGHTS", str(two)], two)


def test_a_checkpoint_states_no_path_device_or_data_set(two, caplog):
    content = torch.load(two, weights_only=True)
    stranger = {"OUTPUT_DIR": "/elsewhere", "MODEL.DEVICE": "cuda", "DATASETS.TEST": ["other"]}
    content["ctmasknet"]["configuration"] |= stranger
    torch.save(content, two)
    cfg, _ = inference_cfg("", ["MODEL.DEVICE", "cpu"], two)
    assert (cfg.OUTPUT_DIR, cfg.MODEL.DEVICE, cfg.DATASETS.TEST) == ("./output", "cpu", ())
    assert "leaves out: DATASETS.TEST, MODEL.DEVICE, OUTPUT_DIR" in caplog.text


def test_every_tool_takes_a_model_file_alone(repository, two, tmp_path):
    picture = tmp_path / "in" / "slice.png"
    picture.parent.mkdir()
    Image.new("L", (64, 64), 90).save(picture)
    cpu = ["MODEL.DEVICE", "cpu"]
    files = {
        "predict": "predictions.csv",
        "explain": "attributions.jsonl",
        "visualize": "001_slice.png",
    }
    for tool, made in files.items():
        for number, given in enumerate((["--weights", two], ["MODEL.WEIGHTS", two])):
            output = tmp_path / f"{tool}{number}"
            words = ["--input", picture, "--output", output, *given, *cpu]
            assert run_tool(repository, f"tools/{tool}.py", *words) == 0
            assert (output / made).is_file()
    program = tmp_path / "two.pt2"
    sides = ["--height", 64, "--width", 64, *cpu]
    words = ["--weights", two, "--output", program, *sides]
    assert run_tool(repository, "tools/export.py", *words) == 0 and program.is_file()
    page = tmp_path / "page.html"
    words = [tmp_path / "predict0", "--output", page, "--weights", two, "--images", picture.parent]
    assert run_tool(repository, "tools/report.py", *words, "--opts", *cpu) == 0
    assert "no lesion found" in page.read_text() or "best of" in page.read_text()


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


def test_another_window_as_an_override_is_used_and_told(config, two, caplog):
    words = [*TINY, "INPUT.WINDOW_CENTER_HU", "-600", "INPUT.WINDOW_WIDTH_HU", "1500"]
    cfg, _ = inference_cfg(config, words, two)
    load_model(cfg)
    assert (cfg.INPUT.WINDOW_CENTER_HU, cfg.INPUT.WINDOW_WIDTH_HU) == (-600.0, 1500.0)
    assert "INPUT.WINDOW_WIDTH_HU is 400.0 in this checkpoint but 1500.0" in caplog.text
    # A training that begins with these weights needs theirs.
    checkpointer = CTMaskNetCheckpointer(build_model(cfg), spec=spec_of(cfg))
    with pytest.raises(CTMaskNetError, match=r"INPUT\.WINDOW_"):
        checkpointer.load(str(two))
