"""Validation losses, the best model, early stopping, learning curves."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image

from ctmasknet.config_file import read_cfg
from ctmasknet.data.mapper import LesionMapper
from ctmasknet.data.registry import dataset_dicts, register_prepared
from ctmasknet.engine import metrics, validation
from ctmasknet.engine.metrics import draw_curves, read_metrics
from ctmasknet.engine.setup import training_cfg
from ctmasknet.engine.trainer import Trainer
from ctmasknet.engine.validation import EarlyStop, EndIfStopped, Validation, detector_losses
from ctmasknet.errors import CTMaskNetError
from tests.helpers.running import run_tool
from tests.test_train_net import TINY


class Saved(list):
    def save(self, name, iteration):
        self.append((name, iteration))


def follow(values, *, metric="slices/accuracy", patience=0, period=1):
    """Iterations at which the best model was saved, and the one that ended the training."""
    saved, given = Saved(), iter(values)
    section, name = metric.split("/")
    hook = Validation(lambda: {section: {name: next(given)}}, period, saved, metric, patience)
    end = EndIfStopped(hook)
    hook.trainer = end.trainer = SimpleNamespace(max_iter=period * len(values))
    with EventStorage() as hook.trainer.storage:
        for iteration in range(hook.trainer.max_iter):
            hook.trainer.iter = iteration
            try:
                hook.after_step()
                end.after_step()
            except EarlyStop:
                return [at for _, at in saved], iteration
    return [at for _, at in saved], None


def test_the_best_model_is_saved():
    assert follow([50, 60, 55, 60, 61]) == ([0, 1, 4], None)
    assert follow([0.5, 0.6, 0.4], metric="validation/total_loss") == ([0, 2], None)
    assert follow([float("nan"), 10, float("nan")], period=3) == ([5], None)


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("lesion_free/false-positives-per-slice@0.5", True),
        ("lesion_free/slices-with-false-positives@0.5", True),
        ("slices/loss", True),
        ("validation/loss_rpn_cls", True),
        ("validation/total_loss", True),
        ("segm/AP50", False),
        ("slices/sensitivity-loss", False),  # a class of this name
        ("patients/specificity-lossless", False),
    ],
)
def test_where_less_is_better_the_least_is_best(metric, lower):
    assert follow([3, 5, 2, 4], metric=metric) == ([0, 2] if lower else [0, 1], None)


def test_patience():
    assert follow([50, 60, 55, 58, 70], patience=2) == ([0, 1], 3)
    assert follow([50, 60, 55, 61, 60, 60], patience=2) == ([0, 1, 3], 5)


def test_unknown_metric():
    hook = Validation(lambda: {"slices": {"accuracy": 1.0}}, 1, Saved(), "slices/AP50")
    hook.trainer = SimpleNamespace(iter=0, max_iter=1)
    with (
        EventStorage() as hook.trainer.storage,
        pytest.raises(
            CTMaskNetError,
            match=r"'slices/AP50', which the evaluation does not give; choose one of",
        ),
    ):
        hook.after_step()


@pytest.fixture
def training(repository, prepared, tmp_path, monkeypatch):
    """The configuration of a training on phantoms."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))

    def call(config, *overrides):
        words = [*TINY, "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path / "out"), *overrides]
        return training_cfg(repository / "configs" / f"{config}.yaml", words)

    return call


TWO_SETS = ["DATASETS.VAL", "('covidx_ct_val', 'covidx_ct_test')", "SOLVER.BEST_METRIC", ""]


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("seg_light", []),
        ("seg_light", ["MODEL.MASK_ON", "False", "SOLVER.BEST_METRIC", "bbox/AP"]),
        ("seg_light", ["TEST.VALIDATION_LOSS", "False"]),
        ("cls_light", []),
        ("cls_light", TWO_SETS),
    ],
)
def test_the_figures_to_choose_by_are_those_that_an_evaluation_gives(training, config, overrides):
    cfg = training(config, *overrides)
    found = flatten_results_dict(Trainer(cfg).validate())
    known = validation._figures(cfg)
    assert known.keys() == found.keys()
    assert all(found[name] != found[name] for name, why in known.items() if why)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("seg_light", ["SOLVER.BEST_METRIC", "segm/AP_50"], "'segm/AP_50', which the evaluation"),
        ("seg_light", ["SOLVER.BEST_METRIC", "slices/loss"], "choose one of bbox/AP, "),
        ("seg_light", ["MODEL.MASK_ON", "False"], "'segm/AP50', which the evaluation does not"),
        ("cls_light", TWO_SETS[:2], "'slices/loss', .* choose one of covidx_ct_test/patients/"),
        (
            *("seg_light", ["SOLVER.EARLY_STOPPING_PATIENCE", 2, "TEST.EVAL_PERIOD", 0]),
            "PATIENCE is 2, but the model is evaluated after the last iteration only",
        ),
        (
            *("cls_light", ["MODEL.IMAGE_HEAD.CLASSES", "['normal', 'covid']"]),
            "IMAGE_HEAD.CLASSES is given for the classes normal, covid, but covidx_ct_train has",
        ),
        (
            *("seg_light", ["MODEL.LESION_CLASSES", "['ggo', 'other']"]),
            "LESION_CLASSES is given for the classes ggo, other, but cncb_lesions_merge_train has",
        ),
    ],
)
def test_what_an_evaluation_would_fail_at_is_told_at_the_start(
    training, config, overrides, message
):
    with pytest.raises(CTMaskNetError, match=message):
        training(config, *overrides)


