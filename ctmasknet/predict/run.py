"""One process's share of a prediction: its pieces, each kept as soon as it is finished."""

from __future__ import annotations

import datetime
import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import ctmasknet
from ctmasknet.ct.read import CTScan
from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.draw.lesions import SliceCall, side_by_side
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write
from ctmasknet.predict.inputs import UNIT_FILES, Unit, read_ahead
from ctmasknet.predict.manifest import writing
from ctmasknet.predict.masks import label_slice, mask_values, write_dicom_seg, write_nifti
from ctmasknet.predict.predictor import CTPredictor
from ctmasknet.predict.results import PredictedSlice, slice_record
from ctmasknet.predict.shards import Parts, Piece, pieces_of, slices_of

#: Kinds of label volumes, and what their files end with.
MASKS = {"nifti": ".nii.gz", "dicom-seg": ".dcm"}
_LOG_SECONDS = 30.0
#: With fewer units than this for each process, their pieces are shared out instead.
_UNITS_A_PROCESS = 8


@dataclass(frozen=True)
class Drawing:
    """What is made of a scan beside its lines.

    Attributes:
        masks: kinds of :data:`MASKS`.
        overlays: draw slices that have a lesion.
        score_threshold: lesions in masks and overlays have to score more.
        identity: of the run, for the UIDs of DICOM segmentations.
        created: when the run began.
    """

    masks: tuple[str, ...]
    overlays: bool
    score_threshold: float
    identity: str
    created: datetime.datetime


def is_shared(unit: Unit, units: int, world: int) -> bool:
    """Whether a unit's pieces are dealt out to all processes, and not the whole unit to one."""
    return world > 1 and (unit.weight > UNIT_FILES or units < _UNITS_A_PROCESS * world)


