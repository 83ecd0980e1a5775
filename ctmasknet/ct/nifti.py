"""NIfTI volumes as scans.

NIfTI has no place to say that values are HU. They are taken as HU after slope and intercept, unless
they cannot be: a slice of the chest holds air and lung. A volume without a slice of which
:data:`AIR_SHARE` lies below :data:`AIR_SEEN_HU` is a mask, a picture in 0..255, a share in 0..1,
another modality, or CT that has lost its offset.

Headers of NIfTI files, checked before any voxel is read.

Voxels of NIfTI files: single slices without the rest of the volume.

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
import re
import tempfile
import threading
from dataclasses import dataclass
from typing import IO

import numpy as np
from nibabel import Nifti1Header, Nifti2Header
from nibabel.orientations import io_orientation

from ctmasknet.ct.orientation import Upright, upright
from ctmasknet.ct.scan import (
    CHUNK_BYTES,
    MAX_EXPANSION,
    CTScan,
    CTSlice,
    UnsuitableFile,
    check_claimed_size,
    decoding,
    mark_outside,
    max_expanded_bytes,
    unpacking,
)
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


_HEADER_BYTES = 540
_MAX_OFFSET = 2**26
#: Share by which the voxel sizes of sform and qform may differ.
_SIZE_SHARE = 0.01
_TO_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}


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
        max_expansion: see :func:`ctmasknet.ct.scan.max_expanded_bytes`. Label masks compress
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


#: A volume in HU has a slice with this share of its values below this.
AIR_SEEN_HU, AIR_SHARE = -200.0, 0.01
#: ... and no value beyond this, metal and padding values included.
_BEYOND_HU = 1e5


@dataclass(frozen=True)
class NiftiSource:
    """Reads one slice of one volume."""

    volume: NiftiVolume

    def read_picture(self, frame: int | None) -> None:
        return None

    def read_hu(self, frame: int | None) -> np.ndarray:
        return mark_outside(self.volume.values(frame).astype(np.float32))


def read_nifti_file(file: str, name: str) -> CTScan:
    """One volume as a scan.

    Args:
        file: path.
        name: how the scan's slices are called, ``#0000``, ``#0001``, ... in stored order appended.

    Raises:
        UnsuitableFile: values that cannot be HU, and what
            :func:`ctmasknet.ct.nifti.read_volume` says.
        CTMaskNetError: damaged.
    """
    volume = read_volume(file)
    _check_hu(volume)
    turn = volume.turn
    columns, rows, count = turn.shape
    scan = re.sub(r"(\.nii)?(\.gz)?$", "", os.path.basename(file), flags=re.IGNORECASE)
    source = NiftiSource(volume)
    slices = []
    for place in range(count):
        stored = count - 1 - place if turn.flips[2] else place
        slices.append(
            CTSlice(
                file=file,
                frame=stored,
                name=f"{name}#{stored:04d}",
                patient="",
                scan=scan,
                shape=(rows, columns),
                spacing_mm=turn.spacing_mm,
                position_mm=float(turn.affine[2, 2] * place + turn.affine[2, 3]),
                source=source,
            )
        )
    return CTScan("", scan, "nifti", tuple(slices), turn.affine, volume.problems)


def _check_hu(volume: NiftiVolume) -> None:
    """Looks at slices, the middle one first, until one holds air."""
    columns, rows, count = volume.turn.shape
    lowest, highest = np.inf, -np.inf
    for index in (count // 2, *range(count)):
        values = volume.values(index)
        values = values[np.isfinite(values)]
        if values.size:
            lowest, highest = min(lowest, values.min()), max(highest, values.max())
        if max(-lowest, highest) > _BEYOND_HU:
            break
        if (values < AIR_SEEN_HU).sum() >= AIR_SHARE * rows * columns:
            return
    found = f"{lowest:g} to {highest:g}" if np.isfinite(lowest) else "no number at all"
    raise UnsuitableFile(
        f"{volume.file}: its values, {found}, are not HU of a chest (air is -1000); give the CT "
        "volume in HU"
    )