def test_coco_s_fast_figures_have_to_be_installed_at_the_start(training, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CTMaskNetError, match="COCO_FAST is 'always' but faster-coco-eval is"):
        training("seg_light", "TEST.COCO_FAST", "always")


@pytest.mark.parametrize(
    ("names", "lesions", "metric", "message"),
    [
        (["lesion"], [], "segm/AP50", "s has no lesion; choose one of .*validation/total_loss"),
        (["lesion"], [0], "segm/AP50", None),
        (["a", "b"], [0], "bbox/AP-b", "s has no b; choose one of bbox/AP, "),
        (["a", "b"], [0], "bbox/AP-a", None),
        (["lesion"], [0], "lesion_free/false-positives-per-slice@0.5", "s has lesions on"),
        (["lesion"], [], "lesion_free/false-positives-per-slice@0.5", None),
    ],
)
def test_a_figure_that_will_be_no_number_is_told_at_the_start(
    tiny_cfg, monkeypatch, names, lesions, metric, message
):
    tiny_cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    tiny_cfg.MODEL.LESION_CLASSES, tiny_cfg.SOLVER.BEST_METRIC = names, metric
    tiny_cfg.DATASETS.VAL = ("s",)
    tiny_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    dicts = [{"annotations": [{"category_id": lesion} for lesion in lesions]}]
    monkeypatch.setattr(validation, "dataset_dicts", lambda name: dicts)
    if message is None:
        validation.check_validation(tiny_cfg)
    else:
        with pytest.raises(CTMaskNetError, match=f"will be no number: {message}"):
            validation.check_validation(tiny_cfg)


def test_a_class_without_a_slice_has_no_sensitivity(tiny_cfg, monkeypatch):
    tiny_cfg.DATASETS.VAL = ("s",)
    tiny_cfg.SOLVER.BEST_METRIC = "slices/sensitivity-covid"
    dicts = [{"label": 0}, {"label": 1, "patient": "p", "scan": ""}]
    monkeypatch.setattr(validation, "dataset_dicts", lambda name: dicts)
    with pytest.raises(CTMaskNetError, match="s has no slice of covid"):
        validation.check_validation(tiny_cfg)
    tiny_cfg.SOLVER.BEST_METRIC = "scans/accuracy"
    with pytest.raises(CTMaskNetError, match="'scans/accuracy', which the evaluation does not"):
        validation.check_validation(tiny_cfg)


def test_losses_of_a_set_without_lesions(detector, monkeypatch):
    cfg, model = detector
    dicts = [{**entry, "annotations": []} for entry in dataset_dicts(cfg.DATASETS.VAL[0])]
    monkeypatch.setattr(validation, "dataset_dicts", lambda name: dicts)
    assert detector_losses(cfg, model) == {}


def test_a_metric_that_is_no_number_is_no_best_model_and_says_so(caplog):
    with caplog.at_level("WARNING"):
        assert follow([float("nan"), 50]) == ([1], None)
    assert "BEST_METRIC slices/accuracy is no number at iteration 0" in caplog.text
    assert len(caplog.records) == 1


@pytest.fixture
def detector(repository, prepared, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    register_prepared()
    cfg = read_cfg(str(repository / "configs" / "seg_light.yaml"), list(TINY))
    cfg.MODEL.LESION_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES = ["lesion"], 1
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN = "horizontal", (32, 48, 64)
    torch.manual_seed(0)
    return cfg, build_model(cfg)


def test_validation_losses_repeat_and_leave_everything_alone(detector):
    cfg, model = detector
    model.train()
    model.roi_heads.box_head.eval()  # a part that someone keeps in evaluation mode
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    want = torch.rand(1)
    torch.manual_seed(1)
    losses = detector_losses(cfg, model)
    assert torch.rand(1) == want
    assert model.training and not model.roi_heads.box_head.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.manual_seed(2)
    assert detector_losses(cfg, model) == losses
    parts = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    assert losses.keys() == parts | {"total_loss"}
    assert losses["total_loss"] == pytest.approx(sum(losses[name] for name in parts))
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] += 1
    assert detector_losses(cfg, model)["loss_cls"] != losses["loss_cls"]


