"""Voxels of NIfTI files: single slices without the rest of the volume.

A slice is read with one read of the file. Where the volume is compressed, or stored so that the
voxels of an axial slice are scattered, it is first laid out anew in a temporary file, which has no
name and goes when two other volumes are read or the process ends. TMPDIR says where; it needs the
room of two uncompressed volumes, or three.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import tempfile
import threading
from dataclasses import dataclass
from typing import IO

import numpy as np

from ctmasknet.data.ct_orientation import Upright
from ctmasknet.data.ct_scan import CHUNK_BYTES, decoding, unpacking
from ctmasknet.errors import CTMaskNetError

#: How much is moved at a time.
_BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class NiftiVolume:
    """One volume of a NIfTI file, read slice by slice.

    Attributes:
        file: path.
        stamp: (size, time of change) of the file when its header was read.
        compressed: gzip.
        shape: of the three stored axes.
        dtype: of the stored values, as ``numpy.dtype.str``.
        offset: where the voxels begin, bytes.
        slope, intercept: stored value -> value.
        turn: how the grid is turned upright.
        problems: what the header contradicts itself in, one sentence each.
    """

    file: str
    stamp: tuple[int, int]
    compressed: bool
    shape: tuple[int, int, int]
    dtype: str
    offset: int
    slope: float
    intercept: float
    turn: Upright
    problems: tuple[str, ...] = ()

    def values(self, index: int) -> np.ndarray:
        """One slice.

        Args:
            index: along the stored slice axis.

        Returns:
            (H, W) float64, upright, slope and intercept applied in float64.

        Raises:
            CTMaskNetError: truncated, damaged, or changed since its header was read.
        """
        layout = _layout_of(self)
        with decoding(self.file):
            plane = layout.plane(index)
            return self.turn.plane(plane).astype(np.float64) * self.slope + self.intercept

    def __hash__(self) -> int:
        return hash((self.file, self.stamp))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NiftiVolume) and (self.file, self.stamp) == (
            other.file,
            other.stamp,
        )


@dataclass(frozen=True)
class _Layout:
    """Where the slices lie: one after the other from ``offset``, each ``shape`` in ``order``."""

    stream: IO[bytes]
    offset: int
    dtype: np.dtype
    shape: tuple[int, int]
    order: str

    def plane(self, index: int) -> np.ndarray:
        length = math.prod(self.shape) * self.dtype.itemsize
        data = os.pread(self.stream.fileno(), length, self.offset + index * length)
        if len(data) != length:
            raise CTMaskNetError(f"{self.stream.name}: truncated at slice {index}")
        return np.frombuffer(data, self.dtype).reshape(self.shape, order=self.order)


#: Two, so that threads which read ahead from one volume into the next keep both; no more, so that
#: temporary files do not add up.
_MAX_LAYOUTS = 2
_layouts: dict[NiftiVolume, _Layout] = {}
_one_at_a_time = threading.Lock()


def _layout_of(volume: NiftiVolume) -> _Layout:
    with _one_at_a_time:
        if volume not in _layouts:
            while len(_layouts) >= _MAX_LAYOUTS:
                del _layouts[next(iter(_layouts))]
            _layouts[volume] = _laid_out(volume)
        return _layouts[volume]


def _laid_out(volume: NiftiVolume) -> _Layout:
    with decoding(volume.file), contextlib.ExitStack() as passed:
        stream = passed.enter_context(open(volume.file, "rb"))
        stat = os.fstat(stream.fileno())
        if (stat.st_size, stat.st_mtime_ns) != volume.stamp:
            raise CTMaskNetError(f"{volume.file}: changed while it was read; read it again")
        offset = volume.offset
        if volume.compressed:
            stream, offset = passed.enter_context(_expanded(volume, stream)), 0
        layout = _Layout(stream, offset, np.dtype(volume.dtype), volume.shape[:2], "F")
        slice_axis = volume.turn.axes[2]
        if slice_axis != 2:
            layout = _sliced(volume.file, layout, volume.shape, slice_axis)
        else:
            passed.pop_all()  # its file stays open as long as the layout
        return layout


def _expanded(volume: NiftiVolume, stream: IO[bytes]) -> IO[bytes]:
    """The voxels of a compressed file. Reads to its end, so that its checksum is looked at."""
    left = math.prod(volume.shape) * np.dtype(volume.dtype).itemsize
    with contextlib.ExitStack() as on_error, gzip.GzipFile(fileobj=stream) as source:
        with unpacking(volume.file):
            target = on_error.enter_context(tempfile.TemporaryFile())
        _skip(source, volume.offset)
        while left and (chunk := source.read(min(left, CHUNK_BYTES))):
            with unpacking(volume.file):
                target.write(chunk)
                target.flush()
            left -= len(chunk)
        if left:
            raise CTMaskNetError(
                f"{volume.file}: truncated, {left} bytes of voxels are missing; restore the file"
            )
        if len(source.read(CHUNK_BYTES)) == CHUNK_BYTES:
            raise CTMaskNetError(f"{volume.file}: holds far more than its header says; damaged")
        on_error.pop_all()
        return target


def _skip(source: IO[bytes], count: int) -> None:
    while count and (chunk := source.read(min(count, CHUNK_BYTES))):
        count -= len(chunk)


def _sliced(file: str, stored: _Layout, shape: tuple[int, int, int], slice_axis: int) -> _Layout:
    """The same voxels with slices one after the other, moved in blocks of limited size."""
    other, slices = shape[1 - slice_axis], shape[slice_axis]
    slice_bytes = other * shape[2] * stored.dtype.itemsize
    block_slices = max(1, _BLOCK_BYTES // slice_bytes)
    with unpacking(file):
        target = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the layout)
    for begin in range(0, slices, block_slices):
        end = min(slices, begin + block_slices)
        block = np.empty((end - begin, other, shape[2]), stored.dtype)
        for place in range(shape[2]):
            plane = np.moveaxis(stored.plane(place), slice_axis, 0)
            block[:, :, place] = plane[begin:end]
        with unpacking(file):
            target.write(block.data)
            target.flush()
    return _Layout(target, 0, stored.dtype, (other, shape[2]), "C")
