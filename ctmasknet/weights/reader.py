"""The one reader of checkpoints: ``.pth`` as torch writes it, ``.pkl`` as Detectron2's zoo has it.

A file is data here. A ``.pth`` is read by torch's own restricted unpickler once the check sums of
its archive are known to be right; a ``.pkl`` by one that knows dictionaries, texts, numbers and
numpy's arrays of numbers. Whatever else a file holds or is called, it is refused by name.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from ctmasknet.errors import CTMaskNetError
from ctmasknet.weights.pickle import MAX_FILE_BYTES, WeightsUnpickler, is_count, refusal, shown

#: What torch raises at a damaged file.
READ_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.PickleError),
    zipfile.BadZipFile,
)
_UNSAFE = re.compile(r"GLOBAL (\S+) was not an allowed global|whose module (\S+) is blocked")
#: Stands for the class of arrays in a pickle, which could be called for one of any size.
_NDARRAY = object()
#: numpy's names of the numbers that an array in a ``.pkl`` may hold.
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


class UnreadableCheckpoint(CTMaskNetError):
    """A checkpoint file that is missing or damaged."""


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Everything in a checkpoint file, on the CPU; nothing in it is executed.

    Args:
        path: a local ``.pth`` or ``.pkl``.

    Returns:
        a ``.pkl``'s arrays stay numpy's.

    Raises:
        CTMaskNetError: another kind of file, code in it, or :class:`UnreadableCheckpoint`: the file
            is missing, damaged, or holds something else.
    """
    path = os.fspath(path)
    if not path.endswith((".pth", ".pkl")):
        raise CTMaskNetError(
            f"{path}: weights are read from a .pth written by training or from a .pkl of numpy "
            "arrays; give one of those"
        )
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise CTMaskNetError(f"{path}: not a plain file; name a checkpoint file")
        content = _read_zoo_file(path) if path.endswith(".pkl") else _read_torch_file(path)
    except CTMaskNetError:
        raise
    except Exception as error:  # a malformed pickle or archive may raise anything
        unsafe = _UNSAFE.search(str(error))
        if unsafe:
            raise CTMaskNetError(
                f'{path}: refused, its pickle asks for "{shown(unsafe[1] or unsafe[2])}", which '
                "no checkpoint of a training here needs and which could run code; a published "
                "file of the authors is turned into a checkpoint by tools/import_weights.py"
            ) from None
        raise unreadable(path, error) from error
    if not isinstance(content, dict):
        raise UnreadableCheckpoint(f"{path}: holds no checkpoint; give a .pth written by training")
    return content


