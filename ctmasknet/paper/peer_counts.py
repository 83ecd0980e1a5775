"""Parameters and multiply-adds of the compared systems beside the published numbers:

python -m ctmasknet.paper.peer_counts
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import nn

from ctmasknet.errors import command_line
from ctmasknet.modeling.peers.backbones import image_network
from ctmasknet.modeling.peers.covnet import COVNet
from ctmasknet.modeling.peers.infnet import InfNet, MultiClassUNet
from ctmasknet.modeling.peers.jcs import JCSSegmentation, jcs_classifier
from ctmasknet.paper.model_costs import counted_multiply_adds


@dataclass(frozen=True)
class PeerNetwork:
    """A network, the shape of one input (a slice's of a scan for COVNet), and the paper's "M"."""

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    published_millions: float | None = None


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
    PeerNetwork("JCS, VGG-16", JCSSegmentation, (3, 512, 512)),
    PeerNetwork("JCS, joint", lambda: JCSSegmentation("res2net101d"), (3, 512, 512)),
    PeerNetwork("JCS, classifier", jcs_classifier, (3, 224, 224)),
    PeerNetwork("Inf-Net", InfNet, (3, 352, 352)),
    PeerNetwork("Inf-Net, multi-class U-Net", MultiClassUNet, (6, 352, 352)),
)


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
    """A Markdown table of :data:`PEER_NETWORKS`."""
    rows = []
    for network in PEER_NETWORKS:
        parameters, billions = network_counts(network)
        size = " x ".join(map(str, network.input_shape))
        published = network.published_millions or "-"
        rows.append((network.name, size, f"{parameters:,}", f"{billions:.2f}", published))
    headers = ("network", "input", "parameters", "GMAC", "M parameters in the paper")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    raise SystemExit(command_line(lambda: print(counts_table()))())
