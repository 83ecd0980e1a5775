"""The tensors of the authors' checkpoints: their names and shapes, and what Detectron2 calls them.

Shapes are (out, in, kernel height, kernel width) for convolutions and (out, in) for linear layers.
Where the authors' order differs from Detectron2's, a slot also says how to reorder:

===================  ==================================  ==================================
what                 authors (torchvision 0.3)           Detectron2
===================  ==================================  ==================================
classes              background first                    background last
box outputs          4 for every class and background    4 for every class
mask outputs         one for every class and background  one for every class
anchors              ratios outermost, sizes inside      sizes outermost, ratios inside
===================  ==================================  ==================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

#: Sizes (px) and ratios (height / width) of the published anchors, the same at every level.
ANCHOR_SIZES = (2, 4, 8, 16, 32)
ANCHOR_RATIOS = (0.1, 0.25, 0.5, 1, 1.5, 2)
_NUM_ANCHORS = len(ANCHOR_SIZES) * len(ANCHOR_RATIOS)
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_FPN_CHANNELS = 256
_BOX_FC_DIM = 128
_POOLED = 7


@dataclass(frozen=True)
class AuthorsVariant:
    """A published variant.

    Attributes:
        depth: of the ResNet, 18, 34 or 50.
        truncation: last stages left out, 0 to 2.
        lesion_classes: of the detector, background not counted.
        has_masks: the file holds a mask head.
        is_classifier: the file holds S.
    """

    depth: int
    truncation: int
    lesion_classes: int
    has_masks: bool
    is_classifier: bool

    @property
    def lightweight(self) -> bool:
        return self.depth < 50

    @property
    def num_boxes(self) -> int:
        """N, the rows that S reads."""
        return 128 if self.lightweight else 256

    @property
    def image_fc_dim(self) -> int:
        return 512 if self.lightweight else 1024

    @property
    def fpn_levels(self) -> list[int]:
        """FPN levels, finest first; level L has stride 2 ** L px."""
        last = 5 - self.truncation
        return [last] if self.lightweight else list(range(2, last + 1))


@dataclass(frozen=True)
class Slot:
    """One tensor of the authors' layout: its shape, Detectron2's name and how to reorder it."""

    shape: tuple[int, ...]
    target: str
    convert: Callable[[Tensor], Tensor] | None = None


def authors_layout(variant: AuthorsVariant, image_classes: int = 3) -> dict[str, Slot]:
    """Every tensor of ``variant`` by the authors' name, FPN blocks as ``.{i}.weight``."""
    slots = {
        f"backbone.body.{name}": slot
        for name, slot in resnet_layout(variant.depth, 4 - variant.truncation).items()
    }
    expansion = 4 if variant.depth >= 50 else 1
    for index, level in enumerate(variant.fpn_levels):
        stage_channels = 64 * 2 ** (level - 2) * expansion
        _weighted(
            slots,
            f"backbone.fpn.inner_blocks.{index}",
            f"backbone.fpn_lateral{level}",
            (_FPN_CHANNELS, stage_channels, 1, 1),
        )
        _weighted(
            slots,
            f"backbone.fpn.layer_blocks.{index}",
            f"backbone.fpn_output{level}",
            (_FPN_CHANNELS, _FPN_CHANNELS, 3, 3),
        )

    rpn = "proposal_generator.rpn_head"
    square = (_FPN_CHANNELS, _FPN_CHANNELS, 3, 3)
    _weighted(slots, "rpn.head.conv", f"{rpn}.conv", square)
    _weighted(
        slots,
        "rpn.head.cls_logits",
        f"{rpn}.objectness_logits",
        (_NUM_ANCHORS, _FPN_CHANNELS, 1, 1),
        sizes_outermost,
    )
    _weighted(
        slots,
        "rpn.head.bbox_pred",
        f"{rpn}.anchor_deltas",
        (4 * _NUM_ANCHORS, _FPN_CHANNELS, 1, 1),
        sizes_outermost,
    )

    box = "roi_heads.box_predictor"
    classes = variant.lesion_classes + 1
    pooled = _FPN_CHANNELS * _POOLED * _POOLED
    _weighted(slots, "roi_heads.box_head.fc6", "roi_heads.box_head.fc1", (_BOX_FC_DIM, pooled))
    _weighted(slots, "roi_heads.box_head.fc7", "roi_heads.box_head.fc2", (_BOX_FC_DIM,) * 2)
    _weighted(
        slots, f"{box}.cls_score", f"{box}.cls_score", (classes, _BOX_FC_DIM), background_last
    )
    _weighted(
        slots,
        f"{box}.bbox_pred",
        f"{box}.bbox_pred",
        (4 * classes, _BOX_FC_DIM),
        without_background_boxes,
    )
    if variant.has_masks:
        _add_masks(slots, variant)
    if variant.is_classifier:
        width = variant.image_fc_dim
        _weighted(slots, "s2new.fc_scores", "image_head.fc1", (width, 5 * variant.num_boxes))
        _weighted(slots, "s2new.fc_scores_2", "image_head.fc2", (width, width))
        _weighted(slots, "s2new.fc_scores_img", "image_head.logits", (image_classes, width))
    return slots


