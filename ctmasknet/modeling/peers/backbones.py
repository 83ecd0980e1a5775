"""Image networks of torchvision and timm by name."""

from __future__ import annotations

import torchvision
from torch import nn

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.peers.covidnet_ct_lookalike import LOOKALIKE, COVIDNetCTLookalike


def timm_model(name: str, **arguments) -> nn.Module:
    """timm's network ``name``, with random weights.

    Raises:
        CTMaskNetError: timm is not installed, or has no such network.
    """
    try:
        import timm
    except ImportError as error:
        raise CTMaskNetError(f"{name}: timm is not installed; pip install timm") from error
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"{name[:5]}*")[:8])
        raise CTMaskNetError(f"timm has no network {name}; near it are {near or 'none'}")
    return timm.create_model(name, pretrained=False, **arguments)


def image_network(name: str, num_outputs: int) -> nn.Module:
    """A network (B, 3, H, W) -> (B, num_outputs) with random weights.

    Args:
        name: ``covidnet_ct_lookalike``, torchvision's name, else timm's; ``timm/`` before it for
            timm's of a name that both have.

    Raises:
        CTMaskNetError: neither has it, or timm is needed and not installed.
    """
    if name == LOOKALIKE:
        return COVIDNetCTLookalike(num_outputs)
    if name in torchvision.models.list_models(module=torchvision.models):
        return torchvision.models.get_model(name, weights=None, num_classes=num_outputs)
    return timm_model(name.removeprefix("timm/"), num_classes=num_outputs)
