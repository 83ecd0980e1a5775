"""What a TensorFlow metagraph computes outside of training, as a
:class:`ctmasknet.modeling.peers.graph_network.Graph`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.meta_graph_pb2 import MetaGraphDef
from tensorboard.compat.proto.types_pb2 import DT_BOOL, DT_FLOAT, DT_INVALID, DT_RESOURCE
from tensorboard.util.tensor_util import make_ndarray

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.peers.graph_network import Graph, GraphNode, unknown_operation
from ctmasknet.weights.tensorflow.bundle import whole_file

_MAX_BYTES, _MAX_NODES, _MAX_CONST = 64 << 20, 50_000, 4096
#: Operations that hold or call code, wherever in the file they are.
_CODE = ("PyFunc", "EagerPyFunc", "PyFuncStateless")
_LOOPS = ("Enter", "RefEnter", "NextIteration", "Exit", "LoopCond", "While", "StatelessWhile")
_COPIES = ("Identity", "ReadVariableOp", "StopGradient", "Snapshot", "PlaceholderWithDefault")
_VARIABLES = ("Variable", "VariableV2", "VarHandleOp")
_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_RENAMED = {"AddV2": "Add", "PadV2": "Pad", **dict.fromkeys(_NORMS, "FusedBatchNorm")}
#: Inputs that have to be constants, by operation.
_STATIC = {"Pad": (1,), "PadV2": (1, 2), "Mean": (1,), "Reshape": (1,), "Transpose": (1,)}
#: Of an arm that is not taken.
_DEAD = -1

_Ref = tuple[str, int]


def read_metagraph(path: str, image: str, training: str, logits: str) -> Graph:
    """
    Args:
        path: a ``.meta`` file.
        image, training, logits: names of the nodes for input, "is this training" and logits.

    Raises:
        CTMaskNetError: it is damaged; a node is missing, twice, or reads itself; one that logits
            depend on is no operation of the closed list, or of another number type; names it.
    """
    meta = MetaGraphDef()
    try:
        meta.ParseFromString(whole_file(path, _MAX_BYTES))
    except (DecodeError, RecursionError):
        raise CTMaskNetError(
            f"{path}: is no TensorFlow metagraph, or is cut off; get it anew"
        ) from None
    try:
        graph = _Reading(meta, image, training).graph(logits)
        graph.check()
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{path}: {error}; give another checkpoint") from None
    return graph


class _Reading:
    def __init__(self, meta: MetaGraphDef, image: str, training: str):
        nodes = meta.graph_def.node
        if not nodes:
            raise CTMaskNetError("holds no graph")
        if len(nodes) > _MAX_NODES:
            raise CTMaskNetError(f"has {len(nodes)} nodes, more than {_MAX_NODES}")
        self.nodes = {node.name: node for node in nodes}
        if len(self.nodes) < len(nodes):
            seen: set[str] = set()
            for node in nodes:
                if node.name in seen:
                    raise CTMaskNetError(f"node {_shown(node.name)} is in it twice")
                seen.add(node.name)
        for node in nodes:
            if node.op in _CODE:
                raise CTMaskNetError(
                    f"node {_shown(node.name)}: the operation {node.op!r} runs code, which is "
                    "never done here"
                )
        self.image, self.training = image, training
        self.result: list[GraphNode] = []
        #: What a node's outputs are: number in ``result``, _DEAD, or why it cannot be had.
        self.found: dict[_Ref, int | str] = {}

    def graph(self, logits: str) -> Graph:
        image = self._node(self.image, "")
        if image.op != "Placeholder" or image.attr["dtype"].type != DT_FLOAT:
            raise CTMaskNetError(f"node {_shown(self.image)} is no float32 placeholder")
        shape = image.attr["shape"].shape
        sides = tuple(side.size for side in shape.dim)[1:]
        if len(sides) != 3:
            raise CTMaskNetError(f"the input {_shown(self.image)} has not 4 sides")
        self.result.append(GraphNode("Input", self.image))
        for name in self._ordered(logits):
            self._take(name)
        last = self.found[logits, 0]
        if isinstance(last, str):
            raise CTMaskNetError(last)
        if last == _DEAD:
            raise CTMaskNetError(f"node {_shown(logits)} is computed in training alone")
        return _pruned(Graph(tuple(self.result), sides), last)

    def _node(self, name: str, reader: str) -> Any:
        if name not in self.nodes:
            by = f", which {_shown(reader)} reads" if reader else ""
            raise CTMaskNetError(f"has no node {_shown(name)}{by}")
        return self.nodes[name]

    def _ordered(self, last: str) -> Iterator[str]:
        """Names of what ``last`` depends on, each after what it reads."""
        done: set[str] = set()
        open_: set[str] = set()
        stack = [(last, "", False)]
        while stack:
            name, reader, is_left = stack.pop()
            if is_left:
                open_.discard(name)
                done.add(name)
                yield name
                continue
            if name in done:
                continue
            node = self._node(name, reader)
            if node.op in _LOOPS:
                raise CTMaskNetError(unknown_operation(node.op, name))
            if name in open_:
                raise CTMaskNetError(f"node {_shown(name)} depends on itself")
            open_.add(name)
            stack.append((name, reader, True))
            stack += [(one, name, False) for one, _ in _inputs(node) if one not in done]

    def _take(self, name: str) -> None:
        node, refs = self.nodes[name], _inputs(self.nodes[name])
        given = [
            self.found.get(
                ref,
                f"node {_shown(name)}: reads output {ref[1]} of "
                f"{_shown(ref[0])}, which is not computed",
            )
            for ref in refs
        ]
        if name == self.image:
            self.found[name, 0] = 0
        elif node.op == "Merge":
            alive = [one for one in given if one != _DEAD]
            if len(alive) > 1:
                raise CTMaskNetError(f"node {_shown(name)}: both of its arms are computed")
            self.found[name, 0] = alive[0] if alive else _DEAD
        elif _DEAD in given:
            self.found[name, 0] = self.found[name, 1] = _DEAD
        elif wrong := [one for one in given if isinstance(one, str)]:
            # of a predicate only its value counts, which _is_true follows by itself
            self.found[name, 0] = wrong[0]
            if node.op == "Switch" and not isinstance(given[0], str):
                self._switch(name, given[0], refs)
        elif node.op == "Switch":
            self._switch(name, given[0], refs)
        elif node.op in _COPIES and given:
            self.found[name, 0] = given[0]
        else:
            try:
                self.found[name, 0] = self._append(node, refs, given)
            except CTMaskNetError as error:
                self.found[name, 0] = str(error)

    def _switch(self, name: str, value: int | str, refs: list[_Ref]) -> None:
        if len(refs) != 2:
            raise CTMaskNetError(f"node {_shown(name)}: Switch reads 2 tensors, not {len(refs)}")
        taken = self._is_true(refs[1][0])
        self.found[name, int(taken)] = value
        self.found[name, int(not taken)] = _DEAD

    def _is_true(self, name: str) -> bool:
        """The value of a predicate outside of training."""
        turned = False
        for _ in range(len(self.nodes)):
            node = self.nodes[name]
            if name == self.training and node.op in ("Placeholder", "PlaceholderWithDefault"):
                return turned
            if node.op == "Const" and node.attr["dtype"].type == DT_BOOL:
                return bool(_constant(node).all()) != turned
            refs = _inputs(node)
            if node.op not in ("Identity", "LogicalNot", "PlaceholderWithDefault") or not refs:
                raise CTMaskNetError(
                    f"node {_shown(name)}: an arm is chosen by the operation {node.op!r}, and not "
                    f"by {self.training} alone"
                )
            turned ^= node.op == "LogicalNot"
            name = refs[0][0]
        raise CTMaskNetError(f"node {_shown(name)} depends on itself")

    def _append(self, node: Any, refs: list[_Ref], given: list[int]) -> int:
        op = node.op
        if op in _VARIABLES:
            if node.attr["dtype"].type != DT_FLOAT:
                raise CTMaskNetError(f"node {_shown(node.name)}: a variable that is not float32")
            attrs = {"shape": [side.size for side in node.attr["shape"].shape.dim]}
            return self._put(GraphNode("Weight", node.name, (), attrs))
        if op == "Const":
            values = _constant(node)
            attrs = {"shape": list(values.shape), "values": values.ravel().tolist()}
            return self._put(GraphNode("Const", node.name, (), attrs))
        if node.attr["T"].type not in (DT_FLOAT, DT_INVALID, DT_RESOURCE):
            raise CTMaskNetError(f"node {_shown(node.name)}: computes in another type than float32")
        static = _STATIC.get(op, ())
        constants = [self._static(refs[at][0], node) for at in static if at < len(refs)]
        attrs = _attributes(node, constants)
        inputs = tuple(one for at, one in enumerate(given) if at not in static)
        return self._put(GraphNode(_RENAMED.get(op, op), node.name, inputs, attrs))

    def _static(self, name: str, reader: Any) -> np.ndarray:
        for _ in range(len(self.nodes)):
            node = self.nodes[name]
            if node.op == "Const":
                return _constant(node)
            refs = _inputs(node)
            if node.op not in ("Identity", "Switch") or not refs:
                break
            name = refs[0][0]
        raise CTMaskNetError(
            f"node {_shown(reader.name)}: {reader.op} by numbers that are computed is not supported"
        )

    def _put(self, node: GraphNode) -> int:
        self.result.append(node)
        return len(self.result) - 1


def _inputs(node: Any) -> list[_Ref]:
    """Name and output of what a node computes with; not what merely runs before it."""
    refs = []
    for text in node.input:
        if text.startswith("^"):
            continue
        name, colon, output = text.rpartition(":")
        if not colon:
            name, output = text, "0"
        if not output.isdecimal() or len(output) > 4:
            raise CTMaskNetError(
                f"node {_shown(node.name)}: reads {_shown(text)}, which is no name"
            )
        refs.append((name, int(output)))
    return refs


def _constant(node: Any) -> np.ndarray:
    tensor = node.attr["value"].tensor
    count = 1
    for side in tensor.tensor_shape.dim:
        count *= side.size
        if not 0 <= count <= _MAX_CONST:
            raise CTMaskNetError(
                f"node {_shown(node.name)}: a constant of more than {_MAX_CONST} values, or of a "
                "negative size"
            )
    if tensor.dtype != node.attr["dtype"].type:
        raise CTMaskNetError(f"node {_shown(node.name)}: a constant of two types")
    try:
        values = make_ndarray(tensor)
        if values.dtype.kind not in "bif":
            raise TypeError
    except (TypeError, ValueError, KeyError):
        raise CTMaskNetError(
            f"node {_shown(node.name)}: a constant whose values are not those of its type and shape"
        ) from None
    return values


def _attributes(node: Any, constants: list[np.ndarray]) -> dict[str, Any]:
    """Of a node of the closed list, as :class:`GraphNode` has them; of others none."""
    op, attr = node.op, node.attr
    attrs: dict[str, Any] = {}
    if op in ("Conv2D", "DepthwiseConv2dNative", "MaxPool", "AvgPool", "BiasAdd", *_NORMS):
        attrs["layout"] = layout = attr["data_format"].s.decode("utf-8", "replace") or "NHWC"
        if layout not in ("NHWC", "NCHW"):
            raise CTMaskNetError(f"node {_shown(node.name)}: the layout {layout[:20]!r}")
        at = 1 if layout == "NHWC" else 2
        if op not in ("BiasAdd", *_NORMS):
            attrs["stride"] = _two(node, "strides", at)
            attrs["padding"] = attr["padding"].s.decode("utf-8", "replace")
            if attrs["padding"] == "EXPLICIT":
                borders = list(attr["explicit_paddings"].list.i)
                attrs["padding"] = borders[2 * at : 2 * at + 4]
                if len(borders) != 8 or sum(borders) != sum(attrs["padding"]):
                    raise CTMaskNetError(f"node {_shown(node.name)}: its paddings are {borders}")
    if op in ("Conv2D", "DepthwiseConv2dNative"):
        attrs["dilation"] = _two(node, "dilations", at) if "dilations" in attr else [1, 1]
    elif op in ("MaxPool", "AvgPool"):
        attrs["window"] = _two(node, "ksize", at)
    elif op in _NORMS:
        if attr["is_training"].b or "is_training" not in node.attr:
            raise CTMaskNetError(
                f"node {_shown(node.name)}: {op} by the statistics of its batch is not supported"
            )
        attrs["epsilon"] = float(attr["epsilon"].f)
    elif op in ("Pad", "PadV2"):
        attrs["paddings"] = constants[0].tolist() if constants else None
        attrs["value"] = float(constants[1]) if len(constants) > 1 else 0.0
    elif op == "Mean":
        attrs["axes"] = constants[0].ravel().tolist() if constants else None
        attrs["keep"] = bool(attr["keep_dims"].b)
    elif op == "Squeeze":
        attrs["axes"] = list(attr["squeeze_dims"].list.i)
    elif op in ("Reshape", "Transpose"):
        key = "shape" if op == "Reshape" else "order"
        attrs[key] = constants[0].ravel().tolist() if constants else None
    elif op == "MatMul":
        attrs = {key: bool(attr[key].b) for key in ("transpose_a", "transpose_b")}
    return attrs


def _two(node: Any, key: str, at: int) -> list[int]:
    """Of four numbers those of height and width; the others are 1."""
    values = list(node.attr[key].list.i)
    if len(values) != 4 or values[0] != 1 or values[3 if at == 1 else 1] != 1:
        raise CTMaskNetError(f"node {_shown(node.name)}: its {key} are {values[:8]}")
    return values[at : at + 2]


def _pruned(graph: Graph, last: int) -> Graph:
    """What node ``last`` depends on, numbered anew."""
    needed = {0, last}
    for number in range(last, -1, -1):
        if number in needed:
            needed.update(graph.nodes[number].inputs)
    numbers = {old: new for new, old in enumerate(sorted(needed))}
    nodes = tuple(
        GraphNode(node.op, node.name, tuple(numbers[one] for one in node.inputs), node.attrs)
        for node in (graph.nodes[old] for old in numbers)
    )
    return Graph(nodes, graph.input_shape)


def _shown(name: str) -> str:
    return repr(name[:120])
