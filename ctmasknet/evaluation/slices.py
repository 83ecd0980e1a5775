"""Sensitivity, precision and accuracy of slice classes (paper section 4) as an evaluator."""

from __future__ import annotations

import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.metrics import (
    bce_loss,
    classification_metrics,
    confusion_matrix,
    confusion_table,
)
from ctmasknet.evaluation.pooled_files import write_pooled_csv
from ctmasknet.evaluation.pooling import POOLED_LEVELS, ScorePooling, pool_slices
from ctmasknet.evaluation.predictions import SlicePrediction, write_predictions_csv
from ctmasknet.evaluation.report import interval_text
from ctmasknet.evaluation.subgroups import group_columns, subgroup_report, subgroup_text
from ctmasknet.files import write_json

# How the evaluator pools; tools/evaluate_predictions.py has the others.
_POOLING = "mean"


class ImageClassificationEvaluator(DatasetEvaluator):
    """Confusion matrix, paper section 4 metrics and ``predictions.csv``, ``scans.csv`` and
    ``patients.csv`` of a data set of slices.

    Results on the main process (``{}`` on others), in percent but for the loss::

        {"slices": {"accuracy", "sensitivity-<class>", "precision-<class>", ..., "loss"},
         "scans": {"accuracy", ...}, "patients": {"accuracy", ...}}

    Scans and patients are there when slices tell theirs; their scores are the mean of their slices'
    (:mod:`ctmasknet.evaluation.pooling` has more, and tells when a label is not clear).

    Slices without a label are written to ``predictions.csv`` and left out of every metric.
    """

    def __init__(
        self,
        dataset_name: str | None = None,
        *,
        class_names: Sequence[str] | None = None,
        output_dir: str | os.PathLike | None = None,
        distributed: bool = True,
    ):
        """
        Args:
            dataset_name: a registered data set; gives the class names and the order of the rows.
            class_names: C names in the order of the logits; default: the data set's
                ``image_classes``, and without a data set those of the paper.
            output_dir: folder for the CSV files and ``slices_metrics.json``; None for none.
            distributed: gather from all processes; False evaluates this process alone.
        """
        metadata = MetadataCatalog.get(dataset_name) if dataset_name else None
        self._dataset_name = dataset_name
        self._class_names = tuple(
            class_names or (metadata and metadata.get("image_classes")) or IMAGE_CLASSES
        )
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._distributed = distributed
        #: Give every metric by subgroup too, where slices tell their metadata.
        self.by_subgroup = True
        self._logger = logging.getLogger(__name__)
        self.reset()

    def reset(self) -> None:
        self._rows: dict[str, SlicePrediction] = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take a batch.

        Args:
            inputs: dicts with ``file_name`` and, where known, ``image_id`` (the file's name inside
                its data set, preferred in ``predictions.csv``), ``patient``, ``scan``, ``label``.
            outputs: dicts with ``logits`` (C,), ``scores`` (C,), ``pred_class``, on any device.

        Raises:
            CTMaskNetError: another number of logits than classes, one that is no finite number, or
                a label outside the classes.
        """
        for item, output in zip(inputs, outputs, strict=True):
            logits, scores = (_floats(output[key]) for key in ("logits", "scores"))
            label = item.get("label")
            label = None if label is None else int(label)
            file_name = str(item["file_name"])
            classes = len(self._class_names)
            if len(logits) != classes:
                raise CTMaskNetError(
                    f"{file_name}: the model gives {len(logits)} logits but the data has {classes} "
                    f"classes ({', '.join(self._class_names)}); evaluate with the classes that the "
                    "model was trained on"
                )
            if not np.isfinite(logits).all():
                raise CTMaskNetError(
                    f"{file_name}: the model gives a logit that is no finite number; it has "
                    "diverged, train it anew with a lower SOLVER.BASE_LR, or evaluate an earlier "
                    "checkpoint"
                )
            if label is not None and not 0 <= label < classes:
                raise CTMaskNetError(
                    f"{file_name}: label {label} is outside 0..{classes - 1}; prepare the data set "
                    f"anew with the classes {', '.join(self._class_names)}"
                )
            image_id = item.get("image_id")
            self._rows.setdefault(
                file_name,
                SlicePrediction(
                    file=image_id if isinstance(image_id, str) else file_name,
                    patient=_name(item.get("patient")),
                    scan=_name(item.get("scan")),
                    label=label,
                    pred=int(output["pred_class"]),
                    logits=logits,
                    scores=scores,
                    metadata=item.get("metadata") or {},
                ),
            )

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Gather, log the table, write the files; see the class for what is returned."""
        shares = [self._rows]
        if self._distributed:
            comm.synchronize()
            shares = comm.gather(self._rows, dst=0)
            if not comm.is_main_process():
                return OrderedDict()
        rows = self._in_order(shares)
        if not rows:
            self._logger.warning("No slice was processed: there is nothing to evaluate.")
            return OrderedDict()
        labelled = [row for row in rows if row.label is not None]
        confusion = confusion_matrix(
            [row.label for row in labelled], [row.pred for row in labelled], len(self._class_names)
        )
        metrics = classification_metrics(confusion, self._class_names)
        metrics["loss"] = bce_loss(
            [row.logits for row in labelled], [row.label for row in labelled]
        )
        self._logger.info(
            "%d slices, %d with a label; accuracy %.2f %%, loss %.4f\n%s",
            len(rows),
            len(labelled),
            metrics["accuracy"],
            metrics["loss"],
            confusion_table(confusion, self._class_names),
        )
        pooled = self._pooled_metrics(rows)
        subgroups = None
        if self.by_subgroup and labelled and group_columns(rows):
            pooling = ScorePooling(_POOLING)
            subgroups = subgroup_report(rows, self._class_names, pooling=pooling)
            shown = ["accuracy", *(f"sensitivity-{name}" for name in self._class_names)]
            self._logger.info("%s", subgroup_text(subgroups, shown, interval_text))
        if self._output_dir is not None:
            write_predictions_csv(self._output_dir / "predictions.csv", rows, self._class_names)
            for level in POOLED_LEVELS:
                units = pool_slices(rows, level, ScorePooling(_POOLING))
                write_pooled_csv(self._output_dir, level, units, self._class_names, _POOLING)
            write_json(
                self._output_dir / "slices_metrics.json",
                {
                    "n": len(labelled),
                    "n_without_label": len(rows) - len(labelled),
                    "class_names": list(self._class_names),
                    "confusion_matrix": confusion.tolist(),
                    "metrics": metrics,
                    "pooling": _POOLING,
                    **{f"{level}_metrics": found for level, found in pooled.items()},
                    **({"subgroups": subgroups} if subgroups else {}),
                },
                indent=2,
            )
        return OrderedDict(slices=metrics, **pooled)

    def _pooled_metrics(
        self, rows: Sequence[SlicePrediction]
    ) -> OrderedDict[str, OrderedDict[str, float]]:
        """Metrics of scans and patients with a label; a level without any is left out."""
        found = OrderedDict()
        for level in POOLED_LEVELS:
            pooled = pool_slices(rows, level, ScorePooling(_POOLING))
            mixed = [item.patient for item in pooled if item.mixed]
            if mixed:
                self._logger.warning(
                    "%d %s have slices of unlike label (patient %s first) and are not judged.",
                    *(len(mixed), level, mixed[0]),
                )
            pooled = [item for item in pooled if item.label is not None]
            if not pooled:
                continue
            confusion = confusion_matrix(
                [item.label for item in pooled],
                [item.pred for item in pooled],
                len(self._class_names),
            )
            found[level] = classification_metrics(confusion, self._class_names)
            accuracy = found[level]["accuracy"]
            self._logger.info(
                "%d %s, pooled by %s; accuracy %.2f %%", len(pooled), level, _POOLING, accuracy
            )
        return found

    def _in_order(self, shares: Sequence[dict[str, SlicePrediction]]) -> list[SlicePrediction]:
        """Rows of all processes, each file once, in the data set's order (else rank by rank)."""
        merged: dict[str, SlicePrediction] = {}
        for file_name, row in itertools.chain.from_iterable(share.items() for share in shares):
            merged.setdefault(file_name, row)
        if self._dataset_name in DatasetCatalog.list():
            dicts = DatasetCatalog.get(self._dataset_name)
            index = {str(entry["file_name"]): number for number, entry in enumerate(dicts)}
            merged = dict(sorted(merged.items(), key=lambda pair: index.get(pair[0], len(index))))
        return list(merged.values())


def _name(value: Any) -> str:
    """A patient or scan as text; numbers are names too, 0 among them."""
    return "" if value is None else str(value)


def _floats(values: torch.Tensor | Sequence[float]) -> tuple[float, ...]:
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu().reshape(-1).tolist()
    return tuple(float(value) for value in values)
