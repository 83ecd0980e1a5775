"""Published checkpoints and torchvision's ResNet files as Detectron2 checkpoints.

The variant is read off the tensors' names and shapes; then every tensor must be there, with the
shape that variant has, and none besides (reference, "The authors' checkpoint files").
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctmasknet.classes import IMAGE_CLASSES, MASK_TYPES
from ctmasknet.ct.scan import Window
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write, check_writable, writing
from ctmasknet.modeling.ranked_boxes import ROW_FEATURES
from ctmasknet.weights.entries import SPEC
from ctmasknet.weights.layout import (
    ANCHOR_RATIOS,
    ANCHOR_SIZES,
    AuthorsVariant,
    Slot,
    authors_layout,
    resnet_layout,
)
from ctmasknet.weights.peer_files import ImportedPeer, import_peer, peer_of, unwrapped
from ctmasknet.weights.pickle import AnchorData, read_weights_file, shown
from ctmasknet.weights.reader import check_weights
from ctmasknet.weights.tensorflow.bundle import prefix_of
from ctmasknet.weights.tensorflow.covidnet_ct import ImportedCOVIDNetCT, import_covidnet_ct
from ctmasknet.weights.timm_files import LITE0, ImportedLite0, lite0_weights, packaged_file
from ctmasknet.weights.two_branch import ImportedTwoBranch, import_two_branch, is_two_branch

_CLASSES_FROM = "roi_heads.box_predictor.cls_score.weight"
_TRACKED = ".num_batches_tracked"
#: Entries of a file that hold the tensors.
_WRAPPERS = ("model_weights", "state_dict", "model_state_dict", "net")
_FPN_BLOCK = re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.0\.(weight|bias)")


@dataclass(frozen=True)
class ImportedVariant:
    """What a file turned out to hold.

    Attributes:
        variant: None for a bare ResNet.
        depth: of the ResNet.
        mask_type: ``both``, ``ggo`` or ``merge``; None for a bare ResNet.
    """

    variant: AuthorsVariant | None
    depth: int
    mask_type: str | None

    @property
    def config(self) -> str:
        """The config that builds this variant, relative to the repository."""
        if self.depth == 101:
            return "configs/peers/ark20_seg_r101.yaml"
        name = "cls" if self.variant and self.variant.is_classifier else "seg"
        if self.depth < 50:
            truncation = self.variant.truncation if self.variant else 0
            name += f"_r{self.depth}_t{truncation}_merge"
        elif self.mask_type not in ("both", None):
            name += f"_r50_{self.mask_type}"
        return f"configs/{name}.yaml"

    @property
    def overrides(self) -> list[str]:
        """``KEY VALUE`` pairs that the config needs besides: lightweight models are published with
        merged masks only, and their configs are of those."""
        if self.variant is None or self.depth == 50 or self.mask_type == "merge":
            return []
        classes = list(MASK_TYPES[self.mask_type])
        numbers = ["MODEL.ROI_HEADS.NUM_CLASSES", str(len(classes))]
        return ["MODEL.LESION_CLASSES", json.dumps(classes), *numbers]

    @property
    def spec(self) -> dict[str, Any] | None:
        """What the checkpoint carries so that a config that disagrees is noticed."""
        if self.variant is None:
            return None
        spec: dict[str, Any] = {
            "task": "classification" if self.variant.is_classifier else "segmentation",
            "mask_type": self.mask_type,
            "lesion_classes": list(MASK_TYPES[self.mask_type]),
            "anchors_rounded": True,
            "window_center_hu": Window.center_hu,
            "window_width_hu": Window.width_hu,
        }
        if self.variant.is_classifier:
            spec["num_boxes"] = self.variant.num_boxes
            spec["image_classes"] = list(IMAGE_CLASSES)
            spec["row_features"] = list(ROW_FEATURES)
        return spec

    def __str__(self) -> str:
        truncation = self.variant.truncation if self.variant else 0
        network = f"ResNet-{self.depth}" + (f" truncation {truncation}" if truncation else "")
        if self.variant is None:
            return f"{network} without a detector"
        masks = "with" if self.variant.has_masks else "without"
        classes = ", ".join(MASK_TYPES[self.mask_type])
        if not self.variant.is_classifier:
            return f"segmentation, {network}, classes {classes}, {masks} mask head"
        return (
            f"classifier, {network}, lesion classes {classes}, {masks} mask head, "
            f"N {self.variant.num_boxes}, S {self.variant.image_fc_dim}"
        )


#: What a file may turn out to hold.
Imported = ImportedVariant | ImportedTwoBranch | ImportedLite0 | ImportedCOVIDNetCT | ImportedPeer


def detect_variant(
    shapes: Mapping[str, tuple[int, ...]], mask_type: str | None = None
) -> ImportedVariant:
    """Tell the variant from tensor names and shapes.

    Args:
        shapes: by the authors' or torchvision's names, FPN blocks as ``.{i}.weight``.
        mask_type: names it where shapes cannot tell ``merge`` from ``ggo`` (default: ``merge``).

    Raises:
        CTMaskNetError: a file of another model, or a mask type that has another number of classes.
    """
    bare = _CLASSES_FROM not in shapes
    body = "" if bare else "backbone.body."
    if f"{body}layer1.0.conv1.weight" not in shapes:
        raise CTMaskNetError(
            f"no tensor {_CLASSES_FROM} nor layer1.0.conv1.weight: neither a published checkpoint "
            "nor a ResNet of torchvision; import one of those"
        )
    if f"{body}layer1.0.conv3.weight" in shapes:
        # Published detectors have 50; torchvision's file of 101 layers starts one as well
        depth = 101 if bare and "layer3.6.conv1.weight" in shapes else 50
    else:
        depth = 34 if f"{body}layer1.2.conv1.weight" in shapes else 18
    if bare:
        return ImportedVariant(None, depth, None)

    truncation = 0
    if depth < 50:
        truncation = sum(f"{body}layer{stage}.0.conv1.weight" not in shapes for stage in (3, 4))
    lesions = (shapes[_CLASSES_FROM] or (0,))[0] - 1
    fitting = [name for name in ("merge", "ggo", "both") if len(MASK_TYPES[name]) == lesions]
    if depth < 50 and "ggo" in fitting:
        fitting.remove("ggo")  # the lightweight models were published with merged masks only
    if mask_type is not None and mask_type not in fitting:
        raise CTMaskNetError(
            f"mask type {mask_type} does not fit a ResNet-{depth} with {lesions} classes; "
            f"choose from: {', '.join(fitting) or 'none'}"
        )
    if not fitting:
        raise CTMaskNetError(
            f"tensor {_CLASSES_FROM} has shape {shapes[_CLASSES_FROM]}: a published model has "
            "2 or 3 classes, background counted; import one of those"
        )
    variant = AuthorsVariant(
        depth=depth,
        truncation=truncation,
        lesion_classes=lesions,
        has_masks=any(name.startswith("roi_heads.mask_") for name in shapes),
        is_classifier=any(name.startswith("s2new.") for name in shapes),
    )
    return ImportedVariant(variant, depth, mask_type or fitting[0])


def import_checkpoint(
    state: Mapping[str, Tensor], mask_type: str | None = None
) -> tuple[dict[str, Tensor], ImportedVariant]:
    """Rename and reorder a state dict of the authors' layout, or of torchvision's ResNet.

    Args:
        state: tensors by name; FPN blocks may be called ``.{i}.weight`` or ``.{i}.0.weight``.
        mask_type: see :func:`detect_variant`.

    Returns:
        tensors by the names of ``configs/``' models (float32), and what the file held.

    Raises:
        CTMaskNetError: a tensor is missing, of a wrong shape, or not of the variant.
    """
    # FPN names of today's torchvision in the older, short form
    state = {_FPN_BLOCK.sub(r"\1.\2", name): tensor for name, tensor in state.items()}
    found, slots = _checked(state, mask_type)
    converted = {}
    for name, slot in slots.items():
        if name not in state:  # files older than torch 0.4.1 do not count batches
            converted[slot.target] = torch.zeros((), dtype=torch.int64)
            continue
        tensor = state[name]
        tensor = slot.convert(tensor) if slot.convert else tensor
        dtype = torch.int64 if name.endswith(_TRACKED) else torch.float32
        converted[slot.target] = tensor.to(dtype).contiguous()
    return converted, found


def import_file(
    path: str | os.PathLike,
    output: str | os.PathLike,
    mask_type: str | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Imported, list[str]]:
    """Write the Detectron2 checkpoint of a published ``.pth`` file; no file appears on an error.

    Args:
        path: a checkpoint of the authors, a plain state dict of theirs, torchvision's ResNet or
            timm's EfficientNet-Lite0; ``efficientnet_lite0`` for that of the installed package;
            COVIDNet-CT's ``.meta``, its ``.index`` and ``.data`` files beside it; a file of another
            compared system (:mod:`ctmasknet.weights.peer_files`).
        output: the Detectron2 checkpoint, to be loaded by ``DetectionCheckpointer``.
        mask_type: see :func:`detect_variant`.
        classes: see :func:`ctmasknet.weights.peer_files.peer_of`.

    Returns:
        what the file held, and lines that tell of it.

    Raises:
        CTMaskNetError: ``path`` is refused, see
            :func:`ctmasknet.weights.pickle.read_weights_file`, or holds another model, other
            anchors, or incomplete weights.
    """
    path = os.fspath(path)
    if path == LITE0 and not os.path.exists(path):
        path = packaged_file()
    if os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output):
        raise CTMaskNetError(f"{output}: is the file to read; give `output` another name")
    check_writable(output)
    if prefix := prefix_of(path):
        converted, of_tensorflow = import_covidnet_ct(prefix)
        return of_tensorflow, _written(output, converted, of_tensorflow, "COVIDNet-CT", [])
    content = read_weights_file(path)
    if not isinstance(content, dict):
        raise CTMaskNetError(f"{path}: holds no state dict; give a published checkpoint")
    if SPEC in content:
        raise CTMaskNetError(
            f"{path}: is a checkpoint of this project already; use it as it is, as `weights` or "
            "MODEL.WEIGHTS"
        )
    tensors = next((content[key] for key in _WRAPPERS if key in content), content)
    if not isinstance(tensors, dict) or not tensors:
        raise CTMaskNetError(f"{path}: holds no weights; give a published checkpoint")
    tensors = unwrapped(tensors)
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CTMaskNetError(
                f"{path}: {shown(name)} is not a tensor; give a published checkpoint"
            )
    check_weights(path, tensors)
    try:
        lines = _anchor_lines(content.get("anchor_generator"))
        lite0 = lite0_weights(path, tensors)
        if peer := peer_of(tensors, classes):
            converted = import_peer(tensors, peer)
            return peer, _written(output, converted, peer, peer.what, list(peer.told))
        if is_two_branch(tensors):
            converted, found = import_two_branch(tensors, mask_type)
        elif lite0 is None:
            converted, found = import_checkpoint(tensors, mask_type)
        else:
            converted, found = lite0, ImportedLite0()
    except CTMaskNetError as error:
        told = str(error)
        raise CTMaskNetError(told if told.startswith(path) else f"{path}: {told}") from None
    author = "COVID-CT-Mask-Net"
    if found.spec is None:
        author = "torchvision" if lite0 is None else "timm"
        lines = []
    told = [f"{key}: {shown(content[key])}" for key in ("model_name", "epoch") if key in content]
    return found, _written(output, converted, found, author, [*told, *lines])


def _written(
    output: str | os.PathLike,
    converted: Mapping[str, Tensor],
    found: Imported,
    author: str,
    told: list[str],
) -> list[str]:
    """Write the checkpoint; the lines that tell of it."""
    checkpoint = {"model": converted, "__author__": author}
    if found.spec is not None:
        checkpoint["ctmasknet"] = {**found.spec, "config_file": found.config}
    with writing(output), atomic_write(output, "wb") as stream:
        torch.save(checkpoint, stream)
    size = sum(tensor.numel() for tensor in converted.values())
    needed = [f"overrides: {shlex.join(found.overrides)}"] if found.overrides else []
    tensors = f"tensors: {len(converted)}, {size:,} values"
    return [f"found: {found}", *told, tensors, *needed]


def _checked(
    state: Mapping[str, Tensor], mask_type: str | None
) -> tuple[ImportedVariant, dict[str, Slot]]:
    """The variant and its slots, once every tensor is known to be there and of the right shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = detect_variant(shapes, mask_type)
    if found.variant is None:
        slots = resnet_layout(found.depth)
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("fc.")}
    else:
        slots = authors_layout(found.variant)
    for name, slot in slots.items():
        if name in shapes and shapes[name] != slot.shape:
            raise CTMaskNetError(
                f"tensor {name} has shape {shapes[name]}, expected {slot.shape} for {found}; "
                "the file is of another model"
            )
        if name not in shapes and not name.endswith(_TRACKED):
            raise CTMaskNetError(
                f"tensor {name} of shape {slot.shape} is missing for {found}; "
                "the file is incomplete or of another model"
            )
    for name in sorted(shapes.keys() - slots.keys()):
        raise CTMaskNetError(
            f"tensor {shown(name)} of shape {shapes[name]} has no place in {found}; "
            "the file is of another model"
        )
    return found, slots


def _anchor_lines(anchors: Any) -> list[str]:
    """Tell the file's anchors, which must be the ones that every config builds."""
    if anchors is None:
        return ["anchors: not in the file, taken as published"]
    if not isinstance(anchors, AnchorData):
        raise CTMaskNetError("anchor_generator is not an anchor generator; give another file")
    for name, published in (("sizes", ANCHOR_SIZES), ("aspect_ratios", ANCHOR_RATIOS)):
        levels = anchors.state.get(name) if isinstance(anchors.state, dict) else None
        if not isinstance(levels, tuple | list) or not levels:
            raise CTMaskNetError(f"its anchor generator has no {name}; give another file")
        for level in levels:
            if not isinstance(level, tuple | list) or tuple(level) != published:
                raise CTMaskNetError(
                    f"its anchor generator has {name} {shown(level)}, expected {published} "
                    "at every level; no config builds that model"
                )
    return [f"anchor sizes (px): {ANCHOR_SIZES}", f"anchor ratios (h/w): {ANCHOR_RATIOS}"]
