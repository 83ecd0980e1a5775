"""Torch checkpoints as data, in both layouts: the old stream of pickles and the zip archive.

The stream (torch 1.1 and before) is five pickles: magic number, protocol 1001, system facts, the
object, the list of storage keys; then, for each key, the count of its values as int64 and the
values. The archive (since torch 1.6) holds the object in ``<name>/data.pkl`` and each storage in
``<name>/data/<key>``, uncompressed.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from ctmasknet.errors import CTMaskNetError
from ctmasknet.inert_pickle import MAX_PICKLE_BYTES, parse
from ctmasknet.torch_objects import StorageData, TensorData, refusal, shown

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


@dataclass(frozen=True)
class CheckpointFile:
    """What a checkpoint holds, with its tensors still in the file.

    Attributes:
        path: the file.
        content: the pickled object, as :func:`ctmasknet.inert_pickle.parse` gives it; a tensor is a
            :class:`ctmasknet.torch_objects.TensorData`.
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
