"""What the names and references in a checkpoint's pickle stand for, without looking any up.

A class or function that the pickle names stays a name (:class:`Global`) and must stand in
:data:`ALLOWED_GLOBALS`; what "calling" it gives is decided here, by plain values. Tensors are
descriptions (:class:`TensorData`) whose bounds are checked against their storage, so that a lie
about a size costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ctmasknet.errors import CTMaskNetError

STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
#: The authors' anchor generator: the one object of a class of theirs that their files hold.
ANCHOR_CLASSES = (
    "models.mask_net.rpn_segmentation.AnchorGenerator",
    "models.mask_net.rpn.AnchorGenerator",
)
_DICT = "collections.OrderedDict"
_SETS = ("builtins.set", "__builtin__.set")
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter")
_SIZE = "torch.Size"
#: An attribute that every module of torch 1.1 carries; worth nothing here.
_BACKEND = "torch.nn.backends.thnn._get_thnn_function_backend"
ALLOWED_GLOBALS = frozenset(
    (_DICT, *_SETS, *_TENSORS, *_PARAMETERS, _SIZE, _BACKEND, *STORAGE_DTYPES, *ANCHOR_CLASSES)
)


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names. Never looked up, never called."""

    name: str


@dataclass(frozen=True)
class StorageData:
    """Where the numbers of tensors lie: ``numel`` values of ``dtype`` under ``key`` in the file."""

    dtype: torch.dtype
    key: str
    numel: int

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class TensorData:
    """A tensor not read yet: a window on its storage (``offset``, ``stride`` in elements)."""

    storage: StorageData
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class AnchorData:
    """The attributes of a pickled anchor generator, without the class."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)


def shown(value: object, limit: int = 120) -> str:
    """A value from an untrusted file as one short printable ASCII piece of an error message.

    Containers are told by their kind only: a small pickle can describe one whose text is endless.
    """
    if isinstance(value, tuple | list) and len(value) <= 8 and all(map(_is_number, value)):
        plain = f"({', '.join(map(str, value))})"
    elif isinstance(value, str | Exception) or _is_number(value):
        plain = ascii(str(value))[1:-1]
    else:
        plain = f"a {type(value).__name__}"
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


def refusal(path: str, why: str) -> CTMaskNetError:
    """The error for a file that holds what no checkpoint does."""
    return CTMaskNetError(f"{path}: refused, {why}; use a checkpoint file from its source")


class TorchObjects:
    """Turns what a pickle names, calls and refers to into plain values.

    A ``ValueError`` raised here means a malformed pickle, a :class:`CTMaskNetError` a refused one.
    """

    def __init__(self, path: str, on_storage: Callable[[StorageData], None]) -> None:
        """
        Args:
            path: the file's name for messages.
            on_storage: called for each storage referred to; raises when the file cannot hold it.
        """
        self.path = path
        self.on_storage = on_storage

    def named(self, name: str) -> Global:
        if name not in ALLOWED_GLOBALS:
            raise refusal(
                self.path,
                f'its pickle asks for "{shown(name)}", which could run code and which no such '
                "checkpoint needs",
            )
        return Global(name)

    def call(self, target: Any, arguments: Any) -> Any:
        """What calling an allowed name would give, without calling it."""
        if not isinstance(target, Global) or not isinstance(arguments, tuple):
            raise refusal(self.path, "its pickle calls something that is not a class or function")
        name = target.name
        if name == _DICT:
            pairs = arguments[0] if arguments else []
            return {checked_key(key): value for key, value in pairs}
        if name in _SETS:
            return list(arguments[0]) if arguments else []
        if name in _TENSORS:
            return self.tensor(*arguments[:4])
        if name in _PARAMETERS and arguments and isinstance(arguments[0], TensorData):
            return arguments[0]
        if name == _SIZE:
            return tuple(arguments[0]) if arguments else ()
        if name == _BACKEND:
            return None
        if name in ANCHOR_CLASSES and not arguments:
            return AnchorData(name)
        raise refusal(self.path, f'its pickle calls "{name}" in a way that torch does not')

    def set_state(self, target: Any, state: Any) -> None:
        """Attributes: kept for the anchor generator, of no use on a dict or a tensor."""
        if isinstance(target, AnchorData) and isinstance(state, dict):
            target.state = state
        elif not isinstance(target, dict | TensorData):
            raise refusal(
                self.path, "its pickle sets attributes of an object that should have none"
            )

    def persistent(self, reference: Any) -> Any:
        """A storage (class, key, location, numel[, view]) or module (class, file, source text)."""
        if not isinstance(reference, tuple) or not reference:
            raise refusal(self.path, "its pickle holds a reference of unknown form")
        kind, *rest = reference
        if kind == "module" and len(rest) == 3 and _is_global(rest[0], ANCHOR_CLASSES):
            return rest[0]  # the source text beside it is never looked at
        if kind == "storage" and len(rest) in (4, 5) and _is_global(rest[0], STORAGE_DTYPES):
            storage_class, key, _, numel = rest[:4]
            if rest[4:] not in ([], [None]):
                raise refusal(self.path, "a storage in it is a view, which torch 1.1 never writes")
            if not isinstance(key, str) or not _is_count(numel):
                raise ValueError("a storage's key or size is missing")
            storage = StorageData(STORAGE_DTYPES[storage_class.name], key, numel)
            self.on_storage(storage)
            return storage
        raise refusal(self.path, f'its pickle holds a reference of unknown kind "{shown(kind)}"')

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> TensorData:
        """Describe a tensor that lies wholly inside its storage and is no larger than it."""
        sizes = isinstance(shape, tuple) and all(map(_is_count, shape))
        steps = isinstance(stride, tuple) and all(map(_is_count, stride))
        if not (isinstance(storage, StorageData) and _is_count(offset) and sizes and steps):
            raise ValueError("a tensor's description has the wrong types")
        if len(shape) != len(stride) or len(shape) > 8:
            raise ValueError("a tensor's shape and stride disagree")
        numel, last = 1, offset
        for size, step in zip(shape, stride, strict=True):
            numel *= size
            last += max(size - 1, 0) * step
            if numel > storage.numel:
                raise refusal(
                    self.path, f"a tensor in it claims more than its {storage.numel} values"
                )
        if numel and last >= storage.numel:
            raise refusal(self.path, f"a tensor in it reaches beyond its {storage.numel} values")
        return TensorData(storage, offset, shape, stride)


def checked_key(key: Any, depth: int = 0) -> Any:
    """A dict key that is safe to hash: hashing nested tuples recurses without a bound."""
    if isinstance(key, tuple) and depth < 3 and len(key) <= 8:
        return tuple(checked_key(item, depth + 1) for item in key)
    if key is None or isinstance(key, str | int | float | bytes):
        return key
    raise ValueError("a dict key is neither text nor number")


def _is_global(value: Any, names: Any) -> bool:
    return isinstance(value, Global) and value.name in names


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
