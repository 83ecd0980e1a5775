"""Runners of the published networks of slices, scans and lesion maps."""

from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

from ctmasknet.evaluation.lesions.dice import (
    dice_at,
    dice_by_level,
    mean_absolute_error,
    scaled_map,
)
from ctmasknet.modeling.peers.backbones import image_network
from ctmasknet.modeling.peers.covnet import COVNet
from ctmasknet.modeling.peers.infnet import InfNet, MultiClassUNet
from ctmasknet.modeling.peers.jcs import JCSSegmentation, jcs_classifier
from ctmasknet.modeling.peers.slice_pixels import COVID_CT_BASELINE, COVID_CT_SELF_TRANS
from tests.helpers.peer_goldens import Golden, by_imagenet, ct_slice, rgb


def _depth(tensors: dict[str, list[int]], stages: list[str]) -> int:
    """Of a ResNet or Res2Net, counted from its blocks."""
    blocks = {
        (stage, name.removeprefix(stage).split(".")[0])
        for stage in stages
        for name in tensors
        if name.startswith(stage)
    }
    convs = 3 if any(n.startswith(stages[0]) and "conv3" in n for n in tensors) else 2
    return convs * len(blocks) + 2


@torch.no_grad()
def covnet(path: Path) -> None:
    golden = Golden.read(path)
    stages = [f"pretrained_model.{number}." for number in (4, 5, 6, 7)]
    backbone = f"resnet{_depth(golden.tensors, stages)}"
    model = golden.fill(COVNet(golden.facts["n_classes"], backbone))
    found = {}
    for seed, size in golden.facts["inputs"].items():
        pictures = [
            ct_slice(int(seed) * 100 + i, size["h"], size["w"]) for i in range(size["slices"])
        ]
        scan = rgb(np.stack(pictures))
        best = model.slice_features(scan).max(0)
        found |= {
            f"seed{seed}_logits": model(scan),
            f"seed{seed}_slice_features_max": best.values,
            f"seed{seed}_argmax_slice": best.indices.to(torch.int16),
        }
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.batch_norm_of_scan = True
        found[f"seed{seed}_logits_batchnorm_in_training"] = model.eval()(scan)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model.batch_norm_of_scan = False
        model.eval()
    golden.check_all(found)


@torch.no_grad()
def covid_ct(path: Path) -> None:
    golden = Golden.read(path)
    network = path.stem.removeprefix("covid_ct_")
    known = [name for name in torchvision.models.list_models() if network.startswith(name)]
    *_, outputs = (shape[0] for shape in golden.tensors.values() if shape)
    model = golden.fill(image_network(max(known, key=len), outputs))
    found = {}
    for seed, size in golden.facts["inputs"].items():
        for name, pixels in (("baseline", COVID_CT_BASELINE), ("selftrans", COVID_CT_SELF_TRANS)):
            image = pixels(ct_slice(int(seed), *size))
            logits = model(image[None])[0]
            found |= {
                f"seed{seed}_{name}_input_row112": image[0, 112],
                f"seed{seed}_{name}_logits": logits[:8],
                f"seed{seed}_{name}_argmax": logits.argmax()[None],
            }
    golden.check_all(found)


def _res2net(golden: Golden, prefix: str) -> str:
    stages = [f"{prefix}layer{number}." for number in (1, 2, 3, 4)]
    return f"res2net{_depth(golden.tensors, stages)}d"


def _images(golden: Golden):
    """(seed, (1, 3, h, w)) of every input."""
    for seed, size in golden.facts["inputs"].items():
        yield seed, by_imagenet(rgb(ct_slice(int(seed), *size)))[None]


def jcs_segmentation(path: Path) -> None:
    golden = Golden.read(path)
    joint = _res2net(golden, "res2net.") if "res2net.bn1.weight" in golden.tensors else None
    _maps(golden, JCSSegmentation(joint))


@torch.no_grad()
def _maps(golden: Golden, model: nn.Module) -> None:
    golden.fill(model)
    golden.check_all({f"seed{s}_maps": model(x)[0].sigmoid() for s, x in _images(golden)})


@torch.no_grad()
def jcs_slices(path: Path) -> None:
    golden = Golden.read(path)
    classes = golden.tensors["fc.weight"][0]
    model = golden.fill(jcs_classifier(_res2net(golden, ""), classes))
    found = {}
    for seed, image in _images(golden):
        found[f"seed{seed}_layer4_mean"] = model.forward_features(image)[0].mean((1, 2))
        found[f"seed{seed}_logits"] = model(image)[0]
    golden.check_all(found)


@torch.no_grad()
def infnet(path: Path) -> None:
    golden = Golden.read(path)
    channels = golden.tensors["rfb2_1.conv_res.conv.weight"][0]
    model = golden.fill(InfNet(_res2net(golden, "resnet."), channels))
    found = {}
    for seed, image in _images(golden):
        maps = model(image)
        found |= {f"seed{seed}_lateral_{name}": value[0, 0] for name, value in maps.items()}
    golden.check_all(found)


@torch.no_grad()
def multi_class_unet(path: Path) -> None:
    golden = Golden.read(path)
    inputs = golden.tensors["inc.double_conv.0.weight"][1]
    classes = golden.tensors["outc.conv.weight"][0]
    model = golden.fill(MultiClassUNet(inputs, classes))
    found = {}
    for seed, size in golden.facts["inputs"].items():
        slice_and_prior = [rgb(ct_slice(int(seed) + more, *size)) for more in (0, 500)]
        image = torch.cat([by_imagenet(each) for each in slice_and_prior])
        found[f"seed{seed}_logits"] = model(image[None])[0]
    golden.check_all(found)


def infnet_metric(path: Path) -> None:
    golden = Golden.read(path)
    seeds = golden.stated["seeds"]
    maps = {seed: golden.outputs[f"seed{seed}_map"] for seed in seeds}
    lesions = {seed: golden.outputs[f"seed{seed}_gt"] > 0 for seed in seeds}
    by_level = {seed: dice_by_level(maps[seed], lesions[seed]) for seed in seeds}
    mean_of_slices = np.mean([by_level[seed] for seed in seeds], axis=0)
    golden.check("mean_dice", mean_of_slices.mean(), atol=1e-9)
    golden.check("max_dice", mean_of_slices.max(), atol=1e-9)
    for seed in seeds:
        golden.check(f"seed{seed}_dice_by_threshold", by_level[seed], atol=1e-9)
        error = mean_absolute_error(maps[seed], lesions[seed])
        golden.check(f"seed{seed}_mae", error, atol=1e-9)
        at_half = dice_at(scaled_map(maps[seed]), lesions[seed])
        golden.check(f"seed{seed}_dice_at_half", at_half, atol=1e-9)


RUNNERS = {
    "covnet": covnet,
    "covid_ct": covid_ct,
    "jcs": jcs_segmentation,
    "jcs_classifier": jcs_slices,
    "infnet": infnet,
    "infnet_multiclass_unet": multi_class_unet,
    "infnet_metric": infnet_metric,
}
