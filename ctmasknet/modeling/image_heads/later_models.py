"""The heads of the author's later models on ranked boxes: an LSTM with attention, and affinity.

Theirs read maps of mask features (:mod:`ctmasknet.modeling.peers.mask_feature_heads`); here the
vector of a box is what ``MODEL.IMAGE_HEAD.READS`` gives of it, embedded, and what is made of the
vectors is theirs.

Shapes: B slices, N rows, D numbers a row, E width of a vector, C classes.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn
from torch.nn import functional as F

from ctmasknet.modeling.image_heads.registry import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.image_heads.set_attention import RowStandardization, with_log_odds
from ctmasknet.modeling.ranked_boxes import READS as ALL_READS
from ctmasknet.modeling.ranked_boxes import RowLayout, first_rows


class VectorClassifier(nn.Module):
    """Two hidden layers with ReLU, then a logit a class.

    Args:
        features: E.
        width: of the hidden layers.
        num_classes: C.
    """

    def __init__(self, features: int, width: int, num_classes: int):
        super().__init__()
        self.fc1 = nn.Linear(features, width)
        self.fc2 = nn.Linear(width, width)
        self.logits = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E) -> (B, C)."""
        return self.logits(F.relu(self.fc2(F.relu(self.fc1(x)))))


class AttendedLSTM(nn.Module):
    """An LSTM over boxes; its last state asks, all states answer. Arguments as
    :class:`VectorClassifier`."""

    def __init__(self, features: int, width: int, num_classes: int):
        super().__init__()
        self.lstm = nn.LSTM(features, features, batch_first=True)
        self.query = nn.Linear(features, features)
        self.classifier = VectorClassifier(features, width, num_classes)

    def forward(self, x: Tensor, count: Tensor | None = None) -> Tensor:
        """(B, N, E), and (B,) how many of them are boxes, which come first (default all)
        -> (B, C)."""
        states, _ = self.lstm(x)
        last = states[:, -1] if count is None else states[torch.arange(len(x)), count - 1]
        query = self.query(last)
        found = states @ query.unsqueeze(2)
        if count is not None:
            behind = torch.arange(x.shape[1], device=x.device) >= count[:, None]
            found = found.masked_fill(behind[..., None], -torch.inf)
        weights = found.softmax(dim=1)
        return self.classifier((weights * states).sum(dim=1) + query)


class _EmbeddedBoxes(nn.Module):
    """Vectors of boxes, those of each slice first and in an order; behind them zeros."""

    def __init__(self, layout: RowLayout, embed_dim: int, dropout: float):
        super().__init__()
        self.standardize = RowStandardization(layout.width)
        self.embed = nn.Sequential(
            nn.Linear(layout.width, embed_dim), nn.ReLU(), nn.Dropout(dropout)
        )

    def forward(self, rows: Tensor, order_by: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, N, D) rows, and (B, N) what to sort them by (default: as they are ranked)
        -> (B, N, E) vectors, (B,) number of boxes."""
        first = first_rows(rows)
        vectors = self.embed(self.standardize(with_log_odds(rows), first)) * first[..., None]
        if order_by is None:
            order_by = torch.zeros_like(rows[..., 0])
        order = order_by.masked_fill(~first, torch.inf).sort(dim=1, stable=True).indices
        return vectors.gather(1, order[..., None].expand_as(vectors)), first.sum(1)


@IMAGE_HEAD_REGISTRY.register()
class BoxLSTMImageHead(nn.Module):
    """Boxes in order of their top-left corner's distance from the image's through two LSTMs with
    attention, one for and one against each class.

    A learned vector comes before the first box, and is all there is where no box was found. Rank
    and repeated rows do not matter.
    """

    READS, NEEDS = ALL_READS, ("boxes",)

    @configurable
    def __init__(self, *, layout: RowLayout, embed_dim: int, dropout: float, num_classes: int):
        """
        Args:
            layout: what a row holds.
            embed_dim: E, and width of the hidden layers.
            dropout: share of a vector's numbers set to zero in training.
            num_classes: C.
        """
        super().__init__()
        self.layout = layout
        self.boxes = _EmbeddedBoxes(layout, embed_dim, dropout)
        self.start = nn.Parameter(torch.zeros(embed_dim))
        self.positive = AttendedLSTM(embed_dim, embed_dim, num_classes)
        self.negative = AttendedLSTM(embed_dim, embed_dim, num_classes)

    @classmethod
    def from_config(cls, cfg):
        return {
            "layout": RowLayout.from_config(cfg),
            "embed_dim": cfg.MODEL.IMAGE_HEAD.FC_DIM,
            "dropout": cfg.MODEL.IMAGE_HEAD.DROPOUT,
            "num_classes": len(cfg.MODEL.IMAGE_HEAD.CLASSES),
        }

    def forward(self, rows: Tensor) -> Tensor:
        """(B, N, D) packed rows -> (B, C) logits."""
        found = self.layout.unpack(rows).boxes
        corner = found[..., :2] - found[..., 2:] / 2
        vectors, count = self.boxes(rows, corner.square().sum(-1))
        start = self.start.to(vectors.dtype).expand(len(vectors), 1, -1)
        vectors = torch.cat([start, vectors], dim=1)
        return self.positive(vectors, count + 1) - self.negative(vectors, count + 1)


@IMAGE_HEAD_REGISTRY.register()
class BoxAffinityImageHead(nn.Module):
    """Boxes' vectors, best score first, times a matrix N x A and a vector A x 1, then
    :class:`VectorClassifier`. Rank matters, repeated rows do not."""

    READS = ALL_READS

    @configurable
    def __init__(
        self,
        *,
        layout: RowLayout,
        num_boxes: int,
        embed_dim: int,
        affinities: int,
        dropout: float,
        num_classes: int,
    ):
        """
        Args:
            layout, embed_dim, dropout, num_classes: as :class:`BoxLSTMImageHead`.
            num_boxes: N.
            affinities: A.
        """
        super().__init__()
        self.boxes = _EmbeddedBoxes(layout, embed_dim, dropout)
        self.matrix = nn.Parameter(torch.empty(num_boxes, affinities))
        self.vector = nn.Parameter(torch.empty(affinities, 1))
        for parameter in (self.matrix, self.vector):
            nn.init.xavier_normal_(parameter)
        self.classifier = VectorClassifier(embed_dim, embed_dim, num_classes)

    @classmethod
    def from_config(cls, cfg):
        return {
            "layout": RowLayout.from_config(cfg),
            "num_boxes": cfg.MODEL.RANKED_BOXES.NUM,
            "embed_dim": cfg.MODEL.IMAGE_HEAD.FC_DIM,
            "affinities": cfg.MODEL.IMAGE_HEAD.AFFINITIES,
            "dropout": cfg.MODEL.IMAGE_HEAD.DROPOUT,
            "num_classes": len(cfg.MODEL.IMAGE_HEAD.CLASSES),
        }

    def forward(self, rows: Tensor) -> Tensor:
        """(B, N, D) packed rows -> (B, C) logits."""
        vectors, _ = self.boxes(rows)
        joined = vectors.transpose(1, 2) @ self.matrix @ self.vector
        return self.classifier(joined.squeeze(2))
