"""S on rows of which a part is hidden: what does it take from rank, scores and deltas?"""

from __future__ import annotations

import torch
from torch import Tensor

from ctmasknet.modeling.image_heads.registry import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.image_heads.s import StandardizedRankedBoxImageHead


@IMAGE_HEAD_REGISTRY.register()
class ScoresOnlyImageHead(StandardizedRankedBoxImageHead):
    """Standardized S whose deltas are zero."""

    def forward(self, rows: Tensor) -> Tensor:
        """(B, N, 5) rows, best first -> (B, C) logits."""
        return super().forward(torch.cat([rows[..., :1], torch.zeros_like(rows[..., 1:])], dim=-1))


@IMAGE_HEAD_REGISTRY.register()
class DeltasOnlyImageHead(StandardizedRankedBoxImageHead):
    """Standardized S whose scores are zero; rows still come best first."""

    def forward(self, rows: Tensor) -> Tensor:
        """(B, N, 5) rows, best first -> (B, C) logits."""
        return super().forward(torch.cat([torch.zeros_like(rows[..., :1]), rows[..., 1:]], dim=-1))


@IMAGE_HEAD_REGISTRY.register()
class ShuffledRowsImageHead(StandardizedRankedBoxImageHead):
    """Standardized S whose rows come in an order that means nothing, and is the same whenever a
    slice is seen: that of the digits of its deltas behind the third."""

    def forward(self, rows: Tensor) -> Tensor:
        """(B, N, 5) rows, best first -> (B, C) logits."""
        digits = (rows[..., 1:] * 1e3).frac().sum(-1)
        order = digits.argsort(dim=1, stable=True)
        return super().forward(rows.gather(1, order[..., None].expand_as(rows)))
