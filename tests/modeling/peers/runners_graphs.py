"""Runs the goldens that are a network's own files, with what TensorFlow computed of them."""

import json
from pathlib import Path

import numpy as np
import torch

from ctmasknet.modeling.peers.graph_network import Graph, GraphNetwork
from ctmasknet.weights.tensorflow.covidnet_ct import read_covidnet_ct
from tests.helpers.peer_goldens import ct_slice, rgb


def covidnet_ct(folder: Path) -> None:
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    graph, weights = read_covidnet_ct(str(folder / "model"))
    assert {name: list(value.shape) for name, value in weights.items()} == facts["tensors"]
    assert sum(value.numel() for value in weights.values()) == facts["elements"]
    network = GraphNetwork(Graph.from_text(graph.to_text())).eval()
    network.load_state_dict(weights)
    with np.load(folder / "outputs.npz") as arrays:
        expected = {key: arrays[key] for key in arrays.files}
    for seed in facts["seeds"]:
        image = rgb(ct_slice(seed, facts["side"])[None]).permute(0, 2, 3, 1)
        with torch.no_grad():
            logits = network(image)
        found = {
            "logits": logits[0].numpy(),
            "probabilities": logits.softmax(1)[0].numpy(),
            "class": logits.argmax(1).numpy(),
        }
        for key, values in found.items():
            np.testing.assert_allclose(values, expected[f"seed{seed}_{key}"], rtol=0, atol=1e-5)


RUNNERS = {"covidnet_ct": covidnet_ct}