def check_weights(
    path: str | os.PathLike,
    weights: Mapping[Any, Any],
    own: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Refuse weights that no training leaves behind.

    Args:
        path: their file, for messages.
        weights: tensors, or numpy's arrays, by name.
        own: the model's, whose whole numbers (such as a Swin Transformer's places in a window) no
            training changes: a file may hold the same.

    Raises:
        CTMaskNetError: names the first that is no array, is complex or of integers (but for counts
            of batches and those of ``own``), holds a number that is not finite, or a running
            variance below 0.
    """
    own = own or {}
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor | np.ndarray):
            raise CTMaskNetError(
                f"{os.fspath(path)}: its weight {shown(name)} is {shown(value)}, where tensors by "
                "name are expected; get a checkpoint of a model"
            )
        why = _why_no_weight(name, torch.as_tensor(value), own.get(name))
        if why:
            raise CTMaskNetError(
                f"{os.fspath(path)}: tensor {shown(name)} {why}; get the file anew, or take an "
                "earlier checkpoint of its training"
            )


def _why_no_weight(name: str, value: torch.Tensor, its: torch.Tensor | None) -> str | None:
    if value.layout != torch.strided or value.is_quantized:
        return "is sparse or quantized, as no weight here is"
    if name.endswith("num_batches_tracked") and not value.is_complex():
        return None
    constant = its is not None and its.dtype == value.dtype == torch.int64
    if constant and torch.equal(its.cpu(), value.cpu()):
        return None
    if not value.is_floating_point():
        return f"holds {str(value.dtype).removeprefix('torch.')} where weights are real numbers"
    if not value.isfinite().all():
        return "holds numbers that are not finite, as a training leaves that has diverged"
    if name.endswith("running_var") and (value < 0).any():
        return "holds variances below 0"
    return None


def unreadable(path: str | os.PathLike, error: Exception) -> UnreadableCheckpoint:
    """The error for a damaged file, from what its reader raised."""
    first = first_line(error)
    # torch's own advice is to read the file with whatever code it holds
    if re.search("weights.only", first, re.IGNORECASE):
        first = "its pickle is malformed, or it is a program of torch's"
    return UnreadableCheckpoint(f"{path}: not a readable checkpoint ({first}); get the file anew")


def first_line(error: Exception) -> str:
    """What an error says in its first line; its kind where it says nothing, or only a key."""
    kind = type(error).__name__
    first = (str(error).strip().splitlines() or [kind])[0]
    return f"{kind}: {first}" if isinstance(error, KeyError) else first


def check_sums(path: str | os.PathLike) -> None:
    """Compare what a file of ``torch.save`` holds with its check sums, which torch does not do.

    Raises:
        CTMaskNetError: an entry is damaged, or is compressed, as torch writes none.
    """
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise CTMaskNetError(
                f"{os.fspath(path)}: refused, a zip with compressed entries, which torch never "
                "writes; use a checkpoint file from its source"
            )
        damaged = archive.testzip()
    if damaged is not None:
        raise UnreadableCheckpoint(
            f"{os.fspath(path)}: not a readable checkpoint (damaged: the check sum of "
            f"{shown(damaged)} in it is not that of its content); get the file anew"
        )


def _read_torch_file(path: str) -> Any:
    with open(path, "rb") as stream:
        head = stream.read(2)
    if head == b"PK":
        check_sums(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_zoo_file(path: str) -> Any:
    if os.path.getsize(path) > MAX_FILE_BYTES:
        raise refusal(f"its {os.path.getsize(path)} bytes are more than any checkpoint's")
    try:
        with open(path, "rb") as stream:
            return _ZooUnpickler(stream, encoding="latin1").load()
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{path}: {error}") from None


class _ZooUnpickler(WeightsUnpickler):
    """Reads a pickle of numpy arrays; what it makes of a file is bounded by the file's size."""

    most = MAX_FILE_BYTES
    dispatch: ClassVar[dict[int, Any]] = dict(WeightsUnpickler.dispatch)
    dispatch.pop(pickle.BINPERSID[0])

    def find_class(self, module: str, name: str) -> Any:
        found = {
            "numpy.ndarray": _NDARRAY,
            "numpy.dtype": _dtype,
            "multiarray._reconstruct": _empty,
            "multiarray.scalar": self.scalar,
            "numeric._frombuffer": self.from_buffer,
            "_codecs.encode": self.encode,
            "__builtin__.bytes": _no_bytes,
        }
        # numpy 2 calls its core _core
        short = re.sub(r"^numpy\._?core\.(?=multiarray$|numeric$)", "", module)
        return found.get(f"{short}.{name}") or super().find_class(module, name)

    def count(self, raw: Any) -> bytes:
        """Raw bytes that are kept. A text becomes bytes and those an array, so each counts
        twice."""
        if not isinstance(raw, bytes | bytearray | str):
            raise ValueError("an array's bytes are missing")
        self.total += len(raw)
        if self.total > 2 * self.length:
            raise refusal("its pickle copies more bytes than the file has")
        return raw.encode("latin1") if isinstance(raw, str) else bytes(raw)

    def encode(self, text: str, codec: str) -> bytes:
        if codec != "latin1":
            raise refusal(f'its pickle asks for the codec "{shown(codec)}"')
        return self.count(text)

    def scalar(self, dtype: np.dtype, raw: Any) -> Any:
        return np.frombuffer(self.count(raw), dtype, 1)[0].item()

    def from_buffer(self, raw: Any, dtype: np.dtype, shape: Any, order: str) -> np.ndarray:
        if not isinstance(dtype, np.dtype) or not _is_shape(shape):
            raise ValueError("an array's type or shape is missing")
        return np.frombuffer(self.count(raw), dtype).reshape(shape, order=order).copy()

    def load_build(self) -> None:
        """The state of an array; of a type, whose bytes have to be in this machine's order."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, np.dtype):
            if state[1] not in ("<", "|", "="):
                raise refusal("its numbers are not little-endian")
        elif isinstance(target, np.ndarray):
            _, shape, dtype, fortran, raw = state
            if not isinstance(dtype, np.dtype) or not _is_shape(shape):
                raise ValueError("an array's type or shape is missing")
            if math.prod(shape) * dtype.itemsize != len(raw):
                raise ValueError("an array is longer or shorter than its shape")
            target.__setstate__((1, shape, dtype, bool(fortran), self.count(raw)))
        else:
            raise refusal("its pickle sets attributes of an object that should have none")

    def load_bytearray8(self) -> None:
        """As bytes: Python's own makes room for whatever length is claimed."""
        self.append(self.read(struct.unpack("<Q", self.read(8))[0]))

    dispatch |= {
        op[0]: pickle._Unpickler.dispatch[op[0]]
        for op in (pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8)
    }
    dispatch |= {pickle.BUILD[0]: load_build, pickle.BYTEARRAY8[0]: load_bytearray8}


def _dtype(name: Any, *_: Any) -> np.dtype:
    short = str(name).lstrip("<|=")
    if short not in _NUMBERS:
        raise refusal(f'it holds an array of "{shown(name)}", which is no array of numbers')
    return np.dtype(short)


def _no_bytes() -> bytes:
    """How protocol 2 writes no bytes at all."""
    return b""


def _empty(kind: Any, *_: Any) -> np.ndarray:
    if kind is not _NDARRAY:
        raise refusal("it holds an array of another class than numpy's own")
    return np.empty(0, np.int8)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) <= 8 and all(map(is_count, shape))
