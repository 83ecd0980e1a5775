"""Label masks to lesion instances: connected components of each class, as COCO annotations.

Source: paper section 2.1 and the reference (8-connected components, those of 100 px or fewer
dropped). A mask is a picture, or a slice of a volume that is a label mask.

H, W are the sides of a mask in px.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ctmasknet.classes import MASK_LABELS, MASK_TYPES
from ctmasknet.ct.arrays import Axes
from ctmasknet.ct.pictures import read_picture
from ctmasknet.ct.scan import GREY, CTSlice, Rescale, Window
from ctmasknet.ct.sidecar import stated_rescale
from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.data.label_masks import (
    LESION_LABELS,
    UPRIGHT,
    Orientation,
    background_value,
    check_same_size,
    mask_type_classes,
    values_present,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.mask_volumes import covering_slices, mask_axes, read_mask_volume
from ctmasknet.prepare.masks.instances import InstanceTable, instance_annotations
from ctmasknet.prepare.masks.planes import ClassMasks, MaskCode, MaskPlane
from ctmasknet.prepare.pairs import LesionPair, VolumePair, slice_masks
from ctmasknet.prepare.volumes import every_kth, read_deep_picture
from ctmasknet.workers import map_in_processes

#: Components of this area or less are dropped (reference).
MIN_AREA_PX = 100


def mask_instances(
    mask: np.ndarray, classes: Sequence[tuple[str, Sequence[int]]], min_area_px: int = MIN_AREA_PX
) -> list[dict[str, Any]]:
    """Connected components (8-connectivity) of each class of a label mask.

    The class comes from the mask value alone, whatever other values are present.

    Args:
        mask: (H, W) integer label values.
        classes: name and mask values of each class, in category order. A component is one of the
            union of the values.
        min_area_px: components of this area or less, in px, are dropped.

    Returns:
        COCO annotations without ``id`` and ``image_id``, by class and then by position (top, left,
        height, width): ``category_id`` (from 1), ``bbox`` [x, y, w, h] px reaching from the first
        row and column of the component to one past its last, ``area`` px, ``iscrowd`` 0,
        ``segmentation`` (compressed RLE, ``counts`` as str).
    """
    instances = []
    for category_id, (_, values) in enumerate(classes, 1):
        inside = mask == values[0] if len(values) == 1 else np.isin(mask, list(values))
        for box, area, code in _components(inside.view(np.uint8), min_area_px):
            instances.append(
                {
                    "category_id": category_id,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                    "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
                }
            )
    return instances


@dataclass(frozen=True)
class Conversion:
    """How masks are converted; the same for every slice of a set.

    Args:
        labels, colors, instances: what masks hold, see
            :class:`~ctmasknet.prepare.masks.planes.MaskCode`.
        mask_types: the mask types to make, keys of ``MASK_TYPES``.
        min_area_px: components of this area or less are dropped.
        orientation: how the arrays on disk become upright; of pictures only.
        rescale: to HU, or that values are grey levels, of volumes that are not in HU (see
            :func:`ctmasknet.ct.read.read_scans`) and of pictures, all of more than 8 bits then.
        axes: of NumPy's arrays, images and masks, see :func:`ctmasknet.ct.arrays.parse_axes`.
        window: HU to grey levels; this and what follows is of volumes only, the window of pictures
            with a ``rescale`` too.
        segments: label name of a DICOM-SEG's segment, by number, label or coded meaning.
        every: every so many slices is taken.
        keep_empty: share (0..1) of the slices without a lesion that is kept, evenly spread.
        copies: folder for upright PNG copies of the slices; None leaves pictures where they are.
        skip_bad: what cannot be converted becomes a :class:`~ctmasknet.data.bad_slices.BadSlice`.
    """

    labels: Mapping[int, str] = field(default_factory=lambda: dict(MASK_LABELS))
    colors: Mapping[int, str] | None = None
    instances: InstanceTable | None = None
    mask_types: tuple[str, ...] = tuple(MASK_TYPES)
    min_area_px: int = MIN_AREA_PX
    orientation: Orientation = UPRIGHT
    rescale: Rescale | None = None
    axes: Axes | None = None
    window: Window = field(default_factory=Window)
    segments: Mapping[str, str] = field(default_factory=dict)
    every: int = 1
    keep_empty: float = 1.0
    copies: Path | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        every_kth(1, self.every)
        if not 0 <= self.keep_empty <= 1:
            raise CTMaskNetError(f"`keep_empty` {self.keep_empty:g}: give a share of 0 to 1")

    @property
    def code(self) -> MaskCode:
        """What masks hold."""
        return MaskCode(self.labels, self.colors, self.instances)

    @property
    def needs_volumes(self) -> bool:
        """True when something is asked that pictures do not have."""
        none = Conversion()
        names = ["segments", "every", "keep_empty", "axes"]
        names += ["window"] if self.rescale in (None, GREY) else []
        return any(getattr(self, name) != getattr(none, name) for name in names)


@dataclass(frozen=True)
class ConvertedSlice:
    """A slice as converted.

    Args:
        key: names the slice.
        file: path of the image to register, relative to the image folder.
        image: the file it was read from.
        patient: whose it is.
        height, width: px, upright.
        lesions: names of the lesion labels present, of any area.
        instances: annotations of each mask type.
        overlap_px: of how many px two classes' masks say that they are theirs.
        scan: of a volume's slice its series or volume; else "".
    """

    key: str
    file: str
    image: Path
    patient: str
    height: int
    width: int
    lesions: tuple[str, ...]
    instances: dict[str, list[dict[str, Any]]]
    overlap_px: int = 0
    scan: str = ""


def convert_slices(
    pairs: Sequence[LesionPair | VolumePair],
    how: Conversion,
    workers: int = 1,
    progress: bool = False,
) -> Iterator[ConvertedSlice | BadSlice]:
    """Read images and masks, check them against each other, and find the lesions of every mask
    type, in the order of ``pairs``.

    Args:
        pairs: all of pictures or all of volumes.
        how: the conversion.
        workers: see :func:`~ctmasknet.workers.map_in_processes`.
        progress: show a progress bar.

    Raises:
        CTMaskNetError: unless bad ones are skipped: a file cannot be decoded or is too large, image
            and mask disagree, or the mask has an unknown value.
    """
    of_volumes = any(isinstance(pair, VolumePair) for pair in pairs)
    found = map_in_processes(
        functools.partial(_convert, how=how),
        pairs,
        workers,
        title="masks" if progress else "",
        unit="volume" if of_volumes else "slice",
        # A volume at a time: a compressed one is unpacked by the process that reads its slices.
        chunksize=1 if of_volumes else None,
    )
    for slices in found:
        yield from slices


def coco_document(
    slices: Iterable[ConvertedSlice], mask_type: str, info: Mapping[str, Any]
) -> dict[str, Any]:
    """The COCO document of one split. Ids count from 1 in the order of ``slices``."""
    images, annotations = [], []
    for image_id, item in enumerate(slices, 1):
        images.append(
            {
                "id": image_id,
                "file_name": item.file,
                "height": item.height,
                "width": item.width,
                "patient": item.patient,
                **({"scan": item.scan} if item.scan else {}),
            }
        )
        for instance in item.instances[mask_type]:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **instance})
    return {
        "info": dict(info),
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(MASK_TYPES[mask_type], 1)],
    }


def _convert(pair: LesionPair | VolumePair, how: Conversion) -> list[ConvertedSlice | BadSlice]:
    of_volume = isinstance(pair, VolumePair)
    try:
        return _convert_volume(pair, how) if of_volume else [_convert_picture(pair, how)]
    except CTMaskNetError as error:
        if not how.skip_bad:
            raise
        files = [one.file for one in pair.volume.scan.slices] if of_volume else [str(pair.image)]
        return [BadSlice.from_error(file, error) for file in dict.fromkeys(files)]


def _convert_picture(pair: LesionPair, how: Conversion) -> ConvertedSlice:
    if how.rescale is None and stated_rescale(pair.image) is None:
        image = read_picture(pair.image)
    else:
        image = read_deep_picture(pair.image, how.window, how.rescale)
    if pair.mask is None:
        plane = _background(image.shape[:2], how)
    else:

        def read(path: Path, name: str | None) -> np.ndarray:
            mask = how.code.read(path, name, pair.file)
            check_same_size(pair.image, image.shape, path, mask, "image")
            return mask

        if isinstance(pair.mask, ClassMasks):
            inside = {name: read(path, name) for name, path in pair.mask.files.items()}
            plane = how.code.painted(inside)
        else:
            plane = how.code.plane(read(pair.mask, None), pair.file)
    plane = plane.upright(how.orientation)
    file = pair.file
    if how.copies is not None:
        file = str(Path(file).with_suffix(".png").as_posix())
        target = how.copies / file
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(how.orientation.upright(image)).save(target)
    found = _lesions_in(plane, how)
    names = pair.key, file, pair.image, pair.patient
    return ConvertedSlice(*names, *plane.values.shape, *found, overlap_px=plane.overlap_px)


def _convert_volume(pair: VolumePair, how: Conversion) -> list[ConvertedSlice | BadSlice]:
    """Choose a volume's slices, find their lesions and write their copies."""
    scan = pair.volume.scan
    plane_of = _planes(pair, how)
    found: dict[int, ConvertedSlice | BadSlice] = {}
    for index in every_kth(len(scan.slices), how.every):
        file, plane = pair.volume.copy_name(index), plane_of(index)
        found[index] = ConvertedSlice(
            file.removesuffix(".png"),
            file,
            Path(scan.slices[index].file),
            pair.patient,
            *plane.values.shape,
            *_lesions_in(plane, how),
            overlap_px=plane.overlap_px,
            scan=scan.scan,
        )
    empty = [index for index, item in found.items() if not item.lesions]
    kept = round(how.keep_empty * len(empty))
    for index in set(empty) - {empty[step * len(empty) // kept] for step in range(kept)}:
        del found[index]
    for index in found:
        try:
            pair.volume.write_copy(index, how.copies, how.window)
        except CTMaskNetError as error:
            if not how.skip_bad:
                raise
            found[index] = BadSlice.from_error(scan.slices[index].file, error)
    return list(found.values())


def _planes(pair: VolumePair, how: Conversion) -> Callable[[int], MaskPlane]:
    """Slice index -> its mask."""
    if pair.mask is None:
        return lambda index: _background(pair.volume.scan.slices[index].shape, how)
    if isinstance(pair.mask, ClassMasks):
        of = {name: _values(pair, path, name, how) for name, path in pair.mask.files.items()}
        return lambda index: how.code.painted({name: at(index) for name, at in of.items()})
    values = _values(pair, pair.mask, None, how)
    return lambda index: how.code.plane(values(index), pair.key)


def _values(
    pair: VolumePair, path: Path, name: str | None, how: Conversion
) -> Callable[[int], np.ndarray]:
    """Slice index -> (H, W) values of a mask as :meth:`MaskCode.values_of` names them."""
    slices, code = pair.volume.scan.slices, how.code
    if path.is_dir():
        pictures = slice_masks(pair.volume.scan, path, allow_spare=how.skip_bad)
        read = functools.partial(code.read, name=name, image=pair.key)
        return lambda index: _picture_plane(slices[index], index, pictures[index], path, read)
    if code.colors is not None:
        raise CTMaskNetError(f"{path}: a volume has no colours; leave `colors` out, give `labels`")
    labels = code.values_of(name, pair.key)
    mask = read_mask_volume(
        os.fspath(path),
        labels,
        how.segments,
        functools.partial(code.checked, name=name, image=pair.key),
        mask_axes(os.fspath(path), pair.volume.scan, how.axes),
    )
    covered_by = covering_slices(pair.volume.scan, mask)

    def values(index: int) -> np.ndarray:
        if covered_by[index] is None:
            return np.full(slices[index].shape, background_value(labels), np.int32)
        return mask.plane(covered_by[index])

    return values


def _background(shape: tuple[int, int], how: Conversion) -> MaskPlane:
    return MaskPlane(np.full(shape, background_value(how.labels), np.int32))


def _picture_plane(
    one: CTSlice, index: int, picture: Path | None, folder: Path, read: Callable[[Path], np.ndarray]
) -> np.ndarray:
    if picture is None:
        own = "" if one.frame is not None else f" or {Path(one.file).stem}.png"
        raise CTMaskNetError(
            f"{one.file}: no mask of slice {index} in {folder}; expected {index:04d}.png{own}"
        )
    mask = read(picture)
    check_same_size(one.file, one.shape, picture, mask, "slice")
    return mask


def _lesions_in(
    plane: MaskPlane, how: Conversion
) -> tuple[tuple[str, ...], dict[str, list[dict[str, Any]]]]:
    """Names of the lesion labels present in a mask, and its annotations of each mask type."""
    present = {how.labels[value] for value in values_present(plane.values)}
    lesions = tuple(name for name in LESION_LABELS if name in present)
    annotate = functools.partial(mask_instances, plane.values)
    if plane.numbers is not None:
        annotate = functools.partial(instance_annotations, plane.numbers, plane.values)
    return lesions, {
        mask_type: annotate(mask_type_classes(mask_type, how.labels), min_area_px=how.min_area_px)
        for mask_type in how.mask_types
    }


def _components(inside: np.ndarray, min_area_px: int) -> Iterator[tuple[list[int], int, Any]]:
    """The 8-connected components of a mask as the runs that COCO's RLE is made of, without a
    picture for each.

    A run is an unbroken part of a column; runs are counted down the columns, left to right, as COCO
    does.

    Args:
        inside: (H, W) uint8, 0 outside.
        min_area_px: components of this area or less, in px, are dropped.

    Yields:
        box [x, y, w, h] px, from the first row and column to one past the last; area, px; RLE
        (``size`` and ``counts``, bytes). By position: top, left, height, width.
    """
    inside = np.ascontiguousarray(inside)
    height, width = inside.shape
    left, top, w, h = cv2.boundingRect(inside)
    if not w:
        return
    cut = inside[top : top + h, left : left + w]
    _, label = cv2.connectedComponentsWithAlgorithm(cut, 8, cv2.CV_32S, cv2.CCL_SPAGHETTI)
    # A row of background above and a column of it behind keep the runs of two columns apart
    columns = np.zeros((w + 1, h + 1), np.int32)
    columns[:w, 1:] = label.T
    flat = columns.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    begin, end = edges[0::2], edges[1::2]
    owner = flat[begin]
    order = np.argsort(owner, kind="stable")
    begin, end, owner = begin[order], end[order], owner[order]
    first = np.flatnonzero(np.diff(owner, prepend=0))
    area = np.add.reduceat(end - begin, first)
    column, row = np.divmod(begin, h + 1)
    row -= 1
    x, past_x = np.minimum.reduceat(column, first), np.maximum.reduceat(column, first) + 1
    y = np.minimum.reduceat(row, first)
    past_y = np.maximum.reduceat(row + end - begin, first)
    # Places in the whole mask, down its columns
    begin_px = (left + column) * height + top + row
    end_px = begin_px + end - begin
    last = np.append(first[1:], len(owner))
    table = np.stack([y + top, x + left, past_y - y, past_x - x, area, first, last], axis=1)
    for y, x, h, w, size, one, past in sorted(table[area > min_area_px].tolist()):
        counts = _counts(begin_px[one:past], end_px[one:past], height * width)
        code = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        yield [x, y, w, h], size, code


def _counts(begin: np.ndarray, end: np.ndarray, total: int) -> list[int]:
    """Lengths of background and lesion in turn, the first of background."""
    joined = begin[1:] == end[:-1]
    if joined.any():  # at the foot of one column and the head of the next
        begin, end = begin[np.append(True, ~joined)], end[np.append(~joined, True)]
    bounds = np.empty(2 * len(begin) + 2, begin.dtype)
    bounds[0], bounds[-1] = 0, total
    bounds[1:-1:2], bounds[2:-1:2] = begin, end
    counts = np.diff(bounds).tolist()
    return counts if counts[-1] else counts[:-1]
