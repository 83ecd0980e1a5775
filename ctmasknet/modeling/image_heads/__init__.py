"""Heads that name a slice from its ranked boxes: S, the paper's, in :mod:`.s`, those that take them
as a set in :mod:`.set_attention`, those of the author's later models in :mod:`.later_models`, and S
on a part of the rows in :mod:`.controls`.

A file of this folder registers its heads by being here, and ``MODEL.IMAGE_HEAD.NAME`` chooses one.
Such a file, whole but for its imports::

    @IMAGE_HEAD_REGISTRY.register()
    class BestBoxImageHead(nn.Module):
        @configurable
        def __init__(self, *, num_classes: int):
            super().__init__()
            self.logits = nn.Linear(len(ROW_FEATURES), num_classes)

        @classmethod
        def from_config(cls, cfg):
            return {"num_classes": len(cfg.MODEL.IMAGE_HEAD.CLASSES)}

        def forward(self, rows: Tensor) -> Tensor:
            \"\"\"(B, N, 5) rows, best first -> (B, C) logits.\"\"\"
            return self.logits(rows[:, 0])
"""

import importlib
import pkgutil

from ctmasknet.modeling.image_heads.registry import IMAGE_HEAD_REGISTRY, build_image_head

for _file in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_file.name)

__all__ = ["IMAGE_HEAD_REGISTRY", "build_image_head"]
