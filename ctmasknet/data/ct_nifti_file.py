"""Headers of NIfTI files, checked before any voxel is read."""

from __future__ import annotations

import gzip
import math
import os

import numpy as np
from nibabel import Nifti1Header, Nifti2Header
from nibabel.orientations import io_orientation

from ctmasknet.data.ct_nifti_voxels import NiftiVolume
from ctmasknet.data.ct_orientation import upright
from ctmasknet.data.ct_scan import (
    MAX_EXPANSION,
    UnsuitableFile,
    check_claimed_size,
    decoding,
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
