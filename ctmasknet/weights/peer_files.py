"""Files of the compared systems as checkpoints of ``configs/peers/``: COVNet, COVID-CT, JCS and
Inf-Net, told by their tensors' names. Networks here call them the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.model_zoo import get_config_file
from ctmasknet.weights.entries import CONFIGURATION
from ctmasknet.weights.pickle import shown
from ctmasknet.weights.spec import spec_of

_NETWORK, _TRACKED = "network.", ".num_batches_tracked"
#: Blocks of the third and fourth part of torchvision's networks.
_DENSENETS = {(24, 16): "densenet121", (32, 32): "densenet169", (48, 32): "densenet201"}
#: ImageNet's, which COVID-CT keeps.
_COVID_CT_OUTPUTS = 1000
_RESNETS = {
    **{(False, 2): "resnet18", (False, 6): "resnet34"},
    **{(True, 6): "resnet50", (True, 23): "resnet101", (True, 36): "resnet152"},
}


@dataclass(frozen=True)
class ImportedPeer:
    """What a file turned out to hold.

    Attributes:
        what: the system and its network, in words.
        config: its configuration.
        keys: configuration keys that differ from it.
        classes: names of the slice classes; None for a network of lesions.
        last: name of the last layer's tensors, whose rows are the classes.
        order: which of the file's outputs each class is.
        told: further lines.
    """

    what: str
    config: str
    keys: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    last: str = ""
    order: tuple[int, ...] = ()
    told: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        """``KEY VALUE`` pairs that the configuration needs besides."""
        keys = dict(self.keys)
        if self.classes and self.classes != IMAGE_CLASSES:
            keys["MODEL.IMAGE_HEAD.CLASSES"] = list(self.classes)
        return [word for key, value in keys.items() for word in (key, json.dumps(value))]

    @property
    def spec(self) -> dict[str, Any]:
        """What the checkpoint carries so that a config that disagrees is noticed; not how slices
        are made, which COVID-CT's two files do otherwise."""
        spec = spec_of(self.cfg())
        del spec[CONFIGURATION]
        return spec

    def cfg(self, *more: str):
        """Its configuration."""
        path = get_config_file(self.config.removeprefix("configs/"))
        return read_cfg(path, [*self.overrides, *more])

    def __str__(self) -> str:
        return self.what if not self.classes else f"{self.what}, classes {', '.join(self.classes)}"


