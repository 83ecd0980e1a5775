"""Dataset dict -> model input, for lesions and for classified slices.

Both mappers read RGB and augment as :mod:`ctmasknet.data.training.recipe` says; without that,
training sees slices exactly as testing does. Shapes: H, W are the sides of the resized image in px.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, check_image_size
from detectron2.structures import BitMasks, polygons_to_bitmask
from detectron2.utils.registry import Registry
from pycocotools import mask as coco_mask

from ctmasknet.config import finds_body, is_classifier
from ctmasknet.ct.lungs.masks import check_shows_lungs, picture_hu
from ctmasknet.ct.lungs.threshold import threshold_lungs
from ctmasknet.ct.pictures import check_sides, read_rgb
from ctmasknet.ct.scan import Window
from ctmasknet.data.training.augmentations import FramedInput
from ctmasknet.data.training.recipe import Recipe, build_augmentations, frame_augmentations
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.ranked_boxes import RowLayout

#: Mappers that ``INPUT.MAPPER_TRAIN`` can name: called with a configuration and ``is_train``, an
#: object that turns a dataset dict into a model's input. Whoever registers one is imported first.
MAPPER_REGISTRY = Registry("MAPPER")


def training_mapper(cfg: CfgNode) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The mapper of a training: that of ``INPUT.MAPPER_TRAIN``, or its task's.

    Raises:
        CTMaskNetError: none of this name is registered.
    """
    name = cfg.INPUT.MAPPER_TRAIN
    if not name:
        return task_mapper(cfg, is_train=True)
    if name not in MAPPER_REGISTRY:
        known = ", ".join(sorted(word for word, _ in MAPPER_REGISTRY)) or "none"
        raise CTMaskNetError(
            f"INPUT.MAPPER_TRAIN is {name!r}, but registered are: {known}; name one of them, or "
            "on the command line, as DATASETS.IMPORT, the module that registers it in "
            "ctmasknet.data.mapper.MAPPER_REGISTRY"
        )
    return MAPPER_REGISTRY.get(name)(cfg, True)


def task_mapper(cfg: CfgNode, is_train: bool) -> LesionMapper | SliceMapper:
    """The project's mapper of the task that ``cfg`` describes."""
    return (SliceMapper if is_classifier(cfg) else LesionMapper)(cfg, is_train)


