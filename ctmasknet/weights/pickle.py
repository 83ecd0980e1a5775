"""Torch checkpoints as data, in both layouts: the old stream of pickles and the zip archive.

The stream (torch 1.1 and before) is five pickles: magic number, protocol 1001, system facts, the
object, the list of storage keys; then, for each key, the count of its values as int64 and the
values. The archive (since torch 1.6) holds the object in ``<name>/data.pkl`` and each storage in
``<name>/data/<key>``, uncompressed.

Reads a pickle as data: nothing is imported, and nothing that the file names is called.

``pickletools.genops`` splits a pickle into its instructions; the small stack machine below carries
out those that build plain containers. Names, calls and references go to
:class:`ctmasknet.weights.pickle.TorchObjects`, which knows the few that a checkpoint needs.

What the names and references in a checkpoint's pickle stand for, without looking any up.

A class or function that the pickle names stays a name (:class:`Global`) and must stand in
:data:`ALLOWED_GLOBALS`; what "calling" it gives is decided here, by plain values. Tensors are
descriptions (:class:`TensorData`) whose bounds are checked against their storage, so that a lie
about a size costs no memory.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

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


#: Bounds on one pickle. The largest published file, a ResNet-50 with the state of Adam, needs under
#: 1 MB and 50,000 instructions.
MAX_PICKLE_BYTES = 16 << 20
MAX_INSTRUCTIONS = 1_000_000
MAX_NESTING = 32
MAX_INTEGER_BITS = 128
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
_STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def parse(stream: BinaryIO, path: str, on_storage: Callable[[StorageData], None]) -> Any:
    """Read one pickle from ``stream`` and leave the stream just behind it.

    Args:
        stream: seekable binary file at the start of a pickle.
        path: the file's name for messages.
        on_storage: called for each storage referred to; raises when the file cannot hold it.

    Returns:
        None, bool, int, float, str, tuple, list and dict (also for OrderedDict; sets become lists),
        and the records of :mod:`ctmasknet.weights.pickle`.

    Raises:
        CTMaskNetError: the pickle names something that is not allowed, is broken, or passes one of
            the bounds above.
    """
    start = stream.tell()
    window = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    machine = _Machine(path, TorchObjects(path, on_storage))
    try:
        value = machine.run(window)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        # pickletools and the machine's own checks signal a malformed pickle by any of these.
        raise CTMaskNetError(
            f"{path}: not a whole torch checkpoint: its pickle breaks off or is malformed near "
            f"byte {start + window.tell()} ({shown(error)}); fetch or copy the file again"
        ) from None
    _check_nesting(value, path)
    stream.seek(start + window.tell())
    return value


class _Machine:
    """Carries out the instructions of one pickle."""

    def __init__(self, path: str, objects: TorchObjects) -> None:
        self.path = path
        self.objects = objects
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, window: BinaryIO) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(window)):
            if count >= MAX_INSTRUCTIONS:
                raise refusal(
                    self.path, f"its pickle has more than {MAX_INSTRUCTIONS} instructions"
                )
            if opcode.name == "STOP":
                break
            self.step(opcode.name, argument)
        value = self.pop()
        if self.stack:
            raise ValueError("values left over at the end")
        return value

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NUMBERS:
            if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
                raise refusal(self.path, "its pickle holds an integer of absurd size")
            stack.append(argument)
        elif name in _STRINGS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "APPEND":
            item = self.pop()
            self.top_of(list).append(item)
        elif name in ("APPENDS", "ADDITEMS"):
            items = self.pop_to_mark()
            self.top_of(list).extend(items)
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            self.top_of(dict)[checked_key(key)] = value
        elif name == "SETITEMS":
            items = self.pop_to_mark()
            target = self.top_of(dict)
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[checked_key(key)] = value
        elif name == "GLOBAL":
            stack.append(self.objects.named(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            stack.append(self.objects.named(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, target = self.pop(), self.pop()
            stack.append(self.objects.call(target, arguments))
        elif name == "BUILD":
            state, target = self.pop(), self.top()
            self.objects.set_state(target, state)
        elif name == "BINPERSID":
            stack.append(self.objects.persistent(self.pop()))
        elif name == "INST":  # names a global and calls it in one instruction
            self.objects.named(argument.replace(" ", ".", 1))
            raise refusal(self.path, "its pickle builds an object by the instruction INST")
        elif name not in ("PROTO", "FRAME"):
            raise refusal(
                self.path, f"its pickle uses the instruction {name}, which no checkpoint needs"
            )

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("a value is missing")
        return self.stack[-1]

    def top_of(self, kind: type) -> Any:
        if not isinstance(self.top(), kind):
            raise ValueError(f"a {kind.__name__} is missing")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        self.stack.pop()
        return value

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]


def _check_nesting(value: Any, path: str) -> None:
    """Refuse deeper containers than checkpoints hold; level by level, each object visited once."""
    level, seen = [value], set()
    for _ in range(MAX_NESTING):
        following: list[Any] = []
        for item in level:
            if isinstance(item, AnchorData):
                item = item.state
            if not isinstance(item, list | tuple | dict) or id(item) in seen:
                continue
            seen.add(id(item))
            following.extend(item.values() if isinstance(item, dict) else item)
        if not following:
            return
        level = following
    raise refusal(path, f"its pickle nests containers more than {MAX_NESTING} deep")


_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


@dataclass(frozen=True)
class CheckpointFile:
    """What a checkpoint holds, with its tensors still in the file.

    Attributes:
        path: the file.
        content: the pickled object, as :func:`parse` gives it; a tensor is a
            :class:`ctmasknet.weights.pickle.TensorData`.
    """

    path: str
    content: Any
    _read_storage: Callable[[StorageData], bytes]

    def load(self, tensors: Mapping[str, TensorData]) -> dict[str, torch.Tensor]:
        """Read these tensors from the file (contiguous, on the CPU, in their stored dtype)."""
        storages: dict[str, torch.Tensor] = {}
        loaded = {}
        for name, data in tensors.items():
            storage = data.storage
            if storage.key not in storages:
                storages[storage.key] = _as_tensor(self._read_storage(storage), storage.dtype)
            view = storages[storage.key].as_strided(data.shape, data.stride, data.offset)
            loaded[name] = view.contiguous()
        return loaded


def read_checkpoint(path: str | os.PathLike) -> CheckpointFile:
    """Read a checkpoint written by ``torch.save`` without running anything in it.

    Every claim about sizes is held against the file's real length before memory is asked for.

    Raises:
        CTMaskNetError: the file is missing, empty, truncated, of another format, or holds anything
            but plain containers, tensors and the authors' anchor generator.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(4)
            stream.seek(0)
            if not head:
                raise CTMaskNetError(f"{path}: the file is empty; fetch or copy it again")
            if head[:2] == b"PK":
                return _read_archive(path, stream)
            if head[:1] != b"\x80":
                raise _foreign(path, f"it begins with {shown(head.decode('latin-1'))}")
            return _read_stream(path, stream)
    except OSError as error:
        raise CTMaskNetError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _read_stream(path: str, stream: BinaryIO) -> CheckpointFile:
    length = os.fstat(stream.fileno()).st_size
    claimed: dict[str, StorageData] = {}

    def no_storage(storage: StorageData) -> None:
        raise refusal(path, "a tensor stands where the file's format has none")

    def claim(storage: StorageData) -> None:
        _check_claim(claimed, storage, path, length)

    if parse(stream, path, no_storage) != _MAGIC:
        raise _foreign(path, "it is some other pickle")
    if parse(stream, path, no_storage) != _PROTOCOL:
        raise _foreign(path, "its stream has an unknown version")
    facts = parse(stream, path, no_storage)
    if not isinstance(facts, dict) or facts.get("little_endian") is not True:
        raise _foreign(path, "its numbers are not little-endian")
    content = parse(stream, path, claim)
    keys = parse(stream, path, no_storage)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _broken(path, "its list of storages is malformed")
    if len(keys) != len(claimed) or set(keys) != set(claimed):
        raise _broken(path, "its tensors and its storages do not match")

    starts: dict[str, int] = {}
    for key in keys:
        storage = claimed[key]
        header = stream.read(8)
        starts[key] = stream.tell()
        end = starts[key] + storage.num_bytes
        if len(header) < 8 or end > length:
            raise _broken(path, "its last tensors are missing")
        if struct.unpack("<q", header)[0] != storage.numel:
            raise refusal(path, f"storage {shown(key)} has another size than its tensors claim")
        stream.seek(end)

    def read(storage: StorageData) -> bytes:
        with open(path, "rb") as again:
            again.seek(starts[storage.key])
            return again.read(storage.num_bytes)

    return CheckpointFile(path, content, read)


