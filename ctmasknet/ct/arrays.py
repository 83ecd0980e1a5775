"""NumPy's ``.npy`` and ``.npz`` as scans.

An array says nothing of its axes. Two are rows and columns; of three the user states the order
(:func:`parse_axes`), in an argument or beside the file (:mod:`ctmasknet.ct.sidecar`). Nor does it
say that values are HU; they are looked at as those of NIfTI are. Files of one slice each are one
scan a folder, and looked at together.

No object is ever unpickled. Of an ``.npz`` the array is unpacked as a whole, within the bounds of
other compressed volumes; of an ``.npy`` whose slices are stored one after the other, a slice at a
time.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ctmasknet.ct.hounsfield import volume_rescale
from ctmasknet.ct.nifti import StoredVolume, kept, volume_scan
from ctmasknet.ct.orientation import upright
from ctmasknet.ct.scan import (
    CHUNK_BYTES,
    MAX_EXPANSION,
    CTScan,
    CTSlice,
    Rescale,
    UnsuitableFile,
    check_claimed_size,
    decoding,
    max_expanded_bytes,
)
from ctmasknet.ct.sidecar import stated_layout
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import parse_published_name

NPY_MAGIC = b"\x93NUMPY"
#: Letter of an axis -> direction in RAS that it runs in.
_DIRECTIONS = {"z": (0, 0, 1), "y": (0, -1, 0), "x": (-1, 0, 0)}
_SAME = str.maketrans("rc", "yx")
_AXES = re.compile(r"(?:(?P<array>[^:]+):)?(?P<axes>(?:-?[a-z]){2,3})")
#: Label masks hold fewer different values, slices of CT more.
_LEAST_VALUES = 32
_REMEDY = (
    "state the order with `axes`, or beside it: zyx for slices, rows and columns, xyz for the "
    "reverse, - before an axis that runs to the feet, the front or the patient's right"
)


@dataclass(frozen=True)
class Axes:
    """How an array is to be taken.

    Attributes:
        array: its name in an ``.npz``; "" for the only one.
        letters: of each axis, ``z`` (slices from the feet up), ``y`` (rows from front to back) or
            ``x`` (columns from the patient's right to the left), ``-`` before it: the other way.
    """

    array: str
    letters: tuple[str, ...]


def parse_axes(text: str, where: str = "`axes`") -> Axes:
    """Read ``zyx``, ``-zyx``, ``zrc``, or ``ct:zyx`` for the array ``ct`` of an ``.npz``.

    Args:
        text: as the user wrote it.
        where: begins the error.

    Raises:
        CTMaskNetError: another form, an axis missing or named twice.
    """
    match = _AXES.fullmatch(text)
    letters = re.findall("-?[a-z]", match["axes"].translate(_SAME)) if match else []
    named = sorted(letter[-1] for letter in letters)
    if match is None or named not in (["x", "y"], ["x", "y", "z"]):
        raise CTMaskNetError(
            f"{where} {text[:80]!a}: expected z (slices), y or r (rows) and x or c (columns), once "
            "each, in the order in which they are stored, such as zyx; NAME:zyx names the array of "
            "an .npz"
        )
    return Axes(match["array"] or "", tuple(letters))


@dataclass(frozen=True, kw_only=True)
class ArrayVolume(StoredVolume):
    """One array of 2 or 3 axes; of 2 the third has length 1.

    Attributes:
        member: of an ``.npz`` the file in it; "" for an ``.npy``.
        axes: as they were stated, or y, x.
        dtype: of the stored values, as ``numpy.dtype.str``.
        offset: where the values begin in the file or member, bytes.
        fortran: the first axis varies fastest.
        spacing_mm: of each axis; None where it is not stated.
    """

    member: str
    axes: Axes
    dtype: str
    offset: int
    fortran: bool
    spacing_mm: tuple[float, ...] | None

    @property
    def is_slice(self) -> bool:
        return len(self.axes.letters) == 2

    @property
    def key(self) -> tuple[Any, ...]:
        return (*super().key, self.member)

    def values(self, index: int | None) -> np.ndarray:
        """One slice; see :meth:`StoredVolume.values`. None: of an array of one slice.

        Raises:
            CTMaskNetError: truncated, damaged, or changed since its header was read.
        """
        axis = self.turn.axes[2]
        if self.is_slice:
            plane = _read(self, self.shape, 0)[..., 0]
        elif not self.member and axis == (2 if self.fortran else 0):
            shape = tuple(side for at, side in enumerate(self.shape) if at != axis)
            plane = _read(self, shape, index)
        else:
            stored = kept(self, lambda: _read(self, self.shape, 0))
            plane = np.moveaxis(stored, axis, 0)[index]
        return self.turn.plane(plane).astype(np.float64)


def _read(volume: ArrayVolume, shape: tuple[int, ...], index: int) -> np.ndarray:
    """The values of ``shape``, of which ``index`` others like them come before. Of a member of an
    archive, whose checksum is looked at, they are all."""
    file, dtype = volume.file, np.dtype(volume.dtype)
    needed = math.prod(shape) * dtype.itemsize
    try:
        stored = np.empty(needed, np.uint8)
    except MemoryError:
        raise CTMaskNetError(
            f"{file}: needs {math.ceil(needed / 2**20)} MiB of memory at once; store it as .npy "
            "with its slices along the first axis, or free memory"
        ) from None
    with decoding(file), _opened(file, volume.member) as stream:
        if _stamp(file) != volume.stamp:
            raise CTMaskNetError(f"{file}: changed while it was read; read it again")
        if volume.member:
            stream.read(volume.offset)
        else:
            stream.seek(volume.offset + index * needed)
        left = memoryview(stored)
        while left and (piece := stream.read(min(len(left), CHUNK_BYTES))):
            left[: len(piece)] = piece
            left = left[len(piece) :]
        if left:
            raise CTMaskNetError(
                f"{file}: truncated, {len(left)} bytes of values are missing; restore the file"
            )
        if volume.member:
            stream.read(1)  # the end, where the checksum is compared
    return stored.view(dtype).reshape(shape, order="F" if volume.fortran else "C")


@contextlib.contextmanager
def _opened(file: str, member: str) -> Iterator[IO[bytes]]:
    if not member:
        with open(file, "rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(file) as archive, archive.open(member) as stream:
        yield stream


def _stamp(file: str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def read_array(
    file: str, axes: Axes | None = None, max_expansion: float = MAX_EXPANSION
) -> ArrayVolume:
    """Read and check the header of an array; its values stay in the file.

    Args:
        file: ``.npy`` or ``.npz``; told apart by content.
        axes: given by the user; None: what is stated beside the file.
        max_expansion: see :func:`ctmasknet.ct.scan.max_expanded_bytes`.

    Raises:
        UnsuitableFile: other than 2 or 3 axes, three in no stated order, objects, complex numbers,
            text or records, an ``.npz`` of several arrays of which none is named.
        CTMaskNetError: damaged, truncated or impossible sizes; an ``axes`` beside it that cannot be
            read.
    """
    layout = stated_layout(file)
    if axes is None and layout.axes is not None:
        axes = parse_axes(layout.axes, f"{layout.path}: axes")
    name = (axes.array if axes else "") or layout.array
    with decoding(file):
        stamp = _stamp(file)
        with open(file, "rb") as stream:
            packed = stream.read(len(NPY_MAGIC)) != NPY_MAGIC
    member, held = _member(file, name) if packed else ("", stamp[0])
    with decoding(file), _opened(file, member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):  # 3 is for names of fields
            raise UnsuitableFile(f"{file}: holds records, no array of numbers; give CT in HU")
        major = version[0]
        shape, fortran, dtype = getattr(np.lib.format, f"read_array_header_{major}_0")(stream)
        offset = stream.tell()
    if dtype.hasobject or dtype.fields or dtype.subdtype or dtype.kind not in "iufb":
        what = "Python objects, which are never opened" if dtype.hasobject else str(dtype)[:40]
        raise UnsuitableFile(f"{file}: holds {what}, no array of plain numbers; give CT in HU")
    if dtype.itemsize > 8:
        raise UnsuitableFile(f"{file}: holds {dtype}; store numbers of at most 64 bits")
    if len(shape) not in (2, 3):
        raise UnsuitableFile(
            f"{file}: has {len(shape)} axes {shape}; give one slice (2) or one volume (3)"
        )
    if len(shape) == 2 and (axes is None or len(axes.letters) == 3):
        axes = Axes(name, ("y", "x"))  # a given order of three is for the volumes beside it
    if axes is None or len(axes.letters) != len(shape):
        stated = "its axes are in no stated order" if axes is None else "two axes are stated"
        raise UnsuitableFile(f"{file}: has the shape {shape}, and {stated}; {_REMEDY}")
    spacing = layout.spacing_mm
    if spacing is not None and len(spacing) != len(shape):
        raise CTMaskNetError(
            f"{layout.path}: spacing_mm holds {len(spacing)} numbers, and {file} has {len(shape)} "
            "axes; state one each, in mm"
        )
    letters = axes.letters if len(shape) == 3 else (*axes.letters, "z")
    affine = np.eye(4)
    for axis, (letter, mm) in enumerate(zip(letters, (*(spacing or ()), 1, 1, 1)[:3], strict=True)):
        sign = -mm if letter.startswith("-") else mm
        affine[:3, axis] = np.multiply(sign, _DIRECTIONS[letter[-1]])
    shape = (*map(int, shape), 1)[:3]
    if min(shape) < 1:
        raise CTMaskNetError(f"{file}: has the shape {shape} and so no value; restore the file")
    turn = upright(affine, shape, file)
    columns, rows, slices = turn.shape
    check_claimed_size(file, (rows, columns, slices))
    needed = math.prod(shape) * dtype.itemsize
    if held < offset + needed:
        raise CTMaskNetError(
            f"{file}: truncated, holds {max(0, held - offset)} of {needed} bytes of values; "
            "restore the file"
        )
    if packed and held > max_expanded_bytes(stamp[0], max_expansion):
        raise CTMaskNetError(
            f"{file}: claims to expand {held / stamp[0]:.0f}-fold to {held >> 20} MiB, as no CT "
            "does; the file is damaged"
        )
    return ArrayVolume(
        file=file,
        stamp=stamp,
        shape=shape,
        turn=turn,
        member=member,
        axes=axes,
        dtype=dtype.str,
        offset=offset,
        fortran=bool(fortran),
        spacing_mm=spacing,
    )


def _member(file: str, name: str) -> tuple[str, int]:
    """The file in an ``.npz`` that holds an array, and the bytes that it claims."""
    with decoding(file), zipfile.ZipFile(file) as archive:
        found = {
            one.filename.removesuffix(".npy"): one
            for one in archive.infolist()
            if one.filename.endswith(".npy")
        }
        count = len(archive.infolist())
    if count > len(found):
        raise UnsuitableFile(f"{file}: holds other files than arrays, or one twice; save it anew")
    if not found:
        raise UnsuitableFile(f"{file}: holds no array; give one slice or one volume")
    if not name and len(found) > 1:
        names = ", ".join(ascii(each)[1:-1] for each in list(found)[:5])
        raise UnsuitableFile(
            f"{file}: holds {len(found)} arrays ({names}{', ...' * (len(found) > 5)}); name the CT "
            "with `axes` NAME:zyx (NAME:yx for a slice), or beside it"
        )
    name = name or next(iter(found))
    if name not in found:
        raise UnsuitableFile(
            f"{file}: holds no array {name[:80]!a}, but "
            f"{', '.join(ascii(each)[1:-1] for each in list(found)[:5])}; correct the name"
        )
    if found[name].flag_bits & 1:
        raise CTMaskNetError(f"{file}: is encrypted; save it anew without a password")
    return found[name].filename, found[name].file_size


def array_scan(volume: ArrayVolume, rescale: Rescale | None) -> CTScan:
    """A volume as a scan; errors as of :func:`ctmasknet.ct.nifti.read_nifti_file`. Without a stated
    spacing it has none, and no affine."""
    name = re.sub(r"\.np[yz]$", "", os.path.basename(volume.file), flags=re.IGNORECASE)
    return volume_scan(
        volume, "array", volume.file, name, rescale, placed=volume.spacing_mm is not None
    )


def check_holds_slice(volume: ArrayVolume) -> None:
    """Refuse a slice that is a label mask, which may lie beside the slices it is of.

    Raises:
        UnsuitableFile: too few different values.
        CTMaskNetError: damaged.
    """
    plane = volume.values(None)
    some = plane.ravel()[:: max(1, plane.size // 4096)]
    if plane.min() < 0 or len(np.unique(some)) >= _LEAST_VALUES:
        return
    if len(np.unique(plane)) < _LEAST_VALUES:
        raise UnsuitableFile(
            f"{volume.file}: holds fewer than {_LEAST_VALUES} different values, none below 0, as "
            "label masks do; give slices of CT"
        )


def slice_scans(
    slices: Sequence[tuple[ArrayVolume, Rescale | None]],
) -> Iterator[tuple[list[ArrayVolume], CTScan | CTMaskNetError]]:
    """Files of one slice each as scans: of a folder, or of a published name's scan. What makes HU
    of their values is decided for a scan at once.

    Args:
        slices: in their order, each with the rescale given or stated for it.

    Yields:
        the arrays of a scan, and the scan, or why they are none.
    """
    groups: dict[tuple[Any, ...], list[ArrayVolume]] = {}
    for volume, rescale in slices:
        published = parse_published_name(volume.file)
        patient = published.patient if published else ""
        scan = published.scan if published else os.path.dirname(volume.file) or "."
        groups.setdefault((patient, scan, rescale), []).append(volume)
    for (patient, scan, rescale), group in groups.items():
        try:
            yield group, _slice_scan(patient, scan, group, rescale)
        except CTMaskNetError as error:
            yield group, error


def _slice_scan(
    patient: str, scan: str, group: list[ArrayVolume], rescale: Rescale | None
) -> CTScan:
    first = group[0].file
    how, doubts = volume_rescale(
        first, lambda index: group[index].values(None), len(group), rescale
    )
    slices = tuple(
        CTSlice(
            file=one.file,
            frame=None,
            name=one.file,
            patient=patient,
            scan=scan,
            shape=one.turn.shape[1::-1],
            spacing_mm=None if one.spacing_mm is None else one.turn.spacing_mm,
            position_mm=None,
            source=one.with_rescale(how),
        )
        for one in group
    )
    return CTScan(patient, scan, "image", slices, None, doubts)
