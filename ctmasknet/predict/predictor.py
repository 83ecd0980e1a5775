"""From scans to classes and lesions, in Python.

from ctmasknet.predict import CTPredictor

predictor = CTPredictor.from_config_file("configs/cls.yaml", weights="model_best.pth")
for scan in predictor(["/data/scans"]):
    print(scan.source.scan, scan.pooling, scan.scores)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from torch import nn

from ctmasknet.config import is_classifier
from ctmasknet.ct.read import CTScan, CTSlice
from ctmasknet.ct.scan import Window
from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.engine.checkpoint import CALIBRATION
from ctmasknet.engine.setup import inference_cfg, load_model
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.fast.inference import inference_model
from ctmasknet.predict.inputs import Loaded, Unit, batches, list_units, load_groups, read_ahead
from ctmasknet.predict.pooled import Pooler, build_pooler
from ctmasknet.predict.results import PredictedScan, PredictedSlice, predicted_slice

#: Boxes that are kept of every slice as its best.
TOP_BOXES = 10


class CTPredictor:
    """A trained slice classifier or lesion detector for scans of any kind that ``ct_io`` reads.

    Call it with paths. Slices are read and resized by threads while the model works. A batch never
    holds slices of two scans or of two sizes, so a result does not depend on what else is
    predicted.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        augmentations: Sequence[T.Augmentation],
        window: Window,
        lesion_classes: Sequence[str],
        image_classes: Sequence[str] = (),
        crop_to_body: bool = False,
        pooler: Pooler | None = None,
        lesions: bool = False,
        batch_size: int = 1,
        num_workers: int = 2,
        top_boxes: int = TOP_BOXES,
    ):
        """
        Args:
            model: a ``CTMaskNet`` or a detector of Detectron2's, with its weights.
            augmentations: the resize.
            window: through which HU become grey levels; 8-bit pictures pass unchanged.
            lesion_classes: names of the detector's classes.
            image_classes: C names in the order of the logits; empty for a detector.
            crop_to_body: slices would have to come with a body box; refused here.
            pooler: how slices become a scan; a classifier needs one.
            lesions: find a classifier's lesions too; a detector always does.
            batch_size: slices a batch. Results agree between batch sizes to rounding alone.
            num_workers: threads that read slices; 0 reads between batches.
            top_boxes: best boxes kept of a slice.

        Raises:
            CTMaskNetError: a batch size below 1, or a configuration that crops to the body.
        """
        if crop_to_body:
            raise CTMaskNetError(
                "INPUT.CROP_TO_BODY: scans come without body boxes; set it to False, or evaluate a "
                "prepared data set with tools/train_net.py --eval-only"
            )
        if batch_size < 1:
            raise CTMaskNetError(f"--batch-size: {batch_size} slices make no batch; give 1 or more")
        self.model = model.eval()
        self.window = window
        self.lesion_classes = tuple(lesion_classes)
        self.image_classes = tuple(image_classes)
        self.pooler = pooler
        self.lesions = lesions or not self.image_classes
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.top_boxes = top_boxes
        self._mapper = SliceMapper(False, augmentations=list(augmentations))
        if self.image_classes:
            self.model.return_instances = self.lesions
            self.model.return_ranked_instances = True

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        *,
        calibration: Mapping[str, Any] | None = None,
        pooling: str | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **options,
    ) -> dict[str, Any]:
        """Load ``MODEL.WEIGHTS`` of ``cfg``.

        Args:
            cfg: complete, see :func:`ctmasknet.engine.setup.inference_cfg`.
            calibration: stored with the checkpoint.
            pooling: see :func:`ctmasknet.predict.pooled.build_pooler`.
            top_k: likewise.
            batch_size: default ``TEST.IMS_PER_BATCH``.
            num_workers: default ``DATALOADER.NUM_WORKERS``.
            options: further arguments of the constructor.

        Raises:
            CTMaskNetError: see :func:`ctmasknet.engine.setup.load_model` and ``build_pooler``; a
                pooling for a lesion detector.
        """
        classes = tuple(cfg.MODEL.IMAGE_HEAD.CLASSES) if is_classifier(cfg) else ()
        pooler = None
        if classes:
            pooler = build_pooler(
                classes, calibration, name=pooling, top_k=top_k, source=cfg.MODEL.WEIGHTS
            )
        elif pooling is not None or top_k is not None:
            raise CTMaskNetError(
                "--pooling, --top-k: a lesion detector names no class that could be pooled; leave "
                "them out, or give a classifier's configuration and weights"
            )
        mapper = SliceMapper.from_config(cfg, is_train=False)
        return {
            "model": inference_model(cfg, load_model(cfg)),
            "augmentations": mapper["augmentations"],
            "crop_to_body": mapper["crop_to_body"],
            "window": Window(cfg.INPUT.WINDOW_CENTER_HU, cfg.INPUT.WINDOW_WIDTH_HU),
            "lesion_classes": tuple(cfg.MODEL.LESION_CLASSES),
            "image_classes": classes,
            "pooler": pooler,
            "batch_size": cfg.TEST.IMS_PER_BATCH if batch_size is None else batch_size,
            "num_workers": cfg.DATALOADER.NUM_WORKERS if num_workers is None else num_workers,
            **options,
        }

    @classmethod
    def from_config_file(
        cls,
        config_file: str | os.PathLike,
        weights: str | None = None,
        overrides: Sequence[str] = (),
        **options,
    ) -> CTPredictor:
        """The predictor of a configuration file.

        Args:
            config_file: such as ``configs/cls.yaml`` or ``configs/seg.yaml``.
            weights: the checkpoint; default ``model_best.pth`` of the file's ``OUTPUT_DIR``.
            overrides: ``KEY VALUE`` pairs, such as ``["MODEL.DEVICE", "cpu"]``.
            options: ``pooling``, ``top_k``, ``lesions``, ``batch_size``, ``num_workers``,
                ``top_boxes``.

        Raises:
            CTMaskNetError: see :func:`ctmasknet.engine.setup.inference_cfg` and
                :func:`ctmasknet.engine.setup.load_model`.
        """
        cfg, spec = inference_cfg(config_file, overrides, weights)
        return cls(cfg, calibration=spec.get(CALIBRATION), **options)

    def __call__(
        self,
        inputs: str | os.PathLike | Sequence[str | os.PathLike],
        on_bad: Callable[[str, str], None] | None = None,
    ) -> Iterator[PredictedScan]:
        """Predict every scan in files and folders, one after the other, as they are found.

        Names are listed at the call. Headers are read a unit ahead of the model
        (:mod:`ctmasknet.predict.inputs`), pixels a few slices ahead; nothing is kept of a scan once
        the next is asked for. Scans come as in ``tools/predict.py``, which does the same and writes
        it to files.

        Args:
            inputs: files and folders of any depth, or one of them.
            on_bad: called with file and reason of what cannot be read, which is then left out; by
                default the first such file raises when its turn comes.

        Raises:
            CTMaskNetError: see :func:`ctmasknet.predict.inputs.list_units`, at the call; see
                :func:`ctmasknet.ct.read.read_scans`, while it goes on.
        """
        paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
        units, _ = list_units(paths, skip_bad=on_bad is not None)
        return self._scans(units, on_bad)

    def _scans(
        self, units: Sequence[Unit], on_bad: Callable[[str, str], None] | None
    ) -> Iterator[PredictedScan]:
        skip_bad = on_bad is not None

        def groups() -> Iterator[tuple[CTScan, Sequence[CTSlice]]]:
            numbered = enumerate(units)
            for _, read in read_ahead(numbered, skip_bad=skip_bad, threads=self.num_workers):
                for problem in read.bad:
                    on_bad(*problem)
                yield from ((scan, scan.slices) for scan in read.scans)

        for scan, found in self.predict_slices(groups(), skip_bad=skip_bad):
            predicted, bad = [], []
            for result, _ in found:
                if isinstance(result, BadSlice):
                    on_bad(result.file, result.reason)
                    bad.append((result.file, result.reason))
                else:
                    predicted.append(result)
            yield self.pooled(scan, predicted, bad)

    def predict_slices(
        self, groups: Iterable[tuple[Any, Sequence[CTSlice]]], *, skip_bad: bool = False
    ) -> Iterator[tuple[Any, Iterator[tuple[PredictedSlice | BadSlice, np.ndarray | None]]]]:
        """Predict groups of slices in order, reading the next ones ahead.

        Args:
            groups: (anything, slices); read lazily. A batch stays within one group.
            skip_bad: an unreadable slice comes as :class:`BadSlice` and does not raise.

        Yields:
            the group's first part, and an iterator over (result, grey pixels (H, W) or (H, W, 3)
            uint8) of its slices, which has to be used up before the next group.
        """
        loaded = load_groups(
            groups,
            self._read,
            threads=self.num_workers,
            # Two batches wait while one is computed
            limit=2 * self.batch_size + max(1, self.num_workers),
            skip_bad=skip_bad,
        )
        for group, members in loaded:
            yield group, self._results(members)

    def pooled(
        self,
        scan: CTScan,
        slices: Sequence[PredictedSlice],
        skipped: Sequence[tuple[str, str]] = (),
    ) -> PredictedScan:
        """The scan's one answer from its slices."""
        scores = None
        if self.pooler and slices:
            scores = self.pooler([found.logits for found in slices])
        return PredictedScan(
            source=scan,
            slices=tuple(slices),
            image_classes=self.image_classes,
            lesion_classes=self.lesion_classes,
            pooling=self.pooler.label if self.pooler else "",
            scores=scores,
            pred_class=None if scores is None else int(np.argmax(scores)),
            calibrated_scores=None if scores is None else self.pooler.calibrated("scans", scores),
            skipped=tuple(skipped),
        )

    def _read(self, source: CTSlice) -> tuple[dict[str, Any], np.ndarray]:
        """The model's input, and the grey pixels it is made of."""
        pixels = source.pixels(self.window)
        return self._mapper.map_pixels({"file_name": source.name}, pixels), pixels

    def _results(
        self, members: Iterable[Loaded]
    ) -> Iterator[tuple[PredictedSlice | BadSlice, np.ndarray | None]]:
        """In the order of the slices."""
        for batch in batches(members, self.batch_size):
            if isinstance(batch, BadSlice):
                yield batch, None
            else:
                yield from self._predict(batch)

    def _predict(self, batch: Sequence[Loaded]) -> Iterator[tuple[PredictedSlice, np.ndarray]]:
        with torch.no_grad():
            outputs = self.model([one.item for one in batch])
        for one, output in zip(batch, outputs, strict=True):
            found = predicted_slice(
                one.source,
                output,
                classes=bool(self.image_classes),
                lesions=self.lesions,
                top_boxes=self.top_boxes,
                calibrated=self.pooler and functools.partial(self.pooler.calibrated, "slices"),
            )
            yield found, one.pixels
