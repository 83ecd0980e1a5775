"""Lesion burden from files to files: COCO lesions, label masks and predictions in, shares out."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.visualizer import GenericMask
from tabulate import tabulate

from ctmasknet.classes import MASK_LABELS
from ctmasknet.console.progress import tracked
from ctmasknet.csv_tables import safe_cell
from ctmasknet.ct.arrays import parse_axes
from ctmasknet.ct.scan import parse_rescale, parse_window
from ctmasknet.data.coco import checked_coco
from ctmasknet.data.label_masks import (
    LESION_LABELS,
    MASK_SUFFIXES,
    Orientation,
    files_by_key,
    parse_labels,
    read_mask,
)
from ctmasknet.data.registry import dataset_dicts, lesion_truth
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.lesions.burden import ANY, LEVELS, SliceBurden, burdens, measure_slice
from ctmasknet.evaluation.lesions.scan_lungs import ScanLungs
from ctmasknet.files import atomic_write, check_writable, read_json, write_json, writing
from ctmasknet.names import PatientRule

BURDEN_FORMAT = "ctmasknet lesion burden 1"


def measure_burden(
    output: str | os.PathLike,
    *,
    dataset: str | None = None,
    lesions: str | os.PathLike | None = None,
    predictions: str | os.PathLike | None = None,
    label_masks: str | os.PathLike | None = None,
    labels: str | None = None,
    score_threshold: float = 0.75,
    scans: Sequence[str | os.PathLike] | None = None,
    lungs: str = "threshold",
    rescale: str | None = None,
    axes: str | None = None,
    lung_window: str | None = None,
) -> dict[str, Any]:
    """Measure the lesions of a data set or a file, and write ``burden.csv`` and ``burden.json``.

    Args:
        output: folder for both.
        dataset: a registered lesion set; either it or ``lesions``.
        lesions: COCO json with predictions or ground truth.
        predictions: Detectron2's ``coco_instances_results.json`` for the data set.
        label_masks: folder of masks that tell the lung and, without predictions, the data set's
            lesions as they were drawn.
        labels: meaning of the mask values, such as ``0:background,1:lung``; default: as the set was
            prepared.
        score_threshold: predictions must score more, 0..1.
        scans: files and folders of the very slices, in which lungs are looked for; as they were
            given to the prediction.
        lungs: how, see :data:`ctmasknet.ct.lungs.masks.LUNG_WAYS`.
        rescale: slope and intercept to HU of ``scans``, see
            :func:`ctmasknet.ct.scan.parse_rescale`.
        axes: of NumPy's arrays among them, see :func:`ctmasknet.ct.arrays.parse_axes`.
        lung_window: window ``CENTER,WIDTH`` in HU that ``scans`` were made through, where they are
            pictures.

    Returns:
        The content of ``burden.json``: ``format``, ``lesions`` (where from), ``of`` (lung or
        slice), ``classes``, ``outside_lung_px``, ``cautions`` (of the lesions' file, and of lungs
        that may be wrong), ``lungs`` (how they were found, where scans were given), ``slices``,
        ``scans``, ``patients`` (each of :meth:`Burden.to_json`).

    Raises:
        CTMaskNetError: contradicting arguments, or files that are missing or do not fit.
    """
    output = check_writable(output, folder=True)
    if bool(dataset) == bool(lesions):
        raise CTMaskNetError("give either `dataset` or `lesions`")
    if predictions and lesions:
        raise CTMaskNetError("`predictions` belong to a data set: give it as `dataset`")
    if scans and label_masks:
        raise CTMaskNetError("`label_masks` tell the lung already: leave them or `scans` out")
    if not scans and (rescale, axes, lung_window, lungs) != (None, None, None, "threshold"):
        raise CTMaskNetError(
            "`lungs`, `rescale`, `axes` and `lung_window` have no effect without `scans`"
        )
    if not 0 <= score_threshold <= 1:
        raise CTMaskNetError(f"`score_threshold`: {score_threshold:g} is not within 0..1")
    path, source = lesions, str(lesions)
    if dataset:
        dataset_dicts(dataset)
        path = MetadataCatalog.get(dataset).get("json_file") or f"data set {dataset}"
        source = f"ground truth of {dataset}"
        document = lesion_truth(dataset).dataset
    else:
        document = checked_coco(_json(path, dict), path)
    if not document["images"]:
        raise CTMaskNetError(f"{path}: holds no image; prepare the set again")
    masks = found_in = None
    if scans:
        how = {"rescale": None if rescale is None else parse_rescale(rescale)}
        how["axes"] = None if axes is None else parse_axes(axes)
        how["window"] = None if lung_window is None else parse_window(lung_window)
        masks = found_in = ScanLungs(scans, document, lungs, **how)
    if label_masks:
        masks = LabelMasks.of(label_masks, document, parse_labels(labels) if labels else None)
    if predictions:
        path, source = predictions, str(predictions)
        found = _json(path, list)
        _check_images(found, document, path)
        document = checked_coco({**document, "annotations": found}, path)
    cautions = _cautions(document)
    if any("score" in item for item in document["annotations"]):
        source += f", score > {score_threshold:g}"
    if label_masks and dataset and not predictions:
        source = f"label masks in {label_masks}"
        slices = masks.slices(document)
    else:
        slices = _coco_slices(document, path, score_threshold, masks)
    slices = list(tracked(slices, "burden", len(document["images"])))
    found = {
        "format": BURDEN_FORMAT,
        "lesions": source,
        "of": "lung" if masks is not None and masks.has_lung else "slice",
        "classes": [name for name in slices[0].lesion_px if name != ANY],
        "outside_lung_px": sum(item.outside_px for item in slices),
        "cautions": cautions + (found_in.doubts if found_in else []),
    }
    if found_in is not None:
        found["lungs"] = found_in.way
    levels = burdens(slices)
    found |= {level: [item.to_json() for item in items] for level, items in levels.items()}
    with writing(output):
        write_json(output / "burden.json", found, indent=1)
        _write_csv(output / "burden.csv", found)
    return found


def burden_text(found: Mapping[str, Any]) -> str:
    """Median and range of each level's shares as a table for the terminal."""
    names = [*found["classes"], ANY]
    rows = []
    for level in LEVELS:
        cells = []
        for name in names:
            shares = [item["percent"][name] for item in found[level]]
            shares = [share for share in shares if share is not None]
            cells.append(
                f"{np.median(shares):.2f} ({min(shares):.2f}-{max(shares):.2f})" if shares else "-"
            )
        rows.append([level, str(len(found[level])), *cells])
    table = tabulate(
        rows, headers=["", "n", *names], tablefmt="pipe", disable_numparse=True, stralign="right"
    )
    head = f"% of the {found['of']}: median (least-most); lesions: {found['lesions']}"
    told = [f"lungs: {found['lungs']}"] if "lungs" in found else []
    told += [f"caution: {caution}" for caution in found.get("cautions", ())]
    return "\n".join([head, *told, table])


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
            raise CTMaskNetError(f"{folder}: no such folder of label masks; correct `label_masks`")
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
                lesions, (image["height"], image["width"]), lung, **_slice_names(image)
            )

    def _named(self, mask: np.ndarray, *names: str) -> np.ndarray:
        return np.isin(mask, [value for value, name in self.labels.items() if name in names])


