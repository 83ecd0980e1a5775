"""A detector whose dense parts OpenVINO computes, on the CPU.

The backbone with the RPN's predictions is one compiled network of slices in any number and size;
box head and mask head are one each of pooled features in any number. What depends on data, anchors,
proposals, pooling, suppression and ranking, is the model's own in torch. Maps lie in memory with
channels side by side all the way.

Shapes: B images, R boxes of all images, C channels, P bins along a side, A anchors a cell.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from detectron2.modeling import Backbone
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead, mask_rcnn_inference
from torch import Tensor, nn
from torch.nn import functional as F

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.roi_align import BagROIPooler

#: What OpenVINO calls the types that it computes in.
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
#: Sides and number of the drawn slices that a network is traced with and then tried on, px.
_TRACED, _TRIED = (1, 3, 64, 64), (2, 3, 96, 64)
#: Largest difference from torch, of root mean squares; that of another network is above 1.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1.0}


def installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("openvino") is not None


def computes_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@torch.no_grad()
def to_openvino(
    model: nn.Module, dtype: torch.dtype = torch.float32, dense: Any = None
) -> nn.Module:
    """A copy of a detector or classifier for inference on the CPU, without gradients.

    It computes with torch's number of threads at this call.

    Args:
        model: ``CTMaskNet`` or ``GeneralizedRCNN`` with weights loaded; it is left alone.
        dtype: float32, or bfloat16 for the dense parts; what is decoded, scored, ranked and named
            stays float32.
        dense: another form of :func:`dense_network`, which is taken as it is.

    Raises:
        CTMaskNetError: a part of the model has no form in OpenVINO, or another result there.
    """
    found = copy.deepcopy(model).eval().requires_grad_(False)
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        # OpenVINO's ReLU makes 0 of a NaN; Detectron2's layers hand it on to where it is an error.
        return found
    parts = _Dense(found)
    if dense is None:
        compiled = Compiled.of(parts, parts.drawn(_TRACED), dtype)
        parts.check(compiled, dtype)
    else:
        compiled = Compiled(dense, dtype)
    found.backbone = _CompiledBackbone(found.backbone, compiled, parts.names)
    generator, heads = found.proposal_generator, found.roi_heads
    generator.rpn_head = _SplitPredictions(generator.anchor_generator.num_anchors)
    generator.in_features = list(map(_predictions_of, parts.levels))
    if type(heads.box_head) is FastRCNNConvFCHead:
        bins = heads.box_pooler.output_size
        flat = _ChannelsLastHead(heads.box_head, parts.channels, bins)
        pooled = torch.zeros(1, *bins, parts.channels)
        heads.box_head = _CompiledHead(Compiled.of(flat, pooled, dtype), heads.box_head)
    if getattr(heads, "mask_on", False):
        heads.mask_pooler = BagROIPooler.of(heads.mask_pooler)
        reads = getattr(getattr(model, "layout", None), "reads", ())
        plain = type(heads.mask_head).forward is BaseMaskRCNNHead.forward
        if plain and "masks" not in reads:  # an image head reads a mask head's hidden layers
            layers = _ChannelsLastMaskHead(heads.mask_head)
            pooled = torch.zeros(1, *heads.mask_pooler.output_size, parts.channels)
            compiled = Compiled.of(layers, pooled, dtype)
            heads.mask_head = _CompiledMaskHead(compiled, heads.mask_head)
    return found


def dense_network(model: nn.Module) -> Any:
    """Backbone and RPN head of a detector or classifier as a network of OpenVINO's: slices
    (B, 3, H, W) as the model normalises them -> maps and predictions.

    Raises:
        CTMaskNetError: a layer has no form there.
    """
    parts = _Dense(copy.deepcopy(model).eval().requires_grad_(False))
    return _converted(parts, parts.drawn(_TRACED))


class Compiled:
    """A network from one tensor to tensors, as OpenVINO computes it."""

    def __init__(self, network: Any, dtype: torch.dtype):
        """
        Args:
            network: of OpenVINO's.
            dtype: that is computed in; inputs and results are float32.
        """
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            # Processes side by side would be pinned to the same cores
            "ENABLE_CPU_PINNING": False,
        }
        with _telling_of_openvino():
            compiled = openvino_core().compile_model(network, "CPU", options)
        self.request = compiled.create_infer_request()

    @classmethod
    def of(cls, network: nn.Module, example: Tensor, dtype: torch.dtype) -> Compiled:
        """See :func:`_converted` and the constructor.

        Raises:
            CTMaskNetError: a layer has no form in OpenVINO.
        """
        return cls(_converted(network, example), dtype)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Float32 to float32. The results are the engine's own memory: the next call writes over
        them."""
        found = self.request.infer({0: x.numpy()}, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(found[number]) for number in range(len(found))]

    def __deepcopy__(self, memo) -> Compiled:
        return self  # it holds no state between calls


def _converted(network: nn.Module, example: Tensor) -> Any:
    """A network of torch's as one of OpenVINO's.

    Args:
        network: nobody else's, for the other may share memory with its weights. It is traced, so
            that nothing in it may depend on values.
        example: of the input; any but its channels may have another size later.
    """
    with _telling_of_openvino(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network.eval(), example, check_trace=False)
        return openvino_package().convert_model(traced, example_input=(example,))


