import copy
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ctmasknet.engine import export
from ctmasknet.engine.export import export_int8
from ctmasknet.engine.testing import evaluate
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast import inference, int8
from ctmasknet.modeling.fast.inference import (
    check_int8,
    inference_model,
    looks_text,
    rechecked,
    second_looks,
)
from ctmasknet.modeling.fast.int8 import leads, margin_of
from tests.helpers.running import needs_nncf, needs_openvino


@pytest.fixture
def torch_computes():
    """Not here."""


@pytest.fixture
def cfg(tiny_cfg, tmp_path):
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "model_best.pth")
    tiny_cfg.MODEL.INFERENCE.DTYPE = "int8"
    return tiny_cfg


@pytest.fixture
def written(cfg, model, tmp_path, monkeypatch):
    """A file of the model, whatever it is worth, and what it tells."""
    numbers = np.random.default_rng(0)
    dicts = [{"file_name": str(tmp_path / f"{n}.png"), "image_id": n} for n in range(8)]
    for entry in dicts:
        Image.fromarray(numbers.integers(0, 256, (64, 96), dtype=np.uint8)).save(entry["file_name"])
    monkeypatch.setattr(export, "dataset_dicts", lambda name: dicts)
    monkeypatch.setattr(int8, "_MOST_AGAIN", 1.0)
    cfg.INPUT.MIN_SIZE_TEST = 64
    path = tmp_path / "model_best.int8"
    return path, export_int8(cfg, model, path, "slices_train", 6, 3)


@needs_openvino
@needs_nncf
@pytest.mark.parametrize("model", [18], indirect=True)
def test_a_file_names_slices_in_int8_and_close_ones_in_float32(cfg, model, slices, written):
    path, told = written
    assert told["calibration"]["slices"] == 6 and told["calibration"]["seed"] == 3
    assert told["tried"] == 5 and check_int8(cfg) == told
    assert [version.split()[0] for version in told["versions"]] == ["openvino", "nncf"]
    content = torch.load(path, weights_only=True)
    expected = model(slices)
    for margin in (0.0, math.inf):
        torch.save({**content, "told": {**told, "margin": margin}}, path)
        form = inference_model(cfg, model)
        found = form(slices)
        assert second_looks(form) == (3, 3 if margin else 0)
        for ours, theirs in zip(found, expected, strict=True):
            apart = (ours["ranked_boxes"] - theirs["ranked_boxes"]).abs()[:, 0].max()
            assert apart < 1e-4 if margin else 1e-4 < apart < 0.3
    # Of other weights
    nn.init.normal_(model.image_head.logits.weight)
    with pytest.raises(CTMaskNetError, match=r"model_best\.int8: made of other weights than those"):
        inference_model(cfg, model)


@needs_openvino
@pytest.mark.parametrize("model", [18], indirect=True)
def test_a_model_that_needs_too_many_second_looks_is_refused(model, slices, monkeypatch):
    monkeypatch.setattr(int8, "quantized", lambda model, slices: int8.dense_network(model))
    monkeypatch.setattr(int8, "margin_of", lambda ours, theirs: math.inf)
    monkeypatch.setattr(int8.importlib.metadata, "version", lambda name: "1")
    with pytest.raises(CTMaskNetError, match=r"3 of 3 slices keep their class and 3 would need a"):
        int8.calibrated(model, [*slices, slices[0]])


def test_the_margin_is_where_a_wrong_class_is_no_longer_expected(monkeypatch):
    theirs = torch.zeros(10, 3)
    theirs[:, 1] = torch.arange(10) + 1.0
    assert leads(theirs).tolist() == list(range(1, 11))
    assert margin_of(theirs, theirs) == 1.0
    ours = theirs.clone()
    ours[9, 1] -= 5  # a lead that was understated tells nothing
    assert margin_of(ours, theirs) == 1.0
    ours[9, 1] += 5
    ours[8, 1] += 3.5  # leads 1, 2, 3 could be no leads; one of ten is overstated by so much
    assert margin_of(ours, theirs) == 4.0
    monkeypatch.setattr(int8, "_WRONG", 0.025)
    assert margin_of(ours, theirs) == 2.0
    assert margin_of(theirs, -theirs) == math.inf


@pytest.mark.parametrize("boxes", [True, False])
def test_boxes_are_float32s_and_looks_are_counted(model, slices, boxes):
    fast, judge = copy.deepcopy(model), copy.deepcopy(model)
    nn.init.normal_(judge.image_head.logits.weight)
    form = rechecked(fast, judge, 0.0, gives_boxes=False)
    form.return_instances = boxes
    expected = (judge if boxes else model)(slices)
    for ours, theirs in zip(form(slices), expected, strict=True):
        assert (ours["logits"] - theirs["logits"]).abs().max() < 1e-5
        assert ("instances" in ours) == boxes
    assert second_looks(nn.ModuleList([form]), model) == (3, 3 * boxes)
    assert looks_text((3, 1)) == "1 of 3 looks at slices (33.3 %) decided in float32"


def test_an_evaluation_tells_how_many_slices_were_looked_at_again(model, slices, cfg, caplog):
    form = rechecked(copy.deepcopy(model), model, math.inf)
    form(slices[:1])  # before
    evaluator = SimpleNamespace(reset=lambda: 0, process=lambda *_: 0, evaluate=lambda: {})
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = ("set",), str(Path(cfg.MODEL.WEIGHTS).parent)
    with caplog.at_level(logging.INFO):
        found = evaluate(cfg, model, lambda _: [slices], lambda _: evaluator, lambda *_: form)
    assert found["second_looks"] == {"looks": 3, "again": 3}
    assert "set: 3 of 3 looks at slices (100.0 %) decided in float32" in caplog.text


def test_what_int8_needs(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "installed", lambda: False)
    with pytest.raises(CTMaskNetError, match="int8, which OpenVINO alone computes in"):
        check_int8(cfg)
    monkeypatch.setattr(inference, "installed", lambda: True)
    path = tmp_path / "model_best.int8"
    with pytest.raises(CTMaskNetError, match=r"model_best\.int8: no such file.*tools/export\.py"):
        check_int8(cfg)
    whole = {"format": "ctmasknet int8 1", "told": {"margin": 1.0}, "bin": torch.ones(1000)}
    torch.save(whole, path)
    assert check_int8(cfg) == whole["told"]
    flipped = bytearray(path.read_bytes())
    flipped[flipped.index(torch.ones(1000).numpy().tobytes()) + 2000] ^= 1
    for content in (
        b"",
        b"no file of torch's",
        bytes(flipped),
        torch.zeros(3),
        {"format": "ctmasknet int8 1"},
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(CTMaskNetError, match=r"model_best\.int8: no model in int8 \("):
            check_int8(cfg)
    torch.save({"format": "ctmasknet int8 0"}, path)
    with pytest.raises(CTMaskNetError, match="written by another version"):
        check_int8(cfg)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(CTMaskNetError, match="GeneralizedRCNN is used in float32"):
        check_int8(cfg)
    cfg.MODEL.INFERENCE.DTYPE = ""
    assert check_int8(cfg) == {}


def test_without_its_package_nothing_is_quantized(model, slices, monkeypatch):
    monkeypatch.setattr(int8, "nncf_installed", lambda: False)
    with pytest.raises(CTMaskNetError, match="nncf is not installed"):
        int8.quantized(model, slices)
