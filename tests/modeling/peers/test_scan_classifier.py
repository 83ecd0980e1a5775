"""Scan classifiers: which slices are a scan, what is drawn of it, one answer for its slices."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from detectron2.modeling import build_model

from ctmasknet.config_file import read_cfg
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.data.training.scan_batches import ScanBatches, scans_of
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.loading import Loaded, whole_scan


def _cfg(repository, *overrides):
    small = ["MODEL.DEVICE", "cpu", "MODEL.SLICE_NETWORK.NAME", "resnet18", *overrides]
    return read_cfg(repository / "configs/peers/covnet.yaml", small)


def _slices(patient, count, label, seed):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(1, 255, (count, 3, 40, 40), dtype=np.uint8))
    where = {"patient": patient, "scan": "1", "label": label}
    return [
        {"file_name": f"{patient}_{i}.png", "image": image, **where}
        for i, image in enumerate(images)
    ]


@pytest.fixture(scope="module")
def model(repository):
    torch.manual_seed(0)
    return build_model(_cfg(repository)).eval()


def test_each_slice_is_given_its_scans_logits(model):
    a, b = _slices("a", 18, 0, seed=1), _slices("b", 2, 1, seed=2)
    mixed = [a[0], b[0], *a[1:], b[1]]
    found = model(mixed)
    (alone, *_), (other, *_) = model(a), model(b)
    for item, output in zip(mixed, found, strict=True):
        expected = alone if item["patient"] == "a" else other
        torch.testing.assert_close(output["logits"], expected["logits"])
        torch.testing.assert_close(output["scores"], output["logits"].sigmoid())
    # In parts of 16 slices as at once
    whole = model.network(torch.stack([item["image"] / 255 for item in a]))
    torch.testing.assert_close(alone["scores"], whole.softmax(0), atol=1e-5, rtol=1e-4)


def test_statistics_of_the_scan_are_a_switch(repository, model):
    slices = _slices("a", 3, 0, seed=1)
    cfg = _cfg(repository, "MODEL.SCAN_NETWORK.BATCH_STATISTICS", "True")
    by_scan = build_model(cfg).eval()
    by_scan.load_state_dict(model.state_dict())
    before = by_scan.network.pretrained_model[1].running_mean.clone()
    gap = by_scan(slices)[0]["scores"] - model(slices)[0]["scores"]
    assert gap.abs().max() > 1e-3
    assert torch.equal(by_scan.network.pretrained_model[1].running_mean, before)


def test_the_loss_is_the_mean_over_scans(repository):
    network = build_model(_cfg(repository)).train()
    with torch.no_grad():
        network.network.classifer.weight.zero_()
        network.network.classifer.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    loss = network([*_slices("a", 3, 0, 1), *_slices("b", 1, 2, 2)])["loss_image"]
    expected = -torch.tensor([0.0, 1.0, 2.0]).log_softmax(0)[[0, 2]].mean()
    torch.testing.assert_close(loss, expected)


def test_a_black_scan_has_no_class(model):
    black = [item | {"image": item["image"] * 0} for item in _slices("a", 2, 0, 1)]
    with pytest.raises(CTMaskNetError, match=r"a_0\.png: every slice of its scan is black"):
        model(black)


def test_batches_hold_scans_and_at_most_so_many_of_their_slices():
    dicts = [*_slices("a", 5, 0, 1), *_slices("b", 2, 1, 1)]
    dicts = [dicts[i] for i in (0, 5, 1, 2, 6, 3, 4)]
    scans = scans_of(dicts, "set", one_label=True)
    assert scans == [[0, 2, 3, 5, 6], [1, 4]]

    def batches(start):
        sampler = ScanBatches(TrainingSampler(2, seed=3), 2, scans, most=3, seed=3)
        sampler.start = start
        return list(itertools.islice(sampler, 3))

    found = batches(0)
    for number, batch in enumerate(found):
        assert {position for position, _ in batch} == {2 * number, 2 * number + 1}
        drawn = [index for _, index in batch]
        assert len(drawn) == len(set(drawn)) == 5 and {1, 4} < set(drawn)
    assert len({tuple(sorted(index for _, index in batch)) for batch in found}) > 1
    assert batches(1)[0] == found[1]


def test_slices_have_to_tell_one_class_and_their_scan():
    slices = _slices("a", 2, 0, 1)
    unlike = [slices[0], slices[1] | {"label": 1}]
    assert scans_of(unlike, "set") == [[0, 1]]
    with pytest.raises(CTMaskNetError, match=r"set: scan 1 of a_0\.png has slices of unlike"):
        scans_of(unlike, "set", one_label=True)
    with pytest.raises(CTMaskNetError, match=r"set: a_1\.png does not tell its scan"):
        scans_of([slices[0], slices[1] | {"scan": ""}], "set")


def test_what_is_outside_of_the_lungs_becomes_black(repository):
    # Body of soft tissue (HU 55), two lungs (HU -838), air around; window -1250..250
    image = np.full((120, 160), 20, np.uint8)
    image[15:105, 10:150] = 222
    image[30:90, 25:70] = image[30:90, 90:135] = 70
    mapped = SliceMapper(_cfg(repository), False).map_pixels({"file_name": "a.png"}, image)
    grey = mapped["image"][0].numpy()
    assert (grey[35:85, 30:65] == 70).all()
    assert not grey[:25].any() and not grey[:, 75:85].any()
    with pytest.raises(CTMaskNetError, match=r"INPUT\.LUNGS_ONLY: the window 40,80 HU"):
        narrow = ["INPUT.WINDOW_CENTER_HU", "40", "INPUT.WINDOW_WIDTH_HU", "80"]
        SliceMapper(_cfg(repository, *narrow), False)


def test_a_prediction_sees_a_scan_whole():
    bad = Loaded(None, None, None, bad="bad")
    good = [Loaded(number, {}, None) for number in range(3)]
    assert list(whole_scan([good[0], bad, *good[1:]])) == ["bad", good]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.SLICE_NETWORK.NAME", "densenet169"], "takes a ResNet of torchvision"),
        (["MODEL.SLICE_NETWORK.NAME", "resnet19"], "torchvision has no network resnet19"),
        (["MODEL.SLICE_NETWORK.NUM_OUTPUTS", "5"], "as many outputs as classes"),
        (["TEST.IMS_PER_BATCH", "4"], "a batch is a scan"),
    ],
)
def test_what_cannot_be_is_refused(repository, overrides, message):
    with pytest.raises(CTMaskNetError, match=message):
        build_model(_cfg(repository, *overrides))