def _read_archive(path: str, stream: BinaryIO) -> CheckpointFile:
    length = os.fstat(stream.fileno()).st_size
    claimed: dict[str, StorageData] = {}
    with _zip_errors(path), zipfile.ZipFile(stream) as archive:
        members = _checked_members(path, archive, length)
        roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise _foreign(path, "it is some other zip file")
        root = roots[0]
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise _foreign(path, "its numbers are not little-endian")
        if members[f"{root}data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise refusal(path, "its pickle is larger than any checkpoint's")

        def claim(storage: StorageData) -> None:
            _check_claim(claimed, storage, path, length)
            member = members.get(f"{root}data/{storage.key}")
            if member is None or member.file_size != storage.num_bytes:
                held = f"has {member.file_size if member else 0} bytes"
                raise _broken(path, f"storage {shown(storage.key)} {held}, not {storage.num_bytes}")

        content = parse(io.BytesIO(archive.read(f"{root}data.pkl")), path, claim)

    def read(storage: StorageData) -> bytes:
        with _zip_errors(path), zipfile.ZipFile(path) as again:
            return again.read(f"{root}data/{storage.key}")

    return CheckpointFile(path, content, read)


def _checked_members(
    path: str, archive: zipfile.ZipFile, length: int
) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by name, none of which can grow beyond the file when read."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise refusal(path, "a zip with compressed entries, which torch never writes")
    if sum(entry.file_size for entry in entries) > length:
        raise refusal(path, "its zip entries claim more bytes than the whole file has")
    members = {entry.filename: entry for entry in entries}
    if len(members) != len(entries):
        raise refusal(path, "its zip holds two entries of one name")
    return members


@contextlib.contextmanager
def _zip_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as error:
        # RuntimeError: an entry marked as encrypted, or one that needs a newer zip version.
        raise _broken(path, shown(error)) from None


def _check_claim(
    claimed: dict[str, StorageData], storage: StorageData, path: str, size: int
) -> None:
    if claimed.setdefault(storage.key, storage) != storage:
        raise refusal(path, f"storage {shown(storage.key)} is described twice")
    if storage.num_bytes > size:
        raise refusal(
            path,
            f"storage {shown(storage.key)} claims {storage.numel} values, more than the file's "
            f"{size} bytes can hold (truncated, or made up)",
        )


def _broken(path: str, why: str) -> CTMaskNetError:
    return CTMaskNetError(
        f"{path}: not a whole torch checkpoint: {why}; fetch or copy the file again"
    )


def _foreign(path: str, why: str) -> CTMaskNetError:
    return CTMaskNetError(
        f"{path}: not a torch checkpoint ({why}); give a .pth file written by torch.save"
    )


def _as_tensor(raw: bytes, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
