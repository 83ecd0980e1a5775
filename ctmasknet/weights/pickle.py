"""The authors' checkpoint files as data: ``torch.load`` with an unpickler that knows a short list.

What a file may name are the keys of ``_ALLOWED``, and each of them stands for something harmless
of ours; any other name is refused before it is looked up. Sizes are checked first: of the file, of
its pickle, of every storage against the file, of every tensor against its storage.

Given up, as against a reader of our own: containers may be nested, texts and integers long, as far
as the bound on the pickle allows; values left over at a pickle's end are ignored, as pickle does.
Dict keys stay bounded, because hashing nested tuples has no end.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import stat
import zipfile
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import torch

from ctmasknet.errors import CTMaskNetError

#: Bounds. The largest published file, a ResNet-50 with the state of Adam, has under 0.5 GB, its
#: pickle under 1 MB.
MAX_FILE_BYTES = 1 << 30
MAX_PICKLE_BYTES = 4 << 20
MAX_COPIED_ITEMS = 1_000_000
#: The authors' anchor generator: the one object of a class of theirs that their files hold.
ANCHOR_CLASSES = (
    "models.mask_net.rpn_segmentation.AnchorGenerator",
    "models.mask_net.rpn.AnchorGenerator",
)
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
#: What torch's protocols 2 to 5 need, and INST, whose name is told when it is refused.
_INSTRUCTIONS = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINPUT LONG_BINPUT MEMOIZE "
    "BINGET LONG_BINGET EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_SET "
    "ADDITEMS EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL INST REDUCE NEWOBJ BUILD BINPERSID"
)


class AnchorData:
    """Stands for a pickled anchor generator: its attributes, without its class."""

    state: Any = None


def read_weights_file(path: str | os.PathLike) -> Any:
    """What ``torch.save`` wrote, as a zip archive or as torch 1.1's stream; nothing in it is run.

    Returns:
        None, bool, int, float, str, tuple, list and dict (also for OrderedDict; sets become lists),
        tensors on the CPU, also for parameters, and :class:`AnchorData`.

    Raises:
        CTMaskNetError: the file is missing, not a plain one, empty, truncated, too large, of
            another format, or holds anything else.
    """
    path = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CTMaskNetError("not a plain file; name a checkpoint file")
        with open(path, "rb") as stream:
            return _read(stream)
    except OSError as error:
        raise CTMaskNetError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{path}: {error}") from None
    except Exception as error:  # a malformed pickle or archive may raise anything
        raise CTMaskNetError(
            f"{path}: not a whole torch checkpoint: it breaks off or is malformed "
            f"({type(error).__name__}: {shown(error)}); fetch or copy the file again"
        ) from None


def shown(value: object, limit: int = 120) -> str:
    """A value from an untrusted file as a short printable ASCII part of an error message.

    Containers are told by their kind only: a small pickle can describe one whose text is endless.
    """
    if isinstance(value, tuple | list) and len(value) <= 8 and all(map(_is_number, value)):
        plain = f"({', '.join(map(str, value))})"
    elif isinstance(value, str | Exception) or _is_number(value):
        plain = ascii(str(value))[1:-1]
    else:
        plain = f"a {type(value).__name__}"
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and value.bit_length() <= 64)


def _read(stream: BinaryIO) -> Any:
    length = os.fstat(stream.fileno()).st_size
    head = stream.read(2)
    stream.seek(0)
    if not head:
        raise CTMaskNetError("the file is empty; fetch or copy it again")
    if length > MAX_FILE_BYTES:
        raise refusal(f"its {length} bytes are more than any checkpoint's")
    entries = None
    if head == b"PK":
        source, entries = _copied_archive(stream)
    elif head[:1] == b"\x80":
        # In memory, because torch tries a file on the disk as a tar archive, and unpacks that.
        source = io.BytesIO(stream.read(length))
    else:
        raise _foreign(f"it begins with {shown(head.decode('latin-1'))}")

    class Unpickler(WeightsUnpickler):
        file_bytes, sizes, claimed = length, entries, {}

    plain: list[Any] = []

    def load(stream: BinaryIO, **options: Any) -> Any:
        plain.append(Unpickler(stream, **options).load())
        if len(plain) == 1 and plain[0] != torch.serialization.MAGIC_NUMBER:
            raise _foreign("it is some other pickle")
        if len(plain) == 3 and plain[2].get("little_endian") is not True:
            raise _foreign("its numbers are not little-endian")
        if len(plain) == 4 and sorted(map(_key, plain[3])) != sorted(Unpickler.claimed):
            raise ValueError("its tensors and its storages do not match")
        return plain[-1]

    module = SimpleNamespace(__name__=__name__, Unpickler=Unpickler, load=load)
    # The variable asks for torch's unpickler in place of this one, which knows the authors' classes
    # and lets no other code run either.
    forced = os.environ.pop(_FORCED, None)
    try:
        return torch.load(source, "cpu", module, weights_only=False, mmap=False)
    finally:
        if forced is not None:
            os.environ[_FORCED] = forced


def _copied_archive(stream: BinaryIO) -> tuple[io.BytesIO, dict[str, int]]:
    """The pickle and the storages of a zip archive, their check sums compared, as an archive that
    torch's reader cannot take for another; and the storages' sizes in bytes by key."""
    copy, sizes = io.BytesIO(), {}
    with zipfile.ZipFile(stream) as archive, zipfile.ZipFile(copy, "w") as written:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise _foreign("it is some other zip file")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise refusal("a zip with compressed entries, which torch never writes")
        if entries[f"{roots[0]}data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise refusal("its pickle is larger than any checkpoint's")
        for name, entry in entries.items():
            short = name.removeprefix(roots[0])
            if short.startswith("data/"):
                sizes[short.removeprefix("data/")] = entry.file_size
            if short.startswith("data/") or short in ("data.pkl", "byteorder", "version"):
                written.writestr(f"archive/{short}", archive.read(name))
    copy.seek(0)
    return copy, sizes


class WeightsUnpickler(pickle._Unpickler):
    """Reads one pickle, and leaves the stream just behind it.

    Python's own in Python: the quicker one believes a pickle's claims about memory.

    Attributes:
        most: bytes that are looked at.
        file_bytes: the file's length; all storages together claim less.
        sizes: bytes of every storage by key, where the file states them.
        claimed: bytes of the storages referred to so far, by key.
    """

    most: int = MAX_PICKLE_BYTES
    file_bytes: int
    sizes: dict[str, int] | None
    claimed: dict[str, int]
    dispatch: ClassVar[dict[int, Any]] = {
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _INSTRUCTIONS.split())
    }
    # What find_class gives is called, be it a class where it comes from or not.
    dispatch[pickle.NEWOBJ[0]] = pickle._Unpickler.load_reduce
    # Sets become lists: hashing nested tuples has no end.
    dispatch[pickle.EMPTY_SET[0]] = pickle._Unpickler.load_empty_list
    dispatch[pickle.ADDITEMS[0]] = pickle._Unpickler.load_appends

    def __init__(self, stream: BinaryIO, **options: Any):
        self.source, self.start = stream, stream.tell()
        self.window = io.BytesIO(stream.read(self.most))
        self.length = self.window.getbuffer().nbytes
        self.copied = self.total = 0
        super().__init__(self.window, **options)

    def load(self) -> Any:
        value = super().load()
        self.source.seek(self.start + self.window.tell())
        return value

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return self.ordered
        if full not in _ALLOWED:
            raise refusal(
                f'its pickle asks for "{shown(full)}", which could run code and which no such '
                "checkpoint needs"
            )
        return _ALLOWED[full]

    def ordered(self, pairs: Any = ()) -> dict[Any, Any]:
        """An OrderedDict; Python 2 pickled it as a call with its items."""
        self.copied += len(pairs)
        if self.copied > MAX_COPIED_ITEMS:
            raise refusal("its pickle copies more items than any checkpoint has")
        return {_key(key): value for key, value in pairs}

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise ValueError("a dict is missing")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    def load_build(self) -> None:
        """Attributes: kept for the anchor generator, of no use on a dict or a tensor."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, AnchorData):
            target.state = state
        elif not isinstance(target, dict | torch.Tensor):
            raise refusal("its pickle sets attributes of an object that should have none")

    def load_binpersid(self) -> None:
        """A storage (class, key, location, numel[, view]) or module (class, file, source text)."""
        reference = self.stack.pop()
        kind, *rest = reference if isinstance(reference, tuple) and reference else [reference]
        if kind == "module" and len(rest) == 3 and rest[0] is AnchorData:
            self.append(AnchorData)  # the source text beside it is never looked at
        elif kind == "storage" and len(rest) in (4, 5):
            self.claim(*rest)
            self.append(self.persistent_load(reference))
        else:
            raise refusal(f'its pickle holds a reference of unknown kind "{shown(kind)}"')

    def claim(self, kind: Any, key: Any, location: Any, numel: Any, view: Any = None) -> None:
        if view is not None:
            raise refusal("a storage in it is a view, which torch 1.1 never writes")
        if not isinstance(key, str) or not is_count(numel) or kind.dtype not in _DTYPES:
            raise ValueError("a storage's key, size or type is missing")
        size = numel * kind.dtype.itemsize
        if key not in self.claimed:
            self.claimed[key] = size
            self.total += size
        if self.claimed[key] != size:
            raise refusal(f"storage {shown(key)} is described twice")
        if self.total > self.file_bytes:
            raise refusal(
                f"storage {shown(key)} claims {shown(numel)} values, more than the file's "
                f"{self.file_bytes} bytes can hold (truncated, or made up)"
            )
        if self.sizes is not None and self.sizes.get(key) != size:
            raise ValueError(f"storage {key} has {self.sizes.get(key, 0)} bytes, not {size}")

    dispatch |= {
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BUILD[0]: load_build,
        pickle.BINPERSID[0]: load_binpersid,
    }