def _slice_names(image: Mapping[str, Any]) -> dict[str, Any]:
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


def _check_images(
    predictions: list[Any], document: Mapping[str, Any], path: str | os.PathLike
) -> None:
    """Refuse predictions for another set."""
    known = {item["id"] for item in document["images"]}
    strays = [
        item
        for item in predictions
        if isinstance(item, dict)
        and isinstance(item.get("image_id"), int)
        and item["image_id"] not in known
    ]
    if strays:
        raise CTMaskNetError(
            f"{path}: {len(strays)} lesions are of images that are not in the set, such as image "
            f"{strays[0]['image_id']}; give the predictions for this very set"
        )


def _coco_slices(
    document: Mapping[str, Any],
    path: str | os.PathLike,
    score_threshold: float,
    label_masks: LabelMasks | ScanLungs | None,
) -> Iterator[SliceBurden]:
    """Measure the lesions of a COCO document, slice by slice, those with a ``score`` above the
    threshold; ``path`` is its file, for messages."""
    names = {item["id"]: item["name"] for item in document["categories"]}
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for item in document["annotations"]:
        if item.get("score", math.inf) > score_threshold:
            by_image.setdefault(item["image_id"], []).append(item)
    for image in document["images"]:
        shape = (image["height"], image["width"])
        lesions: dict[str, list[np.ndarray]] = {name: [] for name in names.values()}
        for item in by_image.get(image["id"], ()):
            if "segmentation" not in item:
                raise CTMaskNetError(
                    f"{path}: a lesion of {image['file_name']} has no mask; boxes alone have no "
                    "burden, use a detector with masks"
                )
            mask = GenericMask(item["segmentation"], *shape).mask.astype(bool)
            lesions[names[item["category_id"]]].append(mask)
        lung = label_masks.lung(image) if label_masks is not None else None
        yield measure_slice(lesions, shape, lung, **_slice_names(image))


def _write_csv(path: Path, found: Mapping[str, Any]) -> None:
    """Write one line a slice, scan and patient, whole or not at all.

    Columns: ``level, patient, scan, file, slices, of, weighted_by``, ``<class>_percent`` and
    ``any_percent``, then ``<class>_ml``, ``any_ml`` and ``whole_ml`` where volumes are known; last
    ``caution`` where there is one.
    """
    caution = [" ".join(found["cautions"])] if found["cautions"] else []
    names = [*found["classes"], ANY]
    volumes = [*names, "whole"]
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        columns = ("level", "patient", "scan", "file", "slices", "of", "weighted_by")
        percents = (f"{name}_percent" for name in names)
        mls = (f"{name}_ml" for name in volumes)
        writer.writerow([*columns, *percents, *mls, *(["caution"] * len(caution))])
        for level in LEVELS:
            for item in found[level]:
                row = item | {"level": level, "of": found["of"]}
                values = [item["percent"][name] for name in names]
                values += [(item["ml"] or {}).get(name) for name in volumes]
                cells = ("" if value is None else format(value, ".6g") for value in values)
                writer.writerow(
                    [*(safe_cell(str(row[column])) for column in columns), *cells, *caution]
                )


def _cautions(document: Mapping[str, Any]) -> list[str]:
    """What the lesions' file says has to be told with them."""
    info = document.get("info")
    cautions = info.get("cautions") if isinstance(info, dict) else None
    return [str(caution) for caution in cautions] if isinstance(cautions, list) else []


def _json(path: str | os.PathLike, kind: type) -> Any:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise CTMaskNetError(f"{path}: cannot read lesions ({error}); check the path") from error
    if not isinstance(value, kind):
        raise CTMaskNetError(f"{path}: holds no lesions in COCO's form; check the path")
    return value
