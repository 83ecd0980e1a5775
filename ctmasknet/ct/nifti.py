"""NIfTI volumes as scans.

NIfTI cannot say that values are HU. They are taken as HU after slope and intercept, unless they
cannot be; then a rescale that the user gives makes HU of them
(:func:`~ctmasknet.ct.hounsfield.volume_rescale`). A slice of the chest holds air and lung. A volume
without a slice of which :data:`~ctmasknet.ct.hounsfield.AIR_SHARE` lies within
:data:`~ctmasknet.ct.hounsfield.AIR_SEEN_HU` is a mask, a picture in 0..255, a share in 0..1,
another modality, or CT that has lost its offset. One in which only padding does (its lowest value),
or whose tissue is not where tissue lies, is read with a problem.

The header is read and checked by :func:`read_volume` before any voxel is. Of a plain file each
slice is read when it is asked for. A file that is compressed, or stored so that the voxels of an
axial slice are scattered, is read once and kept as stored (1,000 slices of 512 x 512 px in 16 bits
are 0.5 GB), until two other such files are read.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from nibabel import Nifti1Header, Nifti2Header
from nibabel.orientations import io_orientation

from ctmasknet.ct.hounsfield import volume_rescale
from ctmasknet.ct.orientation import Upright, upright
from ctmasknet.ct.scan import (
    CHUNK_BYTES,
    GREY,
    MAX_EXPANSION,
    CTScan,
    CTSlice,
    Rescale,
    UnsuitableFile,
    check_claimed_size,
    decoding,
    grey_levels,
    mark_outside,
    max_expanded_bytes,
)
from ctmasknet.errors import CTMaskNetError

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


@dataclass(frozen=True, kw_only=True)
class StoredVolume:
    """One volume in one file, read slice by slice; the source of its :class:`CTSlice` s.

    Attributes:
        file: path.
        stamp: (size, time of change) of the file when its header was read.
        shape: of the three stored axes.
        turn: how the grid is turned upright.
        problems: what the header contradicts itself in, one sentence each.
        rescale: value -> HU, or that values are grey levels; None: they are HU.
    """

    file: str
    stamp: tuple[int, int]
    shape: tuple[int, int, int]
    turn: Upright
    problems: tuple[str, ...] = ()
    rescale: Rescale | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Tells its values from those of others."""
        return self.file, self.stamp

    def with_rescale(self, rescale: Rescale | None) -> StoredVolume:
        return replace(self, rescale=rescale)

    def values(self, index: int) -> np.ndarray:
        """(H, W) float64 of the slice ``index`` along the stored slice axis, upright."""
        raise NotImplementedError

    def read_picture(self, frame: int | None) -> np.ndarray | None:
        return grey_levels(self.file, self.values(frame)) if self.rescale == GREY else None

    def read_hu(self, frame: int | None) -> np.ndarray:
        if self.rescale == GREY:
            raise CTMaskNetError(f"{self.file}: grey levels state no HU; use its pixels")
        slope, intercept = self.rescale or (1.0, 0.0)
        return mark_outside((self.values(frame) * slope + intercept).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class NiftiVolume(StoredVolume):
    """One volume of a NIfTI file.

    Attributes:
        compressed: gzip.
        dtype: of the stored values, as ``numpy.dtype.str``.
        offset: where the voxels begin, bytes.
        slope, intercept: stored value -> value.
    """

    compressed: bool
    dtype: str
    offset: int
    slope: float
    intercept: float

    def values(self, index: int) -> np.ndarray:
        """One slice.

        Args:
            index: along the stored slice axis.

        Returns:
            (H, W) float64, upright, slope and intercept applied in float64.

        Raises:
            CTMaskNetError: truncated, damaged, or changed since its header was read.
        """
        slice_axis = self.turn.axes[2]
        if self.compressed or slice_axis != 2:
            stored = kept(self, lambda: _read_stored(self, self.shape))
            plane = np.moveaxis(stored, slice_axis, 0)[index]
        else:
            plane = _read_stored(self, self.shape[:2], index)
        with decoding(self.file):
            return self.turn.plane(plane).astype(np.float64) * self.slope + self.intercept


#: Two, so that threads which read ahead from one volume into the next keep both.
_MAX_KEPT = 2
#: Key of a volume -> its stored values.
_stored: dict[tuple[Any, ...], np.ndarray] = {}
_one_at_a_time = threading.Lock()


def kept(volume: StoredVolume, read: Callable[[], np.ndarray]) -> np.ndarray:
    """All values as stored, read unless they are still there."""
    key = volume.key
    with _one_at_a_time:
        if key not in _stored:
            while len(_stored) >= _MAX_KEPT:
                del _stored[next(iter(_stored))]
            _stored[key] = read()
        return _stored[key]


def _read_stored(volume: NiftiVolume, shape: tuple[int, ...], index: int = 0) -> np.ndarray:
    """The values of ``shape``, of which ``index`` others like them come before. Of a compressed
    file, which has to be read to its end so that its checksum is looked at, they are all."""
    file, dtype = volume.file, np.dtype(volume.dtype)
    needed = math.prod(shape) * dtype.itemsize
    try:
        stored = np.empty(needed, np.uint8)
    except MemoryError:
        raise CTMaskNetError(
            f"{file}: needs {math.ceil(needed / 2**20)} MiB of memory at once; store it "
            "uncompressed with its axial slices one after the other, or free memory"
        ) from None
    with decoding(file), contextlib.ExitStack() as opened:
        stream = opened.enter_context(open(file, "rb"))
        stat = os.fstat(stream.fileno())
        if (stat.st_size, stat.st_mtime_ns) != volume.stamp:
            raise CTMaskNetError(f"{file}: changed while it was read; read it again")
        if volume.compressed:
            stream = opened.enter_context(gzip.GzipFile(fileobj=stream))
        stream.seek(volume.offset + index * needed)
        left = memoryview(stored)
        while left and (count := stream.readinto(left[:CHUNK_BYTES])):
            left = left[count:]
        if left:
            raise CTMaskNetError(
                f"{file}: truncated, {len(left)} bytes of voxels are missing; restore the file"
            )
        if volume.compressed and len(stream.read(CHUNK_BYTES)) == CHUNK_BYTES:
            raise CTMaskNetError(f"{file}: holds far more than its header says; damaged")
    return stored.view(dtype).reshape(shape, order="F")


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
    if offset > _MAX_OFFSET:
        raise CTMaskNetError(f"{file}: its voxels begin at byte {offset}; the file is damaged")
    size = stat.st_size
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
    return NiftiVolume(
        file=file,
        stamp=(size, stat.st_mtime_ns),
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


def read_nifti_file(file: str, name: str, rescale: Rescale | None = None) -> CTScan:
    """One volume as a scan.

    Args:
        file: path.
        name: how the scan's slices are called, ``#0000``, ``#0001``, ... in stored order appended.
        rescale: see :func:`ctmasknet.ct.read.read_scans`.

    Raises:
        UnsuitableFile: values that cannot be HU, and what
            :func:`ctmasknet.ct.nifti.read_volume` says.
        CTMaskNetError: damaged.
    """
    scan = re.sub(r"(\.nii)?(\.gz)?$", "", os.path.basename(file), flags=re.IGNORECASE)
    return volume_scan(read_volume(file), "nifti", name, scan, rescale)


def volume_scan(
    volume: StoredVolume,
    kind: str,
    name: str,
    scan: str,
    rescale: Rescale | None,
    *,
    placed: bool = True,
) -> CTScan:
    """A volume as a scan of that kind and name; see :func:`read_nifti_file`. ``placed``: its
    spacing is known."""
    file, turn = volume.file, volume.turn
    columns, rows, count = turn.shape
    rescale, doubts = volume_rescale(file, volume.values, count, rescale)
    volume = volume.with_rescale(rescale)
    stored = range(count)[::-1] if turn.flips[2] else range(count)
    slices = tuple(
        CTSlice(
            file=file,
            frame=frame,
            name=f"{name}#{frame:04d}",
            patient="",
            scan=scan,
            shape=(rows, columns),
            spacing_mm=turn.spacing_mm if placed else None,
            position_mm=float(turn.affine[2, 2] * index + turn.affine[2, 3]) if placed else None,
            source=volume,
        )
        for index, frame in enumerate(stored)
    )
    affine = turn.affine if placed else None
    return CTScan("", scan, kind, slices, affine, (*volume.problems, *doubts))