def _first(value: Any = None, *_: Any) -> Any:
    """What wraps a value gives the value itself, uncopied."""
    return value


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> torch.Tensor:
    """A tensor that lies wholly inside its storage and is no larger than it."""
    if not isinstance(storage, torch.storage.TypedStorage) or len(shape) != len(stride):
        raise ValueError("a tensor's description has the wrong types")
    if len(shape) > 8 or not all(map(is_count, (offset, *shape, *stride))):
        raise ValueError("a tensor's description has the wrong numbers")
    values = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if math.prod(shape) > values:
        raise refusal(f"a tensor in it claims more than its {values} values")
    if math.prod(shape) and last >= values:
        raise refusal(f"a tensor in it reaches beyond its {values} values")
    return torch._utils._rebuild_tensor(storage, offset, tuple(shape), tuple(stride))


def is_count(value: Any) -> bool:
    """Whether it is an integer that is not negative."""
    return type(value) is int and value >= 0


def _key(key: Any, depth: int = 0) -> Any:
    """A dict key that is safe to hash: hashing nested tuples recurses without a bound."""
    if isinstance(key, tuple) and depth < 3 and len(key) <= 8:
        return tuple(_key(item, depth + 1) for item in key)
    if key is None or isinstance(key, str | int | float):
        return key
    raise ValueError("a dict key is neither text nor number")


_ALLOWED: dict[str, Any] = {
    **dict.fromkeys(ANCHOR_CLASSES, AnchorData),
    **dict.fromkeys(("builtins.set", "__builtin__.set", "torch.Size"), _first),
    **dict.fromkeys(("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"), _first),
    **dict.fromkeys(("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"), _tensor),
    # An attribute that every module of torch 1.1 carries; worth nothing here.
    "torch.nn.backends.thnn._get_thnn_function_backend": _first,
}


def refusal(why: str) -> CTMaskNetError:
    """The error for a file that holds what no checkpoint does."""
    return CTMaskNetError(f"refused, {why}; use a checkpoint file from its source")


def _foreign(why: str) -> CTMaskNetError:
    return CTMaskNetError(f"not a torch checkpoint ({why}); give a .pth file written by torch.save")
