"""Every config with what sets its model apart, and how many parameters that model has."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import ctmasknet
from ctmasknet.classes import MASK_TYPES
from ctmasknet.config import is_classifier
from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.weights.layout import AuthorsVariant, authors_layout

CONFIGS = Path(ctmasknet.__file__).resolve().parent.parent / "configs"
#: Headings of the tables, in order; the value says which configs belong below.
PUBLISHED_SEG, PUBLISHED_CLS = "Segmentation, published variants", "Classifiers, published variants"
LIGHT, DEMO = "For two CPU cores", "For make demo"
HEADINGS = (PUBLISHED_SEG, PUBLISHED_CLS, LIGHT, DEMO)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_MASK_HEAD = "roi_heads.mask_head."


@dataclass(frozen=True)
class Structure:
    """What two configs have to share for one to be a run of the other.

    ``num_boxes`` (N), ``image_fc_dim`` (width of S), ``trainable`` and ``image_head`` (its name and
    what it reads) are None for a detector and for a compared system, which ``network`` names.
    """

    task: str
    depth: int
    out_features: tuple[str, ...]
    fpn_channels: int
    anchors: tuple[tuple[float, ...], ...]
    lesion_classes: tuple[str, ...]
    num_boxes: int | None
    image_fc_dim: int | None
    trainable: str | None
    image_head: tuple[str, ...] | None
    #: timm's name of another backbone than a ResNet.
    timm: str = ""
    network: str = ""

    @property
    def truncation(self) -> int:
        """How many last stages of the ResNet are left out."""
        return 5 - int(self.out_features[-1].removeprefix("res"))

    @property
    def mask_type(self) -> str:
        found = [name for name, names in MASK_TYPES.items() if names == self.lesion_classes]
        return found[0] if found else ", ".join(self.lesion_classes)


def structure_of(cfg: Mapping[str, Any]) -> Structure:
    """Read a configuration, or the mapping that a run's ``config.yaml`` holds.

    Raises:
        KeyError: it lacks one of the keys.
    """
    model = cfg["MODEL"]
    architecture = model["META_ARCHITECTURE"]
    classifier = architecture == "CTMaskNet"
    names_slices = is_classifier(CfgNode({"MODEL": {"META_ARCHITECTURE": architecture}}))
    anchors = model["ANCHOR_GENERATOR"]
    return Structure(
        task="classification" if names_slices else "segmentation",
        depth=model["RESNETS"]["DEPTH"],
        out_features=tuple(model["RESNETS"]["OUT_FEATURES"]),
        fpn_channels=model["FPN"]["OUT_CHANNELS"],
        anchors=tuple(tuple(map(float, level)) for level in anchors["SIZES"]),
        lesion_classes=tuple(model["LESION_CLASSES"]),
        num_boxes=model["RANKED_BOXES"]["NUM"] if classifier else None,
        image_fc_dim=model["IMAGE_HEAD"]["FC_DIM"] if classifier else None,
        trainable=model["TRAINABLE"] if classifier else None,
        image_head=_image_head(model["IMAGE_HEAD"]) if classifier else None,
        timm=model["TIMM"]["NAME"] if _is_timm(model) else "",
        network=_network(model),
    )


def _is_timm(model: Mapping[str, Any]) -> bool:
    return model["BACKBONE"]["NAME"] == "build_timm_fpn_backbone"


def _image_head(head: Mapping[str, Any]) -> tuple[str, ...]:
    # Configurations from before heads read more than rows do not say what theirs read
    relative_to = head.get("BOXES_RELATIVE_TO", "image")
    return head["NAME"], *head.get("READS", ()), *[relative_to] * (relative_to != "image")


#: Meta-architecture of a compared system -> the keys that name its network.
_NETWORKS = {
    "SliceClassifier": ("SLICE_NETWORK.NAME", "SLICE_NETWORK.NUM_OUTPUTS"),
    "ScanClassifier": ("SLICE_NETWORK.NAME",),
    "SemanticLesionNet": ("SEMANTIC.NAME", "SEMANTIC.ENCODER"),
    "TwoBranchNet": ("IMAGE_HEAD.NAME", "IMAGE_HEAD.AFFINITIES"),
    "PatchNet": ("PATCHES.PLACE", "RANKED_BOXES.NUM"),
    "DetectedLesionClassifier": ("LESION_HEAD.NAME",),
    "SemanticLesionClassifier": ("LESION_HEAD.NAME", "SEMANTIC.NAME", "SEMANTIC.ENCODER"),
}


def _network(model: Mapping[str, Any]) -> str:
    """What a compared system is; empty for the paper's detector and classifier."""
    architecture = model["META_ARCHITECTURE"]
    if architecture in ("GeneralizedRCNN", "CTMaskNet"):
        return ""
    keys = (key.split(".") for key in _NETWORKS.get(architecture, ()))
    return " ".join([architecture, *(str(model[section][name]) for section, name in keys)])


