"""The one way to run a model on slices: from scans to classes and lesions, in Python.

    from ctmasknet.predict import CTPredictor

    predictor = CTPredictor.from_config_file(weights="model_best.pth")
    for scan in predictor(["/data/scans"]):
        print(scan.source.scan, scan.pooling, scan.scores)

Slices that are in memory, such as a data set's, go through :meth:`CTPredictor.mapped` and
:meth:`CTPredictor.predict`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, check_image_size
from detectron2.utils.logger import log_first_n
from torch import nn

from ctmasknet.config import is_classifier
from ctmasknet.ct.appearance import Appearance, appearance
from ctmasknet.ct.arrays import Axes
from ctmasknet.ct.scan import CTScan, CTSlice, Rescale, Window, check_rescale
from ctmasknet.data.bad_slices import BadSlice
from ctmasknet.data.mapper import LungSearch, SliceMapper
from ctmasknet.engine.checkpoint import CALIBRATION
from ctmasknet.engine.setup import inference_cfg, load_model
from ctmasknet.engine.testing import check_finds_lesions, ensemble_members
from ctmasknet.engine.trained_on import Record, lesion_caution, levels_trained_on, phantom_caution
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.averaged import MEMBER_INPUTS, averaged
from ctmasknet.modeling.fast.inference import inference_model
from ctmasknet.modeling.finite import slices_named
from ctmasknet.modeling.peers import SemanticLesionNet
from ctmasknet.predict.inputs import Unit, list_units, read_ahead
from ctmasknet.predict.loading import (
    LESION_INPUT,
    Loaded,
    SeenThrough,
    batches,
    load_groups,
    unseen,
    whole_scan,
)
from ctmasknet.predict.pooled import Pooler, build_pooler, calibration_in_use
from ctmasknet.predict.results import PredictedScan, PredictedSlice, ScanDoubts, found_boxes

#: Boxes that are kept of every slice as its best.
TOP_BOXES = 10


class CTPredictor:
    """A trained slice classifier or lesion detector for slices of any kind that
    :mod:`ctmasknet.ct` reads.

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
        lesion_predictor: CTPredictor | None = None,
        image_classes: Sequence[str] = (),
        crop_to_body: bool = False,
        needs_box: bool = True,
        lungs_by: LungSearch | None = None,
        pooler: Pooler | None = None,
        lesions: bool = False,
        batch_size: int = 1,
        num_workers: int = 2,
        top_boxes: int = TOP_BOXES,
        trained_on: Record = (),
        members: Sequence[CTPredictor] = (),
        used: nn.Module | None = None,
    ):
        """
        Args:
            model: a ``CTMaskNet`` or a detector of Detectron2's, with its weights.
            augmentations: the resize.
            window: through which HU become grey levels; 8-bit pictures pass unchanged.
            lesion_classes: names of the detector's classes.
            lesion_predictor: of a lesion detector, whose lesions are told in place of a
                classifier's own; its lesions are asked for then.
            image_classes: C names in the order of the logits; empty for a detector.
            crop_to_body: cut slices to their body box; they have to come with one, see
                :meth:`mapped`, and scans do not.
            needs_box: whether that is refused without a box; else the slice stays whole.
            lungs_by: what lungs are looked for, and why.
            pooler: how slices become a scan; a classifier needs one.
            lesions: find a classifier's lesions too; a detector always does.
            batch_size: slices a batch. Results agree between batch sizes to rounding alone.
            num_workers: threads that read slices; 0 reads between batches.
            top_boxes: best boxes kept of a slice.
            trained_on: what the weights' file says of it.
            members: an ensemble's others; boxes and lesions are this one's.
            used: of :func:`ctmasknet.modeling.averaged.averaged`; default ``model``.

        What has to be told to whoever uses the results is in :attr:`cautions` and, of lesions,
        :attr:`lesion_cautions`; it is logged.

        Raises:
            CTMaskNetError: a batch size below 1; a lesion predictor beside a detector, or one that
                is none.
        """
        if batch_size < 1:
            raise CTMaskNetError(f"`batch_size`: {batch_size} slices make no batch; give 1 or more")
        other = lesion_predictor
        if other is not None and (other.image_classes or not image_classes):
            raise CTMaskNetError(
                "`lesion_weights`: a classifier's lesions are taken from a lesion detector; give "
                "the weights of the one as `weights` and of the other as `lesion_weights`"
            )
        self.model = model.eval()
        self.members = tuple(members)
        self._used = self.model if used is None else used.eval()
        self.window, self.lesion_predictor = window, other
        self.box_classes = tuple(lesion_classes)
        self.lesion_classes = self.box_classes if other is None else other.lesion_classes
        self.image_classes, self.pooler = tuple(image_classes), pooler
        self.lesions = lesions or other is not None or not self.image_classes
        record = list(trained_on)
        task = "classification" if self.image_classes else "segmentation"
        #: Of the pictures that the weights were trained on.
        self.expected_levels = levels_trained_on(record, task)
        #: Whether the model names a scan by its slices together.
        self.sees_scans: bool = getattr(model, "sees_scans", False)
        told = [phantom_caution(record), *(one for its in members for one in its.cautions)]
        self.cautions = tuple(dict.fromkeys(filter(None, told)))
        bent = lesion_caution(record) if self.image_classes and other is None else None
        self.lesion_cautions = tuple(filter(None, [bent])) if other is None else other.cautions
        for caution in self.all_cautions:  # which an ensemble's models may share
            log_first_n(logging.WARNING, f"Caution: {caution}", name=__name__, key="message")
        self.batch_size, self.num_workers = batch_size, num_workers
        self.top_boxes, self.crop_to_body = top_boxes, crop_to_body
        self._mapper = SliceMapper(
            *(False,),
            augmentations=list(augmentations),
            crop_to_body=crop_to_body,
            lungs_by=lungs_by,
            needs_box=needs_box,
        )

    @property
    def all_cautions(self) -> tuple[str, ...]:
        """Those of the class and, where lesions are told, of the lesions, each once."""
        own = self.lesion_cautions if self.lesions else ()
        return tuple(dict.fromkeys((*self.cautions, *own)))

    @property
    def has_mask_head(self) -> bool:
        """Whether lesions come with masks."""
        model = (self.lesion_predictor or self).model
        return isinstance(model, SemanticLesionNet) or model.roi_heads.mask_on

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        *,
        model: nn.Module | None = None,
        calibration: Mapping[str, Any] | None = None,
        pooling: str | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **options,
    ) -> dict[str, Any]:
        """What a configuration says of a predictor.

        Args:
            cfg: complete, see :func:`ctmasknet.engine.setup.inference_cfg`.
            model: of ``cfg``, taken as it is; by default ``MODEL.WEIGHTS`` is loaded, as
                ``MODEL.INFERENCE`` wants it.
            calibration: stored with the checkpoint.
            pooling, top_k: see :func:`ctmasknet.predict.pooled.build_pooler`.
            batch_size: default ``TEST.IMS_PER_BATCH``.
            num_workers: default ``DATALOADER.NUM_WORKERS``.
            options: further arguments of the constructor.

        Raises:
            CTMaskNetError: see :func:`ctmasknet.engine.setup.load_model` and ``build_pooler``; a
                pooling for a lesion detector.
        """
        classes = tuple(cfg.MODEL.IMAGE_HEAD.CLASSES) if is_classifier(cfg) else ()
        pooler = None
        members = [cls(its) for its in ensemble_members(cfg)]
        calibration = calibration_in_use(cfg, calibration)
        if classes:
            pooler = build_pooler(
                classes, calibration, name=pooling, top_k=top_k, source=cfg.MODEL.WEIGHTS
            )
        elif pooling is not None or top_k is not None:
            raise CTMaskNetError(
                "`pooling`, `top_k`: a lesion detector names no class that could be pooled; leave "
                "them out, or give a classifier's weights"
            )
        if options.get("lesions") and options.get("lesion_predictor") is None:
            check_finds_lesions(cfg)
        mapper = SliceMapper.from_config(cfg, is_train=False)
        loaded = load_model(cfg) if model is None else model
        own = inference_model(cfg, loaded) if model is None else model
        return {
            "model": own,
            "members": members,
            "used": averaged(cfg, [own, *(its.model for its in members)]),
            "trained_on": getattr(loaded, "trained_on", ()),
            "augmentations": mapper["augmentations"],
            "crop_to_body": bool(classes) and mapper["crop_to_body"],
            "needs_box": mapper["needs_box"],
            "lungs_by": mapper["lungs_by"] if classes else None,
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
        config_file: str | os.PathLike = "",
        weights: str | Sequence[str] | None = None,
        overrides: Sequence[str] = (),
        **options,
    ) -> CTPredictor:
        """The predictor of a model file, or of a configuration file.

        Args:
            config_file: such as ``configs/cls.yaml`` or ``configs/seg.yaml``; "" where the
                checkpoint states its configuration.
            weights: the checkpoint; default ``model_best.pth`` of the file's ``OUTPUT_DIR``.
                Several classifiers are an ensemble.
            overrides: ``KEY VALUE`` pairs, such as ``["MODEL.DEVICE", "cpu"]``.
            options: ``pooling``, ``top_k``, ``lesions``, ``lesion_predictor``, ``batch_size``,
                ``num_workers``, ``top_boxes``.

        Raises:
            CTMaskNetError: see :func:`ctmasknet.engine.setup.inference_cfg` and
                :func:`ctmasknet.engine.setup.load_model`.
        """
        cfg, spec = inference_cfg(config_file, overrides, weights, averages=True)
        return cls(cfg, calibration=spec.get(CALIBRATION), **options)

    def __call__(
        self,
        inputs: str | os.PathLike | Sequence[str | os.PathLike],
        on_bad: Callable[[str, str], None] | None = None,
        rescale: Rescale | None = None,
        axes: Axes | None = None,
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
            rescale, axes: see :func:`ctmasknet.ct.read.read_scans`.

        Raises:
            CTMaskNetError: see :func:`ctmasknet.predict.inputs.list_units`, at the call; see
                :func:`ctmasknet.ct.read.read_scans`, while it goes on.
        """
        paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
        self.refuse_crop()
        units, _ = list_units(paths, skip_bad=on_bad is not None)
        check_rescale(rescale)
        return self._scans(units, on_bad, rescale, axes)

    def _scans(
        self,
        units: Sequence[Unit],
        on_bad: Callable[[str, str], None] | None,
        rescale: Rescale | None,
        axes: Axes | None,
    ) -> Iterator[PredictedScan]:
        skip_bad = on_bad is not None

        def groups() -> Iterator[tuple[CTScan, Sequence[CTSlice]]]:
            numbered = enumerate(units)
            how = {"skip_bad": skip_bad, "rescale": rescale, "axes": axes}
            how["threads"] = self.num_workers
            for _, read in read_ahead(numbered, **how):
                for problem in read.bad:
                    on_bad(*problem)
                yield from ((scan, scan.slices) for scan in read.scans)

        for scan, loaded in self.batches(groups(), skip_bad=skip_bad):
            predicted, bad = [], []
            for batch in loaded:
                if isinstance(batch, BadSlice):
                    on_bad(batch.file, batch.reason)
                    bad.append((batch.file, batch.reason))
                    continue
                outputs = self.predict([one.item for one in batch])
                for one, output in zip(batch, outputs, strict=True):
                    predicted.append(self.result(one.source, output, one.seen))
            yield self.pooled(scan, predicted, bad)

    def batches(
        self, groups: Iterable[tuple[Any, Sequence[CTSlice]]], *, skip_bad: bool = False
    ) -> Iterator[tuple[Any, Iterator[list[Loaded] | BadSlice]]]:
        """Read groups of slices in order, ahead of the model, into batches for :meth:`predict`.

        Args:
            groups: (anything, slices); read lazily. A batch stays within one group.
            skip_bad: an unreadable slice comes as :class:`BadSlice` and does not raise.

        Yields:
            the group's first part, and an iterator over its batches, which has to be used up
            before the next group. Of a model that names scans a batch is the whole group.
        """

        def read(source: CTSlice) -> tuple[dict[str, Any], np.ndarray, Appearance]:
            pixels, other = source.pixels(self.window), self.lesion_predictor
            item = self.mapped({"file_name": source.name}, pixels, source.pixels)
            if other is not None:
                same = other.window == self.window
                its = pixels if same else source.pixels(other.window)
                item[LESION_INPUT] = other.mapped({"file_name": source.name}, its)
            return item, pixels, appearance(pixels)

        loaded = load_groups(
            groups,
            read,
            threads=self.num_workers,
            # Two batches wait while one is computed
            limit=2 * self.batch_size + max(1, self.num_workers),
            skip_bad=skip_bad,
        )
        for group, members in loaded:
            its = whole_scan(members) if self.sees_scans else batches(members, self.batch_size)
            yield group, its

    def mapped(
        self, entry: Mapping[str, Any], pixels: np.ndarray, seen_through: SeenThrough = unseen
    ) -> dict[str, Any]:
        """The model's input for a slice in memory.

        Args:
            entry: dataset dict: ``file_name`` at least, and ``body_box`` where slices are cropped;
                stays as it is.
            pixels: (H, W) or (H, W, 3) uint8, whole.
            seen_through: gives the same through the window of an ensemble's other model.

        Returns:
            as :class:`ctmasknet.data.mapper.SliceMapper`, with those of an ensemble's others.

        Raises:
            CTMaskNetError: other sides than the entry states, or none that are read; a crop without
                a body box.
        """
        try:
            check_image_size(dict(entry), pixels)
        except SizeMismatchError as error:
            raise CTMaskNetError(
                f"{entry['file_name']}: {error}; prepare the data set again"
            ) from None
        item = self._mapper.map_pixels(dict(entry), pixels)
        for its in self.members:
            seen = pixels if its.window == self.window else seen_through(its.window)
            item.setdefault(MEMBER_INPUTS, []).append(its.mapped(entry, seen))
        return item

    def predict(self, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One batch through the model.

        Args:
            items: inputs, see :meth:`mapped`.

        Returns:
            of each what the model gives: a detector ``instances``, a classifier ``logits``,
            ``scores``, ``pred_class``, ``ranked_boxes``, ``ranked_instances`` and, with
            ``lesions``, ``instances``.

        Raises:
            CTMaskNetError: the detector gives a number that is not finite.
        """
        with torch.no_grad(), self._returning(), slices_named(lambda: items):
            outputs = self._used(list(items))
        if self.lesion_predictor is not None:
            its = self.lesion_predictor.predict([item[LESION_INPUT] for item in items])
            for output, found in zip(outputs, its, strict=True):
                output["instances"] = found["instances"]
        return outputs

    def result(
        self, source: CTSlice, output: Mapping[str, Any], seen: Appearance | None = None
    ) -> PredictedSlice:
        """What the model's output says of a slice.

        Args:
            source: the slice.
            output: of :meth:`predict`.
            seen: what its grey levels show.

        Raises:
            CTMaskNetError: logits that are no finite numbers.
        """
        lesions = found_boxes(output["instances"]) if self.lesions else None
        has_masks = self.lesions and output["instances"].has("pred_masks")
        if not self.image_classes:
            best = tuple(replace(lesion, rle=None) for lesion in lesions[: self.top_boxes])
            return PredictedSlice(
                *(source, None, None, None, None, best),
                lesions=lesions,
                has_masks=has_masks,
                seen=seen,
            )
        logits = output["logits"].cpu().numpy()
        if not np.isfinite(logits).all():
            raise CTMaskNetError(
                f"{source.name}: the model gives logits that are no finite numbers; its weights "
                "have diverged in training, take an earlier checkpoint"
            )
        has_boxes = "ranked_boxes" in output
        return PredictedSlice(
            source=source,
            pred_class=output["pred_class"],
            logits=logits,
            scores=output["scores"].cpu().numpy(),
            ranked_boxes=output["ranked_boxes"].cpu().numpy() if has_boxes else None,
            top_boxes=found_boxes(output["ranked_instances"], self.top_boxes) if has_boxes else (),
            lesions=lesions,
            calibrated_scores=self.pooler and self.pooler.calibrated("slices", logits),
            has_masks=has_masks,
            seen=seen,
        )

    def pooled(
        self,
        scan: CTScan,
        slices: Sequence[PredictedSlice],
        skipped: Sequence[tuple[str, str]] = (),
    ) -> PredictedScan:
        """The scan's one answer from its slices."""
        scores, doubts = None, ScanDoubts()
        for found in slices:
            doubts.add(found.source.name, found.problems, found.seen and found.seen.levels)
        if self.pooler and slices:
            scores = self.pooler([found.logits for found in slices])
        return PredictedScan(
            source=scan,
            slices=tuple(slices),
            image_classes=self.image_classes,
            lesion_classes=self.lesion_classes,
            box_classes=self.box_classes,
            pooling=self.pooler.label if self.pooler else "",
            scores=scores,
            pred_class=None if scores is None else int(np.argmax(scores)),
            calibrated_scores=None if scores is None else self.pooler.calibrated("scans", scores),
            skipped=tuple(skipped),
            problems=(*scan.problems, *doubts.problems(self.expected_levels, self.sees_scans)),
            cautions=self.all_cautions,
        )

    def refuse_crop(self) -> None:
        """Raise :class:`CTMaskNetError` where slices are cropped, which a scan's cannot be."""
        for its in self.members:
            its.refuse_crop()
        if self.crop_to_body and self._mapper.needs_box:
            raise CTMaskNetError(
                "INPUT.CROP_TO_BODY: scans come without body boxes; give weights that were trained "
                "on whole slices, or evaluate a prepared data set with tools/train_net.py"
            )

    @contextlib.contextmanager
    def _returning(self) -> Iterator[None]:
        """A classifier gives its boxes meanwhile, and lesions if asked; it is left as it was."""
        own = self.lesions and self.lesion_predictor is None
        wanted = {"return_instances": own, "return_ranked_instances": True}
        before = {key: vars(self.model)[key] for key in wanted if key in vars(self.model)}
        vars(self.model).update({key: wanted[key] for key in before})
        try:
            yield
        finally:
            vars(self.model).update(before)
