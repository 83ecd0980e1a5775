"""Lesions of a scan as one volume of labels, and that volume as NIfTI.

A voxel has one label. Where lesions overlap, the larger label wins, in whatever order the model has
its classes: consolidation over GGO, because dense tissue often lies within a haze and hides it, and
classes of other names over both, in their order. Which of two lesions of one class covers a voxel
makes no difference.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Sequence

import nibabel
import numpy as np

from ctmasknet.ct.orientation import Upright
from ctmasknet.ct.scan import CTScan, decoding
from ctmasknet.data.label_masks import LABEL_NAMES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.results import FoundBox


def mask_values(lesion_classes: Sequence[str]) -> dict[str, int]:
    """The label of each lesion class, above 0.

    As in the CNCB masks: 2 ggo, 3 consolidation (0 is background and 1 lung there, so neither is a
    lesion's); 4 for the merged class ``lesion``; 5 and on for classes of other names, in their
    order.
    """
    known = {name: LABEL_NAMES.index(name) for name in lesion_classes if name in LABEL_NAMES[2:]}
    others = [name for name in lesion_classes if name not in known]
    return known | {name: len(LABEL_NAMES) + index for index, name in enumerate(others)}


def label_slice(
    lesions: Iterable[FoundBox],
    shape: tuple[int, int],
    values: Sequence[int],
    score_threshold: float,
) -> np.ndarray:
    """(H, W) uint8: at each px the value of the lesion there, 0 without.

    Args:
        lesions: with masks; those without are left out.
        shape: (H, W).
        values: label of each class index.
        score_threshold: lesions have to score more.
    """
    label = np.zeros(shape, dtype=np.uint8)
    for lesion in sorted(lesions, key=lambda one: values[one.class_index]):
        mask = lesion.mask(*shape) if lesion.score > score_threshold else None
        if mask is not None:
            label[mask] = values[lesion.class_index]
    return label


def stored_plane(turn: Upright, plane: np.ndarray) -> np.ndarray:
    """What :meth:`Upright.plane` turned upright, as it was stored.

    Args:
        turn: of the stored grid.
        plane: (rows, columns) upright.

    Returns:
        the two axes that are not the slice axis, in stored order.
    """
    column_axis, row_axis, _ = turn.axes
    plane = plane[:: -1 if turn.flips[1] else 1, :: -1 if turn.flips[0] else 1]
    return plane if row_axis < column_axis else plane.T


def nifti_bytes(scan: CTScan, labels: Sequence[np.ndarray], *, caution: bool = False) -> bytes:
    """The labels as gzipped NIfTI, so that they lie on the source voxel by voxel.

    Of a NIfTI source the file has the shape, affine and voxel order; slices that could not be read
    are 0. Of a DICOM source axes run as the upright slices do: columns, rows, feet to head.

    Args:
        scan: where the slices are from.
        labels: (H, W) uint8 of each of its slices.
        caution: the header's description says that something has to be told with these lesions.

    Raises:
        CTMaskNetError: a scan without even geometry; a NIfTI source that nibabel cannot read.
    """
    unit = "mm"
    if scan.kind == "nifti":
        source = _load(scan.slices[0].source.file)
        volume, affine = _as_source(labels, scan).reshape(source.shape), source.affine
        header = source.header if isinstance(source, nibabel.Nifti1Image) else None
        image = nibabel.Nifti1Image(volume, affine, header)
        image.header.set_data_dtype(np.uint8)
        image.header.set_slope_inter(1, 0)
        unit = source.header.get_xyzt_units()[0].replace("unknown", unit)
    elif scan.affine is not None:
        volume, affine = np.stack([label.T for label in labels], axis=2), scan.affine
        image = nibabel.Nifti1Image(volume, affine)
        image.set_qform(affine, code="scanner")
        image.set_sform(affine, code="scanner")
    else:
        raise CTMaskNetError(
            f"{scan.slices[0].file}: slices of its series are missing, uneven, shifted or of "
            "unknown spacing, so no NIfTI volume can hold their labels; leave out this kind of mask"
        )
    image.header.extensions.clear()
    image.header["cal_min"] = image.header["cal_max"] = 0
    image.header.set_xyzt_units(unit)
    told = b"; CAUTION: see info.cautions of lesions.json" if caution else b""
    image.header["descrip"] = b"ctmasknet lesions" + told
    # Without a name and a time in it: the same labels are the same bytes
    stream = io.BytesIO()
    with gzip.GzipFile("", "wb", 6, stream, mtime=0) as compressed:
        image.to_stream(compressed)
    return stream.getvalue()


def _load(file: str):
    with decoding(file):
        try:
            return nibabel.load(file)
        except nibabel.filebasedimages.ImageFileError as error:
            raise CTMaskNetError(
                f"{file}: its header cannot be taken over ({' '.join(str(error).split())}); give "
                "it a name that ends with .nii or .nii.gz"
            ) from error


def _as_source(labels: Sequence[np.ndarray], scan: CTScan) -> np.ndarray:
    """(i, j, k) in the voxel order of the file; slices that are not there are 0."""
    stored = scan.slices[0].source
    turn = stored.turn
    volume = np.zeros(stored.shape, dtype=np.uint8)
    along_slices = np.moveaxis(volume, turn.axes[2], 0)
    for one, label in zip(scan.slices, labels, strict=True):
        along_slices[one.frame] = stored_plane(turn, label)
    return volume
