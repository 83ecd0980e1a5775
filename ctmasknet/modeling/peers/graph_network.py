"""A network given as a list of operations: plain data, checked, and run in torch.

The operations are a closed list and compute what TensorFlow's of that name do; see
:data:`OPERATIONS`. A tensor has the layout that TensorFlow gives it, mostly (N, H, W, C).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ctmasknet.errors import CTMaskNetError

_MAX_NODES, _MAX_VALUES, _MAX_TOTAL, _MAX_MACS = 4096, 1 << 27, 1 << 30, 200e9
_MAX_TEXT = 4 << 20
#: What the text starts with, which also keeps configurations from taking it for a dictionary.
_FORMAT = "operations, format 1: "
_MAX_STEP = 64  # of strides, windows, dilations and paddings, px


@dataclass(frozen=True)
class GraphNode:
    """One operation: its inputs are numbers of earlier nodes."""

    op: str
    name: str
    inputs: tuple[int, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Operations in the order they run; the last one gives the logits (N, C).

    Attributes:
        nodes: the first is the ``Input``.
        input_shape: (height, width, channels), or channels first, of one input.
    """

    nodes: tuple[GraphNode, ...]
    input_shape: tuple[int, int, int]

    def to_text(self) -> str:
        rows = [[node.op, node.name, node.inputs, node.attrs] for node in self.nodes]
        content = {"input": self.input_shape, "nodes": rows}
        return _FORMAT + json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Graph:
        """
        Raises:
            CTMaskNetError: it is no such list, has an operation that is not of the closed list, or
                numbers out of their bounds; names the node.
        """
        try:
            if len(text) > _MAX_TEXT or not text.startswith(_FORMAT):
                raise ValueError
            content = json.loads(text.removeprefix(_FORMAT))
            nodes = tuple(
                GraphNode(str(op), str(name), tuple(inputs), dict(attrs))
                for op, name, inputs, attrs in content["nodes"]
            )
            graph = cls(nodes, tuple(content["input"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise CTMaskNetError(
                "the network is no list of operations; import its files anew"
            ) from None
        graph.check()
        return graph

    def check(self) -> None:
        """Raise :class:`CTMaskNetError` where it cannot be run; see :meth:`from_text`."""
        if not all(type(side) is int and 1 <= side <= 4096 for side in self.input_shape):
            raise CTMaskNetError(f"its input is of shape {self.input_shape}, of 1 to 4096 a side")
        if len(self.input_shape) != 3:
            raise CTMaskNetError(f"its input is of shape {self.input_shape}; 3 sides are expected")
        if not 1 < len(self.nodes) <= _MAX_NODES:
            raise CTMaskNetError(f"it has {len(self.nodes)} operations; 2 to {_MAX_NODES} can be")
        for number, node in enumerate(self.nodes):
            if node.op not in OPERATIONS:
                raise CTMaskNetError(unknown_operation(node.op, node.name))
            if (node.op == "Input") != (number == 0):
                raise CTMaskNetError(f"node {node.name}: the input has to be the first and alone")
            if not all(type(one) is int and 0 <= one < number for one in node.inputs):
                raise CTMaskNetError(f"node {node.name}: reads what is not computed before it")
            if len(node.inputs) != OPERATIONS[node.op].inputs:
                raise CTMaskNetError(
                    f"node {node.name}: {node.op} reads {OPERATIONS[node.op].inputs} tensors, "
                    f"not {len(node.inputs)}"
                )
            for key, is_good in OPERATIONS[node.op].attrs.items():
                if key not in node.attrs or not is_good(node.attrs[key]):
                    value = str(node.attrs.get(key))[:60]
                    raise CTMaskNetError(f"node {node.name}: {key} of {node.op} is {value}")

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the variables it reads."""
        return {n.name: tuple(n.attrs["shape"]) for n in self.nodes if n.op == "Weight"}

    @property
    def num_outputs(self) -> int:
        """C, by running it on tensors that have shapes alone.

        Raises:
            CTMaskNetError: shapes do not fit, work or memory for one slice are out of bounds, or
                the last operation does not give (1, C >= 2).
        """
        with torch.device("meta"):
            network = GraphNetwork(self).eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                logits = network(torch.empty(1, *self.input_shape), bounded=True)
        if counter.get_total_flops() > 2 * _MAX_MACS:
            raise CTMaskNetError("it needs more than 200 billion multiply-adds a slice")
        if logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < 2:
            raise CTMaskNetError(
                f"its last operation gives a tensor of shape {tuple(logits.shape)}; logits of one "
                "slice are (1, classes)"
            )
        return logits.shape[1]


def unknown_operation(op: str, name: str) -> str:
    """What is told of an operation that is none of :data:`OPERATIONS`."""
    known = ", ".join(sorted(OPERATIONS.keys() - {"Input", "Weight"}))
    return (
        f"node {name[:120]!r}: the operation {op[:60]!r} is not supported; those that are: {known}"
    )


class GraphNetwork(nn.Module):
    """The network of a :class:`Graph`; its parameters have the variables' names.

    Means and variances of batch normalisation are buffers, and used as they are in training too.
    """

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph
        still = {i for node in graph.nodes if node.op == "FusedBatchNorm" for i in node.inputs[3:]}
        for number, node in enumerate(graph.nodes):
            if node.op != "Weight":
                continue
            if math.prod(node.attrs["shape"]) > _MAX_VALUES:
                raise CTMaskNetError(f"node {node.name}: shape {node.attrs['shape']} is too large")
            if "." in node.name or not node.name or hasattr(self, node.name):
                raise CTMaskNetError(
                    f"node {node.name!r}: no name of a variable, or one used twice"
                )
            values = torch.zeros(node.attrs["shape"])
            if number in still:
                self.register_buffer(node.name, values)
            else:
                self.register_parameter(node.name, nn.Parameter(values))
        readers = {i: n for n, node in enumerate(graph.nodes) for i in node.inputs}
        self._last_reader = [readers.get(n, len(graph.nodes)) for n in range(len(graph.nodes))]

    def forward(self, images: Tensor, bounded: bool = False) -> Tensor:
        """(N, *input_shape) float32 -> (N, C) logits.

        Args:
            bounded: refuse work that is too large on the way.

        Raises:
            CTMaskNetError: what an operation reads does not fit it; names the node.
        """
        values: list[Tensor | None] = []
        total = 0
        for number, node in enumerate(self.graph.nodes):
            given = [values[one] for one in node.inputs]
            try:
                if node.op == "Input":
                    value = images
                elif node.op == "Weight":
                    value = getattr(self, node.name)
                else:
                    value = OPERATIONS[node.op].run(*given, **node.attrs).to(images.device)
            except (RuntimeError, ValueError, IndexError, TypeError, OverflowError) as error:
                raise CTMaskNetError(
                    f"node {node.name}: {node.op} cannot be computed of tensors of shapes "
                    f"{[tuple(one.shape) for one in given]} ({str(error).splitlines()[0][:160]})"
                ) from error
            total += value.numel()
            if bounded and (value.numel() > _MAX_VALUES or total > _MAX_TOTAL):
                raise CTMaskNetError(f"node {node.name}: its tensors are too large to be computed")
            values.append(value)
            for one in node.inputs:
                if self._last_reader[one] == number:
                    values[one] = None
        return values[-1]


def _first(values: Tensor, layout: str) -> Tensor:
    """To (N, C, H, W)."""
    return values.permute(0, 3, 1, 2) if layout == "NHWC" else values


def _back(values: Tensor, layout: str) -> Tensor:
    return values.permute(0, 2, 3, 1) if layout == "NHWC" else values


def _padded(values: Tensor, window, stride, dilation, padding, fill: float = 0.0) -> Tensor:
    """(N, C, H, W) with the border that ``padding`` (SAME, VALID or [top, bottom, left, right])
    gives it; TensorFlow's odd px of SAME comes last."""
    if padding == "VALID":
        return values
    if padding == "SAME":
        border = []
        for side, size, step, apart in zip(values.shape[2:], window, stride, dilation, strict=True):
            extent = (size - 1) * apart + 1
            more = max((math.ceil(side / step) - 1) * step + extent - side, 0)
            border += [more // 2, more - more // 2]
    else:
        border = list(padding)
    return F.pad(values, (*border[2:], *border[:2]), value=fill)


def _conv(values, kernel, *, layout, stride, dilation, padding):
    values = _padded(_first(values, layout), kernel.shape[:2], stride, dilation, padding)
    if kernel.shape[2] != values.shape[1]:
        raise ValueError("channels of the kernel differ")
    found = F.conv2d(values, kernel.permute(3, 2, 0, 1), stride=stride, dilation=dilation)
    return _back(found, layout)


def _depthwise(values, kernel, *, layout, stride, dilation, padding):
    values = _padded(_first(values, layout), kernel.shape[:2], stride, dilation, padding)
    high, wide, channels, times = kernel.shape
    weight = kernel.permute(2, 3, 0, 1).reshape(channels * times, 1, high, wide)
    found = F.conv2d(values, weight, stride=stride, dilation=dilation, groups=channels)
    return _back(found, layout)


def _max_pool(values, *, layout, window, stride, padding):
    values = _padded(_first(values, layout), window, stride, (1, 1), padding, -math.inf)
    return _back(F.max_pool2d(values, window, stride), layout)


def _avg_pool(values, *, layout, window, stride, padding):
    values = _first(values, layout)
    inside = _padded(torch.ones_like(values[:1, :1]), window, stride, (1, 1), padding)
    values = _padded(values, window, stride, (1, 1), padding)
    found = F.avg_pool2d(values, window, stride) / F.avg_pool2d(inside, window, stride)
    return _back(found, layout)


def _batch_norm(values, scale, offset, mean, variance, *, layout, epsilon):
    found = F.batch_norm(_first(values, layout), mean, variance, scale, offset, eps=epsilon)
    return _back(found, layout)


def _bias(values, bias, *, layout):
    return values + (bias.view(-1, 1, 1) if layout == "NCHW" and values.ndim == 4 else bias)


def _pad(values, *, paddings, value):
    if len(paddings) != values.ndim:
        raise ValueError("as many pairs of paddings as sides are expected")
    return F.pad(values, [px for pair in reversed(paddings) for px in pair], value=value)


def _matmul(left, right, *, transpose_a, transpose_b):
    if left.ndim != 2 or right.ndim != 2:
        raise ValueError("matrices are expected")
    return (left.T if transpose_a else left) @ (right.T if transpose_b else right)


def _squeeze(values, *, axes):
    if any(values.shape[axis] != 1 for axis in axes):
        raise ValueError("a side that is taken away is not 1")
    return values.squeeze(tuple(axes)) if axes else values.squeeze()


def _ints(low: int, high: int, length: int | None = None) -> Callable[[Any], bool]:
    def is_good(value: Any) -> bool:
        return (
            isinstance(value, list | tuple)
            and (len(value) <= 8 if length is None else len(value) == length)
            and all(type(one) is int and low <= one <= high for one in value)
        )

    return is_good


def _is_padding(value: Any) -> bool:
    return value in ("SAME", "VALID") if isinstance(value, str) else _ints(0, _MAX_STEP, 4)(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_values(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) <= 4096 and all(map(_is_number, value))


@dataclass(frozen=True)
class Operation:
    """How an operation runs, how many tensors it reads, and which attributes it has to have."""

    run: Callable[..., Tensor]
    inputs: int
    attrs: dict[str, Callable[[Any], bool]] = field(default_factory=dict)


_LAYOUT = {"layout": lambda value: value in ("NHWC", "NCHW")}
_STEP = _ints(1, _MAX_STEP, 2)
_CONV = {**_LAYOUT, "stride": _STEP, "dilation": _STEP, "padding": _is_padding}
_POOL = {**_LAYOUT, "window": _STEP, "stride": _STEP, "padding": _is_padding}
_AXES = _ints(-4, 3)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_ints(0, _MAX_STEP, 2)(one) for one in value)


#: The closed list.
OPERATIONS: dict[str, Operation] = {
    "Input": Operation(lambda: None, 0),
    "Weight": Operation(lambda: None, 0, {"shape": _ints(1, 1 << 24)}),
    "Const": Operation(
        lambda *, shape, values: torch.tensor(values, dtype=torch.float32).reshape(shape),
        *(0, {"shape": _ints(1, 4096), "values": _is_values}),
    ),
    "Conv2D": Operation(_conv, 2, _CONV),
    "DepthwiseConv2dNative": Operation(_depthwise, 2, _CONV),
    "FusedBatchNorm": Operation(
        _batch_norm, 5, {**_LAYOUT, "epsilon": lambda value: _is_number(value) and 0 < value < 1}
    ),
    "MaxPool": Operation(_max_pool, 1, _POOL),
    "AvgPool": Operation(_avg_pool, 1, _POOL),
    "BiasAdd": Operation(_bias, 2, _LAYOUT),
    "Relu": Operation(torch.relu, 1),
    "Relu6": Operation(F.relu6, 1),
    "Add": Operation(torch.add, 2),
    "Sub": Operation(torch.sub, 2),
    "Mul": Operation(torch.mul, 2),
    "Pad": Operation(_pad, 1, {"paddings": _is_pairs, "value": _is_number}),
    "Mean": Operation(
        lambda values, *, axes, keep: values.mean(tuple(axes), keepdim=keep),
        *(1, {"axes": lambda value: bool(value) and _AXES(value), "keep": _is_flag}),
    ),
    "Squeeze": Operation(_squeeze, 1, {"axes": _AXES}),
    "Reshape": Operation(
        lambda values, *, shape: values.reshape(shape), 1, {"shape": _ints(-1, 1 << 24)}
    ),
    "Transpose": Operation(
        lambda values, *, order: values.permute(order), 1, {"order": _ints(0, 3)}
    ),
    "MatMul": Operation(_matmul, 2, {"transpose_a": _is_flag, "transpose_b": _is_flag}),
}