def resnet_layout(depth: int, num_stages: int = 4) -> dict[str, Slot]:
    """Every tensor of torchvision's ResNet by its name there, without ``fc``."""
    slots: dict[str, Slot] = {}
    stem = "backbone.bottom_up.stem.conv1"
    _convolution(slots, ("conv1", "bn1"), stem, (64, 3, 7, 7))
    channels = 64
    for stage in range(1, num_stages + 1):
        width = 64 * 2 ** (stage - 1)
        for block in range(_BLOCKS[depth][stage - 1]):
            source = f"layer{stage}.{block}"
            target = f"backbone.bottom_up.res{stage + 1}.{block}"
            if depth >= 50:
                out = 4 * width
                shapes = [(width, channels, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
            else:
                out = width
                shapes = [(width, channels, 3, 3), (width, width, 3, 3)]
            for number, shape in enumerate(shapes, start=1):
                names = (f"{source}.conv{number}", f"{source}.bn{number}")
                _convolution(slots, names, f"{target}.conv{number}", shape)
            if block == 0 and (channels != out or stage > 1):
                names = (f"{source}.downsample.0", f"{source}.downsample.1")
                _convolution(slots, names, f"{target}.shortcut", (out, channels, 1, 1))
            channels = out
    return slots


def sizes_outermost(tensor: Tensor) -> Tensor:
    """RPN outputs (A, ...) or (4 A, ...) with ratios outermost -> with sizes outermost."""
    grouped = tensor.unflatten(0, (len(ANCHOR_RATIOS), len(ANCHOR_SIZES), -1))
    return grouped.transpose(0, 1).flatten(0, 2)


def background_last(tensor: Tensor) -> Tensor:
    """(K + 1, ...) with the background's row first -> last."""
    return tensor.roll(-1, dims=0)


def without_background(tensor: Tensor) -> Tensor:
    """(K + 1, ...) -> (K, ...)."""
    return tensor[1:]


def without_background_boxes(tensor: Tensor) -> Tensor:
    """(4 (K + 1), ...) -> (4 K, ...)."""
    return tensor[4:]


def _add_masks(slots: dict[str, Slot], variant: AuthorsVariant) -> None:
    convolutions, width = (1, 128) if variant.lightweight else (4, 256)
    channels = _FPN_CHANNELS
    for number in range(1, convolutions + 1):
        name = f"roi_heads.mask_head.mask_fcn{number}"
        _weighted(slots, name, name, (width, channels, 3, 3))
        channels = width
    source, target = "roi_heads.mask_predictor", "roi_heads.mask_head"
    _weighted(slots, f"{source}.conv5_mask", f"{target}.deconv", (width, width, 2, 2))
    _weighted(
        slots,
        f"{source}.mask_fcn_logits",
        f"{target}.predictor",
        (variant.lesion_classes + 1, width, 1, 1),
        without_background,
    )


def _weighted(
    slots: dict[str, Slot],
    source: str,
    target: str,
    shape: tuple[int, ...],
    convert: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """A layer with weight and bias. ``shape[0]`` is the number of outputs of all of them."""
    slots[f"{source}.weight"] = Slot(shape, f"{target}.weight", convert)
    slots[f"{source}.bias"] = Slot(shape[:1], f"{target}.bias", convert)


def _convolution(
    slots: dict[str, Slot], names: tuple[str, str], target: str, shape: tuple[int, ...]
) -> None:
    """A convolution without bias and the batch normalisation behind it."""
    convolution, norm = names
    slots[f"{convolution}.weight"] = Slot(shape, f"{target}.weight")
    for part in ("weight", "bias", "running_mean", "running_var"):
        slots[f"{norm}.{part}"] = Slot(shape[:1], f"{target}.norm.{part}")
    slots[f"{norm}.num_batches_tracked"] = Slot((), f"{target}.norm.num_batches_tracked")
