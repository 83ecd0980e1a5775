"""Voxels of NIfTI files: header, and single slices without the rest of the volume.

A slice is read with one read of the file. Where the volume is compressed, or stored so that the
voxels of an axial slice are scattered, it is first laid out anew in a temporary file, which has no
name and goes when another volume is read or the process ends. TMPDIR says where; it needs the room
of one uncompressed volume, or two.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import math
import os
import tempfile
from dataclasses import dataclass
from typing import IO

import numpy as np
from nibabel import Nifti1Header, Nifti2Header
from nibabel.orientations import io_orientation

from ctmasknet.data.ct_orientation import Upright, upright
from ctmasknet.data.ct_scan import (
    CHUNK_BYTES,
    MAX_EXPANSION,
    UnsuitableFile,
    check_claimed_size,
    decoding,
    max_expanded_bytes,
)
from ctmasknet.errors import CTMaskNetError

_HEADER_BYTES = 540
_MAX_OFFSET = 2**26
_BLOCK_BYTES = 2**26
#: Share by which the voxel sizes of sform and qform may differ.
_SIZE_SHARE = 0.01
_TO_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}


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
        layout = _layout(self)
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


def is_nifti_header(head: bytes) -> bool:
    """Whether uncompressed bytes begin as NIfTI-1 or NIfTI-2 does."""
    size = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    return (348 in size and head[344:347] in (b"n+1", b"ni1")) or (
        540 in size and head[4:7] in (b"n+2", b"ni2")
    )


def read_volume(file: str, max_expansion: float = MAX_EXPANSION) -> NiftiVolume:
    """Read and check the header; the voxels stay in the file.

    Args:
        file: ``.nii`` or ``.nii.gz``; told apart by content.
        max_expansion: see :func:`ctmasknet.data.ct_scan.max_expanded_bytes`. Label masks compress
            far better than CT.

    Raises:
        UnsuitableFile: 4D, colour, complex, a header without its image, no stated orientation,
            oblique.
        CTMaskNetError: damaged, truncated or impossible sizes.
    """
    with decoding(file):
        with open(file, "rb") as stream:
            head = stream.read(_HEADER_BYTES)
        compressed = head.startswith(b"\x1f\x8b")
        if compressed:
            with gzip.open(file) as stream:
                head = stream.read(_HEADER_BYTES)
        stat = os.stat(file)
    if not is_nifti_header(head):
        raise UnsuitableFile(f"{file}: not NIfTI (its header is of another format)")
    with decoding(file):
        kind = Nifti2Header if head[4:7] in (b"n+2", b"ni2") else Nifti1Header
        header = kind(head[: kind.template_dtype.itemsize], check=True)
        magic = bytes(header["magic"].item())
        shape = tuple(int(side) for side in header.get_data_shape())
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        offset = header.get_data_offset()
    if magic.startswith(b"ni"):
        raise UnsuitableFile(
            f"{file}: a header whose voxels lie in another file (.hdr and .img); store it as .nii"
        )
    if len(shape) < 2 or any(side != 1 for side in shape[3:]):
        raise UnsuitableFile(f"{file}: has {len(shape)} dimensions {shape}; give one 3D volume")
    if dtype.fields or dtype.kind not in "iuf":
        raise UnsuitableFile(f"{file}: holds {dtype}, no single number a voxel; give CT in HU")
    shape = (*shape, 1)[:3]
    affine, problems = _affine(header, file)
    turn = upright(affine, shape, file)
    columns, rows, slices = turn.shape
    check_claimed_size(file, (rows, columns, slices))
    needed = math.prod(shape) * dtype.itemsize
    if offset < header.single_vox_offset:
        raise CTMaskNetError(
            f"{file}: its voxels begin at byte {offset}, within its header; the file is damaged"
        )
    _check_length(file, stat.st_size, offset, needed, compressed, max_expansion)
    return NiftiVolume(
        file=file,
        stamp=(stat.st_size, stat.st_mtime_ns),
        compressed=compressed,
        shape=shape,
        dtype=dtype.str,
        offset=offset,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        turn=turn,
        problems=problems,
    )


def _affine(header: Nifti1Header, file: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(4, 4) stored index -> RAS mm, and problems. The sform goes before the qform, as everywhere
    in nibabel, which alone would make one up where none is stated."""
    with decoding(file):
        units = header.get_xyzt_units()[0]
        stated = [
            affine
            for affine, code in (header.get_sform(coded=True), header.get_qform(coded=True))
            if affine is not None and code > 0
        ]
    if not stated:
        raise UnsuitableFile(
            f"{file}: states no orientation (sform and qform codes are 0), so left and right are "
            "unknown"
        )
    if units not in _TO_MM:
        raise CTMaskNetError(f"{file}: its unit of length is {units}; expected mm")
    for affine in stated:
        affine[:3] *= _TO_MM[units]
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not (np.isfinite(affine).all() and lengths.min() >= 1e-3 and lengths.max() <= 1e3):
            raise CTMaskNetError(f"{file}: its voxels are {lengths} mm large; the file is damaged")
    if len(stated) == 2 and not np.array_equal(*map(io_orientation, stated)):
        raise UnsuitableFile(f"{file}: its sform and qform state different orientations")
    sizes = [np.linalg.norm(affine[:3, :3], axis=0) for affine in stated]
    if np.allclose(sizes[0], sizes[-1], rtol=_SIZE_SHARE):
        return stated[0], ()
    ours, theirs = (" x ".join(f"{side:.4g}" for side in size) for size in sizes)
    return stated[0], (
        f"its sform states voxels of {ours} mm, which are used, its qform of {theirs} mm",
    )


