"""COVIDNet-CT's files as a checkpoint of ``configs/peers/covidnet_ct.yaml``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.model_zoo import get_config_file
from ctmasknet.modeling.peers.graph_network import Graph
from ctmasknet.weights.spec import spec_of
from ctmasknet.weights.tensorflow.bundle import Bundle
from ctmasknet.weights.tensorflow.metagraph import read_metagraph

#: Names of its nodes, as its authors tell them.
_IMAGE, _TRAINING, _LOGITS = "Placeholder", "is_training", "resnet_model/final_dense"


@dataclass(frozen=True)
class ImportedCOVIDNetCT:
    """Its graph outside of training."""

    graph: Graph
    config: str = "configs/peers/covidnet_ct.yaml"
    overrides: list[str] = field(default_factory=list)

    @property
    def spec(self) -> dict[str, Any]:
        """What the checkpoint carries: its whole configuration, the network itself in it."""
        cfg = read_cfg(get_config_file(self.config.removeprefix("configs/")))
        cfg.defrost()
        cfg.MODEL.COVIDNET_CT.GRAPH = self.graph.to_text()
        return spec_of(cfg)

    def __str__(self) -> str:
        counts = Counter(node.op for node in self.graph.nodes)
        told = ", ".join(f"{counts[op]} {op}" for op in sorted(counts.keys() - {"Input", "Weight"}))
        sides = " x ".join(map(str, self.graph.input_shape))
        return f"COVIDNet-CT, input {sides}, {told}"


def read_covidnet_ct(prefix: str) -> tuple[Graph, dict[str, Tensor]]:
    """The graph and variables of ``prefix.meta``, ``prefix.index`` and ``prefix.data-...``.

    Raises:
        CTMaskNetError: a file is missing, damaged, or holds what is not supported; names it.
    """
    graph = read_metagraph(f"{prefix}.meta", _IMAGE, _TRAINING, _LOGITS)
    bundle = Bundle(prefix)
    weights = {name: bundle.read(name, shape) for name, shape in graph.weights.items()}
    try:
        _ = graph.num_outputs
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{prefix}.meta: {error}; give another checkpoint") from None
    return graph, weights


def import_covidnet_ct(prefix: str) -> tuple[dict[str, Tensor], ImportedCOVIDNetCT]:
    """The same, with the tensors by the names of the meta-architecture ``COVIDNetCT``.

    Raises:
        CTMaskNetError: see :func:`read_covidnet_ct`; it names another number of classes.
    """
    graph, weights = read_covidnet_ct(prefix)
    if graph.num_outputs != len(IMAGE_CLASSES):
        raise CTMaskNetError(
            f"{prefix}.meta: gives {graph.num_outputs} logits; COVIDNet-CT has "
            f"{len(IMAGE_CLASSES)} classes, {', '.join(IMAGE_CLASSES)}; give another checkpoint"
        )
    return {f"network.{name}": value for name, value in weights.items()}, ImportedCOVIDNetCT(graph)
