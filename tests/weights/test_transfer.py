"""A training that starts from weights of other classes or of another shape."""

import pickle

import pytest
import torch
from detectron2.modeling import build_model

from ctmasknet.config_file import override, read_cfg
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.errors import CTMaskNetError

FIVE = ["a", "b", "c", "d", "e"]
OF_LESIONS = ("roi_heads.box_predictor.", "roi_heads.mask_head.predictor.")


def detector(tiny_cfg, classes):
    cfg = tiny_cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    override(cfg, ["MODEL.LESION_CLASSES", classes])
    return cfg


def model_of(cfg, seed):
    torch.manual_seed(seed)
    return build_model(cfg)


def started(cfg, path, transfer=True):
    """The state before and after the start of a training of ``cfg``."""
    model = model_of(cfg, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = {"spec": spec_of(cfg), "transfer": transfer}
    CTMaskNetCheckpointer(model, **given).resume_or_load(str(path), resume=False)
    return before, model.state_dict()


def check(before, after, theirs, anew):
    """All weights are the file's, but those that begin with ``anew``, which stay as they were."""
    assert any(name.startswith(anew) for name in after)
    for name, value in after.items():
        expected = before if name.startswith(anew) else theirs
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("classes", [FIVE, ["other", "names"]])
def test_other_lesion_classes_start_anew_and_are_named(tiny_cfg, tmp_path, caplog, classes):
    old = detector(tiny_cfg, ["ggo", "consolidation"])
    model = model_of(old, 1)
    CTMaskNetCheckpointer(model, str(tmp_path), spec=spec_of(old)).save("model_best")
    new = detector(tiny_cfg, classes)
    with pytest.raises(CTMaskNetError, match=r"LESION_CLASSES .*MODEL\.TRANSFER on"):
        started(new, tmp_path / "model_best.pth", transfer=False)
    before, after = started(new, tmp_path / "model_best.pth")
    check(before, after, model.state_dict(), OF_LESIONS)
    assert "roi_heads.box_predictor.cls_score.weight starts anew" in caplog.text
    assert "6 start anew" in caplog.text


def test_a_zoo_file_of_80_classes(tiny_cfg, tmp_path, caplog):
    zoo = model_of(detector(tiny_cfg, [str(number) for number in range(80)]), 1)
    theirs = {name: value.numpy() for name, value in zoo.state_dict().items()}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": theirs, "__author__": "Detectron2 Model Zoo"}, 2))
    new = detector(tiny_cfg, FIVE)
    with pytest.raises(CTMaskNetError, match=r"another architecture.*MODEL\.TRANSFER on"):
        started(new, path, transfer=False)
    before, after = started(new, path)
    check(before, after, zoo.state_dict(), OF_LESIONS)
    assert "cls_score.weight starts anew ((81, 32) in the file, (6, 32) here)" in caplog.text


def test_a_classifier_of_other_image_classes_keeps_its_detector(tiny_cfg, tmp_path):
    model = model_of(tiny_cfg, 1)
    CTMaskNetCheckpointer(model, str(tmp_path), spec=spec_of(tiny_cfg)).save("model_best")
    new = tiny_cfg.clone()
    new.MODEL.IMAGE_HEAD.CLASSES = ["sick", "well"]
    before, after = started(new, tmp_path / "model_best.pth")
    check(before, after, model.state_dict(), ("image_head.logits.",))


def test_a_detector_under_a_classifier_has_to_be_whole(tiny_cfg, tmp_path):
    old = detector(tiny_cfg, ["ggo", "consolidation"])
    old.MODEL.FPN.OUT_CHANNELS = 16
    CTMaskNetCheckpointer(model_of(old, 1), str(tmp_path), spec=spec_of(old)).save("model_best")
    with pytest.raises(CTMaskNetError, match="train the detector first"):
        started(tiny_cfg, tmp_path / "model_best.pth")


def test_a_resumed_checkpoint_has_to_fit_whole(tiny_cfg, tmp_path):
    old = detector(tiny_cfg, ["ggo", "consolidation"])
    CTMaskNetCheckpointer(model_of(old, 1), str(tmp_path), spec=spec_of(old)).save("model_0000001")
    new = detector(tiny_cfg, FIVE)
    given = {"spec": spec_of(new), "transfer": True}
    with pytest.raises(CTMaskNetError, match="LESION_CLASSES"):
        CTMaskNetCheckpointer(model_of(new, 5), str(tmp_path), **given).resume_or_load("")


def test_on_is_a_word_for_true(repository):
    cfg = read_cfg(repository / "configs" / "seg.yaml", ["MODEL.TRANSFER", "on"])
    assert cfg.MODEL.TRANSFER is True
