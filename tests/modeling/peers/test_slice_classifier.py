"""Slice classifiers: build, loss, scores, published pixels, and what they refuse."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from ctmasknet.config_file import read_cfg
from ctmasknet.engine.setup import warn_of_start
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.peers.backbones import image_network
from ctmasknet.modeling.peers.jcs import jcs_classifier
from ctmasknet.modeling.peers.slice_classifier import SliceClassifier, log_odds
from ctmasknet.modeling.peers.slice_pixels import SlicePixels


class _Means(nn.Module):
    """Mean of each channel, and one output more that stands for no class."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        means = x.mean((2, 3)) * self.scale
        return torch.cat([means, torch.zeros_like(means[:, :1])], dim=1)


@pytest.fixture
def model():
    pixels = SlicePixels(size=0, crop=0, mean=(0.0,), std=(1.0,))
    return SliceClassifier(network=_Means(), num_classes=3, pixels=pixels)


def _item(red, green, blue, **more):
    image = torch.tensor([red, green, blue], dtype=torch.uint8)[:, None, None].expand(3, 4, 6)
    return {"file_name": "a.png", "image": image, **more}


def test_scores_are_the_softmax_over_all_outputs(model):
    (found,) = model.eval()([_item(51, 255, 0)])
    expected = torch.tensor([0.2, 1.0, 0.0, 0.0]).softmax(0)[:3]
    assert found["pred_class"] == 1
    torch.testing.assert_close(found["scores"], expected)
    torch.testing.assert_close(found["logits"].sigmoid(), expected)


def test_the_loss_is_cross_entropy(model):
    losses = model.train()([_item(51, 255, 0, label=0)])
    expected = -torch.tensor([0.2, 1.0, 0.0, 0.0]).log_softmax(0)[0]
    torch.testing.assert_close(losses, {"loss_image": expected})
    with pytest.raises(CTMaskNetError, match=r"a\.png: label 3 is not one of 0\.\.2"):
        model([_item(0, 0, 0, label=3)])


def test_log_odds_of_far_outputs_stay_finite():
    torch.testing.assert_close(
        log_odds(torch.tensor([[200.0, -200.0]])), torch.tensor([[400.0, -400.0]])
    )


def test_pixels_squash_or_cut():
    image = np.zeros((40, 80), np.uint8)
    image[:, 40:] = 255
    squashed = SlicePixels(size=20, crop=0, squash=True, mean=(0.5,), std=(0.25,))(image)
    assert squashed.shape == (3, 20, 20)
    assert (squashed[0, 0, 0], squashed[0, 0, -1]) == (-2, 2)
    cut = SlicePixels(size=20, crop=10, mean=(0.0,), std=(1.0,))(image)
    assert cut.shape == (3, 10, 10) and cut.mean() == pytest.approx(0.5, abs=0.01)


def test_ten_crops_vote(model):
    """Of a slice of 4 x 6 px that is red in its first two columns, 4 x 4 px cuts at the left are
    half red, those at the right not at all, that of the middle a quarter; so are their mirrors."""
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    image[0, :, :2] = 255
    item = {"file_name": "a.png", "image": image}
    model.pixels = SlicePixels(size=0, crop=4, mean=(0.0,), std=(1.0,), ten_crops=True)
    (found,) = model.eval()([item])
    scores = [torch.tensor([red, 0, 0, 0.0]).softmax(0)[:3] for red in (0.5, 0.0, 0.25)]
    expected = 0.4 * scores[0] + 0.4 * scores[1] + 0.2 * scores[2]
    torch.testing.assert_close(found["scores"], expected)
    assert model.pixels.crops(np.zeros((2, 3), np.uint8)).shape == (10, 3, 4, 4)
    assert model.train()([{**item, "label": 0}])["loss_image"].isfinite()


def test_a_model_is_built_from_its_configuration(repository):
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.SLICE_NETWORK.NAME", "resnet18"]
    cfg = read_cfg(repository / "configs/peers/covid_ct_densenet169.yaml", overrides)
    model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    assert model.num_classes == 3
    image = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)
    torch.testing.assert_close(model.pixels(image), SlicePixels()(image))


def test_jcs_classifier_by_name(repository):
    cfg = read_cfg(repository / "configs/peers/jcs_classifier.yaml", ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        network = build_model(cfg).network
    assert network.fc.weight.shape == (3, 2048) and network.fc.bias is None
    assert isinstance(network.bn1, FrozenBatchNorm2d) and network.bn1.eps == 0
    # As published for two classes
    assert sum(p.numel() for p in network.parameters()) - 2048 == 43_061_828


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.SLICE_NETWORK.NUM_OUTPUTS", 2], "NUM_OUTPUTS is 2, but there are 3 classes"),
        (["MODEL.SLICE_NETWORK.CROP", 300], "CROP is 300 px, more than MODEL.SLICE_NETWORK.SIZE"),
        (["MODEL.SLICE_NETWORK.NAME", "resnet19"], "timm has no network resnet19; near it are"),
    ],
)
def test_what_cannot_be_built_is_refused(repository, overrides, message):
    cfg = read_cfg(repository / "configs/peers/resnet18.yaml", ["MODEL.DEVICE", "cpu", *overrides])
    with pytest.raises(CTMaskNetError, match=message):
        build_model(cfg)


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_689_512), ("timm/resnet18", 11_689_512)]
)
def test_a_network_of_either_library(name, parameters):
    network = image_network(name, 1000)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert ("timm" in type(network).__module__) == name.startswith("timm/")


def test_slices_that_differ_in_size_are_no_batch(model):
    wide = _item(0, 0, 0) | {"image": torch.zeros(3, 4, 8, dtype=torch.uint8)}
    with pytest.raises(CTMaskNetError, match=r"differ in size; set MODEL\.SLICE_NETWORK\.CROP"):
        model.eval()([_item(0, 0, 0), wide])


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_blocks_of_jcs_can_learn(norm):
    network = jcs_classifier("res2net50d", 3, norm).train()
    last = network.layer1[0].bn3
    assert isinstance(last, nn.BatchNorm2d if norm == "BN" else FrozenBatchNorm2d)
    # A weight that is frozen at zero would keep a block from adding to its shortcut
    assert norm == "BN" or last.weight.eq(1).all()


def test_what_has_no_effect_is_told(repository, caplog):
    config = repository / "configs/peers/jcs_classifier.yaml"
    for norm, told in (("FrozenBN", True), ("BN", False)):
        caplog.clear()
        warn_of_start(read_cfg(config, ["MODEL.JCS.NORM", norm]))
        assert ("MODEL.JCS.NORM is FrozenBN, which learns next to" in caplog.text) == told
    resnet18 = repository / "configs/peers/resnet18.yaml"
    with pytest.raises(CTMaskNetError, match=r"MODEL\.JCS\.NORM is 'BN', which has no effect"):
        read_cfg(resnet18, ["MODEL.JCS.NORM", "BN"])
    whole = ["MODEL.SLICE_NETWORK.CROP", "0", "MODEL.SLICE_NETWORK.TEN_CROPS", "True"]
    with pytest.raises(CTMaskNetError, match="no effect: it is of slices that are cut"):
        read_cfg(resnet18, whole)


def test_the_look_alike_starts_near_what_running_statistics_start_from():
    torch.manual_seed(0)
    network = image_network("covidnet_ct_lookalike", 3).train()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network(torch.rand(4, 3, 64, 64))
    assert len(norms) == 16 and min(norm.running_var.mean() for norm in norms) > 0.1
