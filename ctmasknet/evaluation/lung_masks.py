"""Label masks as a source of the lung, and of the lesions as they were drawn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctmasknet.data.classes import MASK_LABELS
from ctmasknet.data.label_masks import LESION_LABELS, Orientation, read_mask
from ctmasknet.data.lesion_files import MASK_SUFFIXES, files_by_key
from ctmasknet.data.patient_rules import PatientRule
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.burden import SliceBurden, measure_slice


@dataclass(frozen=True)
class LabelMasks:
    """Label masks that give the lung, and the lesions as they were drawn.

    Attributes:
        labels: name of each mask value.
        orientation: from the file to the upright slice.
        file_of: mask file of each slice, by the key of the image's name.
        key: the key of an image's name.
    """

    labels: Mapping[int, str]
    orientation: Orientation
    file_of: Mapping[str, Path]
    key: Callable[[str], str]

    @classmethod
    def of(
        cls,
        folder: str | os.PathLike,
        document: Mapping[str, Any],
        labels: Mapping[int, str] | None = None,
    ) -> LabelMasks:
        """Masks in a folder, for the images of a COCO document.

        ``info`` of the document states labels and orientation where it was prepared from such
        masks. Masks have the names of the images but for the extension (or both CNCB's).

        Raises:
            CTMaskNetError: no such folder, or an image without a mask.
        """
        folder, info = Path(folder), document.get("info") or {}
        if not folder.is_dir():
            raise CTMaskNetError(f"{folder}: no such folder of label masks; correct --label-masks")
        if labels is None:
            stated = info.get("labels") or MASK_LABELS
            labels = {int(value): name for value, name in stated.items()}
        files = [image["file_name"] for image in document["images"]]
        rule = PatientRule()
        try:
            keys = [rule.key(file) for file in files]
        except CTMaskNetError:
            rule = PatientRule(each_file=True)
            keys = [rule.key(file) for file in files]
        found = files_by_key(folder, MASK_SUFFIXES, rule)
        missing = [file for file, key in zip(files, keys, strict=True) if key not in found]
        if missing:
            raise CTMaskNetError(
                f"{folder}: no mask for {missing[0]} ({len(missing)} of {len(files)} slices are "
                "without); give the folder whose masks have the names of the slices"
            )
        orientation = Orientation(**(info.get("orientation") or {}))
        return cls(labels, orientation, {key: folder / found[key] for key in keys}, rule.key)

    @property
    def has_lung(self) -> bool:
        """Whether a value means lung; without one the masks do not tell where the lung ends."""
        return "lung" in self.labels.values()

    def read(self, image: Mapping[str, Any]) -> np.ndarray:
        """(H, W) values of an image's mask, upright."""
        path = self.file_of[self.key(image["file_name"])]
        return self.orientation.upright(read_mask(path, self.labels))

    def lung(self, image: Mapping[str, Any]) -> np.ndarray | None:
        """(H, W) bool, lesions included; None unless a value means lung."""
        return self._named(self.read(image), "lung", *LESION_LABELS) if self.has_lung else None

    def slices(self, document: Mapping[str, Any]) -> Iterator[SliceBurden]:
        """Measure the lesions that the masks hold themselves, of any size."""
        names = [name for name in LESION_LABELS if name in self.labels.values()]
        for image in document["images"]:
            mask = self.read(image)
            lung = self._named(mask, "lung", *LESION_LABELS) if self.has_lung else None
            lesions = {name: [self._named(mask, name)] for name in names}
            yield measure_slice(
                lesions, (image["height"], image["width"]), lung, **slice_names(image)
            )

    def _named(self, mask: np.ndarray, *names: str) -> np.ndarray:
        return np.isin(mask, [value for value, name in self.labels.items() if name in names])


def slice_names(image: Mapping[str, Any]) -> dict[str, Any]:
    """What a COCO image states of its slice, as :func:`measure_slice` takes it; the scan is the
    patient where none is stated."""
    spacing = image.get("spacing_mm")
    # Patients and scans may be numbered from 0
    patient, scan = (
        "" if image.get(key) is None else str(image[key]) for key in ("patient", "scan")
    )
    return {
        "file": str(image["file_name"]),
        "patient": patient,
        "scan": scan or patient,
        "pixel_mm2": float(spacing[0]) * float(spacing[1]) if spacing else None,
        "position_mm": image.get("position_mm"),
    }
