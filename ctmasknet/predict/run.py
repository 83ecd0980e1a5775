"""The output folder of one prediction: what is finished in it, what a shard's slices leave there,
and what all of it is put together to."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

import ctmasknet
from ctmasknet.console.progress import Progress
from ctmasknet.ct.arrays import parse_axes
from ctmasknet.ct.dicom.reconstruction import series_name
from ctmasknet.ct.scan import CTScan, CTSlice, as_rescale
from ctmasknet.data.bad_slices import REPORT, BadSlice, BadSlices
from ctmasknet.draw.canvas import as_rgb
from ctmasknet.draw.lesions import SliceCall, side_by_side
from ctmasknet.draw.pages import png_bytes
from ctmasknet.engine.record import now, write_record
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import LOCK, atomic_write, writing
from ctmasknet.names import readable_stem
from ctmasknet.predict.dicom_seg import dicom_seg_bytes
from ctmasknet.predict.inputs import UNIT_FILES, Unit, read_ahead
from ctmasknet.predict.manifest import (
    MANIFEST,
    REMEDY,
    begin,
    check_output,
    finish,
    is_finished,
    mark_failed,
    output_of_one,
    read_manifest,
    remove_shards,
)
from ctmasknet.predict.masks import label_slice, mask_values, nifti_bytes
from ctmasknet.predict.outputs import Outputs, Summary
from ctmasknet.predict.predictor import CTPredictor
from ctmasknet.predict.results import PredictedSlice, slice_record
from ctmasknet.predict.shards import Shard, Shards, shards_of

#: Kinds of label volumes, and what their files end with.
MASKS = {"nifti": ".nii.gz", "dicom-seg": ".dcm"}
#: With fewer units than this for each process, their shards are dealt out instead.
_UNITS_A_PROCESS = 8


def is_shared(unit: Unit, units: int, world: int) -> bool:
    """Whether a unit's shards are dealt out to all processes, and not the whole unit to one."""
    return world > 1 and (unit.weight > UNIT_FILES or units < _UNITS_A_PROCESS * world)


