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
from functools import partial

from torch import Tensor

from ctmasknet.classes import IMAGE_CLASSES

#: Sizes (px) and ratios (height / width) of the published anchors, the same at every level.
ANCHOR_SIZES = (2, 4, 8, 16, 32)
ANCHOR_RATIOS = (0.1, 0.25, 0.5, 1, 1.5, 2)
_NUM_ANCHORS = len(ANCHOR_SIZES) * len(ANCHOR_RATIOS)
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
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


def authors_layout(variant: AuthorsVariant) -> dict[str, Slot]:
    """Every tensor of ``variant`` by the authors' name, FPN blocks as ``.{i}.weight``."""
    slots = {
        f"backbone.body.{name}": slot
        for name, slot in resnet_layout(variant.depth, 4 - variant.truncation).items()
    }
    add, fpn = partial(_weighted, slots), _FPN_CHANNELS
    expansion = 4 if variant.depth >= 50 else 1
    for index, level in enumerate(variant.fpn_levels):
        lateral = (fpn, 64 * 2 ** (level - 2) * expansion, 1, 1)
        add(f"backbone.fpn.inner_blocks.{index}", f"backbone.fpn_lateral{level}", lateral)
        add(f"backbone.fpn.layer_blocks.{index}", f"backbone.fpn_output{level}", (fpn, fpn, 3, 3))

    rpn = "proposal_generator.rpn_head"
    scores, deltas = (_NUM_ANCHORS, fpn, 1, 1), (4 * _NUM_ANCHORS, fpn, 1, 1)
    add("rpn.head.conv", f"{rpn}.conv", (fpn, fpn, 3, 3))
    add("rpn.head.cls_logits", f"{rpn}.objectness_logits", scores, sizes_outermost)
    add("rpn.head.bbox_pred", f"{rpn}.anchor_deltas", deltas, sizes_outermost)

    head, box = "roi_heads.box_head", "roi_heads.box_predictor"
    classes, width = variant.lesion_classes + 1, _BOX_FC_DIM
    add(f"{head}.fc6", f"{head}.fc1", (width, fpn * _POOLED * _POOLED))
    add(f"{head}.fc7", f"{head}.fc2", (width, width))
    add(f"{box}.cls_score", f"{box}.cls_score", (classes, width), background_last)
    add(f"{box}.bbox_pred", f"{box}.bbox_pred", (4 * classes, width), without_background_boxes)
    if variant.has_masks:
        head, mask = "roi_heads.mask_head", "roi_heads.mask_predictor"
        convolutions, width = (1, 128) if variant.lightweight else (4, 256)
        for number in range(1, convolutions + 1):
            name = f"{head}.mask_fcn{number}"
            add(name, name, (width, fpn if number == 1 else width, 3, 3))
        add(f"{mask}.conv5_mask", f"{head}.deconv", (width, width, 2, 2))
        logits = (classes, width, 1, 1)
        add(f"{mask}.mask_fcn_logits", f"{head}.predictor", logits, without_background)
    if variant.is_classifier:
        width = variant.image_fc_dim
        add("s2new.fc_scores", "image_head.fc1", (width, 5 * variant.num_boxes))
        add("s2new.fc_scores_2", "image_head.fc2", (width, width))
        add("s2new.fc_scores_img", "image_head.logits", (len(IMAGE_CLASSES), width))
    return slots


def resnet_layout(depth: int, num_stages: int = 4) -> dict[str, Slot]:
    """Every tensor of torchvision's ResNet by its name there, without ``fc``."""
    slots: dict[str, Slot] = {}
    add, body = partial(_convolution, slots), "backbone.bottom_up"
    add("conv1", "bn1", f"{body}.stem.conv1", (64, 3, 7, 7))
    channels = 64
    for stage in range(1, num_stages + 1):
        width = 64 * 2 ** (stage - 1)
        out = 4 * width if depth >= 50 else width
        for block in range(_BLOCKS[depth][stage - 1]):
            source, target = f"layer{stage}.{block}", f"{body}.res{stage + 1}.{block}"
            if depth >= 50:
                shapes = [(width, channels, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
            else:
                shapes = [(width, channels, 3, 3), (width, width, 3, 3)]
            for number, shape in enumerate(shapes, start=1):
                names = (f"{source}.conv{number}", f"{source}.bn{number}")
                add(*names, f"{target}.conv{number}", shape)
            if block == 0 and (channels != out or stage > 1):
                names = (f"{source}.downsample.0", f"{source}.downsample.1")
                add(*names, f"{target}.shortcut", (out, channels, 1, 1))
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
    slots: dict[str, Slot], source: str, norm: str, target: str, shape: tuple[int, ...]
) -> None:
    """A convolution without bias and the batch normalisation behind it."""
    slots[f"{source}.weight"] = Slot(shape, f"{target}.weight")
    for part in ("weight", "bias", "running_mean", "running_var"):
        slots[f"{norm}.{part}"] = Slot(shape[:1], f"{target}.norm.{part}")
    slots[f"{norm}.num_batches_tracked"] = Slot((), f"{target}.norm.num_batches_tracked")
