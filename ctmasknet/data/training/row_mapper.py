"""What a training draws where ranked rows are kept in place of images, and mirrored slices for
such rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor

from ctmasknet.data.mapper import SliceMapper
from ctmasknet.errors import CTMaskNetError

#: An image for augmentations that draw without looking at it.
_PIXEL = np.zeros((1, 1, 3), np.uint8)


@dataclass(frozen=True)
class RowMapper:
    """A slice's dataset dict -> input of the classifier with ``ranked_rows`` (N, D) in place of the
    image.

    Attributes:
        rows_of: by ``file_name``; a slice without rows is a bad one.
        mirrored: those of the slices mirrored; empty where training mirrors none.
        augmentations: of the training, which draw whether a slice is.
    """

    rows_of: Mapping[str, Tensor]
    mirrored: Mapping[str, Tensor] = field(default_factory=dict)
    augmentations: Sequence[T.Augmentation] = ()

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        # All of them, so that as much is drawn as for an image
        drawn = [one.get_transform(_PIXEL) for one in self.augmentations]
        mirrored = any(isinstance(one, T.HFlipTransform) for one in drawn)
        rows, file_name = self.mirrored if mirrored else self.rows_of, dataset_dict["file_name"]
        if file_name not in rows:
            raise CTMaskNetError(f"{file_name}: has no ranked boxes, for it could not be read")
        return {**dataset_dict, "ranked_rows": rows[file_name]}


class _Mirror(T.Augmentation):
    """Left and right exchanged, always, and nothing drawn for it."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return T.HFlipTransform(image.shape[1])


def slice_mapper(cfg: CfgNode, *, mirrored: bool) -> SliceMapper:
    """Of slices as testing sees them, or those mirrored."""
    given = SliceMapper.from_config(cfg, False)
    given["augmentations"] += [_Mirror()] if mirrored else []
    return SliceMapper(**given)
