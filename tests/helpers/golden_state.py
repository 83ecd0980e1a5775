"""Golden weights, inputs and models; see the README in the folder of golden data."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from PIL import Image
from torch import Tensor, nn

from ctmasknet.config_file import read_cfg
from ctmasknet.weights.imported import ImportedVariant, import_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]


def golden_shapes(shared: Path) -> dict[str, dict[str, list[int]]]:
    return json.loads((shared / "golden" / "shapes.json").read_text())


def golden_state(shared: Path, variant: str) -> dict[str, Tensor]:
    """The authors' state dict of ``variant``, every tensor drawn from its name."""
    rule = shared / "golden" / "weights_rule.py"
    spec = importlib.util.spec_from_file_location("weights_rule", rule)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.golden_state(golden_shapes(shared)[variant])


def build(config: str, *overrides: str | float, device: str = "cpu") -> nn.Module:
    """The evaluation-mode model of a config. ``device`` "meta" builds shapes without numbers."""
    options = [str(item) for item in ("MODEL.DEVICE", device, *overrides)]
    with torch.device(device):
        return build_model(read_cfg(str(REPOSITORY / config), options)).eval()


@functools.lru_cache(maxsize=1)
def golden_model(shared: Path, variant: str) -> tuple[nn.Module, ImportedVariant]:
    """The imported golden variant in the model of the config that the import names."""
    return imported_model(golden_state(shared, variant))


def imported_model(state: dict[str, Tensor]) -> tuple[nn.Module, ImportedVariant]:
    converted, found = import_checkpoint(state)
    # The golden detections were made with this suppression (see the rule's docstring).
    model = build(found.config, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5)
    result = model.load_state_dict(converted, strict=False)
    assert not result.missing_keys and not result.unexpected_keys
    return model, found


def read_image(path: Path) -> Tensor:
    """(3, H, W) float32, values 0..255, RGB."""
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