@contextlib.contextmanager
def _telling_of_openvino() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # OpenVINO's frontend raises classes of many kinds
        reason = " ".join(str(error).split())[:200]
        raise CTMaskNetError(
            f"MODEL.INFERENCE.ENGINE: this model has no form in OpenVINO ({reason}); set it to "
            "torch"
        ) from error


class _Dense(nn.Module):
    """Backbone and RPN head: (B, 3, H, W) -> the backbone's maps (B, H_l, W_l, C) and then, of the
    levels that the RPN looks at, its predictions (B, H_l, W_l, 5 A), objectness first."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone, self.rpn_head = model.backbone, model.proposal_generator.rpn_head
        self.levels = list(model.proposal_generator.in_features)
        shapes = model.backbone.output_shape()
        self.names = [*shapes, *map(_predictions_of, self.levels)]
        self.channels = next(iter(shapes.values())).channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone(images)
        objectness, deltas = self.rpn_head([features[name] for name in self.levels])
        predictions = [torch.cat(two, dim=1) for two in zip(objectness, deltas, strict=True)]
        return tuple(one.permute(0, 2, 3, 1) for one in [*features.values(), *predictions])

    def drawn(self, shape: Sequence[int]) -> Tensor:
        """Slices of drawn values, with the spread of normalised ones."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0))

    def check(self, compiled: Compiled, dtype: torch.dtype) -> None:
        """Raise :class:`CTMaskNetError` unless the compiled form computes what this does: a part
        that is not fixed would be traced as it went for one input."""
        images = self.drawn(_TRIED)
        for name, ours, found in zip(self.names, self(images), compiled(images), strict=True):
            allowed = _TOLERANCE[dtype] * ours.norm()
            if ours.shape != found.shape or not (ours - found).norm() <= allowed:
                raise CTMaskNetError(
                    f"MODEL.INFERENCE.ENGINE: OpenVINO computes another {name} than this model; "
                    "set it to torch"
                )


def _predictions_of(level: str) -> str:
    return f"rpn_{level}"


class WrappedBackbone(Backbone):
    """Another form of a backbone, for images of the same sides."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self._shapes = backbone.output_shape()
        self._divisibility = backbone.size_divisibility
        self._padding = backbone.padding_constraints

    @property
    def size_divisibility(self) -> int:
        return self._divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self._padding

    def output_shape(self):
        return self._shapes


class _CompiledBackbone(WrappedBackbone):
    """The maps of a backbone and, among them, what the RPN predicts on them: that is what the RPN
    is given as features."""

    def __init__(self, backbone: Backbone, compiled: Compiled, names: Sequence[str]):
        super().__init__(backbone)
        self.compiled, self.names = compiled, names

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> name to (B, C, H_l, W_l) in channels_last."""
        found = self.compiled(images.contiguous())
        return {name: one.permute(0, 3, 1, 2) for name, one in zip(self.names, found, strict=True)}


class _SplitPredictions(nn.Module):
    """An RPN head that is given what it would predict."""

    def __init__(self, num_anchors: Sequence[int]):
        super().__init__()
        self.num_anchors = num_anchors[0]

    def forward(self, predictions: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(B, 5 A, H_l, W_l) of each level -> objectness (B, A, ...), deltas (B, 4 A, ...)."""
        halves = [one.tensor_split([self.num_anchors], dim=1) for one in predictions]
        return [one for one, _ in halves], [other for _, other in halves]


class _ChannelsLastMaskHead(nn.Module):
    """The layers of Detectron2's mask head on (R, P, P, C)."""

    def __init__(self, head: BaseMaskRCNNHead):
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head.layers(x.permute(0, 3, 1, 2))


class _ChannelsLastHead(nn.Module):
    """Detectron2's box head on (R, P, P, C); linear layers alone read them as they lie."""

    def __init__(self, head: FastRCNNConvFCHead, channels: int, bins: Sequence[int]):
        super().__init__()
        self.head = head
        self.layers = None
        if not head.conv_norm_relus:
            weight = head.fcs[0].weight.unflatten(1, (channels, *bins))
            self.layers = [(weight.permute(0, 2, 3, 1).flatten(1), head.fcs[0].bias)]
            self.layers += [(fc.weight, fc.bias) for fc in head.fcs[1:]]

    def forward(self, x: Tensor) -> Tensor:
        if self.layers is None:
            return self.head(x.permute(0, 3, 1, 2))
        x = x.flatten(1)
        for weight, bias in self.layers:
            x = F.linear(x, weight, bias).relu()
        return x


class _CompiledHead(nn.Module):
    """A box head on what a pooler gives."""

    def __init__(self, compiled: Compiled, head: nn.Module):
        super().__init__()
        self.compiled = compiled
        self.output_shape = getattr(head, "output_shape", None)

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, P, P) -> (R, ...); R may be 0."""
        x = x.permute(0, 2, 3, 1).contiguous()
        if len(x):
            return self.compiled(x)[0]
        return self.compiled(x.new_zeros(1, *x.shape[1:]))[0][:0]


class _CompiledMaskHead(_CompiledHead):
    def forward(self, x: Tensor, instances: list) -> list:
        """See Detectron2's, in evaluation."""
        mask_rcnn_inference(super().forward(x), instances)
        return instances


def openvino_package() -> ModuleType:
    """OpenVINO, told to nobody."""
    # OpenVINO tells its makers of every import, unless it does not find what sends it
    sys.modules.setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")


@functools.cache
def openvino_core() -> Any:
    """The one that compiles everything here."""
    return openvino_package().Core()
