"""The Python API: what it says is what the model says."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.learned_pooling import fit_learned_pooling
from ctmasknet.evaluation.pooling import ScorePooling
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.predict import CTPredictor
from ctmasknet.predict import inputs as reading
from ctmasknet.predict.loading import Loaded, ahead, batches
from ctmasknet.predict.pooled import build_pooler
from tests.helpers.small_world import hu_volume, write_pictures, write_series

CLASSES = ("normal", "pneumonia", "covid")


def build(model, **options):
    return CTPredictor.from_config_file(model.config, weights=str(model.weights), **options)


def test_three_lines_give_what_the_model_gives(classifier, scans):
    predictor = build(classifier, lesions=True)
    found = list(predictor(scans))
    sources = read_scans([scans])
    assert [scan.source for scan in found] == sources
    assert [scan.source.kind for scan in found] == ["dicom", "nifti", "image", "image"]
    mapper = SliceMapper(classifier.cfg, is_train=False)
    for scan, source in zip(found, sources, strict=True):
        assert [one.source for one in scan.slices] == list(source.slices)
        for one in scan.slices:
            item = mapper.map_pixels({"file_name": "-"}, one.source.pixels(Window()))
            (output,) = predictor.predict([item])
            assert one.pred_class == output["pred_class"]
            for name in ("logits", "scores", "ranked_boxes"):
                np.testing.assert_array_equal(getattr(one, name), output[name].numpy())
            instances = output["instances"]
            assert len(instances) == 6, "the test needs lesions"
            for name in ("scores", "pred_classes", "pred_masks"):
                assert torch.equal(one.instances.get(name), instances.get(name))
            assert torch.equal(one.instances.pred_boxes.tensor, instances.pred_boxes.tensor)
            ranked = output["ranked_instances"][:10]
            assert [box.score for box in one.top_boxes] == ranked.scores.tolist()
            assert [box.score for box in one.top_boxes] == output["ranked_boxes"][:10, 0].tolist()
            assert [list(box.box_px) for box in one.top_boxes] == ranked.pred_boxes.tensor.tolist()
        pooled = ScorePooling("mean", 0)(np.array([one.logits for one in scan.slices]))
        assert scan.pooling == "mean" and scan.image_classes == CLASSES
        np.testing.assert_array_equal(scan.scores, pooled)
        assert scan.pred_class == int(pooled.argmax())


def test_scans_come_before_the_rest_of_the_inputs_is_read(classifier, own_scans, monkeypatch):
    """Headers are read one unit ahead, and a damaged file raises when its turn comes."""
    asked = []

    def noted(paths, **options):
        asked.append(paths)
        return read_scans(paths, **options)

    monkeypatch.setattr(reading, "read_scans", noted)
    (own_scans / "b_nifti" / "ct.nii.gz").write_bytes(b"damaged")
    folders = [own_scans / name for name in ("a_dicom", "c_pictures", "b_nifti")]
    more = [write_pictures(own_scans / f"more{n}", n, ["a.png"]) for n in range(3)]
    found = build(classifier, num_workers=0)([*folders, *more])
    assert asked == [], "nothing is read before it is asked for"
    assert next(found).source.kind == "dicom"
    assert asked == [(str(folders[0]),)]
    assert [scan.source.patient for scan in (next(found), next(found))] == ["7", "8"]
    with pytest.raises(CTMaskNetError, match=r"ct\.nii\.gz: damaged"):
        next(found)
    asked.clear()
    more += [write_pictures(own_scans / f"more{n}", n, ["a.png"]) for n in range(3, 20)]
    found = build(classifier, num_workers=1)([*folders[:2], *more])
    next(found)
    found.close()
    assert 2 <= len(asked) < 6, "slices wait for the model, another unit's headers are there"


def test_inputs_are_those_of_the_tool(classifier, scans, tmp_path):
    predictor = build(classifier)
    with pytest.raises(CTMaskNetError, match=r"none: no such file or folder"):
        predictor(tmp_path / "none")
    with pytest.raises(CTMaskNetError, match="a_dicom: lies in"):
        predictor([scans, scans / "a_dicom"])
    (tmp_path / "empty").mkdir()
    told = []
    inputs = [tmp_path / "empty", scans / "a_dicom"]
    found = list(predictor(inputs, on_bad=lambda *problem: told.append(problem)))
    assert [scan.source.kind for scan in found] == ["dicom"]
    assert [file for file, _ in told] == [str(tmp_path / "empty")]


def test_messages_name_arguments(classifier, detector):
    for model, options, message in (
        (classifier, {"batch_size": 0}, "`batch_size`: 0 slices make no batch"),
        (classifier, {"top_k": 3}, "`top_k`: is of no use to the pooling mean"),
        (detector, {"pooling": "max"}, "`pooling`, `top_k`: a lesion detector names no class"),
    ):
        with pytest.raises(CTMaskNetError, match=message) as error:
            build(model, **options)
        assert "--" not in str(error.value)


def test_a_detector_finds_lesions_and_names_no_class(detector, scans):
    for scan in build(detector)(scans / "a_dicom"):
        assert scan.scores is None and scan.pred_class is None and scan.image_classes == ()
        for one in scan.slices:
            assert one.logits is None and one.pred_class is None
            assert len(one.lesions) == 6
            assert [box.box_px for box in one.top_boxes] == [
                lesion.box_px for lesion in one.lesions
            ]


def test_a_slice_without_lesions_has_all_fields_too(detector, scans):
    none = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.999]
    (scan,) = build(detector, overrides=none)(scans / "a_dicom")
    found = scan.slices[0].instances
    assert len(found) == 0 and found.pred_masks.shape == (0, 64, 64)
    assert found.pred_masks.dtype == torch.bool and found.pred_boxes.tensor.shape == (0, 4)
    boxes_only = build(detector, overrides=["MODEL.MASK_ON", False])
    (scan,) = boxes_only(scans / "a_dicom")
    assert len(scan.slices[0].instances) == 6 and not scan.slices[0].instances.has("pred_masks")


def test_threads_change_nothing_and_batches_only_rounding(classifier, own_scans):
    scans = own_scans
    write_series(scans / "d_other_size", hu_volume(4, 2, side=80))

    def logits(**options):
        found = build(classifier, **options)(scans)
        return [np.array([one.logits for one in scan.slices]) for scan in found]

    alone = logits(num_workers=0)
    assert [len(scan) for scan in alone] == [4, 5, 3, 3, 2]
    for one, other in zip(alone, logits(num_workers=3), strict=True):
        np.testing.assert_array_equal(one, other)
    batched = logits(num_workers=2, batch_size=3)
    for one, other in zip(alone, batched, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_a_batch_has_one_size_and_no_bad_slice():
    def loaded(name, side):
        if side is None:
            return Loaded(name, None, None, BadSlice(name, "damaged"))
        return Loaded(name, {"image": torch.zeros(3, side, side)}, None)

    members = [loaded(*one) for one in zip("abcdefg", (8, 8, 8, 9, None, 9, 8), strict=True)]
    found = [
        one.file if isinstance(one, BadSlice) else "".join(item.source for item in one)
        for one in batches(members, 2)
    ]
    assert found == ["ab", "c", "d", "e", "f", "g"]


def test_batches_stay_within_a_scan(classifier, scans):
    sizes = []
    predictor = build(classifier, batch_size=3)
    predictor.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    list(predictor(scans))
    assert sizes == [3, 1, 3, 2, 3, 3]


def test_a_slice_that_cannot_be_decoded_is_told_or_skipped(classifier, own_scans):
    scans = own_scans
    bad = scans / "c_pictures" / "NCP_7_1_0001.png"
    bad.write_bytes(bad.read_bytes()[:-500])
    with pytest.raises(CTMaskNetError, match=r"NCP_7_1_0001\.png"):
        list(build(classifier)(scans))
    told = []
    *_, scan, _ = build(classifier)(scans, on_bad=lambda *problem: told.append(problem))
    names = [one.source.file[-8:] for one in scan.slices]
    assert names == ["0000.png", "0002.png"]
    assert told == list(scan.skipped) and told[0][0] == str(bad)


def test_the_checkpoint_states_classes_and_window(own_classifier, caplog):
    """Trained in another window on two classes: neither has to be said again."""
    classifier = own_classifier
    content = torch.load(classifier.weights, weights_only=True)
    content["ctmasknet"] |= {"window_center_hu": 40.0, "window_width_hu": 400.0}
    content["ctmasknet"]["image_classes"] = ["normal", "other", "covid"]
    torch.save(content, classifier.weights)
    predictor = build(classifier)
    assert predictor.window == Window(40.0, 400.0)
    assert predictor.image_classes == ("normal", "other", "covid")
    other = build(classifier, overrides=["INPUT.WINDOW_WIDTH_HU", 1500.0])
    assert other.window == Window(40.0, 1500.0)
    assert "INPUT.WINDOW_WIDTH_HU is 400" in caplog.text


def rows(count):
    chance = np.random.default_rng(0)
    return [
        SlicePrediction(str(n), f"P{n // 3}", "1", n // 3 % 3, 0, tuple(chance.normal(size=3)), ())
        for n in range(count)
    ]


def test_pooling_is_the_one_asked_for_or_the_checkpoint_s():
    logits = np.random.default_rng(1).normal(size=(7, 3))
    assert build_pooler(CLASSES, None).label == "mean"
    top = build_pooler(CLASSES, None, name="top_k_mean", top_k=2)
    assert top.label == "top_k_mean (k = 2)"
    np.testing.assert_array_equal(top(logits), ScorePooling("top_k_mean", 0, 2)(logits))
    with pytest.raises(CTMaskNetError, match="holds no learned pooling"):
        build_pooler(CLASSES, None, name="learned")
    learned = fit_learned_pooling(rows(36), CLASSES, top_k=4)
    stored = {
        "pooling": {"name": "learned", "top_k": 4, "learned": learned.to_json()},
        "temperatures": {"slices": {"value": 2.0}, "scans": {"value": 0.5}},
    }
    pooler = build_pooler(CLASSES, stored)
    assert pooler.label == "learned (k = 4)"
    np.testing.assert_allclose(pooler(logits), learned(logits))
    scores = pooler(logits)
    np.testing.assert_allclose(pooler.calibrated("scans", scores), expit(logit(scores) / 0.5))
    np.testing.assert_allclose(pooler.calibrated("slices", logits[0]), expit(logits[0] / 2))
    assert pooler.calibrated("patients", scores) is None
    other = build_pooler(CLASSES, stored, name="max")
    assert other.calibrated("slices", logits[0]) is not None
    assert other.calibrated("scans", scores) is None, "fitted on scores pooled another way"


def test_a_stored_temperature_that_is_no_fair_fit_is_not_applied(caplog):
    stored = {
        "pooling": {"name": "mean", "top_k": 5},
        "temperatures": {
            "slices": {"value": 0.05, "bounded": True},
            "scans": {"value": 0.5, "bounded": False},
        },
    }
    pooler = build_pooler(CLASSES, stored, source="model.pth")
    assert pooler.temperatures == {"scans": 0.5}
    assert "model.pth: its temperatures of slices are the end of the range tried" in caplog.text


def test_ahead_keeps_order_and_distance():
    asked = []

    def numbers():
        for number in itertools.count():
            asked.append(number)
            yield number

    results = ahead(lambda n: n * n, numbers(), threads=3, limit=4)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(asked) == 9
    results.close()

    def fails(number):
        if number == 2:
            raise CTMaskNetError("two")
        return number

    def ends():
        yield from (7, 8)
        raise CTMaskNetError("two")

    for results in (
        ahead(fails, range(9), threads=2, limit=5),
        ahead(abs, ends(), threads=2, limit=5),
    ):
        assert len([next(results), next(results)]) == 2
        with pytest.raises(CTMaskNetError, match="two"):
            next(results)