def _check_length(
    file: str, size: int, offset: int, needed: int, compressed: bool, max_expansion: float
) -> None:
    if offset > _MAX_OFFSET:
        raise CTMaskNetError(f"{file}: its voxels begin at byte {offset}; the file is damaged")
    if not compressed and size < offset + needed:
        raise CTMaskNetError(
            f"{file}: truncated, holds {max(0, size - offset)} of {needed} bytes of voxels; "
            "restore the file"
        )
    if compressed and needed > max_expanded_bytes(size, max_expansion):
        raise CTMaskNetError(
            f"{file}: claims to expand {needed / size:.0f}-fold to {needed >> 20} MiB, as no CT "
            "does; the file is damaged"
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


# One volume at a time, so that temporary files do not add up.
@functools.lru_cache(maxsize=1)
def _layout(volume: NiftiVolume) -> _Layout:
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
            layout = _sliced(layout, volume.shape, slice_axis)
        else:
            passed.pop_all()  # its file stays open as long as the layout
        return layout


def _expanded(volume: NiftiVolume, stream: IO[bytes]) -> IO[bytes]:
    """The voxels of a compressed file. Reads to its end, so that its checksum is looked at."""
    left = math.prod(volume.shape) * np.dtype(volume.dtype).itemsize
    with contextlib.ExitStack() as on_error, gzip.GzipFile(fileobj=stream) as source:
        target = on_error.enter_context(tempfile.TemporaryFile())
        _skip(source, volume.offset)
        while left and (chunk := source.read(min(left, CHUNK_BYTES))):
            target.write(chunk)
            left -= len(chunk)
        if left:
            raise CTMaskNetError(
                f"{volume.file}: truncated, {left} bytes of voxels are missing; restore the file"
            )
        if len(source.read(CHUNK_BYTES)) == CHUNK_BYTES:
            raise CTMaskNetError(f"{volume.file}: holds far more than its header says; damaged")
        target.flush()
        on_error.pop_all()
        return target


def _skip(source: IO[bytes], count: int) -> None:
    while count and (chunk := source.read(min(count, CHUNK_BYTES))):
        count -= len(chunk)


def _sliced(stored: _Layout, shape: tuple[int, int, int], slice_axis: int) -> _Layout:
    """The same voxels with slices one after the other, moved in blocks of limited size."""
    other, slices = shape[1 - slice_axis], shape[slice_axis]
    slice_bytes = other * shape[2] * stored.dtype.itemsize
    block_slices = max(1, _BLOCK_BYTES // slice_bytes)
    target = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the layout)
    for begin in range(0, slices, block_slices):
        end = min(slices, begin + block_slices)
        block = np.empty((end - begin, other, shape[2]), stored.dtype)
        for place in range(shape[2]):
            plane = np.moveaxis(stored.plane(place), slice_axis, 0)
            block[:, :, place] = plane[begin:end]
        target.write(block.data)
    target.flush()
    return _Layout(target, 0, stored.dtype, (other, shape[2]), "C")
