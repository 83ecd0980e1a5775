"""Label masks to COCO annotations: against the usual loop, and in several processes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from ctmasknet.benchmarks.timing import comparison, interleaved
from ctmasknet.data.label_masks import mask_type_classes, read_mask
from ctmasknet.data.lesion_files import LesionPair
from ctmasknet.data.masks_to_coco import MIN_AREA_PX, Conversion, convert_slices, mask_instances
from ctmasknet.data.phantom import LESION_TREE, write_phantom_lesions
from ctmasknet.errors import CTMaskNetError

_SLICES_A_PATIENT = 5


def mask_conversion(*, patients: int, repeats: int, seed: int) -> dict[str, Any]:
    """Instances of phantom masks of 512 px, read already, against scikit-image and pycocotools.

    Args:
        patients: of five slices each.
        repeats: times each is measured.
        seed: of the phantom.

    Raises:
        CTMaskNetError: scikit-image is missing.
    """
    classes = mask_type_classes("both")
    with _phantom(patients, seed) as pairs:
        masks = [read_mask(pair.mask) for pair in pairs]
    ways = {
        "scikit-image loop": lambda: [usual_instances(mask, classes) for mask in masks],
        "ctmasknet": lambda: [mask_instances(mask, classes) for mask in masks],
    }
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        timings = interleaved(ways, repeats)
    finally:
        cv2.setNumThreads(threads)
    usual, ours = (sorted(str(one) for found in way() for one in found) for way in ways.values())
    if usual != ours:
        raise AssertionError("the two ways found different instances")
    return comparison(
        f"mask to COCO, {len(masks)} phantom masks of 512 px in memory, one process",
        timings,
        "scikit-image loop",
        "cpu",
        figures={"instances": len(ours)},
    )


def mask_conversion_processes(
    *, patients: int, rounds: int, most: int, repeats: int, seed: int
) -> dict[str, Any]:
    """All three mask types from image and mask files, in 1, 2, 4, ... processes.

    Args:
        patients: of five slices each.
        rounds: times that all of them are converted in one measurement.
        most: processes, at most.
        repeats: times each is measured.
        seed: of the phantom.
    """
    how = Conversion()
    with _phantom(patients, seed) as pairs:
        pairs = list(pairs) * rounds

        def convert(workers: int) -> int:
            return sum(1 for _ in convert_slices(pairs, how, workers))

        counts = [2**n for n in range(most.bit_length()) if 2**n <= most]
        ways = {f"processes: {count}": lambda count=count: convert(count) for count in counts}
        timings = interleaved(ways, repeats)
    return comparison(
        f"image and mask files to COCO, {len(pairs)} slices of 512 px, three mask types",
        timings,
        "processes: 1",
        "cpu",
    )


def usual_instances(
    mask: np.ndarray, classes: Sequence[tuple[str, Sequence[int]]]
) -> list[dict[str, Any]]:
    """:func:`~ctmasknet.data.masks_to_coco.mask_instances` as it is mostly written: one picture
    for each component."""
    try:
        from skimage import measure
    except ImportError:
        raise CTMaskNetError("this benchmark needs scikit-image; pip install it") from None
    instances = []
    for category_id, (_, values) in enumerate(classes, 1):
        label = measure.label(np.isin(mask, list(values)), connectivity=2)
        for region in measure.regionprops(label):
            if region.area <= MIN_AREA_PX:
                continue
            code = rle.encode(np.asfortranarray((label == region.label).astype(np.uint8)))
            top, left, bottom, right = region.bbox
            instances.append(
                {
                    "category_id": category_id,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(region.area),
                    "iscrowd": 0,
                    "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
                }
            )
    return instances


@contextlib.contextmanager
def _phantom(patients: int, seed: int):
    """Image and mask files of phantom slices, as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        write_phantom_lesions(
            folder, seed=seed, patients=patients, slices=_SLICES_A_PATIENT, side_px=512
        )
        root = Path(folder) / LESION_TREE
        yield [
            LesionPair(
                key=f"{path.parent.name}_{path.stem}",
                file=f"{path.parent.name}/{path.stem}.jpg",
                image=root / "image" / path.parent.name / f"{path.stem}.jpg",
                mask=path,
                patient=path.parent.name,
            )
            for path in sorted((root / "mask").rglob("*.png"))
        ]