class Worker:
    """Predicts the pieces of one process."""

    def __init__(
        self,
        predictor: CTPredictor,
        parts: Parts,
        output: Path,
        drawing: Drawing,
        *,
        skip_bad: bool,
        rank: int = 0,
        world: int = 1,
    ):
        self.predictor = predictor
        self.parts = parts
        self.output = output
        self.drawing = drawing
        self.skip_bad = skip_bad
        self.rank, self.world = rank, world

    def run(self, units: Sequence[Unit]) -> float:
        """Predict what is not finished.

        Returns:
            slices a second.
        """
        progress = _Progress(len(units), self.rank, self.world)
        try:
            for (piece, scan), found in self.predictor.predict_slices(
                self._pieces(units, progress), skip_bad=self.skip_bad
            ):
                with writing(self.output):
                    self.parts.write_piece(piece, self._lines(piece, scan, found, progress))
        finally:
            progress.close()
        return progress.rate

    def _pieces(
        self, units: Sequence[Unit], progress: _Progress
    ) -> Iterator[tuple[tuple[Piece, CTScan], Sequence]]:
        """Unfinished pieces of this process with their slices; headers are read one unit ahead."""
        mine = (
            (number, unit)
            for number, unit in enumerate(units)
            if (is_shared(unit, len(units), self.world) or number % self.world == self.rank)
            and not self.parts.is_finished(number)
        )
        for number, read in read_ahead(mine, skip_bad=self.skip_bad):
            with writing(self.output):
                self.parts.write_unit(number, read)
            shared = is_shared(units[number], len(units), self.world)
            for place, piece in enumerate(pieces_of(number, read.scans)):
                is_mine = not shared or (number + place) % self.world == self.rank
                if is_mine and not self.parts.has(piece):
                    yield (piece, read.scans[piece.scan]), slices_of(piece, read.scans)
            progress.unit(number)

    def _lines(
        self,
        piece: Piece,
        scan: CTScan,
        found: Iterator[tuple[PredictedSlice | BadSlice, np.ndarray | None]],
        progress: _Progress,
    ) -> Iterator[dict[str, Any]]:
        """The lines of a piece: its slices, then what was made of them."""
        labels: list[np.ndarray] = []
        values = mask_values(self.predictor.lesion_classes)
        values = [values[name] for name in self.predictor.lesion_classes]
        threshold = self.drawing.score_threshold
        for place, (result, pixels) in enumerate(found, start=piece.start):
            progress.slice()
            lesions = () if isinstance(result, BadSlice) else result.lesions
            if self.drawing.masks and scan.kind != "image":
                labels.append(label_slice(lesions, scan.slices[place].shape, values, threshold))
            if isinstance(result, BadSlice):
                yield {"file": result.file, "bad": result.reason}
                continue
            record = slice_record(result)
            if self.drawing.overlays and any(one.score > threshold for one in lesions):
                record["overlay"] = self._overlay(piece, place, scan, result, pixels)
            yield record
        if self.drawing.masks:
            yield self._volumes(piece, scan, labels)

    def _volumes(self, piece: Piece, scan: CTScan, labels: Sequence[np.ndarray]) -> dict[str, Any]:
        """Write the label volumes; one that the source does not allow becomes a problem."""
        masks: dict[str, str] = {}
        problems = []
        if not labels:
            return {"masks": masks, "problems": ["no label volume: pictures state no geometry"]}
        for kind in self.drawing.masks:
            name = f"masks/{self._stem(piece, scan)}{MASKS[kind]}"
            with writing(self.output / name):
                try:
                    self._write_volume(kind, self.output / name, scan, labels)
                except CTMaskNetError as error:
                    problems.append(f"no {kind} volume: {error}")
                    logging.getLogger(__name__).warning("No %s volume: %s", kind, error)
                    continue
            masks[kind] = name
        return {"masks": masks, "problems": problems}

    def _write_volume(
        self, kind: str, path: Path, scan: CTScan, labels: Sequence[np.ndarray]
    ) -> None:
        if kind == "nifti":
            write_nifti(path, scan, labels)
            return
        write_dicom_seg(
            path,
            scan,
            labels,
            self.predictor.lesion_classes,
            identity=self.drawing.identity,
            created=self.drawing.created,
            software=f"{ctmasknet.__version__} {self.drawing.identity[:12]}",
        )

    def _overlay(
        self, piece: Piece, place: int, scan: CTScan, found: PredictedSlice, pixels: np.ndarray
    ) -> str:
        """Draw a slice; returns the picture's path within the output folder."""
        name = f"overlays/{self._stem(piece, scan)}/{place + 1:04d}.png"
        call = None
        if found.scores is not None:
            call = SliceCall(
                self.predictor.image_classes, found.pred_class, scores=found.scores.tolist()
            )
        picture = side_by_side(
            pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2),
            None,
            found.instances,
            class_names=self.predictor.lesion_classes,
            title=found.source.name,
            call=call,
            score_threshold=self.drawing.score_threshold,
        )
        path = self.output / name
        with writing(path), atomic_write(path, "wb") as stream:
            Image.fromarray(picture).save(stream, format="PNG")
        return name

    def _stem(self, piece: Piece, scan: CTScan) -> str:
        """Unique and readable: numbers of unit and scan, then the scan's own name."""
        own = re.sub(r"[^A-Za-z0-9.-]+", "_", "_".join(filter(None, (scan.patient, scan.scan))))
        return f"{piece.unit + 1:06d}-{piece.scan + 1:03d}_{own[-80:].strip('._')}"


class _Progress:
    """A bar with slices a second on a terminal, a line in the log every half minute elsewhere."""

    def __init__(self, units: int, rank: int, world: int):
        self._units, self._who = units, f"process {rank + 1} of {world}: " if world > 1 else ""
        self._count, self._reached = 0, 0
        self._start = self._logged = time.monotonic()
        self._bar = tqdm(
            desc=f"{self._who}slices", unit="slice", disable=rank > 0 or not sys.stderr.isatty()
        )

    @property
    def rate(self) -> float:
        """Slices a second since the start."""
        return self._count / max(time.monotonic() - self._start, 1e-9)

    def slice(self) -> None:
        self._count += 1
        self._bar.update()
        if self._bar.disable and time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            logging.getLogger(__name__).info(
                "%s%d slices, %.1f slices/s, input part %d of %d",
                *(self._who, self._count, self.rate, self._reached, self._units),
            )

    def unit(self, number: int) -> None:
        self._reached = number + 1
        self._bar.set_postfix_str(f"input part {self._reached} of {self._units}")

    def close(self) -> None:
        self._bar.close()


def refuse_masks_without_head(predictor: CTPredictor, masks: Sequence[str]) -> None:
    """Raise :class:`CTMaskNetError` when label volumes are asked of a model that draws no masks."""
    if masks and not predictor.model.roi_heads.mask_on:
        raise CTMaskNetError(
            "--masks: these weights have no mask head, so lesions are boxes alone; leave out "
            "--masks, or give the lesion detector's configuration and weights"
        )
