"""Golden vectors of the compared systems: a json that lists a network's tensors, the rule their
weights are drawn by and the inputs, with an npz of the outputs beside it.

A weight depends on its tensor's name and shape alone, an input on its seed and size.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent.parent
#: Where the goldens are.
FOLDER = Path(os.environ.get("CTMASKNET_PEER_CASES") or ROOT.parent / "shared" / "peers")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Golden:
    """One json with its npz. ``name`` is the file's, ``stated`` what the json says."""

    name: str
    path: Path
    stated: dict[str, Any]
    outputs: dict[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> Golden:
        with np.load(path.with_suffix(".npz")) as arrays:
            outputs = {key: arrays[key] for key in arrays.files}
        return cls(path.stem, path, json.loads(path.read_text(encoding="utf-8")), outputs)

    @property
    def facts(self) -> dict[str, Any]:
        return self.stated["facts"]

    @property
    def tensors(self) -> dict[str, list[int]]:
        return self.stated["tensors"]

    def fill(self, model: nn.Module) -> nn.Module:
        """Check ``model``'s names, shapes and parameters against the json, then give it the rule's
        weights and evaluation mode."""
        state = model.state_dict()
        shapes = {name: list(value.shape) for name, value in state.items()}
        assert shapes == self.tensors
        assert sum(p.numel() for p in model.parameters()) == self.stated["parameters"]
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trainable == self.stated["trainable"]
        assert sum(value.numel() for value in state.values()) == self.stated["state_dict_elements"]
        first = {other: name for name, other in self.stated.get("shared", [])}
        drawn = {n: weight(first.get(n, n), s, self.stated["rule"]) for n, s in shapes.items()}
        model.load_state_dict({name: torch.from_numpy(value) for name, value in drawn.items()})
        return model.eval()

    def check(self, key: str, found, atol: float = 1e-4) -> None:
        """``found`` is the output called ``key``, within ``atol`` and the noise of float32."""
        expected = self.outputs[key]
        found = found.detach().numpy() if isinstance(found, Tensor) else np.asarray(found)
        assert found.shape == expected.shape, key
        if np.issubdtype(expected.dtype, np.floating):
            np.testing.assert_allclose(found, expected, atol=atol, rtol=1e-5, err_msg=key)
        else:
            np.testing.assert_array_equal(found, expected, err_msg=key)

    def check_all(self, found: dict[str, Any]) -> None:
        """Every output of the npz is in ``found``, and is right."""
        assert set(found) == set(self.outputs)
        for key, value in found.items():
            self.check(key, value)


def weight(name: str, shape, rule: dict[str, Any]) -> np.ndarray:
    """The tensor called ``name``: float32, but for counters, int64 zeros."""
    random = np.random.RandomState(zlib.crc32(f"{name}#{rule.get('salt', 0)}".encode()))
    shape = tuple(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        drawn = 1 + 0.5 * random.random_sample(shape)
    elif len(shape) >= 2 and not name.endswith("running_mean"):
        drawn = random.standard_normal(shape)
        if any(key in name for key in rule.get("half_dc", ())):
            drawn = drawn - 0.5 * drawn.mean((2, 3), keepdims=True)
        if any(key in name for key in rule.get("zero_mean", ())):
            drawn = drawn - drawn.mean(tuple(range(1, len(shape))), keepdims=True)
        gain = _entry(name, rule.get("gain", {}), rule.get("default_gain", 1.0))
        drawn = drawn * (gain / np.sqrt(np.prod(shape[1:], dtype=float)))
    elif name.endswith("weight"):
        drawn = 1 + 0.1 * random.standard_normal(shape)
        drawn = drawn * _entry(name, rule.get("norm_gain", {}), 1.0)
    else:
        drawn = 0.1 * random.standard_normal(shape)
    return np.asarray(drawn, np.float32)


def _entry(name: str, table: dict[str, float], default: float) -> float:
    """Of the longest key that is found in ``name``."""
    found = [key for key in table if key in name]
    return table[max(found, key=len)] if found else default


def ct_slice(seed: int, height: int = 512, width: int | None = None) -> np.ndarray:
    """(height, width) uint8: body, lungs, spine, blobs in the lungs, noise of three sizes."""
    width = height if width is None else width
    random = np.random.RandomState(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    u, v = (x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5

    def ellipse(cx, cy, a, b, soft=0.05):
        return 1 / (1 + np.exp((np.sqrt(((u - cx) / a) ** 2 + ((v - cy) / b) ** 2) - 1) / soft))

    lungs = ellipse(-0.19, 0.0, 0.14, 0.24) + ellipse(0.19, 0.01, 0.13, 0.23)
    lungs = np.clip(lungs, 0, 1)
    image = 25 + 135 * ellipse(0.0, 0.0, 0.44, 0.36) - 130 * lungs
    image = image + 70 * ellipse(0.0, 0.22, 0.05, 0.06)
    for _ in range(4 + int(random.randint(8))):
        side = -1 if random.random_sample() < 0.5 else 1
        cx = side * (0.19 + 0.07 * random.standard_normal())
        cy = 0.12 * random.standard_normal()
        radius = 0.015 + 0.05 * random.random_sample()
        grey = 40 + 90 * random.random_sample()
        flat = 0.6 + 0.8 * random.random_sample()
        image = image + grey * ellipse(cx, cy, radius, radius * flat, 0.2) * lungs
    for parts, grey in ((16, 10.0), (64, 12.0), (256, 8.0)):
        cell = max(1.0, max(height, width) / parts)
        grid = random.standard_normal((int(height / cell) + 3, int(width / cell) + 3))
        fx, fy = x / cell, y / cell
        i, j = fx.astype(int), fy.astype(int)
        wx, wy = fx - i, fy - j
        above = grid[j, i] * (1 - wx) + grid[j, i + 1] * wx
        below = grid[j + 1, i] * (1 - wx) + grid[j + 1, i + 1] * wx
        image = image + grey * (above * (1 - wy) + below * wy)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def rgb(slices: np.ndarray) -> Tensor:
    """(..., H, W) uint8 -> (..., 3, H, W) float, 0..1."""
    grey = torch.from_numpy(slices.astype(np.float32) / np.float32(255))
    return torch.stack([grey] * 3, dim=-3)


def by_imagenet(images: Tensor) -> Tensor:
    """(..., 3, H, W), 0..1, less ImageNet's means over its deviations."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std
