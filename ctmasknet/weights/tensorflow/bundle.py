"""Variables of a TensorFlow checkpoint: ``.index``, an uncompressed LevelDB table of where each one
is, and ``.data-00000-of-00001`` with their values."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch import Tensor

from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import plain_file
from ctmasknet.weights.pickle import shown
from ctmasknet.weights.tensorflow.wire import (
    BrokenFileError,
    field_number,
    fields,
    messages,
    varint,
)

_MAGIC = 0xDB4775248B80FB57
_FOOTER, _TRAILER = 48, 5
_MAX_INDEX_BYTES, _MAX_SHARDS, _MAX_VALUES = 16 << 20, 64, 1 << 26
_FLOAT = 1  # DT_FLOAT
_SUFFIX = re.compile(r"\.(meta|index|data-\d{5}-of-\d{5})$")


@dataclass(frozen=True)
class Entry:
    """Where a variable is: of ``dtype`` (TensorFlow's number), bytes ``offset`` to ``offset +
    size`` of file number ``shard``, whose masked CRC-32C is ``crc``."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    is_sliced: bool


def prefix_of(path: str | os.PathLike) -> str | None:
    """What the names of a checkpoint's files have in common, of any of them; None of others."""
    path = os.fspath(path)
    return _SUFFIX.sub("", path) if _SUFFIX.search(path) else None


def whole_file(path: str, limit: int) -> bytes:
    """The content of a file.

    Raises:
        CTMaskNetError: it cannot be read, or is larger than ``limit`` bytes.
    """
    try:
        if os.path.getsize(plain_file(path)) > limit:
            raise CTMaskNetError(
                f"{path}: larger than {limit >> 20} MiB, which no such file is; get it anew"
            )
        return Path(path).read_bytes()
    except OSError as error:
        raise CTMaskNetError(
            f"{path}: cannot be read ({error.strerror}); a checkpoint is its .meta, .index and "
            ".data files side by side"
        ) from error


class Bundle:
    """The variables of a checkpoint, read one by one.

    Attributes:
        entries: of every variable, by name.
    """

    def __init__(self, prefix: str):
        """
        Args:
            prefix: of the file names.

        Raises:
            CTMaskNetError: there is no ``.index``, or it is damaged, or of another kind.
        """
        self.prefix = prefix
        self.index = f"{prefix}.index"
        content = whole_file(self.index, _MAX_INDEX_BYTES)
        try:
            table = dict(_table(content))
            if b"" not in table:
                raise BrokenFileError("it has no header")
            header = fields(table.pop(b""))
            self.shards = field_number(header, 1)
            if not 1 <= self.shards <= _MAX_SHARDS:
                raise BrokenFileError(f"it tells of {self.shards} data files")
            if field_number(header, 2):
                raise BrokenFileError("its numbers are big-endian")
            self.entries = {
                key.decode("utf-8"): _entry(value, self.shards) for key, value in table.items()
            }
        except (BrokenFileError, UnicodeDecodeError) as error:
            raise CTMaskNetError(
                f"{self.index}: is no index of a TensorFlow checkpoint ({error}); get it anew"
            ) from None

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A variable of float32.

        Raises:
            CTMaskNetError: it is not there, not of that shape or type, or its bytes are not those
                that were written.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise CTMaskNetError(
                f"{self.index}: has no variable {shown(name)}, which the graph reads; get the "
                "files of one checkpoint"
            )
        if entry.dtype != _FLOAT or entry.is_sliced:
            kind = "in slices" if entry.is_sliced else f"of TensorFlow's type {entry.dtype}"
            self._refuse(name, f"is {kind}, but whole float32 is expected")
        if entry.shape != shape:
            self._refuse(name, f"has shape {entry.shape}, but the graph reads {shape}")
        count = math.prod(entry.shape)
        if count > _MAX_VALUES or entry.size != 4 * count:
            self._refuse(name, f"of shape {shape} has {entry.size} bytes; 4 a value are expected")
        path = f"{self.prefix}.data-{entry.shard:05d}-of-{self.shards:05d}"
        try:
            with plain_file(path).open("rb") as stream:
                end = os.fstat(stream.fileno()).st_size
                if entry.offset + entry.size > end:
                    raise CTMaskNetError(
                        f"{path}: ends at byte {end}, but variable {shown(name)} is at "
                        f"{entry.offset} to {entry.offset + entry.size}; get it anew"
                    )
                stream.seek(entry.offset)
                data = stream.read(entry.size)
        except OSError as error:
            raise CTMaskNetError(
                f"{path}: cannot be read ({error.strerror}); a checkpoint is its .meta, .index and "
                ".data files side by side"
            ) from error
        if masked_crc32c(data) != entry.crc:
            raise CTMaskNetError(
                f"{path}: variable {shown(name)} is damaged (its CRC differs); get it anew"
            )
        values = np.frombuffer(data, "<f4").reshape(shape).copy()
        if sys.byteorder != "little":
            values = values.astype(np.float32)
        return torch.from_numpy(values)

    def _refuse(self, name: str, problem: str) -> None:
        raise CTMaskNetError(
            f"{self.index}: variable {shown(name)} {problem}; get the files of one checkpoint"
        )


def _entry(data: bytes, shards: int) -> Entry:
    message = fields(data)
    shape: list[int] = []
    for shape_message in messages(message, 2)[-1:]:
        if field_number(shape_message, 3):
            raise BrokenFileError("a shape in it is unknown")
        shape = [field_number(one, 1) for one in messages(shape_message, 2)]
    entry = Entry(
        dtype=field_number(message, 1),
        shape=tuple(shape),
        shard=field_number(message, 3),
        offset=field_number(message, 4),
        size=field_number(message, 5),
        crc=field_number(message, 6),
        is_sliced=7 in message,
    )
    if min((*shape, entry.shard, entry.offset, entry.size), default=0) < 0:
        raise BrokenFileError("a shape, place or size in it is negative")
    if entry.shard >= shards:
        raise BrokenFileError(f"it tells of data file {entry.shard} of {shards}")
    return entry


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table, in their order."""
    if len(content) < _FOOTER:
        raise BrokenFileError("it is too short")
    footer = content[-_FOOTER:]
    if int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise BrokenFileError("it does not end as such a file does")
    _, at = _handle(footer, 0)
    index, _ = _handle(footer, at)
    before, seen = None, 0
    for _, value in _block(content, index):
        place, _ = _handle(value, 0)
        seen += place[1]
        if seen > len(content):
            raise BrokenFileError("its blocks overlap")
        for key, item in _block(content, place):
            if before is not None and key <= before:
                raise BrokenFileError("its names are not in order")
            before = key
            yield key, item


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(content: bytes, place: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    offset, size = place
    if offset + size + _TRAILER > len(content) - _FOOTER or size < 4:
        raise BrokenFileError("a block lies beyond its end")
    data = content[offset : offset + size]
    trailer = content[offset + size : offset + size + _TRAILER]
    if masked_crc32c(data + trailer[:1]) != int.from_bytes(trailer[1:], "little"):
        raise BrokenFileError("the CRC of a block differs")
    if trailer[0]:
        raise BrokenFileError(f"a block is compressed, kind {trailer[0]}")
    restarts = int.from_bytes(data[-4:], "little")
    end = size - 4 - 4 * restarts
    if end < 0:
        raise BrokenFileError("a block has more marks than bytes")
    at, key = 0, b""
    data = data[:end]
    while at < end:
        shared, at = varint(data, at)
        unshared, at = varint(data, at)
        length, at = varint(data, at)
        if shared > len(key) or unshared + length > end - at:
            raise BrokenFileError("an entry of a block is longer than it")
        key = key[:shared] + data[at : at + unshared]
        at += unshared
        yield key, data[at : at + length]
        at += length