class LesionMapper(DatasetMapper):
    """Detectron2's mapper with the project's resize, RGB, RLE masks as bit masks, and errors that
    name the file.

    Its output has ``image`` (uint8 tensor (3, H, W), RGB), ``height`` and ``width`` (of the file,
    px), the other fields of the dataset dict such as ``file_name``, ``image_id`` and ``patient``,
    and in training ``instances`` with ``gt_boxes``, ``gt_classes`` and, if MODEL.MASK_ON,
    ``gt_masks``; images without lesions come with empty instances. Where augmentation turns or cuts
    lesions, boxes are those of the masks, and lesions that have left the image are dropped.
    """

    @configurable
    def __init__(
        self, is_train: bool, *, learns_masks: bool, moves_lesions: bool = False, **given: Any
    ):
        """
        Args:
            is_train: whether lesions are given.
            learns_masks: whether with their masks.
            moves_lesions: whether boxes are made of the transformed masks, where there are masks.
            given: see Detectron2's mapper.
        """
        super().__init__(is_train, use_instance_mask=learns_masks or moves_lesions, **given)
        self.learns_masks, self.moves_lesions = learns_masks, moves_lesions

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        found = super().from_config(cfg, is_train)
        learns_masks = found.pop("use_instance_mask")
        frame = frame_augmentations(cfg, is_train)
        return {
            **found,
            "learns_masks": learns_masks,
            "moves_lesions": is_train and Recipe.from_cfg(cfg).moves_lesions,
            "recompute_boxes": False,
            "augmentations": [*frame, *build_augmentations(cfg, is_train)],
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
        augmented = FramedInput(image)
        transforms = self.augmentations(augmented)
        output["image"] = _image_tensor(augmented.image)
        if not self.is_train:
            output.pop("annotations", None)
        elif "annotations" in output:
            self._transform_annotations(output, transforms, augmented.image.shape[:2])
        return output

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        if self.moves_lesions:
            _masks_alike(dataset_dict)
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        instances = dataset_dict["instances"]
        if self.moves_lesions and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
            if not self.learns_masks:
                instances.remove("gt_masks")
        if self.learns_masks and not instances.has("gt_masks"):
            if len(instances):
                raise CTMaskNetError(
                    f"{dataset_dict['file_name']}: its lesions are boxes alone, and MODEL.MASK_ON "
                    "learns masks; set it to False, or give the annotations masks"
                )
            # Detectron2 leaves the field out without annotations; every image shall have it.
            instances.gt_masks = BitMasks(torch.zeros((0, *image_shape), dtype=torch.bool))


def _masks_alike(dataset_dict: dict[str, Any]) -> None:
    """Polygons become px, which turn as the image does; of lesions some of which have no mask none
    has, so that their boxes turn alike."""
    annotations = dataset_dict["annotations"]
    if not all(one.get("segmentation") for one in annotations):
        for one in annotations:
            one.pop("segmentation", None)
        return
    height, width = dataset_dict["height"], dataset_dict["width"]
    for one in annotations:
        if isinstance(one["segmentation"], list):
            mask = polygons_to_bitmask(one["segmentation"], height, width)
            one["segmentation"] = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


@dataclasses.dataclass(frozen=True)
class LungSearch:
    """What lungs are looked for.

    Attributes:
        window: lungs are found in the HU that it makes of grey levels.
        hides_rest: what is outside of them becomes black.
        gives_box: the box around them is told.
    """

    window: Window
    hides_rest: bool
    gives_box: bool

    @classmethod
    def from_config(cls, cfg: CfgNode) -> LungSearch | None:
        """None where nothing asks for lungs.

        Raises:
            CTMaskNetError: the window does not show lungs.
        """
        hides, gives = cfg.INPUT.LUNGS_ONLY, RowLayout.from_config(cfg).needs_lungs
        if not (hides or gives):
            return None
        window = Window(cfg.INPUT.WINDOW_CENTER_HU, cfg.INPUT.WINDOW_WIDTH_HU)
        key = "INPUT.LUNGS_ONLY" if hides else "MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO"
        check_shows_lungs(key, window)
        return cls(window, hides, gives)

    def lungs(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W) bool."""
        return threshold_lungs([picture_hu(image, self.window)])[0]

    def box(self, image: np.ndarray, transforms: T.Transform) -> tuple[float, ...] | None:
        """The box around the lungs of an image, x0, y0, x1, y1 px of what transforms make of it;
        None where there are none.

        Args:
            image: (H, W, 3), lungs alone where these hide the rest.
            transforms: of it.
        """
        lungs = image.any(axis=2) if self.hides_rest else self.lungs(image)
        rows, columns = (np.nonzero(lungs.any(axis=axis))[0] for axis in (1, 0))
        if not len(rows):
            return None
        around = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=float)
        return tuple(transforms.apply_box(around)[0].tolist())


class SliceMapper:
    """A slice's dataset dict -> input of the classifier.

    Its output has ``image`` (uint8 tensor (3, H, W), RGB), ``height`` and ``width`` (px, of what
    the model sees before the resize: the file, or its crop), ``crop_box`` (x0, y0, x1, y1 px of the
    file) when it was cropped, where the image head reads boxes relative to the lungs ``lung_box``
    (x0, y0, x1, y1 px of ``image``, None where none were found), and the fields of the dataset dict
    (``file_name``, ``image_id``, ``patient``, ``scan``, ``slice``, ``body_box`` and, where known,
    ``label``).
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation],
        crop_to_body: bool = False,
        needs_box: bool = True,
        frame: Sequence[T.Augmentation] = (),
        lungs_by: LungSearch | None = None,
    ):
        """
        Args:
            is_train: kept for Detectron2's convention; the augmentations already follow it.
            augmentations: applied in order to the image.
            crop_to_body: cut the image to ``body_box`` before these.
            needs_box: refuse a slice without one; else it stays whole.
            frame: applied to the whole file instead of that cut; the last cuts to the body box, or
                to the slice.
            lungs_by: hides what is outside of the lungs first, gives the box around them, or both.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.frame = T.AugmentationList(frame) if frame else None
        self.crop_to_body, self.needs_box = crop_to_body, needs_box
        self.lungs_by = lungs_by

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            "lungs_by": LungSearch.from_config(cfg),
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "crop_to_body": cfg.INPUT.CROP_TO_BODY,
            "needs_box": not finds_body(cfg),
            "frame": frame_augmentations(cfg, is_train),
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
        lungs_by = self.lungs_by
        if lungs_by is not None and lungs_by.hides_rest:
            image = image * lungs_by.lungs(image)[..., None].astype(np.uint8)
        crop = self.crop_to_body and (self.needs_box or output.get("body_box") is not None)
        box = checked_box(output, *image.shape[:2]) if crop else None
        if self.frame is not None:
            framed = FramedInput(image, box)
            cut = self.frame(framed)[-1]
            image, box = framed.image, [cut.x0, cut.y0, cut.x0 + cut.w, cut.y0 + cut.h]
        elif box is not None:
            image = image[box[1] : box[3], box[0] : box[2]]
        if box is not None:
            output["crop_box"] = box
        output["height"], output["width"] = image.shape[:2]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        if lungs_by is not None and lungs_by.gives_box:
            output["lung_box"] = lungs_by.box(image, transforms)
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
