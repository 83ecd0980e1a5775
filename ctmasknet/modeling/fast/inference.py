"""The form of a model that evaluation and prediction use (``MODEL.INFERENCE``).

The model that trains and that Detectron2 knows stays as it is, and is the reference: another form's
ranked rows and logits are its own but for rounding. Other forms have no gradients and are not for
checkpoints.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, GeneralizedRCNN
from torch import Tensor, nn

from ctmasknet.config import ranks_boxes
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast.int8 import SUFFIX, leads, network_of, read_int8
from ctmasknet.modeling.fast.openvino import (
    WrappedBackbone,
    computes_bfloat16,
    installed,
    to_openvino,
)
from ctmasknet.modeling.meta_arch import CTMaskNet
from ctmasknet.modeling.peers.patches import PatchNet
from ctmasknet.modeling.peers.two_branch import TwoBranchNet
from ctmasknet.modeling.roi_align import BagROIPooler

DTYPES = {"": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_LOGGER = logging.getLogger(__name__)


def inference_engine(cfg: CfgNode) -> str:
    """What computes a detector in evaluation and prediction, as ``MODEL.INFERENCE.ENGINE`` says:
    torch, or openvino, which ``auto`` is on the CPU where the package is installed.

    Raises:
        CTMaskNetError: openvino without the package, or on a GPU.
    """
    asked = cfg.MODEL.INFERENCE.ENGINE
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    if asked == "openvino" and not on_cpu:
        raise CTMaskNetError(
            f"MODEL.INFERENCE.ENGINE is openvino, but MODEL.DEVICE is {cfg.MODEL.DEVICE}; set the "
            "first to torch or the second to cpu"
        )
    if asked == "openvino" and not installed():
        raise CTMaskNetError(
            "MODEL.INFERENCE.ENGINE is openvino, which is not installed; `pip install openvino`, "
            "or set it to auto"
        )
    if asked == "torch" or not on_cpu:
        return "torch"
    if not installed():
        _say_once(
            "openvino is not installed: torch computes detectors, which takes about 1.3 times as "
            "long; `pip install openvino`"
        )
        return "torch"
    return "openvino"


def engine_version(cfg: CfgNode) -> str:
    """The engine and its version, which rounding depends on."""
    engine = inference_engine(cfg)
    return engine if engine == "torch" else f"{engine} {importlib.metadata.version(engine)}"


@functools.cache
def _say_once(text: str) -> None:
    _LOGGER.info(text)


def inference_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """``model`` as ``MODEL.INFERENCE`` wants it for evaluation and prediction: another form of it,
    or itself.

    Raises:
        CTMaskNetError: unknown or unsupported ``MODEL.INFERENCE.DTYPE``; see
            :func:`inference_engine`, :func:`check_int8` and, where OpenVINO was asked for,
            :func:`ctmasknet.modeling.fast.openvino.to_openvino`.
    """
    name = cfg.MODEL.INFERENCE.DTYPE
    if name not in DTYPES:
        raise CTMaskNetError(
            f"MODEL.INFERENCE.DTYPE is {name!r}; choose bfloat16, int8, or '' for float32"
        )
    engine = inference_engine(cfg)
    check_int8(cfg)
    if not isinstance(model, GeneralizedRCNN):
        if name:
            raise CTMaskNetError(
                f"MODEL.INFERENCE.DTYPE is {name}, which models with a detector alone compute in; "
                'set it to ""'
            )
        return model
    if isinstance(model, TwoBranchNet | PatchNet) and name:
        raise CTMaskNetError(
            f"MODEL.INFERENCE.DTYPE is {name}, which {type(model).__name__} has no form for; set "
            'it to ""'
        )
    if isinstance(model, TwoBranchNet):
        # Its second heads, and norms that may use a batch's statistics, have no fixed form.
        return model
    if name == "int8":
        return _in_int8(cfg, model)
    form = in_torch
    if engine == "openvino":
        form = functools.partial(_by_openvino, asked=cfg.MODEL.INFERENCE.ENGINE == "openvino")
    fast = form(model, DTYPES[name])
    margin = cfg.MODEL.INFERENCE.RECHECK_MARGIN
    if DTYPES[name] != torch.float32 and margin > 0 and isinstance(model, CTMaskNet):
        judge = form(model, torch.float32)
        # Who trains the model further does so in its own mode
        return rechecked(fast, copy.deepcopy(model).eval() if judge is model else judge, margin)
    return fast


def check_int8(cfg: CfgNode) -> dict[str, Any]:
    """What the file of a model in int8 tells of itself, see :mod:`.int8`; nothing where
    ``MODEL.INFERENCE.DTYPE`` is another.

    Raises:
        CTMaskNetError: torch computes; a lesion detector; the file beside ``MODEL.WEIGHTS`` is
            missing, or none.
    """
    if cfg.MODEL.INFERENCE.DTYPE != "int8":
        return {}
    if inference_engine(cfg) != "openvino":
        raise CTMaskNetError(
            "MODEL.INFERENCE.DTYPE is int8, which OpenVINO alone computes in, on the CPU; "
            '`pip install openvino`, set MODEL.INFERENCE.ENGINE to auto, or this to ""'
        )
    if not ranks_boxes(cfg):
        raise CTMaskNetError(
            f"MODEL.INFERENCE.DTYPE is int8, which names slices by ranked boxes; a "
            f'{cfg.MODEL.META_ARCHITECTURE} is used in float32: set it to ""'
        )
    return read_int8(_int8_path(cfg))["told"]


def _int8_path(cfg: CfgNode) -> Path:
    return Path(cfg.MODEL.WEIGHTS).with_suffix(SUFFIX)


def _in_int8(cfg: CfgNode, model: CTMaskNet) -> RecheckedClassifier:
    content = read_int8(_int8_path(cfg))
    fast = to_openvino(model, dense=network_of(content, model))
    return rechecked(fast, to_openvino(model), content["margin"], gives_boxes=False)


def _by_openvino(model: nn.Module, dtype: torch.dtype, *, asked: bool) -> nn.Module:
    """:func:`to_openvino`, or :func:`in_torch` of a model that has no form there; an error where
    OpenVINO was ``asked`` for."""
    if not asked and dtype == torch.bfloat16 and not computes_bfloat16():
        return in_torch(model, dtype)
    try:
        return to_openvino(model, dtype)
    except CTMaskNetError as error:
        if asked:
            raise
        _LOGGER.warning("%s (which is done)", error)
        return in_torch(model, dtype)


@torch.no_grad()
def in_torch(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A detector or classifier as torch computes it for inference.

    Args:
        model: with weights loaded; it is left alone.
        dtype: float32 is the model itself; bfloat16 a copy whose backbone, RPN head and box head
            compute in it. What is decoded, scored, ranked and named stays float32.

    Raises:
        CTMaskNetError: bfloat16 on a device without it.
    """
    if dtype == torch.float32:
        return model
    device = next(model.parameters()).device
    if not has_bfloat16(device):
        raise CTMaskNetError(
            f"MODEL.INFERENCE.DTYPE is bfloat16, which device {device} does not compute in; "
            'set it to ""'
        )
    half = copy.deepcopy(model).eval().requires_grad_(False)
    half.backbone = _HalfBackbone(half.backbone)
    half.proposal_generator.rpn_head = _Half(half.proposal_generator.rpn_head)
    half.roi_heads.box_head = _Half(half.roi_heads.box_head)
    if getattr(half.roi_heads, "mask_on", False):
        half.roi_heads.mask_pooler = BagROIPooler.of(half.roi_heads.mask_pooler)
    return half


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether this GPU, or oneDNN on this CPU, computes in bfloat16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _Half(nn.Module):
    """A part of a model in bfloat16 that gives float32."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, x: Tensor | list[Tensor]) -> Any:
        first = x[0]
        with torch.autocast(first.device.type, torch.bfloat16):
            return _float32(self.part(x))


class _HalfBackbone(WrappedBackbone):
    def __init__(self, backbone: Backbone):
        super().__init__(backbone)
        self.part = _Half(backbone)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See Detectron2's."""
        return self.part(images)


