"""RoIAlign on the CPU as one sum over weighted cells of all feature maps.

A bin of RoIAlign is the mean of ``ratio`` x ``ratio`` samples, each the bilinear mixture of four
neighbours: a sum over ``4 * ratio**2`` cells with fixed weights. ``torch.nn.functional.
embedding_bag`` computes such sums in all threads, with channels side by side in memory;
torchvision's operator takes a bin and channel at a time, in one thread. On CUDA torchvision's own
kernel stays.

Shapes: L levels, R boxes in all, P bins along a side, S = P * ratio samples along a side, C
channels, V cells of all feature maps of a batch.
"""

from __future__ import annotations

import copy

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F


def roi_align_levels(
    features: list[Tensor],
    boxes: Tensor,
    level: Tensor,
    scales: list[float],
    *,
    bins: int,
    ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign of every box on its level.

    Args:
        features: L maps (B, C, H_l, W_l), best in channels_last.
        boxes: (R, 5), image in the batch and xyxy px.
        level: (R,) int64, map of each box.
        scales: L factors from px to cells.
        bins: P.
        ratio: samples a bin along a side, at least 1.
        aligned: corners are half a cell further up and left, and boxes may be thin (RoIAlignV2).

    Returns:
        (R, C, P, P) in channels_last, in the features' type.
    """
    channels = features[0].shape[1]
    # Half precision would cost weights their accuracy and save no time.
    table = torch.cat([one.permute(0, 2, 3, 1).reshape(-1, channels).float() for one in features])
    sizes = torch.tensor([one.shape[-2:] for one in features], device=level.device)
    counts = torch.tensor(
        [0] + [one.shape[0] * one.shape[2] * one.shape[3] for one in features[:-1]],
        device=level.device,
    )
    height, width = sizes[level].unbind(1)
    scale = boxes.new_tensor(scales)[level]
    first = counts.cumsum(0)[level] + boxes[:, 0].long() * height * width
    top, y_weight = _taps(boxes[:, 2], boxes[:, 4], scale, height, bins, ratio, aligned)
    left, x_weight = _taps(boxes[:, 1], boxes[:, 3], scale, width, bins, ratio, aligned)
    rows = first[:, None, None] + top * width[:, None, None]
    cells = rows[:, :, None, :, None] + left[:, None, :, None, :]
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    pooled = F.embedding_bag(
        cells.reshape(-1, 4 * ratio**2),
        table,
        per_sample_weights=weights.reshape(-1, 4 * ratio**2),
        mode="sum",
    )
    pooled = pooled.to(features[0].dtype).view(-1, bins, bins, channels)
    return pooled.permute(0, 3, 1, 2)


def _taps(
    begin: Tensor, end: Tensor, scale: Tensor, limit: Tensor, bins: int, ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Along one axis, the cells that each bin of each box reads and their weights: both
    (R, P, 2 * ratio)."""
    offset = 0.5 if aligned else 0.0
    begin, end = begin * scale - offset, end * scale - offset
    side = end - begin if aligned else (end - begin).clamp(min=1)
    step = (side / bins)[:, None, None]
    bin_number = torch.arange(bins, device=begin.device, dtype=begin.dtype)[None, :, None]
    sample = torch.arange(ratio, device=begin.device, dtype=begin.dtype) + 0.5
    at = begin[:, None, None] + bin_number * step + sample * step / ratio
    limit = limit[:, None, None]
    inside = (at >= -1) & (at <= limit)
    at = at.clamp(min=0)
    low = at.long()
    # At the far border both neighbours are the last cell.
    low = torch.minimum(low, limit - 1)
    high = torch.minimum(low + 1, limit - 1)
    share = torch.where(low == limit - 1, 0, at - low)
    weight = torch.stack([1 - share, share], dim=-1) * (inside / ratio)[..., None]
    return torch.stack([low, high], dim=-1).flatten(2), weight.flatten(2)


class Float32ROIPooler(ROIPooler):
    """Detectron2's pooler, computed in float32 whatever the type of the maps.

    Detectron2's operators turn boxes to the maps' type, and in bfloat16 px above 256 are even
    numbers; torchvision's have no bfloat16 on CUDA at all.
    """

    @classmethod
    def of(cls, pooler: ROIPooler) -> Float32ROIPooler:
        """The same pooler in this class."""
        if isinstance(pooler, cls):
            return pooler
        pooler = copy.copy(pooler)
        pooler.__class__ = cls
        return pooler

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """L maps (B, C, H_l, W_l) and B boxes -> (R, C, P, P) in the maps' type."""
        with torch.autocast(x[0].device.type, enabled=False):
            pooled = super().forward([one.float() for one in x], box_lists)
        return pooled.to(x[0].dtype)


class BagROIPooler(Float32ROIPooler):
    """Detectron2's pooler with :func:`roi_align_levels` on the CPU."""

    @classmethod
    def of(cls, pooler: ROIPooler) -> ROIPooler:
        """The same pooler in this class, or ``pooler`` itself where it does something else: another
        operator, a number of samples that depends on the box, bins that are not square."""
        levels = list(pooler.level_poolers)
        first = levels[0]
        height, width = pooler.output_size
        if not isinstance(first, ROIAlign) or first.sampling_ratio < 1 or height != width:
            return pooler
        return cls(
            output_size=pooler.output_size,
            scales=[level.spatial_scale for level in levels],
            sampling_ratio=first.sampling_ratio,
            pooler_type="ROIAlignV2" if first.aligned else "ROIAlign",
            canonical_box_size=pooler.canonical_box_size,
            canonical_level=pooler.canonical_level,
        )

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """L maps (B, C, H_l, W_l) and B boxes -> (R, C, P, P)."""
        if x[0].is_cuda or not sum(len(boxes) for boxes in box_lists):
            return super().forward(x, box_lists)
        level = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        first = self.level_poolers[0]
        return roi_align_levels(
            x,
            convert_boxes_to_pooler_format(box_lists),
            level,
            [pooler.spatial_scale for pooler in self.level_poolers],
            bins=self.output_size[0],
            ratio=first.sampling_ratio,
            aligned=first.aligned,
        )
