"""Grad-CAM of networks of slices: by hand, where it lies, what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.ops import Permute

from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.explain.gradcam import grad_cam, last_spatial_layer, map_page
from ctmasknet.explain.run import explain_slices, method_for
from ctmasknet.modeling.peers.backbones import image_network
from ctmasknet.modeling.peers.slice_classifier import SliceClassifier
from ctmasknet.modeling.peers.slice_pixels import SlicePixels
from ctmasknet.predict import CTPredictor


class _Sum(nn.Module):
    """Class c's output is the c-th weight of the mean of a blurred slice, squared by place."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(8)
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.linear = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[..., None, None])
            self.linear.weight.copy_(torch.tensor([[1.0, 0], [0, 2], [-1, 0]]))

    def forward(self, x):
        return self.linear(self.conv(self.pool(x)).mean((2, 3)))


@pytest.fixture
def model():
    pixels = SlicePixels(size=0, crop=0, mean=(0.0,), std=(1.0,))
    return SliceClassifier(network=_Sum(), num_classes=3, pixels=pixels).eval()


def test_maps_by_hand(model):
    image = torch.zeros(3, 16, 24, dtype=torch.uint8)
    image[0, :8, 16:] = 255
    image[1, 8:, :8] = 51
    found = grad_cam(model, {"image": image})
    assert found.layer == "conv" and found.seen_px == (0, 0, 24, 16)
    # The gradient of a mean over 6 places is a sixth of the weight, the same everywhere
    expected = torch.zeros(3, 2, 3)
    expected[0, 0, 2], expected[1, 1, 0] = 1 / 6, 0.2 * 2 / 6
    torch.testing.assert_close(found.maps, expected)
    picture = np.full((16, 24, 3), 100, np.uint8)
    page = map_page(picture, found, 0, (16, 24), class_names=("a", "b", "c"))
    (other,) = [map_page(picture, found, 2, (16, 24), class_names=("a", "b", "c"))]
    changed = np.argwhere((page != other).any(2) & (other == 100).all(2))
    assert len(changed)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer4"), ("densenet121", "features"), ("timm/resnet18", "layer4")],
)
def test_the_last_layer_with_places(name, layer):
    network = image_network(name, 2).eval()
    found, module = last_spatial_layer(network, torch.zeros(1, 3, 64, 64))
    assert found == layer and module is network.get_submodule(layer)
    with pytest.raises(CTMaskNetError, match="has no layer with places"):
        last_spatial_layer(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2))


def test_channels_are_not_taken_for_places():
    last = Permute([0, 2, 3, 1])
    network = nn.Sequential(nn.Conv2d(3, 96, 1), last, nn.Flatten())
    with pytest.raises(CTMaskNetError, match=r"^1, the last layer .* gives its channels last"):
        last_spatial_layer(network, torch.zeros(1, 3, 6, 8))
    # Pooled to a square, of a slice that is none
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    assert last_spatial_layer(pooled, torch.zeros(1, 3, 6, 8))[0] == "0"


def test_where_the_middle_lies():
    assert SlicePixels(size=256, crop=224).seen(512, 512) == (32, 32, 480, 480)
    assert SlicePixels(size=20, crop=10).seen(40, 80) == (30, 10, 50, 30)
    assert SlicePixels(size=20, crop=0, squash=True).seen(40, 80) == (0, 0, 80, 40)
    assert SlicePixels(size=20, crop=10, squash=True).seen(40, 80) == (20, 10, 60, 30)


def test_a_line_and_a_picture_a_slice(repository, tmp_path):
    torch.manual_seed(0)
    small = ["MODEL.DEVICE", "cpu", "MODEL.SLICE_NETWORK.SIZE", "64"]
    small += ["MODEL.SLICE_NETWORK.CROP", "64", "TEST.IMS_PER_BATCH", "2"]
    cfg = read_cfg(repository / "configs/peers/resnet18.yaml", small)
    net = SliceClassifier(cfg).eval()
    predictor = CTPredictor(cfg, model=net)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (80, 100), dtype=np.uint8)).save(tmp_path / "a.png")
    entries = [{"file_name": str(tmp_path / "a.png"), "image_id": "a.png", "label": 1}]
    assert explain_slices(predictor, entries, tmp_path / "out", target="covid") == 1
    (line,) = map(json.loads, (tmp_path / "out/attributions.jsonl").open())
    assert line["method"] == "gradcam" and line["layer"] == "layer4"
    assert line["seen_px"] == [10, 0, 90, 80] and line["target"] == "covid"
    assert line["label"] == "pneumonia" and np.argmax(line["logits"]) == net_class(line)
    maps = np.array([line["maps"][name] for name in line["classes"]])
    assert maps.shape == (3, 2, 2) and (maps >= 0).all() and maps.any()
    assert (tmp_path / "out" / line["picture"]).is_file()
    # Explaining leaves no gradient behind
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(CTMaskNetError, match="occlusion is not for a SliceClassifier"):
        method_for("SliceClassifier", "occlusion")
    with pytest.raises(CTMaskNetError, match="removed is of occlusion"):
        method_for("SliceClassifier", None, "removed")
    with pytest.raises(CTMaskNetError, match="gradcam is not for a CTMaskNet"):
        method_for("CTMaskNet", "gradcam")


def net_class(line):
    return line["classes"].index(line["pred"])