def _float32(found: Any) -> Any:
    if isinstance(found, Tensor):
        return found.float()
    if isinstance(found, dict):
        return {name: value.float() for name, value in found.items()}
    return type(found)(map(_float32, found))


class RecheckedClassifier(CTMaskNet):
    """A form of a classifier whose close calls another decides; made by :func:`rechecked`."""

    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """See :meth:`CTMaskNet.inference`."""
        self.looks += len(batched_inputs)
        boxes = self.return_instances or self.return_ranked_instances
        if boxes and not self.gives_boxes:
            results, close = [{} for _ in batched_inputs], list(range(len(batched_inputs)))
        else:
            results = super().inference(batched_inputs)
            lead = leads(torch.stack([result["logits"] for result in results]))
            close = (lead < self.margin).nonzero().flatten().tolist()
        self.again += len(close)
        if close:
            self.judge.return_instances = self.return_instances
            self.judge.return_ranked_instances = self.return_ranked_instances
            found = self.judge([batched_inputs[i] for i in close])
            for i, result in zip(close, found, strict=True):
                results[i] = result
        return results


def rechecked(
    fast: CTMaskNet, judge: CTMaskNet, margin: float, *, gives_boxes: bool = True
) -> RecheckedClassifier:
    """``fast``, a copy that nobody else uses, with a second look at slices whose two best logits
    are less than ``margin`` apart: those get all results from ``judge``, and every slice
    whose boxes are asked for does unless ``fast`` ``gives_boxes``."""
    fast.__class__ = RecheckedClassifier
    fast.judge = judge
    fast.margin = margin
    fast.gives_boxes = gives_boxes
    fast.looks = fast.again = 0
    return fast


def second_looks(*models: nn.Module) -> tuple[int, int]:
    """Looks at slices up to now, and so many of them that float32 decided; none where models are in
    float32 anyway."""
    modules = [module for model in models for module in model.modules()]
    forms = [one for one in modules if isinstance(one, RecheckedClassifier)]
    return sum(one.looks for one in forms), sum(one.again for one in forms)


def looks_text(looks: Sequence[int]) -> str:
    """:func:`second_looks` in words."""
    total, again = looks
    return f"{again} of {total} looks at slices ({100 * again / total:.1f} %) decided in float32"