@dataclass(frozen=True)
class Variant:
    """A config: ``name`` is its path below ``configs/`` without ``.yaml``."""

    name: str
    cfg: CfgNode
    structure: Structure

    @property
    def config(self) -> str:
        return f"configs/{self.name}.yaml"

    @property
    def heading(self) -> str:
        if "/" in self.name:
            return DEMO
        if self.name.endswith("_light"):
            return LIGHT
        return PUBLISHED_CLS if self.structure.task == "classification" else PUBLISHED_SEG


def peer_variants(configs: Path = CONFIGS) -> list[Variant]:
    """The configs of compared systems, by name."""
    files = sorted((configs / "peers").glob("*.yaml"))
    return [_variant(path, configs) for path in files]


def _variant(path: Path, configs: Path) -> Variant:
    # Counting needs no device, and the same table has to come out everywhere
    cfg = read_cfg(str(path), ["MODEL.DEVICE", "cpu"])
    name = path.relative_to(configs).with_suffix("").as_posix()
    return Variant(name, cfg, structure_of(cfg))


def variants(configs: Path = CONFIGS) -> list[Variant]:
    """All configs that stand for a model, in the order of :data:`HEADINGS`, then by name.

    ``configs/parts`` holds parts of configs, ``configs/experiments`` plans; :func:`peer_variants`
    are left out.

    Raises:
        CTMaskNetError: no config there, or a broken one.
    """
    others = {"parts", "peers", "experiments"}
    files = [path for path in configs.rglob("*.yaml") if not others & set(path.parts)]
    if not files:
        raise CTMaskNetError(f"{configs}: no config here; run from a clone of the repository")
    return sorted(
        (_variant(path, configs) for path in files),
        key=lambda item: (
            HEADINGS.index(item.heading),
            -item.structure.depth if item.heading in HEADINGS[:2] else 0,
            item.name,
        ),
    )


def count(cfg: CfgNode) -> dict[str, int]:
    """Build the model of ``cfg`` without memory for its numbers, and count them: ``parameters``,
    those of its ``mask_head``, those ``trainable``, and the whole ``state_dict`` (running
    statistics included)."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    named = list(model.named_parameters())
    return {
        "parameters": sum(item.numel() for _, item in named),
        "mask_head": sum(item.numel() for name, item in named if name.startswith(_MASK_HEAD)),
        "trainable": sum(item.numel() for _, item in named if item.requires_grad),
        "state_dict": sum(item.numel() for item in model.state_dict().values()),
    }


@functools.lru_cache
def authors_counts(structure: Structure, with_masks: bool) -> tuple[int, int]:
    """Parameters and whole state dict of a published variant in the authors' layout.

    That layout has rows for a background class that Detectron2's has not: 516 in the box predictor,
    and 257 (lightweight: 129) in the mask predictor.
    """
    classes, classifier = len(structure.lesion_classes), structure.task == "classification"
    network = (structure.depth, structure.truncation)
    layout = authors_layout(AuthorsVariant(*network, classes, with_masks, classifier))
    sizes = {name: math.prod(slot.shape) for name, slot in layout.items()}
    learned = sum(size for name, size in sizes.items() if not name.endswith(_STATISTICS))
    return learned, sum(sizes.values())


def model_rows(found: list[Variant]) -> list[dict[str, Any]]:
    """One record a variant, as the JSON of the model table has it; unknown and unfit values are
    None."""
    rows = []
    for variant in found:
        structure = variant.structure
        classifier = structure.task == "classification"
        theirs = (None, None)
        published = not structure.timm and structure.image_head in (None, ("RankedBoxImageHead",))
        if published and variant.heading in (PUBLISHED_SEG, PUBLISHED_CLS):
            # Their classifiers have no mask head, ours keep it for overlays
            theirs = authors_counts(structure, with_masks=not classifier)
        rows.append(
            {
                "heading": variant.heading,
                "config": variant.config,
                "task": structure.task,
                "backbone": structure.timm or f"ResNet-{structure.depth}",
                "truncation": structure.truncation,
                "mask_type": structure.mask_type,
                "num_boxes": structure.num_boxes,
                "image_fc_dim": structure.image_fc_dim,
                "training_mode": structure.trainable,
                **count(variant.cfg),
                "authors_parameters": theirs[0],
                "authors_state_dict": theirs[1],
            }
        )
    return rows
