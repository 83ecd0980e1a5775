"""What an image head may see of the ranked boxes, packed into one tensor.

Every slice has N rows, best box first. A row begins with the five numbers of the paper (section
3.2): score and encoded deltas, which say neither where a box is nor how large, for they are
relative to a proposal. An image head may ask for more (``MODEL.IMAGE_HEAD.READS``):

``boxes``
    the decoded box and its proposal, each (center x, center y, width, height) relative to the
    image, and its class as one number a lesion class. With ``MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO``
    lungs, relative to the box around the slice's lungs, and one number more: 1, or 0 where no lung
    was found and they are relative to the image.
``features``
    what the box head computes of the proposal, before its two predictors.
``masks``
    what the mask head computes inside the box, before its last layer, as means over space, and the
    mean of the mask of the box' class.

One tensor (B, N, D) holds all of it, so that rows are cached, hidden and explained alike whatever
a head reads. For the paper's head S, D is 5 and nothing is added. Where fewer boxes than N were
found, rows repeat the one before (:func:`ctmasknet.modeling.roi_heads.pad_rows`), which a head that
takes boxes as a set has to tell from boxes: :attr:`RankedBoxes.first`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctmasknet.errors import CTMaskNetError

#: Names of a row's first numbers, in order.
ROW_FEATURES = ("score", "dx", "dy", "dw", "dh")
#: What a head may read beside them, in the order of the columns.
READS = ("boxes", "features", "masks")
#: What boxes are relative to.
FRAMES = ("image", "lungs")
_BOX = 4


@dataclass(frozen=True)
class RowLayout:
    """Which columns of a packed row hold what.

    Args:
        reads: names of :data:`READS`, in its order.
        num_classes: K, lesion classes.
        feature_dim: F, width of the box head's output.
        mask_dim: M, channels of the mask head before its last layer.
        relative_to: of :data:`FRAMES`.
    """

    reads: tuple[str, ...]
    num_classes: int
    feature_dim: int
    mask_dim: int
    relative_to: str = FRAMES[0]

    def __post_init__(self):
        if self.reads != tuple(name for name in READS if name in self.reads):
            raise CTMaskNetError(
                f"MODEL.IMAGE_HEAD.READS is {list(self.reads)}; give names of {', '.join(READS)}, "
                "each once and in this order"
            )

    @classmethod
    def from_config(cls, cfg) -> RowLayout:
        box_head, mask_head = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
        return cls(
            reads=tuple(cfg.MODEL.IMAGE_HEAD.READS),
            num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            feature_dim=box_head.FC_DIM,
            mask_dim=mask_head.CONV_DIM,
            relative_to=cfg.MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO,
        )

    @property
    def needs_lungs(self) -> bool:
        """Whether lungs have to be looked for."""
        return "boxes" in self.reads and self.relative_to == "lungs"

    @property
    def widths(self) -> dict[str, int]:
        """Columns of each part, in their order."""
        parts = {
            "boxes": 2 * _BOX + self.num_classes + self.needs_lungs,
            "features": self.feature_dim,
            "masks": self.mask_dim + 1,
        }
        return {"rows": len(ROW_FEATURES), **{name: parts[name] for name in self.reads}}

    @property
    def width(self) -> int:
        """D."""
        return sum(self.widths.values())

    def without_lungs(self, rows: Tensor) -> int:
        """Of the slices of (n, N, D) rows, how many have boxes and no lung."""
        if not self.needs_lungs:
            return 0
        ends = list(itertools.accumulate(self.widths.values()))
        none = rows[:, 0, ends[list(self.widths).index("boxes")] - 1] == 0
        return int((none & (rows[:, 0] != 0).any(-1)).sum())

    def columns(self, narrower: RowLayout) -> list[int]:
        """Which columns of these rows make those of a layout that reads some of what they hold."""
        ends = dict(zip(self.widths, itertools.accumulate(self.widths.values()), strict=True))
        return [i for name, n in narrower.widths.items() for i in range(ends[name] - n, ends[name])]

    def unpack(self, packed: Tensor) -> RankedBoxes:
        """(B, N, D) -> its parts.

        Raises:
            CTMaskNetError: another D.
        """
        if packed.shape[-1] != self.width:
            raise CTMaskNetError(
                f"ranked rows of {packed.shape[-1]} numbers, but the image head reads {self.width} "
                f"({', '.join(self.widths)}); compute them anew"
            )
        parts = dict(zip(self.widths, packed.split(list(self.widths.values()), -1), strict=True))
        found = {"features": parts.get("features"), "masks": parts.get("masks")}
        if "boxes" in parts:
            widths = [_BOX, _BOX, self.num_classes, int(self.needs_lungs)]
            boxes, proposals, classes, lungs = parts["boxes"].split(widths, -1)
            found |= {"boxes": boxes, "proposals": proposals, "classes": classes}
            found["in_lungs"] = lungs[..., 0] if self.needs_lungs else None
        return RankedBoxes(rows=parts["rows"], first=first_rows(packed), **found)


@dataclass(frozen=True)
class RankedBoxes:
    """The ranked boxes of B images; what a head does not read is None.

    Attributes:
        rows: (B, N, 5) score and deltas, best score first.
        first: (B, N) True in the first row of each box; nowhere where there is none.
        boxes: (B, N, 4) center x, center y, width, height of the clipped box, 0..1 of the image, or
            relative to the box around the lungs, beyond which a box may lie.
        proposals: (B, N, 4) the same of the proposal that it was decoded from.
        classes: (B, N, K) one-hot lesion class.
        in_lungs: (B, N) 1 where boxes are relative to lungs, 0 where none was found; None where all
            are relative to the image.
        features: (B, N, F) of the box head.
        masks: (B, N, M + 1) of the mask head, the mean of the mask (0..1) last.
    """

    rows: Tensor
    first: Tensor
    boxes: Tensor | None = None
    proposals: Tensor | None = None
    classes: Tensor | None = None
    in_lungs: Tensor | None = None
    features: Tensor | None = None
    masks: Tensor | None = None

    @property
    def count(self) -> Tensor:
        """(B,) boxes found, before rows were repeated."""
        return self.first.sum(-1)


def first_rows(packed: Tensor) -> Tensor:
    """(B, N) which rows of (B, N, D) are boxes: not all zero, and unlike the row before."""
    unlike = torch.ones_like(packed[..., 0], dtype=torch.bool)
    unlike[:, 1:] = (packed[:, 1:] != packed[:, :-1]).any(-1)
    return unlike & (packed != 0).any(-1)


def relative_boxes(boxes: Tensor, frame: Sequence[float]) -> Tensor:
    """(n, 4) xyxy px -> center x, center y, width, height relative to a frame.

    Args:
        boxes: xyxy px of the image.
        frame: (height, width) px of the image, or (x0, y0, x1, y1) px of a part of it.
    """
    left, top, right, bottom = frame if len(frame) == 4 else (0, 0, frame[1], frame[0])
    x0, y0, x1, y1 = boxes.unbind(-1)
    centered = torch.stack([(x0 + x1) / 2 - left, (y0 + y1) / 2 - top, x1 - x0, y1 - y0], dim=-1)
    sides = [right - left, bottom - top]
    return centered / boxes.new_tensor([*sides, *sides])