def test_validation_losses_are_means_over_the_slices_that_can_be_read(detector, monkeypatch):
    cfg, model = detector
    cfg.DATALOADER.BAD_SLICES = "skip"
    found = detector_losses(cfg, model)
    first, *others = sorted({entry["file_name"] for entry in dataset_dicts(cfg.DATASETS.VAL[0])})
    read = LesionMapper.__call__

    def losses(readable):
        def call(mapper, entry):
            if entry["file_name"] not in readable:
                raise CTMaskNetError(f"{entry['file_name']}: damaged")
            return read(mapper, entry)

        monkeypatch.setattr(LesionMapper, "__call__", call)
        return detector_losses(cfg, model)["total_loss"]

    alone, rest = losses([first]), losses(others)
    whole = (alone + rest * len(others)) / (1 + len(others))
    assert alone != rest
    assert found["total_loss"] == pytest.approx(whole)


@pytest.mark.parametrize("config", ["seg_light", "cls_light"])
def test_a_run_stops_early_chooses_by_loss_and_draws(
    repository, prepared, tmp_path, monkeypatch, config
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)
    words = [
        *("--config-file", f"configs/{config}.yaml", *TINY, "MODEL.WEIGHTS", ""),
        *("SOLVER.BASE_LR", 1e-30, "SOLVER.BEST_METRIC", "validation/total_loss"),
        *("SOLVER.EARLY_STOPPING_PATIENCE", 2, "TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 20),
        *("SOLVER.LOG_PERIOD", 2, "OUTPUT_DIR", tmp_path),
    ]
    if config == "seg_light":
        words += ["MODEL.RESNETS.NORM", "FrozenBN"]  # nothing at all changes
    assert run_tool(repository, "tools/train_net.py", *words) == 0
    curves = read_metrics(tmp_path / "metrics.json")
    assert curves["validation/total_loss"][0] == [2, 4, 6]
    assert len(set(curves["validation/total_loss"][1])) == 1
    record = json.loads((tmp_path / "run.json").read_text())["entries"][-1]
    assert (record["iterations"], record["best_iteration"]) == (6, 1)
    assert Image.open(tmp_path / "learning_curves.png").size == (900, 900)
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == 5
    timings = (tmp_path / "timings.json").read_text()
    assert "max_memory_mb" in timings and "max_memory_mb" not in str(curves)
    assert "Peak memory: " in (tmp_path / "log.txt").read_text()
    # A run that has stopped stays so
    words[2:2] = ["--resume"]
    assert run_tool(repository, "tools/train_net.py", *words) == 0
    assert read_metrics(tmp_path / "metrics.json") == curves


def test_curves_of_bad_files(tmp_path):
    file = tmp_path / "metrics.json"
    for content, message in (("{", "not a run's metrics"), ("", "holds no metrics yet")):
        file.write_text(content)
        with pytest.raises(CTMaskNetError, match=message):
            draw_curves(file, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_curves_are_told_apart_without_colour_and_by_colour_blind_readers(tmp_path, monkeypatch):
    names = ["loss_cls", "loss_box_reg", "loss_mask", "total_loss", "validation/total_loss"]
    names += ["slices/accuracy", *(f"slices/sensitivity-{c}" for c in ("normal", "covid"))]
    lines = [{"iteration": n, **dict.fromkeys(names, 10.0 + n)} for n in range(3)]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    drawn = []
    canvas = metrics.FigureCanvasAgg
    monkeypatch.setattr(
        metrics, "FigureCanvasAgg", lambda figure: drawn.append(figure) or canvas(figure)
    )
    draw_curves(tmp_path / "metrics.json", tmp_path / "curves.png")
    safe = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "black"}
    for axes, count in zip(drawn[0].axes[:2], (5, 3), strict=True):
        lines = axes.get_lines()
        assert len(lines) == count and {line.get_color() for line in lines} <= safe
        looks = {(str(line._unscaled_dash_pattern), line.get_marker()) for line in lines}
        assert len(looks) == count
        legend = axes.get_legend().get_window_extent()
        assert legend.x0 >= axes.get_window_extent().x1
