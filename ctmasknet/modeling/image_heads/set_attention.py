"""Heads that take the ranked boxes as a set: attention pooling, and counts by score level."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ctmasknet.modeling.image_heads.registry import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.ranked_boxes import READS as ALL_READS
from ctmasknet.modeling.ranked_boxes import RankedBoxes, RowLayout, first_rows

#: Scores are cut to this before their log-odds are taken, so that 0 and 1 have some.
_LEAST_SCORE = 1e-4


def _standardized(norm: nn.BatchNorm1d, values: Tensor) -> Tensor:
    """``norm`` of (n, D); one value alone, which has no variance, by the running statistics."""
    if norm.training and len(values) < 2:
        return (values - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    return norm(values)


class RowStandardization(nn.Module):
    """Zero mean and unit variance of every column over the boxes of a batch, in evaluation over
    those of training; rows that repeat a box, or stand for none, become zero.

    Args:
        width: D.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)

    def forward(self, rows: Tensor, first: Tensor) -> Tensor:
        """(B, N, D) rows, (B, N) which of them are boxes -> (B, N, D)."""
        boxes = _standardized(self.norm, rows[first])
        return torch.zeros_like(rows).masked_scatter(first[..., None], boxes.to(rows.dtype))


@IMAGE_HEAD_REGISTRY.register()
class SetAttentionImageHead(nn.Module):
    """Embed each box by itself, pool them by learned attention, name the slice.

    It does not depend on the order of the boxes, nor on how often rows repeat one. Besides the
    boxes of a slice, attention may turn to a learned vector that stands for "no box", which is all
    there is where no box was found. Pooling is that of Lee et al. 2019 (Set Transformer), by one
    attention head a query.
    """

    READS = ALL_READS

    @configurable
    def __init__(
        self,
        *,
        layout: RowLayout,
        embed_dim: int,
        num_queries: int,
        dropout: float,
        num_classes: int,
    ):
        """
        Args:
            layout: what a row holds.
            embed_dim: E, width of an embedded box.
            num_queries: Q, how many poolings are made.
            dropout: share of hidden numbers set to zero in training.
            num_classes: C.
        """
        super().__init__()
        self.standardize = RowStandardization(layout.width)
        self.embed = nn.Sequential(
            nn.Linear(layout.width, embed_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(embed_dim, embed_dim),
            nn.GELU(),
        )
        self.attention = nn.Linear(embed_dim, num_queries)
        self.no_box = nn.Parameter(torch.zeros(embed_dim))
        self.hidden = nn.Sequential(
            nn.Linear(num_queries * embed_dim, 2 * embed_dim), nn.GELU(), nn.Dropout(dropout)
        )
        self.logits = nn.Linear(2 * embed_dim, num_classes)

    @classmethod
    def from_config(cls, cfg):
        return {
            "layout": RowLayout.from_config(cfg),
            "embed_dim": cfg.MODEL.IMAGE_HEAD.FC_DIM,
            "num_queries": cfg.MODEL.IMAGE_HEAD.NUM_QUERIES,
            "dropout": cfg.MODEL.IMAGE_HEAD.DROPOUT,
            "num_classes": len(cfg.MODEL.IMAGE_HEAD.CLASSES),
        }

    def forward(self, rows: Tensor) -> Tensor:
        """(B, N, D) packed rows -> (B, C) logits."""
        first = first_rows(rows)
        boxes = self.embed(self.standardize(with_log_odds(rows), first))
        boxes = torch.cat([boxes, self.no_box.expand(len(boxes), 1, -1).to(boxes.dtype)], dim=1)
        there = torch.cat([first, first.new_ones(len(first), 1)], dim=1)
        weights = self.attention(boxes).masked_fill(~there[..., None], -torch.inf).softmax(dim=1)
        pooled = torch.einsum("bnq,bne->bqe", weights, boxes)
        return self.logits(self.hidden(pooled.flatten(1)))


def with_log_odds(rows: Tensor) -> Tensor:
    """(B, N, D) rows with the log-odds of their scores for the scores."""
    score = rows[..., :1].clamp(_LEAST_SCORE, 1 - _LEAST_SCORE)
    return torch.cat([score.logit(), rows[..., 1:]], dim=-1)


@IMAGE_HEAD_REGISTRY.register()
class LesionCountImageHead(nn.Module):
    """A control: a small network on how many boxes there are, and how large, by score level.

    For each of :data:`LEVELS` the boxes whose score is above it give their number, the sum of their
    areas, and the largest area: three numbers a level (of all lesion classes together), relative to
    what boxes are relative to. Where a box is, how it looks and its rank do not enter.
    """

    READS = NEEDS = ("boxes",)
    #: Score levels.
    LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

    @configurable
    def __init__(self, *, layout: RowLayout, fc_dim: int, num_classes: int):
        """
        Args:
            layout: what a row holds.
            fc_dim: width of both hidden layers.
            num_classes: C.
        """
        super().__init__()
        self.layout = layout
        width = 3 * len(self.LEVELS)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.hidden = nn.Sequential(
            nn.Linear(width, fc_dim), nn.ReLU(), nn.Linear(fc_dim, fc_dim), nn.ReLU()
        )
        self.logits = nn.Linear(fc_dim, num_classes)

    @classmethod
    def from_config(cls, cfg):
        return {
            "layout": RowLayout.from_config(cfg),
            "fc_dim": cfg.MODEL.IMAGE_HEAD.FC_DIM,
            "num_classes": len(cfg.MODEL.IMAGE_HEAD.CLASSES),
        }

    def forward(self, rows: Tensor) -> Tensor:
        """(B, N, D) packed rows -> (B, C) logits."""
        counts = self.counts(self.layout.unpack(rows))
        return self.logits(self.hidden(_standardized(self.norm, counts)))

    def counts(self, found: RankedBoxes) -> Tensor:
        """(B, 3 L): number, sum of areas and largest area above each of the L levels."""
        score, area = found.rows[..., 0], found.boxes[..., 2] * found.boxes[..., 3]
        levels = score.new_tensor(self.LEVELS)
        above = (score[..., None] > levels) & found.first[..., None]
        areas = above * area[..., None]
        parts = [above.to(score.dtype).sum(1), areas.sum(1), areas.amax(1)]
        return torch.cat(parts, dim=1)
