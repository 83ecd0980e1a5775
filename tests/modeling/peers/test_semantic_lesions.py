"""Lesions by semantic networks: parts of maps as lesions, targets, losses, what is refused."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.peers.jcs import JCSSegmentation
from ctmasknet.modeling.peers.semantic_lesions import SemanticLesionNet


class _Given(nn.Module):
    """Logits that are given, (K, H, W), in the upper left of what it is asked for."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        found = images.new_full((len(images), len(self.logits), *images.shape[-2:]), -9.0)
        height, width = self.logits.shape[1:]
        found[:, :, :height, :width] = self.logits
        return found


def _net(logits, name="unet", **more):
    pixels = {"pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
    return SemanticLesionNet(
        name=name, network=_Given(logits), num_classes=len(logits), **pixels, **more
    )


def _logits():
    """Class 0: a part of p 0.75, and a diagonal pair of 0.9 and 0.7; class 1: one px of 0.95."""
    probability = torch.full((2, 20, 24), 0.1)
    probability[0, 2:5, 3:9] = 0.75
    probability[0, 10, 10], probability[0, 11, 11] = 0.9, 0.7
    probability[1, 0, 23] = 0.95
    return probability.logit()


def test_lesions_are_connected_parts_with_their_mean_probability():
    item = {"image": torch.zeros(3, 20, 24)}
    (found,) = _net(_logits()).eval()([item])
    lesions = found["instances"]
    torch.testing.assert_close(lesions.scores, torch.tensor([0.95, 0.8, 0.75]))
    assert lesions.pred_classes.tolist() == [1, 0, 0]
    expected = [[23, 0, 24, 1], [10, 10, 12, 12], [3, 2, 9, 5]]
    assert lesions.pred_boxes.tensor.tolist() == expected
    assert lesions.pred_masks.sum((1, 2)).tolist() == [1, 2, 18]
    assert found["lesion_maps"].shape == (2, 20, 24)
    (best,) = _net(_logits(), max_lesions=1).eval()([item])
    assert len(best["instances"]) == 1
    (none,) = _net(_logits(), threshold=0.99).eval()([item])
    assert none["instances"].pred_masks.shape == (0, 20, 24)


def test_lesions_are_told_in_the_size_of_the_file():
    item = {"image": torch.zeros(3, 20, 24), "height": 40, "width": 48}
    (found,) = _net(_logits()).eval()([item])
    assert found["instances"].image_size == (40, 48)
    largest = found["instances"].pred_masks.sum((1, 2)).max().item()
    assert largest == pytest.approx(72, abs=8)


def _training_item():
    lesions = Instances((20, 24))
    masks = torch.zeros(2, 20, 24, dtype=torch.bool)
    masks[0, 2:5, 3:9] = masks[1, 4:6, 3:9] = True
    lesions.gt_masks, lesions.gt_classes = BitMasks(masks), torch.tensor([0, 0])
    lesions.gt_boxes = Boxes(torch.zeros(2, 4))
    return {"image": torch.zeros(3, 20, 24), "instances": lesions}


def test_losses_by_hand():
    # Logits 0 in the slice, -9 in the padding to 32 x 32 px; 24 px are lesion
    net = _net(torch.zeros(1, 20, 24)).train()
    loss = net([_training_item()])["loss_map"]
    outside = 1024 - 480
    bce = (480 * math.log(2) + outside * math.log1p(math.exp(-9))) / 1024
    found = 240 + outside / (1 + math.exp(9))
    assert loss.item() == pytest.approx(bce + 1 - 24 / (found + 24), abs=1e-5)
    loss.backward()
    assert net.network.logits.grad.abs().sum() > 0


def test_jcs_sums_over_five_maps_and_infnet_has_an_edge():
    one = _net(torch.zeros(1, 20, 24)).train()([_training_item()])["loss_map"]
    five = _net(torch.zeros(5, 20, 24), name="jcs")
    five.num_classes = 1
    torch.testing.assert_close(five.train()([_training_item()])["loss_map"], 5 * one)

    class Maps(nn.Module):
        def forward(self, images):
            maps = images.new_zeros(len(images), 1, *images.shape[-2:])
            return dict.fromkeys(("map_2", "map_3", "map_4", "map_5", "edge"), maps)

    net = _net(torch.zeros(1, 1, 1), name="infnet")
    net.network = Maps()
    losses = net.train()([_training_item()])
    assert losses["loss_edge"].item() == pytest.approx(math.log(2), abs=1e-6)
    # At probability 1/2 everywhere: shared W_in / 2, union W_in / 2 + W / 2 of the weights W
    truth = net._truth([_training_item()], (32, 32))
    pooled = nn.functional.avg_pool2d(truth, 31, stride=1, padding=15)
    weight = 1 + 5 * (pooled - truth).abs()
    inside, all_of_it = (weight * truth).sum().item(), weight.sum().item()
    iou = (inside / 2 + 1) / (all_of_it / 2 + inside / 2 + 1)
    assert losses["loss_map"].item() == pytest.approx(4 * (math.log(2) + 1 - iou), abs=1e-4)


@pytest.mark.parametrize("name", ["unet", "infnet", "jcs"])
def test_configurations_build_train_and_find(repository, name):
    overrides = ["MODEL.DEVICE", "cpu"]
    overrides += ["MODEL.SEMANTIC.ENCODER", "resnet18"] if name == "unet" else []
    if name == "unet":
        pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = build_model(read_cfg(repository / f"configs/peers/{name}.yaml", overrides))
    sum(model.train()([_training_item()] * 2).values()).backward()
    (found,) = model.eval()([{"image": torch.zeros(3, 20, 24)}])
    assert found["lesion_maps"].shape == (2 if name == "unet" else 1, 20, 24)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("unet", ["MODEL.SEMANTIC.NAME", "jcs"], "'jcs', which has one lesion class, but there ar"),
        ("unet", ["MODEL.SEMANTIC.ENCODER", "resnet19"], "ENCODER is 'resnet19'"),
        ("unet", ["MODEL.SEMANTIC.NAME", "vnet"], "SEMANTIC.NAME is 'vnet'; choose one of infnet"),
        ("jcs", ["MODEL.SEMANTIC.ENCODER", "resnet18"], "this network has its own"),
    ],
)
def test_what_cannot_be_built_is_refused(repository, config, overrides, message):
    with pytest.raises(CTMaskNetError, match=message):
        overrides = ["MODEL.DEVICE", "cpu", *overrides]
        build_model(read_cfg(repository / f"configs/peers/{config}.yaml", overrides))


def test_maps_of_jcs_tell_pixels_apart_from_the_start():
    torch.manual_seed(0)
    net = JCSSegmentation(norm="BN")
    with torch.no_grad():
        maps = net(torch.randn(2, 3, 32, 32))
    # With torch's own start of its layers 0.001 and less
    assert maps.std((2, 3)).min() > 0.005
