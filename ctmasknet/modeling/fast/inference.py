"""An inference copy of a model: the same decisions in less time (``MODEL.INFERENCE``).

The model that trains and that Detectron2 knows stays as it is, and is the reference: the copy's
ranked rows and logits are its own but for rounding. The copy has no gradients and is not for
checkpoints.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import FPN, GeneralizedRCNN
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from torch import Tensor, nn

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast.layers import (
    ChannelsLastBoxHead,
    FusedBlock,
    FusedStem,
    folds,
    fused_conv,
    has_bfloat16,
)
from ctmasknet.modeling.fast.openvino import computes_bfloat16, installed, to_openvino
from ctmasknet.modeling.meta_arch import CTMaskNet
from ctmasknet.modeling.peers.patches import PatchNet
from ctmasknet.modeling.peers.two_branch import TwoBranchNet
from ctmasknet.modeling.roi_align import BagROIPooler

DTYPES = {"": torch.float32, "bfloat16": torch.bfloat16}
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
    if asked == "torch" or not on_cpu or not cfg.MODEL.INFERENCE.FUSED:
        return "torch"
    if not installed():
        _say_once(
            "openvino is not installed: torch computes, which takes longer; `pip install openvino`"
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
    """``model`` as ``MODEL.INFERENCE`` wants it for evaluation and prediction: a copy, or itself.

    Raises:
        CTMaskNetError: unknown or unsupported ``MODEL.INFERENCE.DTYPE``, see :func:`to_inference`
            and :func:`inference_engine`.
    """
    name = cfg.MODEL.INFERENCE.DTYPE
    if name not in DTYPES:
        raise CTMaskNetError(
            f"MODEL.INFERENCE.DTYPE is {name!r}; choose bfloat16, or '' for float32"
        )
    engine = inference_engine(cfg)
    if not isinstance(model, GeneralizedRCNN):
        if name:
            raise CTMaskNetError(
                f"MODEL.INFERENCE.DTYPE is {name}, which models with a detector alone compute in; "
                'set it to ""'
            )
        return model
    if not cfg.MODEL.INFERENCE.FUSED:
        if name:
            raise CTMaskNetError(
                f"MODEL.INFERENCE.DTYPE is {name} but MODEL.INFERENCE.FUSED is False; set it True"
            )
        return model
    if isinstance(model, TwoBranchNet | PatchNet) and name:
        raise CTMaskNetError(
            f"MODEL.INFERENCE.DTYPE is {name}, which {type(model).__name__} has no copy for; set "
            'it to ""'
        )
    if isinstance(model, TwoBranchNet):
        # Its second heads, and norms that may use a batch's statistics, have no fused form.
        return model
    form = to_inference
    if engine == "openvino":
        form = functools.partial(_by_openvino, asked=cfg.MODEL.INFERENCE.ENGINE == "openvino")
    fast = form(model, DTYPES[name])
    margin = cfg.MODEL.INFERENCE.RECHECK_MARGIN
    if DTYPES[name] != torch.float32 and margin > 0 and isinstance(model, CTMaskNet):
        return rechecked(fast, form(model), margin)
    return fast


def _by_openvino(model: nn.Module, dtype: torch.dtype = torch.float32, *, asked: bool) -> nn.Module:
    """:func:`to_openvino`, or :func:`to_inference` of a model that has no form there; an error
    where OpenVINO was ``asked`` for."""
    if not _is_finite(model) or (not asked and dtype == torch.bfloat16 and not computes_bfloat16()):
        return to_inference(model, dtype)
    try:
        return to_openvino(model, dtype)
    except CTMaskNetError as error:
        if asked:
            raise
        _LOGGER.warning("%s (which is done)", error)
        return to_inference(model, dtype)


class RecheckedClassifier(CTMaskNet):
    """An inference copy whose close calls another decides; made by :func:`rechecked`."""

    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """See :meth:`CTMaskNet.inference`."""
        results = super().inference(batched_inputs)
        best = [result["logits"].topk(min(2, len(result["logits"]))).values for result in results]
        close = [i for i, two in enumerate(best) if two[0] - two[-1] < self.margin]
        if close:
            self.judge.return_instances = self.return_instances
            self.judge.return_ranked_instances = self.return_ranked_instances
            found = self.judge([batched_inputs[i] for i in close])
            for i, result in zip(close, found, strict=True):
                results[i] = result
        return results


def rechecked(fast: CTMaskNet, judge: CTMaskNet, margin: float) -> RecheckedClassifier:
    """``fast``, a copy that nobody else uses, with a second look at slices whose two best logits
    are less than ``margin`` apart: those get all results from ``judge``."""
    fast.__class__ = RecheckedClassifier
    fast.judge = judge
    fast.margin = margin
    return fast


@torch.no_grad()
def to_inference(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of a detector or classifier for inference, on the same device.

    In bfloat16 the backbone, the RPN's hidden layer and the box head compute in it; what is
    decoded, scored, ranked and named stays float32. A model with a weight that is no finite number
    is copied as it is.

    Args:
        model: ``CTMaskNet`` or ``GeneralizedRCNN`` with weights loaded; it is left alone.
        dtype: float32 or bfloat16.

    Raises:
        CTMaskNetError: bfloat16 on a device without it, or a normalisation that cannot be folded
            in it; ``model`` is such a copy in another type.
    """
    made = getattr(model, "inference_dtype", None)
    if made == dtype:
        return copy.deepcopy(model)
    if made is not None:
        raise CTMaskNetError(
            f"this model is an inference copy in {made}, which cannot be made one in {dtype}; give "
            "the model that it was made of"
        )
    if dtype == torch.bfloat16:
        _check_bfloat16(model)
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    if not _is_finite(model):
        return fused
    _replace(fused.backbone, dtype)
    head = fused.proposal_generator.rpn_head
    if type(head) is StandardRPNHead:
        fused.proposal_generator.rpn_head = _RPNHead(head, dtype)
    heads = fused.roi_heads
    box_head = heads.box_head
    if type(box_head) is FastRCNNConvFCHead and not box_head.conv_norm_relus:
        height, width = heads.box_pooler.output_size
        channels = box_head.fcs[0].in_features // (height * width)
        heads.box_head = ChannelsLastBoxHead(box_head, (channels, height, width), dtype)
    else:
        heads.box_pooler = _Float32Pooler(heads.box_pooler)
    if getattr(heads, "mask_on", False):
        heads.mask_pooler = _Float32Pooler(BagROIPooler.of(heads.mask_pooler))
    fused.inference_dtype = dtype
    return fused


