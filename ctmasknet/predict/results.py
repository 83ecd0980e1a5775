"""What was predicted: of a slice, and of the scan it belongs to.

Shapes: C slice classes, N ranked rows, n lesions, (H, W) px of the upright slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from ctmasknet.ct.appearance import Appearance, GreyLevels, looks_unlike, typical_levels
from ctmasknet.ct.scan import CTScan, CTSlice
from ctmasknet.data.coco import run_lengths
from ctmasknet.schema import (
    Form,
    UnlikeForm,
    index_below,
    listing,
    maybe,
    names_of,
    number,
    record,
    text,
    whole_from_1,
    within,
)


@dataclass(frozen=True)
class FoundBox:
    """A box (x0, y0, x1, y1) in px of the upright slice, its lesion class and score 0..1.

    ``rle`` is the lesion's mask, COCO's compressed run lengths over (H, W); None without a mask.
    """

    class_index: int
    score: float
    box_px: tuple[float, float, float, float]
    rle: str | None = None

    def mask(self, height: int, width: int) -> np.ndarray | None:
        """(H, W) bool; None without a mask."""
        if self.rle is None:
            return None
        return coco_mask.decode({"size": [height, width], "counts": self.rle}).astype(bool)


@dataclass(frozen=True)
class PredictedSlice:
    """One slice.

    Attributes:
        source: the slice that was read.
        pred_class: index of the class with the highest logit; None from a lesion detector.
        logits: (C,) float32; None from a detector.
        scores: (C,) sigmoids of the logits; None from a detector.
        ranked_boxes: (N, 5) float32 rows that the image head saw; None from a detector.
        top_boxes: the best boxes, best first: of the ranked ones, or of a detector's lesions.
        lesions: every lesion of the detector part; None where lesions were not asked for.
        calibrated_scores: (C,) scores at the stored temperature; None where none is stored.
        has_masks: lesions have masks, also where there are no lesions.
        seen: what its grey levels show; None where nobody looked.
    """

    source: CTSlice
    pred_class: int | None
    logits: np.ndarray | None
    scores: np.ndarray | None
    ranked_boxes: np.ndarray | None
    top_boxes: tuple[FoundBox, ...]
    lesions: tuple[FoundBox, ...] | None
    calibrated_scores: np.ndarray | None = None
    has_masks: bool = False
    seen: Appearance | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the slice should not have been given; a class and lesions are told all the same."""
        fault = self.seen and self.seen.fault
        return (f"looks like no axial chest CT: {fault}",) if fault else ()

    @property
    def instances(self) -> Instances | None:
        """The lesions as Detectron2 has them: ``pred_boxes``, ``scores``, ``pred_classes`` and,
        from a model with masks, ``pred_masks`` (n, H, W) bool. None without lesions."""
        if self.lesions is None:
            return None
        height, width = self.source.shape
        found = Instances((height, width))
        boxes = [lesion.box_px for lesion in self.lesions]
        classes = [lesion.class_index for lesion in self.lesions]
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.tensor([lesion.score for lesion in self.lesions])
        found.pred_classes = torch.tensor(classes, dtype=torch.int64)
        if self.has_masks:
            masks = np.zeros((len(boxes), height, width), dtype=bool)
            for mask, lesion in zip(masks, self.lesions, strict=True):
                mask[:] = lesion.mask(height, width)
            found.pred_masks = torch.from_numpy(masks)
        return found


@dataclass(frozen=True)
class PredictedScan:
    """One scan, its slices feet to head.

    Attributes:
        source: the scan that was read.
        slices: what is said of each slice; slices that could not be read are left out.
        image_classes: C names in the order of logits and scores; empty from a detector.
        lesion_classes: names of the lesions' classes.
        box_classes: names of the best boxes' classes; others where two models were at work.
        pooling: how the slices became one answer (``mean``, ``max``, ``top_k_mean``, ``learned``);
            empty from a detector.
        scores: (C,) pooled, 0..1; None from a detector or without slices.
        pred_class: index of the highest; None likewise.
        calibrated_scores: (C,) at the stored temperature of scans; None where none fits.
        skipped: (file, reason) of each slice that could not be read.
        problems: of the scan that was read, and what its slices show, one sentence each.
        cautions: what has to be said with the class, and with lesions where they were asked for.
    """

    source: CTScan
    slices: tuple[PredictedSlice, ...]
    image_classes: tuple[str, ...]
    lesion_classes: tuple[str, ...]
    box_classes: tuple[str, ...]
    pooling: str
    scores: np.ndarray | None
    pred_class: int | None
    calibrated_scores: np.ndarray | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


