"""From the configuration to the augmentations of a training.

A slice is changed in this order: outside hidden, elastic, turned and the like, cut to its frame
(these in px of the file); random crop, resize, flip, grey levels, noise (as the model sees it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ctmasknet.data.training.augmentations import (
    CropToFrame,
    HideOutside,
    RandomAffine,
    RandomElastic,
    RandomGrey,
    RandomNoise,
)
from ctmasknet.errors import CTMaskNetError

_FLIPS = ("none", "horizontal")


@dataclass(frozen=True)
class Recipe:
    """What may be done to a slice in training; fields as the keys of ``INPUT.AUGMENTATION`` in
    :mod:`ctmasknet.config`."""

    prob: float = 0.5
    hide_outside: bool = False
    rotation_deg: float = 0.0
    shear: float = 0.0
    scale: tuple[float, ...] = ()
    shift: float = 0.0
    elastic_px: float = 0.0
    elastic_smooth_px: float = 10.0
    box_jitter: float = 0.0
    grey_scale: tuple[float, ...] = ()
    grey_shift: float = 0.0
    noise_std: float = 0.0
    flip: bool = False
    crop: tuple[str, tuple[float, float]] | None = None

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> Recipe:
        """That of ``INPUT.AUGMENTATION``, ``INPUT.RANDOM_FLIP``, ``INPUT.CROP.TYPE`` and
        ``INPUT.CROP.SIZE``.

        Raises:
            CTMaskNetError: ``INPUT.RANDOM_FLIP`` or the preset is no known word.
        """
        inputs, cfg = cfg.INPUT, cfg.INPUT.AUGMENTATION
        if inputs.RANDOM_FLIP not in _FLIPS:
            raise CTMaskNetError(
                f"INPUT.RANDOM_FLIP: {inputs.RANDOM_FLIP!r} is not supported; set 'none' or "
                "'horizontal'"
            )
        crop = (inputs.CROP.TYPE, tuple(inputs.CROP.SIZE)) if inputs.CROP.ENABLED else None
        if cfg.PRESET != "none":
            if cfg.PRESET not in PRESETS:
                raise CTMaskNetError(
                    f"INPUT.AUGMENTATION.PRESET is {cfg.PRESET!r}; choose one of none, "
                    f"{', '.join(PRESETS)}"
                )
            return replace(PRESETS[cfg.PRESET], crop=crop)
        return cls(
            prob=cfg.PROB,
            hide_outside=cfg.HIDE_OUTSIDE,
            rotation_deg=cfg.ROTATION_DEG,
            shear=cfg.SHEAR,
            scale=tuple(cfg.SCALE),
            shift=cfg.SHIFT,
            elastic_px=cfg.ELASTIC_PX,
            elastic_smooth_px=cfg.ELASTIC_SMOOTH_PX,
            box_jitter=cfg.BOX_JITTER,
            grey_scale=tuple(cfg.GREY_SCALE),
            grey_shift=cfg.GREY_SHIFT,
            noise_std=cfg.NOISE_STD,
            flip=inputs.RANDOM_FLIP == "horizontal",
            crop=crop,
        )

    def of_frame(self) -> list[T.Augmentation]:
        """Those of the whole file, the last of which cuts to the frame; empty where there are none
        before it, so that nothing is drawn."""
        found = []
        if self.hide_outside:
            found.append(HideOutside(self.prob))
        if self.elastic_px:
            how = {"largest_px": self.elastic_px, "smooth_px": self.elastic_smooth_px}
            found.append(RandomElastic(self.prob, **how))
        affine = {"degrees": self.rotation_deg, "shear": self.shear}
        affine |= {"scale": self.scale, "shift": self.shift}
        if any(affine.values()):
            found.append(RandomAffine(self.prob, **affine))
        if found or self.box_jitter:
            found.append(CropToFrame(self.prob, jitter=self.box_jitter))
        return found

    def before_resize(self) -> list[T.Augmentation]:
        return [T.RandomCrop(*self.crop)] if self.crop else []

    def after_resize(self) -> list[T.Augmentation]:
        found = [T.RandomFlip()] if self.flip else []
        if self.grey_shift or self.grey_scale:
            found.append(RandomGrey(self.prob, shift=self.grey_shift, scale=self.grey_scale))
        if self.noise_std:
            found.append(RandomNoise(self.prob, largest_std=self.noise_std))
        return found

    @property
    def moves_lesions(self) -> bool:
        """Whether lesions change shape or are cut, so that boxes have to follow their masks."""
        moved = self.rotation_deg or self.shear or self.scale or self.shift or self.elastic_px
        return bool(moved or self.box_jitter or self.crop)


#: COVIDNet-CT's (Gunraj et al. 2020); its flip has Detectron2's probability, which is the same.
PRESETS = {
    "covidnet_ct": Recipe(
        hide_outside=True,
        rotation_deg=15.0,
        shear=0.2,
        box_jitter=0.075,
        grey_scale=(0.85, 1.15),
        grey_shift=15.0,
        flip=True,
    )
}


def frame_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Those that are made in px of the file, before a slice is cut and resized."""
    return Recipe.from_cfg(cfg).of_frame() if is_train else []


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The resize by the shorter side, and in training what is drawn before and after it.

    The authors squash training slices to 512 x 512 and resize test slices by the shorter side; here
    INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST (px) hold everywhere, unless INPUT.MIN_SIZE_TRAIN
    and INPUT.MAX_SIZE_TRAIN are set for training.

    Raises:
        CTMaskNetError: see :meth:`Recipe.from_cfg`.
    """
    recipe = Recipe.from_cfg(cfg)
    sizes, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    drawn = "range"
    if is_train:
        longest = cfg.INPUT.MAX_SIZE_TRAIN or longest
        if cfg.INPUT.MIN_SIZE_TRAIN:
            sizes, drawn = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    resize = T.ResizeShortestEdge(sizes, longest, drawn)
    if not is_train:
        return [resize]
    return [*recipe.before_resize(), resize, *recipe.after_resize()]


def what_changes_pictures(cfg: CfgNode, *, but_flips: bool = False) -> str | None:
    """The first key that lets training see other pictures than testing, with its value; None where
    they are the same, or with ``but_flips`` mirrored at most."""
    inputs = cfg.INPUT
    keys = [
        *([] if but_flips else [("INPUT.RANDOM_FLIP", inputs.RANDOM_FLIP, "none")]),
        *(("INPUT.MIN_SIZE_TRAIN", inputs.MIN_SIZE_TRAIN, ()),),
        *(("INPUT.MAX_SIZE_TRAIN", inputs.MAX_SIZE_TRAIN, 0),),
        *(("INPUT.MAPPER_TRAIN", inputs.MAPPER_TRAIN, ""),),
        *(("INPUT.CROP.ENABLED", inputs.CROP.ENABLED, False),),
    ]
    for name, value in inputs.AUGMENTATION.items():
        if name not in ("PROB", "ELASTIC_SMOOTH_PX"):
            keys.append((f"INPUT.AUGMENTATION.{name}", value, _OFF.get(name, 0)))
    for key, value, off in keys:
        if (tuple(value) if isinstance(value, list) else value) != off:
            return f"{key} is {value}"
    return None


_OFF = {"PRESET": "none", "SCALE": (), "GREY_SCALE": (), "HIDE_OUTSIDE": False}


def without_augmentation(cfg: CfgNode) -> CfgNode:
    """A copy with which training sees slices as testing does."""
    cfg = cfg.clone()
    cfg.defrost()
    inputs = cfg.INPUT
    inputs.RANDOM_FLIP, inputs.MIN_SIZE_TRAIN, inputs.MAX_SIZE_TRAIN = "none", (), 0
    inputs.MAPPER_TRAIN, inputs.CROP.ENABLED = "", False
    for name in inputs.AUGMENTATION:
        if name not in ("PROB", "ELASTIC_SMOOTH_PX"):
            inputs.AUGMENTATION[name] = _OFF.get(name, 0.0)
    return cfg