class PredictionRun:
    """Owns the output folder in every process of a run, and the run's state with it.

    The order is: the constructor, :meth:`open`; then, within the run as a context (``with run:``),
    an :class:`OpenShard` for each shard that is :meth:`unfinished`, and :meth:`finish`. Nothing
    here calls a model.
    """

    def __init__(
        self,
        output: str | Path,
        settings: dict[str, Any],
        units: Sequence[Unit],
        bad: BadSlices,
        *,
        rank: int = 0,
        world: int = 1,
    ):
        """
        Args:
            output: the folder.
            settings: all that is written depends on, see
                :func:`ctmasknet.predict.manifest.settings_of`; among its ``options`` are ``masks``
                (kinds of :data:`MASKS`), ``overlays`` (draw slices that have a lesion) and
                ``score_threshold`` (lesions in both have to score more); ``rescale`` and
                ``axes`` where they are given.
            units: the inputs.
            bad: what is done about slices that cannot be read.
            rank, world: of this process, and number of processes.
        """
        self.output = Path(output)
        self.options = settings.get("options", {})
        self._settings, self._units, self._bad = settings, units, bad
        self._rank, self._world = rank, world
        self._mine = [
            number
            for number, unit in enumerate(units)
            if is_shared(unit, len(units), world) or number % world == rank
        ]
        self.shards = Shards(self.output)
        self._manifest: dict[str, Any] | None = None
        self._asked = {"resume": False, "overwrite": False}

    def open(self, *, resume: bool, overwrite: bool) -> Summary | None:
        """See in the main process, before anything is computed, that the folder may be used.

        Returns:
            in the main process, the summary of a run that is finished already.

        Raises:
            CTMaskNetError: another run is at work there; see
                :func:`ctmasknet.predict.manifest.check_output`.
        """
        if self._rank > 0:
            return None
        self._asked = {"resume": resume, "overwrite": overwrite}
        if (self.output / LOCK).is_file():
            with output_of_one(self.output):
                pass
        self._manifest = check_output(self.output, self._settings, **self._asked)
        if self._manifest is None or not is_finished(self._manifest):
            return None
        remove_shards(self.output)
        return Summary.from_json(self._manifest["summary"], self.output / MANIFEST)

    def __enter__(self) -> PredictionRun:
        """Make the folder ready, and this run's alone until its end.

        Raises:
            CTMaskNetError: it cannot be written to; another run has come here since; this process
                sees other settings than the main one.
        """
        with contextlib.ExitStack() as held:
            if self._rank == 0:
                held.enter_context(output_of_one(self.output))
                found = check_output(self.output, self._settings, **self._asked)
                self._manifest = begin(self.output, self._settings, found)
            comm.synchronize()
            try:
                self._manifest = read_manifest(self.output)
                if self._manifest["settings"] != self._settings:
                    raise CTMaskNetError(
                        f"{self.output}: this process sees other inputs, weights or options than "
                        "the main one; every machine needs the same files under the same paths"
                    )
            except CTMaskNetError:
                self._fail()
                raise
            self._held = held.pop_all()
        self.progress = _Found([self._units[i] for i in self._mine], self._rank, self._world)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        with self._held:
            self.progress.__exit__()
            if kind is not None:
                self._fail()

    def _fail(self) -> None:
        self.shards.mark_failed(self._rank)
        if self._rank == 0:
            mark_failed(self.output)

    def refuse(self, file: str, reason: str) -> None:
        """Raise :class:`CTMaskNetError` for a bad file or slice, unless these are left out."""
        if not self._bad.skip:
            self._bad.add(file, reason, "")

    def unfinished(self) -> Iterator[tuple[tuple[Shard, CTScan], Sequence[CTSlice]]]:
        """This process's shards that are not finished, each with its scan and its slices; headers
        are read one unit ahead."""
        count, world = len(self._units), self._world
        axes = self.options.get("axes")
        how = {"axes": None if axes is None else parse_axes(axes)}
        how["rescale"] = as_rescale(self.options.get("rescale"))
        for number, read in read_ahead(self._left_over(), skip_bad=True, **how):
            for bad in read.bad:
                self.refuse(*bad)
            with writing(self.output, REMEDY):
                self.shards.write_unit(number, read)
            shared = is_shared(self._units[number], count, world)
            left = [
                shard
                for index, shard in enumerate(shards_of(number, read.scans))
                if (not shared or (number + index) % world == self._rank)
                and not self.shards.has(shard)
            ]
            self.progress.read(self._units[number], sum(one.stop - one.start for one in left))
            for shard in left:
                scan = read.scans[shard.scan]
                yield (shard, scan), scan.slices[shard.start : shard.stop]

    def _left_over(self) -> Iterator[tuple[int, Unit]]:
        """This process's units that are not finished."""
        for number in self._mine:
            unit = self._units[number]
            if self.shards.is_finished(number):
                self.progress.skip(unit)
            else:
                yield number, unit

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file of the folder, whole.

        Raises:
            CTMaskNetError: it cannot be written.
        """
        path = self.output / name
        with writing(path, REMEDY), atomic_write(path, "wb") as stream:
            stream.write(content)

    def stamp(self) -> tuple[str, datetime.datetime]:
        """SHA-256 of all that the outputs depend on, and when the run began."""
        identity = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()
        return identity, datetime.datetime.fromisoformat(self._manifest["started"])

    def finish(
        self, predictor: CTPredictor, asked: dict[str, Any], environment: dict[str, Any]
    ) -> Summary | None:
        """In the main process, put the shards of all processes together and write the record.

        Args:
            predictor: of the run.
            asked: what ``run.json`` is told of the call.
            environment: and of what it ran in.

        Returns:
            counts, in the main process; None in others.

        Raises:
            CTMaskNetError: another process has failed; no slice was found; a file cannot be
                written.
        """
        if self._rank > 0:
            return None
        told = self.options["score_threshold"], self.options.get("averaged", "")
        outputs = Outputs(self.shards, len(self._units), self.output, predictor, *told)
        summary = outputs.write(self._bad)
        # The record counts problems; the listing names them
        results = {k: v for k, v in asdict(summary).items() if k != "shown_problems"}
        entry = {
            "kind": "prediction",
            "status": "finished",
            "start": self._manifest["started"],
            "end": now(),
            "seconds": round(self.progress.seconds, 1),
            "slices_per_second": round(self.progress.rate, 2),
            **asked,
            "settings": self._settings,
            "pooling": summary.pooling,
            "cautions": list(predictor.all_cautions),
            "mask_values": mask_values(predictor.lesion_classes) if self.options["masks"] else {},
            "results": results,
            **environment,
        }
        with writing(self.output, REMEDY):
            write_record(self.output, [entry])
            if self._bad.skip:
                self._bad.finish(self.output / REPORT, check=False)
        finish(self.output, self._manifest, asdict(summary))
        return summary


class OpenShard:
    """A shard while its slices are predicted: their lines, and the labels of its masks.

    Every slice is added with its result; then the shard is written.
    """

    def __init__(self, run: PredictionRun, predictor: CTPredictor, shard: Shard, scan: CTScan):
        self.shard, self.scan = shard, scan
        self._run, self._options = run, run.options
        self._classes, self._image_classes = predictor.lesion_classes, predictor.image_classes
        self._cautions = predictor.all_cautions
        self._records: list[dict[str, Any]] = []
        self._labels: list[np.ndarray] = []

    def add(self, found: PredictedSlice | BadSlice, pixels: np.ndarray | None) -> None:
        """Take the next slice; its overlay is written at once, so that its px need not be held.

        Args:
            found: what is said of it.
            pixels: (H, W) or (H, W, 3) uint8; None of a bad one.

        Raises:
            CTMaskNetError: the overlay cannot be written.
        """
        self._run.progress.update()
        index = self.shard.start + len(self._records)
        threshold = self._options["score_threshold"]
        is_bad = isinstance(found, BadSlice)
        lesions = () if is_bad else found.lesions
        if self._options["masks"] and self.scan.kind != "image":
            value_of = mask_values(self._classes)
            values, shape = (
                [value_of[name] for name in self._classes],
                self.scan.slices[index].shape,
            )
            self._labels.append(label_slice(lesions, shape, values, threshold))
        record = {"file": found.file, "bad": found.reason} if is_bad else slice_record(found)
        if self._options["overlays"] and any(one.score > threshold for one in lesions):
            name = f"{self._own_name}_slice-{index + 1:04d}.png"
            record["overlay"] = f"overlays/{self._stem}/{name}"
            self._run.write_file(record["overlay"], png_bytes(self._overlay(found, pixels)))
        self._records.append(record)

    def write(self) -> None:
        """Write what was made of the shard's slices, its lines last.

        Raises:
            CTMaskNetError: a file cannot be written.
        """
        volumes = [self._write_volumes()] if self._options["masks"] else []
        with writing(self._run.output, REMEDY):
            self._run.shards.write(self.shard, self._records + volumes)

    def _write_volumes(self) -> dict[str, Any]:
        """Write the label volumes; one that the source does not allow becomes a problem."""
        masks: dict[str, str] = {}
        problems = []
        if not self._labels:
            return {"masks": masks, "problems": ["no label volume: pictures state no geometry"]}
        for kind in self._options["masks"]:
            try:
                content = self._volume(kind)
            except CTMaskNetError as error:
                problems.append(f"no {kind} volume: {error}")
                logging.getLogger(__name__).warning("No %s volume: %s", kind, error)
                continue
            masks[kind] = f"masks/{self._stem}{MASKS[kind]}"
            self._run.write_file(masks[kind], content)
        return {"masks": masks, "problems": problems}

    def _volume(self, kind: str) -> bytes:
        if kind == "nifti":
            return nifti_bytes(self.scan, self._labels, caution=bool(self._cautions))
        identity, created = self._run.stamp()
        made = {"identity": identity, "created": created}
        made["software"] = f"{ctmasknet.__version__} {identity[:12]}"
        made["cautions"] = self._cautions
        return dicom_seg_bytes(self.scan, self._labels, self._classes, **made)

    def _overlay(self, found: PredictedSlice, pixels: np.ndarray) -> np.ndarray:
        call = None
        if found.scores is not None:
            call = SliceCall(self._image_classes, found.pred_class, scores=found.scores.tolist())
        return side_by_side(
            as_rgb(pixels),
            None,
            found.instances,
            class_names=self._classes,
            title=found.source.name + " (caution: see run.json)" * bool(self._cautions),
            call=call,
            score_threshold=self._options["score_threshold"],
        )

    @property
    def _stem(self) -> str:
        """Unique and readable: numbers of unit and scan, then the scan's own name."""
        shard = self.shard
        return f"{shard.unit + 1:06d}-{shard.scan + 1:03d}_{self._own_name}"

    @property
    def _own_name(self) -> str:
        """Patient and series as people call them."""
        return readable_stem(self.scan.patient, series_name(self.scan) or self.scan.scan)


class _Found(Progress):
    """Slices of a run, whose number is known once all units have been read: until then those that
    have not been read are expected to hold as many for their weight as the others do."""

    def __init__(self, units: Sequence[Unit], rank: int, world: int):
        title = f"slices, process 1 of {world}" if world > 1 else "slices"
        super().__init__(title, shown=rank == 0)
        self._left, self._read, self._found = sum(unit.weight for unit in units), 0, 0

    def read(self, unit: Unit, slices: int) -> None:
        """A unit holds so many slices that are to be predicted here."""
        self._left -= unit.weight
        self._read += unit.weight
        self._found += slices
        left = round(self._left * self._found / max(self._read, 1))
        self.expect(self._found + left, about=left > 0)

    def skip(self, unit: Unit) -> None:
        """A unit was finished before."""
        self._left -= unit.weight
