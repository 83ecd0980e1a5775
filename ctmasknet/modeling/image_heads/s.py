"""S, the head that names the whole slice from its ranked boxes (paper figure 3.3)."""

from __future__ import annotations

from detectron2.config import configurable
from torch import Tensor, nn
from torch.nn import functional as F

from ctmasknet.modeling.image_heads.registry import IMAGE_HEAD_REGISTRY
from ctmasknet.modeling.ranked_boxes import ROW_FEATURES


@IMAGE_HEAD_REGISTRY.register()
class RankedBoxImageHead(nn.Module):
    """Flatten the rows, two hidden layers with ReLU, one logit a class (reference, "Classifier",
    step 6)."""

    @configurable
    def __init__(self, *, num_boxes: int, fc_dim: int, num_classes: int):
        """
        Args:
            num_boxes: N, rows an image.
            fc_dim: width of both hidden layers.
            num_classes: C, slice classes.
        """
        super().__init__()
        self.fc1 = nn.Linear(num_boxes * len(ROW_FEATURES), fc_dim)
        self.fc2 = nn.Linear(fc_dim, fc_dim)
        self.logits = nn.Linear(fc_dim, num_classes)
        for layer in (self.fc1, self.fc2, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg):
        return {
            "num_boxes": cfg.MODEL.RANKED_BOXES.NUM,
            "fc_dim": cfg.MODEL.IMAGE_HEAD.FC_DIM,
            "num_classes": len(cfg.MODEL.IMAGE_HEAD.CLASSES),
        }

    def forward(self, rows: Tensor) -> Tensor:
        """(B, N, 5) rows, best first -> (B, C) logits."""
        hidden = F.relu(self.fc1(rows.flatten(1)))
        return self.logits(F.relu(self.fc2(hidden)))


@IMAGE_HEAD_REGISTRY.register()
class StandardizedRankedBoxImageHead(RankedBoxImageHead):
    """S on rows whose five numbers have zero mean and unit variance over the training's rows."""

    @configurable
    def __init__(self, **kwargs):
        """Arguments as :class:`RankedBoxImageHead`."""
        super().__init__(**kwargs)
        self.standardize = nn.BatchNorm1d(len(ROW_FEATURES), affine=False)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, N, 5) rows, best first -> (B, C) logits."""
        return super().forward(self.standardize(rows.flatten(0, 1)).view_as(rows))