def unwrapped(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict without the ``module.`` that several GPUs leave before every name."""
    prefix = "module."
    if state and all(isinstance(name, str) and name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def peer_of(
    state: Mapping[str, Tensor], classes: Sequence[str] | None = None
) -> ImportedPeer | None:
    """Which compared system a state dict is of; None where it is none of these.

    Args:
        state: tensors by name.
        classes: names of a classifier's outputs in the file's order, where they are others than
            its authors'. A plain ResNet is COVID-CT's with them and ImageNet's without.

    Raises:
        CTMaskNetError: the network is known but has no configuration, or another number of classes.
    """
    if "classifer.weight" in state:  # the authors' spelling
        name = _resnet(state, "pretrained_model.", (4, 6))
        keys = {} if name == "resnet50" else {"MODEL.SLICE_NETWORK.NAME": name}
        given = classes or ("covid", "pneumonia", "normal")
        return _classifier("COVNet", "covnet", state, "classifer", given, keys, classes is None)
    if "features.denseblock1.denselayer1.conv1.weight" in state and "classifier.weight" in state:
        return _covid_ct(_densenet(state), state, "classifier", classes)
    if "conv1.0.weight" in state and "fc.weight" in state and "fc.bias" not in state:
        given = classes or ("normal", "covid")
        return _classifier("JCS's classifier", "jcs_classifier", state, "fc", given, {}, False)
    if "layer1.0.conv1.weight" in state and "fc.weight" in state and classes:
        return _covid_ct(_resnet(state, "layer", (1, 3)), state, "fc", classes)
    if classes is not None:
        raise CTMaskNetError(
            "`classes`: name the outputs of COVNet, COVID-CT or JCS's classifier, of which this "
            "is none; leave them out"
        )
    if "vgg16.conv1_1.conv.weight" in state:
        joint = "res2net.conv1.0.weight" in state
        what = f"JCS's segmentation, VGG-16{' and Res2Net-101' if joint else ''}"
        return ImportedPeer(what, f"configs/peers/jcs{'_joint' if joint else ''}.yaml")
    if any(name.startswith("rfb2_1.") for name in state):
        return ImportedPeer("Inf-Net, Res2Net-50", "configs/peers/infnet.yaml")
    if {"inc.double_conv.0.weight", "outc.conv.weight"} <= state.keys():
        raise CTMaskNetError(
            "holds Inf-Net's multi-class U-Net, which reads the map of another network beside the "
            "slice, and has no configuration; give Inf-Net's own file"
        )
    return None


def import_peer(state: Mapping[str, Tensor], found: ImportedPeer) -> dict[str, Tensor]:
    """Its tensors by the names of the configuration's model.

    Raises:
        CTMaskNetError: a tensor is missing, of a wrong shape, or not of such a network.
    """
    with torch.device("meta"):
        model = build_model(found.cfg("MODEL.DEVICE", "meta"))
    expected = {
        name.removeprefix(_NETWORK): tuple(value.shape)
        for name, value in model.state_dict().items()
    }
    converted = {}
    for name, shape in expected.items():
        tracked = name.endswith(_TRACKED)
        if name not in state and tracked:  # files older than torch 0.4.1 do not count batches
            converted[_NETWORK + name] = torch.zeros((), dtype=torch.int64)
            continue
        if name not in state or tuple(state[name].shape) != shape:
            has = f"has {tuple(state[name].shape)}" if name in state else "is missing"
            raise CTMaskNetError(
                f"tensor {name} of shape {shape} {has} for {found.what}; the file is incomplete or "
                "of another model"
            )
        tensor = state[name]
        if found.order and name.startswith(f"{found.last}."):
            rest = range(len(found.order), len(tensor))
            tensor = tensor[[*found.order, *rest]]
        dtype = torch.int64 if tracked else torch.float32
        converted[_NETWORK + name] = tensor.to(dtype).contiguous()
    for name in sorted(state.keys() - expected.keys()):
        # Frozen normalisation counts no batches
        if not name.endswith(_TRACKED):
            raise CTMaskNetError(
                f"tensor {shown(name)} has no place in {found.what}; the file is of another model"
            )
    return converted


def _covid_ct(
    name: str, state: Mapping[str, Tensor], last: str, classes: Sequence[str] | None
) -> ImportedPeer:
    outputs = len(state[f"{last}.weight"])
    keys: dict[str, Any] = {}
    if outputs != _COVID_CT_OUTPUTS:
        keys["MODEL.SLICE_NETWORK.NUM_OUTPUTS"] = outputs
    if name not in ("densenet169", "resnet50"):
        keys["MODEL.SLICE_NETWORK.NAME"] = name
    config = "covid_ct_densenet169" if name.startswith("densenet") else "covid_ct_resnet50"
    told = (
        "Self-Trans's file has the same tensors, but its slices are made otherwise: for it give "
        "configs/peers/covid_ct_self_trans.yaml",
        "ImageNet's file has the same tensors too, and knows none of these classes",
    )
    given = classes or ("covid", "non_covid")
    found = _classifier(f"COVID-CT, {name}", config, state, last, given, keys, False, spare=True)
    told = told if name == "densenet169" else told[1:]
    return ImportedPeer(**{**vars(found), "told": (*found.told, *told)})


def _classifier(
    what: str,
    config: str,
    state: Mapping[str, Tensor],
    last: str,
    classes: Sequence[str],
    keys: dict[str, Any],
    assumed: bool,
    spare: bool = False,
) -> ImportedPeer:
    """A classifier whose classes, where all are the package's, come in the package's order;
    ``spare`` outputs behind them are of no class."""
    outputs = len(state[f"{last}.weight"])
    if len(set(classes)) < len(classes) or not 2 <= len(classes) <= outputs:
        raise CTMaskNetError(f"`classes`: {', '.join(classes)} are no {outputs} classes of {what}")
    if not spare and len(classes) != outputs:
        raise CTMaskNetError(
            f"{what} of {outputs} outputs, but {len(classes)} classes ({', '.join(classes)}); name "
            "all of them as `classes`"
        )
    ordered = list(classes)
    if set(classes) <= set(IMAGE_CLASSES):
        ordered = [name for name in IMAGE_CLASSES if name in classes]
    order = tuple(classes.index(name) for name in ordered)
    told = ()
    if assumed or ordered != list(classes):
        told = (f"classes in the file's order: {', '.join(classes)}; here: {', '.join(ordered)}",)
    path = f"configs/peers/{config}.yaml"
    return ImportedPeer(what, path, keys, tuple(ordered), last, order, told)


def _resnet(state: Mapping[str, Tensor], prefix: str, stages: tuple[int, int]) -> str:
    """torchvision's name; ``stages`` are how the first and the third are called."""
    first, third = (f"{prefix}{number}." for number in stages)
    blocks = {name.removeprefix(third).split(".")[0] for name in state if name.startswith(third)}
    found = _RESNETS.get((f"{first}0.conv3.weight" in state, len(blocks)))
    if found is None:
        raise CTMaskNetError(f"{len(blocks)} blocks in the third stage are of no ResNet known")
    return found


def _densenet(state: Mapping[str, Tensor]) -> str:
    parts = [f"features.denseblock{number}." for number in (3, 4)]
    layers = tuple(
        len({n.removeprefix(part).split(".")[0] for n in state if n.startswith(part)})
        for part in parts
    )
    if layers not in _DENSENETS:
        raise CTMaskNetError(f"{layers} layers in the last parts are of no DenseNet known")
    return _DENSENETS[layers]