class ScanDoubts:
    """What a scan's slices show, collected one by one, and what speaks against it as a whole."""

    def __init__(self):
        self._count, self._unfit, self._first = 0, 0, ""
        self._levels: list[GreyLevels] = []

    def add(self, file: str, problems: Sequence[str], levels: GreyLevels | None) -> None:
        """Take a slice: its name, :attr:`PredictedSlice.problems` and grey levels."""
        self._count += 1
        if problems:
            self._unfit += 1
            self._first = self._first or f"{file} {problems[0]}"
        elif levels is not None:
            self._levels.append(levels)

    def problems(self, expected: GreyLevels, sees_scans: bool = False) -> list[str]:
        """One sentence each.

        Args:
            expected: levels of the pictures that the weights were trained on.
            sees_scans: the model names a scan by its slices together.
        """
        found = []
        if sees_scans and self._count == 1:
            found.append("is one slice alone, where the model names whole scans; give all slices")
        if self._unfit:
            found.append(
                f"{self._unfit} of {self._count} slices may be no axial chest CT, and are named "
                f"all the same, such as {self._first}"
            )
        typical = typical_levels(self._levels)
        if looks_unlike(typical, expected):
            found.append(
                f"its grey levels ({typical}) are not those of the pictures that the weights were "
                f"trained on ({expected}), as through another HU window; see "
                "datasets/measure_window.py"
            )
        return found


def found_boxes(instances: Instances, limit: int | None = None) -> tuple[FoundBox, ...]:
    """``Instances`` in px of the slice as boxes, the best ``limit``, in their order."""
    instances = instances.to("cpu")
    if limit is not None:
        instances = instances[:limit]
    count = len(instances)
    rles: Sequence[str | None] = [None] * count
    if count and instances.has("pred_masks"):
        masks = np.asfortranarray(instances.pred_masks.numpy().transpose(1, 2, 0).astype(np.uint8))
        rles = [rle["counts"].decode() for rle in coco_mask.encode(masks)]
    labels, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    boxes = map(tuple, instances.pred_boxes.tensor.tolist())
    return tuple(FoundBox(*one) for one in zip(labels, scores, boxes, rles, strict=True))


def slice_record(found: PredictedSlice) -> dict[str, Any]:
    """A slice as plain values for JSON; float32 keep their value in nine digits."""
    source = found.source
    record: dict[str, Any] = {
        "file": source.name,
        "patient": source.patient,
        "scan": source.scan,
        "height": source.shape[0],
        "width": source.shape[1],
        "spacing_mm": None if source.spacing_mm is None else list(source.spacing_mm),
        "position_mm": source.position_mm,
    }
    if found.logits is not None:
        record["pred"] = found.pred_class
        record["logits"] = numbers(found.logits)
        record["scores"] = numbers(found.scores)
    if found.calibrated_scores is not None:
        record["calibrated_scores"] = numbers(found.calibrated_scores)
    if found.problems:
        record["problems"] = list(found.problems)
    if found.seen is not None:
        record["grey_levels"] = list(found.seen.levels)
    record["boxes"] = [_box_record(box) for box in found.top_boxes]
    if found.lesions is not None:
        record["lesions"] = [_box_record(lesion) for lesion in found.lesions]
    return record


def line_form(
    image_classes: Sequence[str], lesion_classes: Sequence[str], box_classes: Sequence[str]
) -> Form:
    """The form of a line of a shard: a :func:`slice_record`, a slice that could not be read, or the
    label volumes of a scan. A slice has lesions where there are classes of them."""
    bad = record({"file": text, "bad": text})
    masks = record({"masks": names_of(text), "problems": listing(text)})
    of_class = {"pred": index_below(len(image_classes))}
    of_class |= {"logits": listing(number, len(image_classes))}
    of_class |= {"scores": listing(within(0, 1), len(image_classes))}
    of_slice = record(
        {
            **{"file": text, "patient": text, "scan": text},
            **{"height": whole_from_1, "width": whole_from_1},
            **{"spacing_mm": maybe(listing(number, 2)), "position_mm": maybe(number)},
            **(of_class if image_classes else {}),
            "boxes": listing(_box_form(box_classes)),
            **({"lesions": listing(_box_form(lesion_classes))} if lesion_classes else {}),
        },
        {
            "calibrated_scores": listing(within(0, 1), len(image_classes)),
            "grey_levels": listing(maybe(number), len(GreyLevels._fields)),
            **{"problems": listing(text), "overlay": text},
        },
    )

    def line(value: Any, key: str) -> dict[str, Any]:
        names = value if isinstance(value, dict) else ()
        found = (bad if "bad" in names else of_slice if "file" in names else masks)(value, key)
        for lesion in found.get("lesions", ()) if lesion_classes else ():
            mask, px = lesion.get("rle"), found["height"] * found["width"]
            if mask is not None and run_lengths(mask, px) is None:
                raise UnlikeForm("rle", mask, "a mask of the slice")
        return found

    return line


def _box_form(classes: Sequence[str]) -> Form:
    return record(
        {"class": index_below(len(classes)), "score": within(0, 1), "box_px": listing(number, 4)},
        {"rle": text},
    )


def numbers(values: Iterable[float], digits: int = 9) -> list[float]:
    """Floats of nine digits, which a float32 needs to come back as it was, or of fewer."""
    return [float(format(float(value), f".{digits}g")) for value in values]


def _box_record(box: FoundBox) -> dict[str, Any]:
    score, *sides = numbers([box.score, *box.box_px])
    record = {"class": box.class_index, "score": score, "box_px": sides}
    return record if box.rle is None else {**record, "rle": box.rle}
