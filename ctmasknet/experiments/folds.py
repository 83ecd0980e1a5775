"""Cross-validation: a training on all folds but one for each fold, and what each model says of the
fold that it has not seen, in one ``predictions.csv``, or of a lesion network ``lesions.json``.

A fold's model is chosen on ``DATASETS.VAL``, or is that of the last iteration where there is none;
its own fold chooses nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ctmasknet.config import is_classifier
from ctmasknet.data.registry import dataset_dicts
from ctmasknet.data.sets.folds import SetFold
from ctmasknet.data.sets.joined import JOIN
from ctmasknet.engine.record import read_record
from ctmasknet.engine.setup import training_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.metrics import classification_metrics, confusion_matrix
from ctmasknet.evaluation.predictions import (
    SlicePrediction,
    read_predictions_csv,
    write_predictions_csv,
)
from ctmasknet.experiments.lesion_folds import (
    DETECTIONS,
    LESIONS,
    RESULTS,
    evaluated,
    join_detections,
    told_of,
)
from ctmasknet.experiments.run import Call, call_tool, checked_call
from ctmasknet.files import check_writable, folder_of_one, read_json, write_json
from ctmasknet.schema import anything, checked, names_of, one_of, record

_STATE, _PREDICTIONS = "folds.json", "predictions.csv"
_FORMAT = "ctmasknet folds 1"
_FORM = record({"format": one_of(_FORMAT), "settings": names_of(anything)})
#: What a user's overrides may not say, for each fold has its own.
_OWN = ("DATASETS.TEST", "MODEL.RANKED_BOXES.CACHE_DIR")


def train_folds(args: argparse.Namespace, call: Call = call_tool) -> dict[str, Any]:
    """Train and evaluate on every fold what is not done yet, then join the predictions.

    ``OUTPUT_DIR`` gets ``fold1``, ``fold2``, ... (each a training's folder, with the evaluation of
    its fold), ``predictions.csv`` (a line for each slice of ``DATASETS.TRAIN``, in its order, by
    the model that has not seen the patient; a column ``fold``) and ``folds.json``. Of a lesion
    network it gets ``lesions.json`` and ``results.json`` instead of the predictions.

    Args:
        args: as for :func:`ctmasknet.engine.runs.command.train_from_command_line`, with ``folds``.
        call: runs a tool.

    Returns:
        metrics of all slices, in percent, see
        :func:`ctmasknet.evaluation.metrics.classification_metrics`; of a lesion network see
        :func:`ctmasknet.experiments.lesion_folds.join_detections`.

    Raises:
        CTMaskNetError: what a training refuses; too few patients; a folder of other folds; a
            training or evaluation that ended with an error, naming its log.
    """
    if args.eval_only or (args.resume and args.overwrite):
        other = "`eval_only`" if args.eval_only else "`resume` and `overwrite`"
        raise CTMaskNetError(f"`folds`: does not go with {other}; leave it out")
    if args.num_machines > 1 or "LOCAL_RANK" in os.environ:
        raise CTMaskNetError(
            "`folds`: not under torchrun or on several machines; give `num_gpus`, or train the "
            "folds one by one with DATASETS.TRAIN set@not1of5seed0 and DATASETS.TEST set@1of5seed0"
        )
    for key in _OWN:
        if key in args.opts:
            raise CTMaskNetError(f"`folds`: sets {key} of every fold itself; leave it out")
    cfg = training_cfg(args.config_file, args.opts)
    base, seed = JOIN.join(cfg.DATASETS.TRAIN), max(cfg.SEED, 0)
    folds = [SetFold(base, n, args.folds, seed, rest=False) for n in range(1, args.folds + 1)]
    sizes = [len(dataset_dicts(fold.name)) for fold in folds]
    output = check_writable(cfg.OUTPUT_DIR, folder=True)
    settings = {"folds": args.folds, "seed": seed, "sets": base}
    settings |= {"config_file": str(args.config_file), "opts": list(map(str, args.opts))}
    with folder_of_one(output, "cross-validation", elsewhere="set OUTPUT_DIR to another folder"):
        _claim(output, settings, resume=args.resume, overwrite=args.overwrite)
        print(f"{args.folds} folds of {base}: {', '.join(map(str, sizes))} slices", flush=True)
        seconds: list[float] = []
        for fold in folds:
            start = time.perf_counter()
            new = _train(args, cfg, fold, output, call)
            found = _accuracy(output, fold) if is_classifier(cfg) else told_of(output, fold)
            told = f"fold {fold.number} of {fold.count}: {found}"
            if new:
                seconds.append(time.perf_counter() - start)
                left = (fold.count - fold.number) * sum(seconds) / len(seconds)
                told += f" in {seconds[-1]:.0f} s; {left / 60:.0f} min left"
            print(told, flush=True)
        return _join(output, folds) if is_classifier(cfg) else join_detections(output, folds, cfg)


def _claim(output: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """See that the folder holds these folds or nothing, and say in it whose it is."""
    path = output / _STATE
    present = [name for name in sorted(os.listdir(output)) if not name.startswith(".")]
    if path.is_file():
        remedy = "set OUTPUT_DIR to another folder"
        try:
            found = read_json(path)
        except (OSError, ValueError) as error:
            raise CTMaskNetError(f"{path}: cannot be read ({error}); {remedy}") from None
        before = checked(path, found, _FORM, "the state of folds", remedy)["settings"]
        unlike = [key for key in settings if before.get(key) != settings[key]]
        if not overwrite and unlike:
            key = unlike[0]
            raise CTMaskNetError(
                f"{path}: was made with another {key} ({before.get(key)} and now {settings[key]}); "
                "`overwrite` begins anew, or set OUTPUT_DIR to another folder"
            )
        if not (resume or overwrite):
            raise CTMaskNetError(
                f"{output}: holds these folds already; `resume` goes on, `overwrite` begins anew"
            )
    elif present:
        raise CTMaskNetError(
            f"{output}: holds files of something else, such as {present[0]}; set OUTPUT_DIR to "
            "another folder"
        )
    if overwrite:
        joined = [output / name for name in (_PREDICTIONS, LESIONS, RESULTS)]
        for old in [*output.glob("fold[0-9]*"), *joined]:
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    write_json(path, {"format": _FORMAT, "settings": settings}, 1)


def _train(args: argparse.Namespace, cfg: CfgNode, fold: SetFold, output: Path, call: Call) -> bool:
    """Train on the others and evaluate on the fold; returns whether anything was to be done."""
    folder = output / f"fold{fold.number}"
    answers = _PREDICTIONS if is_classifier(cfg) else DETECTIONS
    done = {
        entry["kind"]
        for entry in read_record(folder)
        if entry.get("status") == "finished"
        and (entry["kind"] == "training" or (evaluated(output, fold) / answers).is_file())
    }
    log = output / f"fold{fold.number}.log"
    words = ["tools/train_net.py", "--config-file", str(args.config_file)]
    words += ["--num-gpus", str(args.num_gpus)]
    own = [*map(str, args.opts), "OUTPUT_DIR", str(folder)]
    own += ["DATASETS.TRAIN", f"({fold._replace(rest=True).name!r},)"]
    own += ["DATASETS.TEST", f"({fold.name!r},)"]
    if "training" not in done:
        again = ["--resume"] if folder.exists() else []
        checked_call(call, f"fold {fold.number} (training)", [*words, *again, *own], {}, log)
        done = set()
    if "evaluation" not in done:
        model = folder / ("model_best.pth" if cfg.SOLVER.BEST_METRIC else "model_final.pth")
        own += ["MODEL.WEIGHTS", str(model)]
        name = f"fold {fold.number} (evaluation)"
        checked_call(call, name, [*words, "--eval-only", *own], {}, log)
        return True
    return False


def _accuracy(output: Path, fold: SetFold) -> str:
    rows, _ = read_predictions_csv(evaluated(output, fold) / _PREDICTIONS)
    return f"accuracy {100 * sum(row.label == row.pred for row in rows) / len(rows):.1f} %"


def _join(output: Path, folds: Sequence[SetFold]) -> dict[str, float]:
    """Write all folds' predictions as one file, and tell what they are worth."""
    classes = list(MetadataCatalog.get(folds[0].base).image_classes)
    found: dict[str, SlicePrediction] = {}
    for fold in folds:
        rows, _ = read_predictions_csv(evaluated(output, fold) / _PREDICTIONS)
        for row in rows:
            known = {**row.metadata, "fold": str(fold.number)}
            found[row.file] = dataclasses.replace(row, metadata=known)
    order = [str(entry["image_id"]) for entry in dataset_dicts(folds[0].base)]
    rows = [found[name] for name in order if name in found]
    write_predictions_csv(output / _PREDICTIONS, rows, classes)
    confusion = confusion_matrix([r.label for r in rows], [r.pred for r in rows], len(classes))
    metrics = classification_metrics(confusion, classes)
    lost = len(order) - len(rows)
    print(
        f"out of fold: {len(rows)} slices, accuracy {metrics['accuracy']:.1f} %"
        + (f"; {lost} slices could not be read" if lost else "")
        + f"; {output / _PREDICTIONS}",
        flush=True,
    )
    return metrics
