"""Layers of an inference copy: batch normalisation within the convolution's weights, activation and
shortcut within its pass over memory, channels side by side in memory.

On a CPU, oneDNN's fused convolutions are called as torch.compile's own backend calls them, with
weights laid out once; elsewhere the same is done in plain steps.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicStem, CNNBlockBase
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights


def folds(conv: nn.Conv2d) -> bool:
    """Whether a convolution's normalisation, if it has one, is a fixed factor and shift a
    channel in evaluation."""
    norm = getattr(conv, "norm", None)
    return norm is None or isinstance(norm, FrozenBatchNorm2d | _BatchNorm)


def folded(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (out, in, kh, kw) and bias (out,) of a convolution and its normalisation as one."""
    weight, bias = conv.weight.detach().double(), conv.bias
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
    norm = getattr(conv, "norm", None)
    if norm is not None:
        mean, variance = norm.running_mean.double(), norm.running_var.double()
        scale = (norm.eps, norm.weight, norm.bias)
        weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, *scale)
    return weight.detach().float(), bias.detach().float()


class FusedConv2d(nn.Module):
    """A convolution in one pass with normalisation, addition and ReLU."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool, dtype: torch.dtype):
        """
        Args:
            conv: :func:`folds`; zero padding.
            relu: negative results become 0.
            dtype: it computes in; inputs of another type are converted.
        """
        super().__init__()
        weight, bias = folded(conv)
        self.register_buffer("weight", weight.to(dtype, memory_format=torch.channels_last))
        self.register_buffer("bias", bias.to(dtype))
        self.relu = relu
        self.dtype = dtype
        self.stride, self.padding = list(conv.stride), list(conv.padding)
        self.dilation, self.groups = list(conv.dilation), conv.groups

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(B, C, H, W) and, where given, a map of the result's shape that is added before the
        ReLU -> (B, C', H', W') in channels_last."""
        x = x.to(self.dtype, memory_format=torch.channels_last)
        add = None if add is None else add.to(self.dtype, memory_format=torch.channels_last)
        window = (self.padding, self.stride, self.dilation, self.groups)
        if not _one_dnn(x):
            found = F.conv2d(
                x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
            found = found if add is None else found.add_(add)
            return F.relu_(found) if self.relu else found
        if not self.weight.is_mkldnn:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, *window, list(x.shape)
            )
        if add is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *window, "relu" if self.relu else "none", [], ""
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(
            *(x, add, self.weight, self.bias, *window, "add", 1.0),
            *("relu" if self.relu else None, [], ""),
        )

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: weights in oneDNN's own layout cannot be copied."""
        state = self.__dict__.copy()
        if self.weight.is_mkldnn:
            weight = self.weight.to_dense().contiguous(memory_format=torch.channels_last)
            state["_buffers"] = {**self._buffers, "weight": weight}
        return state


def _one_dnn(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and x.numel() > 0
        and not torch.compiler.is_compiling()
    )


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether this GPU, or oneDNN on this CPU, computes in bfloat16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class FusedBlock(nn.Module):
    """A residual block of Detectron2's, basic or bottleneck."""

    def __init__(self, block: CNNBlockBase, dtype: torch.dtype):
        """
        Args:
            block: ``BasicBlock`` or ``BottleneckBlock``.
            dtype: see :class:`FusedConv2d`.
        """
        super().__init__()
        names = [name for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
        self.convs = nn.ModuleList(
            FusedConv2d(getattr(block, name), relu=True, dtype=dtype) for name in names
        )
        self.shortcut = None
        if block.shortcut is not None:
            self.shortcut = FusedConv2d(block.shortcut, relu=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        for conv in self.convs[:-1]:
            x = conv(x)
        return self.convs[-1](x, shortcut)


class FusedStem(nn.Module):
    """Detectron2's ``BasicStem``."""

    def __init__(self, stem: BasicStem, dtype: torch.dtype):
        super().__init__()
        self.conv1 = FusedConv2d(stem.conv1, relu=True, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class ChannelsLastBoxHead(nn.Module):
    """Detectron2's box head without convolutions, on channels_last maps as they lie in memory."""

    def __init__(self, head: FastRCNNConvFCHead, shape: tuple[int, int, int], dtype: torch.dtype):
        """
        Args:
            head: has linear layers only.
            shape: channels, height and width of what it is given.
            dtype: it computes in; the result is float32.
        """
        super().__init__()
        first = head.fcs[0]
        weight = first.weight.detach().unflatten(1, shape).permute(0, 2, 3, 1).flatten(1)
        self.fcs = nn.ModuleList([nn.Linear(first.in_features, first.out_features), *head.fcs[1:]])
        self.fcs[0].weight.data = weight.contiguous()
        self.fcs[0].bias.data = first.bias.detach()
        self.fcs.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, P, P) -> (R, F) float32."""
        x = x.to(self.dtype).permute(0, 2, 3, 1).flatten(1)
        for fc in self.fcs:
            x = F.relu_(fc(x))
        return x.float()


def fused_conv(conv: nn.Module, dtype: torch.dtype) -> FusedConv2d | None:
    """The fused form of a convolution of Detectron2's with no activation or a ReLU; else None."""
    if not isinstance(conv, Conv2d) or conv.padding_mode != "zeros" or not folds(conv):
        return None
    activation = conv.activation
    relu = activation is F.relu or isinstance(activation, nn.ReLU)
    if activation is not None and not relu:
        return None
    return FusedConv2d(conv, relu=relu, dtype=dtype)
