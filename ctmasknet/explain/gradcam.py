"""Where a network of whole slices looked: Grad-CAM (Selvaraju et al. 2017) of its last layer that
still has places, by captum.

A map says where the features lie whose increase would raise the class' output. Its places are
coarse (7 x 7 for a slice of 224 px), and it says nothing of why a patient is ill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ctmasknet.draw.canvas import enlarged, legible_scale
from ctmasknet.draw.lesions import SliceCall, call_chunks
from ctmasknet.draw.pages import Chunk, Panel, compose_page
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.peers import SliceClassifier

GRADCAM = "gradcam"
#: The sentence that goes with every map.
MAP_CAVEAT = "where features lie that speak for the class, not why"
#: How much of the slice a map hides at most.
_OPACITY = 0.5


@dataclass(frozen=True)
class SliceMaps:
    """Grad-CAM of a slice.

    Attributes:
        layer: name of the layer, in the network.
        maps: (C, h, w) of every class, 0 or more.
        seen_px: x0, y0, x1, y1: the part of the model's input image that they lie on.
    """

    layer: str
    maps: Tensor
    seen_px: tuple[float, float, float, float]


def grad_cam(model: SliceClassifier, item: Mapping[str, Any]) -> SliceMaps:
    """The maps of a slice.

    Args:
        model: in evaluation mode.
        item: its input.

    Raises:
        CTMaskNetError: captum is not installed; the network has no layer with places.
    """
    attribution = _captum()
    image = model.network_input([item])
    name, layer = last_spatial_layer(model.network, image)
    with torch.enable_grad():
        cam = attribution(model.network, layer)
        maps = [
            cam.attribute(image, target=target, relu_attributions=True)[0, 0].detach()
            for target in range(model.num_classes)
        ]
    return SliceMaps(name, torch.stack(maps), model.pixels.seen(*item["image"].shape[-2:]))


@torch.no_grad()
def last_spatial_layer(network: nn.Module, image: Tensor) -> tuple[str, nn.Module]:
    """The last module that gives a map (B, channels, h, w) of more than one place.

    Raises:
        CTMaskNetError: there is none, or only inside modules that are used more than once; its
            channels come last.
    """
    done: list[tuple[str, nn.Module]] = []
    sides: dict[nn.Module, tuple[int, int]] = {}
    calls: dict[nn.Module, int] = {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            calls[module] = calls.get(module, 0) + 1
            if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
                done.append((name, module))
                sides[module] = output.shape[2:]

        return hook

    handles = [
        module.register_forward_hook(note(name)) for name, module in network.named_modules() if name
    ]
    try:
        network(image)
    finally:
        for handle in handles:
            handle.remove()
    once = [(name, module) for name, module in done if calls[module] == 1]
    if not once:
        raise CTMaskNetError(
            f"{type(network).__name__} has no layer with places, which Grad-CAM is of; explain "
            "another network"
        )
    name, module = once[-1]
    (height, width), (of_height, of_width) = sides[module], image.shape[2:]
    # A map is about as wide as the image, channels are not
    if not 0.25 < (height * of_width) / (width * of_height) < 4:
        raise CTMaskNetError(
            f"{name}, the last layer of {type(network).__name__} with places, gives its channels "
            "last, which Grad-CAM takes for places; explain another network (of Swin torchvision's)"
        )
    return name, module


def map_record(found: SliceMaps, class_names: Sequence[str], digits: int) -> dict[str, Any]:
    """What a line of the file says of a slice's maps: ``layer``, ``seen_px`` ([x0, y0, x1, y1] px
    of the image that the model was given) and ``maps``, by class the rows of h x w numbers."""
    maps = found.maps.cpu().double().numpy()
    return {
        "method": GRADCAM,
        "note": MAP_CAVEAT,
        "layer": found.layer,
        "seen_px": [round(side, 2) for side in found.seen_px],
        "maps": {
            name: [[float(f"{value:.{digits}g}") for value in row] for row in one]
            for name, one in zip(class_names, maps, strict=True)
        },
    }


def map_page(
    image_rgb: np.ndarray,
    found: SliceMaps,
    target: int,
    input_size: tuple[int, int],
    *,
    class_names: Sequence[str],
    title: str = "",
    call: SliceCall | None = None,
) -> np.ndarray:
    """The bare slice, and the slice under the map of one class.

    Args:
        image_rgb: (H, W, 3) uint8, as the model saw it before the resize.
        found: the maps.
        target: the class.
        input_size: height and width, px, of what ``seen_px`` is px of.
        class_names: names of the C classes.
        title, call: as of :func:`ctmasknet.explain.drawing.attribution_page`.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    scale = legible_scale(*image_rgb.shape[:2])
    picture = enlarged(image_rgb, scale)
    heat = _heat(found.maps[target].cpu().numpy())
    across, down = picture.shape[1] / input_size[1], picture.shape[0] / input_size[0]
    x0, x1 = (round(side * across) for side in found.seen_px[::2])
    y0, y1 = (round(side * down) for side in found.seen_px[1::2])
    heat = cv2.resize(heat, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)[..., None]
    color = cv2.applyColorMap((255 * heat).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[
        ..., ::-1
    ]
    mixed = picture.copy()
    part = mixed[y0:y1, x0:x1].astype(np.float64)
    weight = _OPACITY * heat
    mixed[y0:y1, x0:x1] = ((1 - weight) * part + weight * color).round().astype(np.uint8)
    name = class_names[target]
    caption = f"Grad-CAM for {name}" if heat.any() else f"nothing speaks for {name}"
    return compose_page(
        [Panel("slice", picture), Panel(caption, mixed)],
        title=title,
        header=call_chunks(call),
        legend=[
            Chunk(f"layer {found.layer}, {found.maps.shape[1]} x {found.maps.shape[2]} places"),
            Chunk("brightest: its largest value"),
            Chunk(MAP_CAVEAT, bold=True),
        ],
    )


def _heat(values: np.ndarray) -> np.ndarray:
    """0..1 of the largest; all 0 where nothing is above 0."""
    largest = float(values.max())
    return (values / largest if largest > 0 else np.zeros_like(values)).astype(np.float32)


def check_captum() -> None:
    """Raise :class:`CTMaskNetError` where captum is not installed."""
    _captum()


def _captum() -> Callable:
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise CTMaskNetError(
            "Grad-CAM needs captum; install it with `pip install captum`"
        ) from error
    return LayerGradCam
