"""Parameters and multiply-adds of the compared systems beside the published numbers:

python -m ctmasknet.paper.peer_counts
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn

from ctmasknet.config_file import read_cfg
from ctmasknet.errors import command_line
from ctmasknet.model_zoo import get_config_file
from ctmasknet.modeling.peers.backbones import image_network
from ctmasknet.modeling.peers.covnet import COVNet
from ctmasknet.modeling.peers.infnet import InfNet, MultiClassUNet
from ctmasknet.modeling.peers.jcs import JCSSegmentation, jcs_classifier
from ctmasknet.modeling.peers.patches import PatchClassifier
from ctmasknet.paper.model_costs import counted_multiply_adds
from ctmasknet.paper.variants import count


@dataclass(frozen=True)
class PeerNetwork:
    """A network, the shape of one input (a slice's of a scan for COVNet), and the paper's "M"."""

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    published_millions: float | None = None


class _OnePatch(nn.Module):
    """Xu et al.'s network on one patch, which is all of the image."""

    def __init__(self):
        super().__init__()
        self.classifier = PatchClassifier(3)

    def forward(self, image: Tensor) -> Tensor:
        (logits,) = self.classifier(image, [image.new_empty(1, 4)])
        return logits


def _configured(name: str, part: str = "network") -> nn.Module:
    """The part of a compared system that ``configs/peers`` builds."""
    path = get_config_file(f"configs/peers/{name}.yaml")
    model = build_model(read_cfg(path, ["MODEL.DEVICE", "meta"]))
    return model.get_submodule(part)


PEER_NETWORKS = (
    PeerNetwork(
        "COVIDNet-CT, look-alike",
        lambda: image_network("covidnet_ct_lookalike", 3),
        *((3, 512, 512), 1.8),
    ),
    PeerNetwork("COVNet, 3 classes", lambda: COVNet(3), (3, 512, 512), 25.61),
    PeerNetwork(
        "COVID-CT, DenseNet-169", lambda: image_network("densenet169", 1000), (3, 224, 224)
    ),
    PeerNetwork("COVID-CT, ResNet-50", lambda: image_network("resnet50", 1000), (3, 224, 224)),
    PeerNetwork("ResNet-18", lambda: image_network("resnet18", 1000), (3, 224, 224)),
    PeerNetwork(
        "EfficientNet-Lite0", lambda: image_network("tf_efficientnet_lite0", 1000), (3, 224, 224)
    ),
    PeerNetwork("Xu et al., a patch with its place", _OnePatch, (3, 64, 64), "11.69"),
    PeerNetwork("JCS, VGG-16", JCSSegmentation, (3, 512, 512)),
    PeerNetwork("JCS, joint", lambda: JCSSegmentation("res2net101d"), (3, 512, 512)),
    PeerNetwork("JCS, classifier", jcs_classifier, (3, 224, 224)),
    PeerNetwork("Inf-Net", InfNet, (3, 352, 352)),
    PeerNetwork("Inf-Net, multi-class U-Net", MultiClassUNet, (6, 352, 352)),
    PeerNetwork("U-Net, ResNet-34", lambda: _configured("unet"), (3, 512, 512)),
    PeerNetwork("U-Net++, ResNet-34", lambda: _configured("unetplusplus"), (3, 512, 512)),
    PeerNetwork("DeepLabv3+, ResNet-50", lambda: _configured("deeplabv3plus"), (3, 512, 512)),
    PeerNetwork(
        "Zhang et al., second stage",
        lambda: _configured("zhang", "image_head.network"),
        (2, 32, 64, 64),
    ),
)


@dataclass(frozen=True)
class TwoBranchCount:
    """A later model of the paper's author. ``background`` parameters of theirs have no place here:
    rows of a class that Detectron2 has not, in both box predictors and the mask predictor."""

    name: str
    config: str
    background: int
    overrides: tuple[str, ...] = ()


#: The counted file of affinity ends at the third stage of ResNet-18.
_THIRD_STAGE = (
    *("MODEL.RESNETS.OUT_FEATURES", "['res4']", "MODEL.FPN.IN_FEATURES", "['res4']"),
    *("MODEL.RPN.IN_FEATURES", "['p4']", "MODEL.ROI_HEADS.IN_FEATURES", "['p4']"),
)
#: Systems whose head reads what a lesion model finds.
ON_LESIONS = (*("xu_resnet18", "ark20_r50", "ark20_r101"), *("unet_logistic", "unet_mlp", "zhang"))
TWO_BRANCH_COUNTS = (
    TwoBranchCount("single shot", "configs/peers/ssm.yaml", 2 * 516 + 129),
    TwoBranchCount("affinity", "configs/peers/affinity.yaml", 2 * 516 + 257, _THIRD_STAGE),
    TwoBranchCount("LSTM + attention", "configs/peers/lstm.yaml", 2 * 516 + 257),
)


def two_branch_parameters(model: TwoBranchCount) -> tuple[int, int]:
    """Parameters here, and in the author's layout."""
    overrides = ["MODEL.DEVICE", "cpu", *model.overrides]
    ours = count(read_cfg(get_config_file(model.config), overrides))["parameters"]
    return ours, ours + model.background


def parameters_on_lesions(name: str) -> tuple[int, int]:
    """Parameters of a system of :data:`ON_LESIONS`: all, and those of its head, which learns."""
    path = get_config_file(f"configs/peers/{name}.yaml")
    found = count(read_cfg(path, ["MODEL.DEVICE", "cpu"]))
    return found["parameters"], found["trainable"]


def network_counts(network: PeerNetwork) -> tuple[int, float]:
    """Trainable parameters, and billions of multiply-adds of convolutions and linear layers for
    one input. Nothing is computed: tensors have shapes alone."""
    with torch.device("meta"):
        model = network.build().eval()
        image = torch.empty(1, *network.input_shape)
    with torch.no_grad():
        counted = counted_multiply_adds(lambda: model(image))
    return sum(p.numel() for p in model.parameters()), counted / 1e9


def counts_table() -> str:
    """A Markdown table of :data:`PEER_NETWORKS`, :data:`TWO_BRANCH_COUNTS`, :data:`ON_LESIONS`."""
    rows = []
    for network in PEER_NETWORKS:
        parameters, billions = network_counts(network)
        size = " x ".join(map(str, network.input_shape))
        published = network.published_millions or "-"
        rows.append((network.name, size, f"{parameters:,}", f"{billions:.2f}", published))
    for model in TWO_BRANCH_COUNTS:
        # How much a detector computes depends on the slice: tools/compare.py measures it
        ours, theirs = two_branch_parameters(model)
        rows.append((model.name, "slice", f"{ours:,} ({theirs:,} in the author's)", "-", "-"))
    for name in ON_LESIONS:
        every, head = parameters_on_lesions(name)
        rows.append(
            (f"`{name}`, with lesion model", "slice", f"{every:,} ({head:,} learn)", "-", "-")
        )
    headers = ("network", "input", "parameters", "GMAC", "M parameters in the paper")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    raise SystemExit(command_line(lambda: print(counts_table()))())
