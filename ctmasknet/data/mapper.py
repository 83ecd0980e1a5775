"""Dataset dict -> model input, for lesions and for classified slices.

Both mappers read RGB and know two augmentations, sizes of the shorter side and the left-right
flip; without them training sees slices exactly as testing does. Shapes: H, W are
the sides of the resized image in px.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, check_image_size
from detectron2.structures import BitMasks

from ctmasknet.ct.pictures import check_sides, read_rgb
from ctmasknet.errors import CTMaskNetError


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The resize by the shorter side, and in training the flip if asked for.

    The authors squash training slices to 512 x 512 and resize test slices by the shorter side; here
    INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST (px) hold everywhere, unless INPUT.MIN_SIZE_TRAIN
    and INPUT.MAX_SIZE_TRAIN are set for training.

    Raises:
        CTMaskNetError: INPUT.RANDOM_FLIP other than ``none`` and ``horizontal``, or
            INPUT.CROP.ENABLED.
    """
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal"):
        raise CTMaskNetError(
            f"INPUT.RANDOM_FLIP: {flip!r} is not supported; set 'none' or 'horizontal'"
        )
    if cfg.INPUT.CROP.ENABLED:
        raise CTMaskNetError(
            "INPUT.CROP.ENABLED: random crops are not supported; set it to False "
            "(INPUT.CROP_TO_BODY crops slices to the body)"
        )
    sizes, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    drawn = "range"
    if is_train:
        longest = cfg.INPUT.MAX_SIZE_TRAIN or longest
        if cfg.INPUT.MIN_SIZE_TRAIN:
            sizes, drawn = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    resize = T.ResizeShortestEdge(sizes, longest, drawn)
    return [resize, T.RandomFlip()] if is_train and flip == "horizontal" else [resize]


class LesionMapper(DatasetMapper):
    """Detectron2's mapper with the project's resize, RGB, RLE masks as bit masks, and errors that
    name the file.

    Its output has ``image`` (uint8 tensor (3, H, W), RGB), ``height`` and ``width`` (of the file,
    px), the other fields of the dataset dict such as ``file_name``, ``image_id`` and ``patient``,
    and in training ``instances`` with ``gt_boxes``, ``gt_classes`` and, if MODEL.MASK_ON,
    ``gt_masks``; images without lesions come with empty instances.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            **super().from_config(cfg, is_train),
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": "RGB",
            "instance_mask_format": "bitmask",
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict, which stays as it is.

        Raises:
            CTMaskNetError: missing, unreadable or truncated image; more than 8 bits a pixel; a side
                above 4096 px or 64 times the other; sides that differ from the annotation's.
        """
        file_name = dataset_dict["file_name"]
        image = read_rgb(file_name)
        output = copy.deepcopy(dataset_dict)
        try:
            check_image_size(output, image)
        except SizeMismatchError as error:
            raise CTMaskNetError(f"{file_name}: {error}; prepare the data set again") from None
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        output["image"] = _image_tensor(augmented.image)
        if not self.is_train:
            output.pop("annotations", None)
        elif "annotations" in output:
            self._transform_annotations(output, transforms, augmented.image.shape[:2])
        return output

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        instances = dataset_dict["instances"]
        if self.use_instance_mask and not instances.has("gt_masks"):
            if len(instances):
                raise CTMaskNetError(
                    f"{dataset_dict['file_name']}: its lesions are boxes alone, and MODEL.MASK_ON "
                    "learns masks; set it to False, or give the annotations masks"
                )
            # Detectron2 leaves the field out without annotations; every image shall have it.
            instances.gt_masks = BitMasks(torch.zeros((0, *image_shape), dtype=torch.bool))


class SliceMapper:
    """A slice's dataset dict -> input of the classifier.

    Its output has ``image`` (uint8 tensor (3, H, W), RGB), ``height`` and ``width`` (px, of what
    the model sees before the resize: the file, or its crop), ``crop_box`` (x0, y0, x1, y1 px of the
    file) when it was cropped, and the fields of the dataset dict (``file_name``, ``image_id``,
    ``patient``, ``scan``, ``slice``, ``body_box`` and, where known, ``label``).
    """

    @configurable
    def __init__(
        self, is_train: bool, *, augmentations: list[T.Augmentation], crop_to_body: bool = False
    ):
        """
        Args:
            is_train: kept for Detectron2's convention; the augmentations already follow it.
            augmentations: applied in order to the image.
            crop_to_body: cut the image to ``body_box`` before anything else.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.crop_to_body = crop_to_body

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "crop_to_body": cfg.INPUT.CROP_TO_BODY,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict, which stays as it is; only ``file_name`` must be in it.

        Raises:
            CTMaskNetError: missing, unreadable or truncated image; more than 8 bits a pixel; a side
                above 4096 px or 64 times the other; a crop asked for without a body box, or with
                one that lies outside the image.
        """
        return self.map_pixels(dataset_dict, read_rgb(dataset_dict["file_name"]))

    def map_pixels(self, dataset_dict: dict[str, Any], pixels: np.ndarray) -> dict[str, Any]:
        """The same for a slice that is in memory.

        Args:
            dataset_dict: stays as it is.
            pixels: (h, w) grey or (h, w, 3) RGB, uint8.

        Raises:
            CTMaskNetError: as for sides and crop in :meth:`__call__`.
        """
        check_sides(dataset_dict["file_name"], pixels.shape)
        output = copy.deepcopy(dataset_dict)
        image = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        if self.crop_to_body:
            x0, y0, x1, y1 = output["crop_box"] = checked_box(output, *image.shape[:2])
            image = image[y0:y1, x0:x1]
        output["height"], output["width"] = image.shape[:2]
        augmented = T.AugInput(image)
        self.augmentations(augmented)
        output["image"] = _image_tensor(augmented.image)
        return output


def _image_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def checked_box(dataset_dict: Mapping[str, Any], height: int, width: int) -> list[int]:
    """The body box [x0, y0, x1, y1], px, of a slice of these sides.

    Raises:
        CTMaskNetError: it has none, or one that lies outside the slice.
    """
    file_name, box = dataset_dict["file_name"], dataset_dict.get("body_box")
    if box is None:
        raise CTMaskNetError(
            f"{file_name}: has no body box to crop to; set INPUT.CROP_TO_BODY to False "
            "or prepare the set from lists with boxes"
        )
    x0, y0, x1, y1 = map(int, box)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise CTMaskNetError(
            f"{file_name}: body box {[x0, y0, x1, y1]} lies outside the image "
            f"of {width} x {height} px; correct the list or set INPUT.CROP_TO_BODY to False"
        )
    return [x0, y0, x1, y1]