def _replace(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace a backbone's layers by fused ones, all the way down."""
    new: dict[nn.Module, nn.Module] = {}
    for name, child in module.named_children():
        if isinstance(child, BasicBlock | BottleneckBlock) and all(
            folds(conv) for conv in child.modules() if isinstance(conv, nn.Conv2d)
        ):
            new[child] = FusedBlock(child, dtype)
        elif isinstance(child, BasicStem) and folds(child.conv1):
            new[child] = FusedStem(child, dtype)
        elif (conv := fused_conv(child, dtype)) is not None:
            new[child] = conv
        else:
            _replace(child, dtype)
            continue
        setattr(module, name, new[child])
    if isinstance(module, FPN):
        # It calls its convolutions through lists of its own.
        for name in ("lateral_convs", "output_convs"):
            setattr(module, name, [new.get(conv, conv) for conv in getattr(module, name)])


class _RPNHead(nn.Module):
    """Detectron2's RPN head; what it predicts is computed in float32."""

    def __init__(self, head: StandardRPNHead, dtype: torch.dtype):
        super().__init__()
        hidden = head.conv if isinstance(head.conv, nn.Sequential) else [head.conv]
        self.conv = nn.Sequential(*(fused_conv(conv, dtype) or conv for conv in hidden))
        self.objectness_logits = head.objectness_logits
        self.anchor_deltas = head.anchor_deltas

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = [self.conv(level).float() for level in features]
        return (
            [self.objectness_logits(level) for level in hidden],
            [self.anchor_deltas(level) for level in hidden],
        )


class _Float32Pooler(nn.Module):
    """A pooler that hands on float32, as box and mask heads compute in it."""

    def __init__(self, pooler: nn.Module):
        super().__init__()
        self.pooler = pooler

    def forward(self, x: list[Tensor], box_lists) -> Tensor:
        return self.pooler([level.float() for level in x], box_lists)


def _is_finite(model: nn.Module) -> bool:
    """Engines' ReLU makes 0 of a NaN; Detectron2's layers hand it on to where it is an error."""
    return all(value.isfinite().all() for value in model.state_dict().values())


def _check_bfloat16(model: nn.Module) -> None:
    device = next(model.parameters()).device
    if not has_bfloat16(device):
        raise CTMaskNetError(
            f"MODEL.INFERENCE.DTYPE is bfloat16, which device {device} does not compute in; "
            'set it to ""'
        )
    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.Conv2d) and not folds(module):
            raise CTMaskNetError(
                f"MODEL.INFERENCE.DTYPE is bfloat16, but backbone.{name} has a normalisation "
                f'({type(module.norm).__name__}) that cannot be folded into it; set it to ""'
            )
