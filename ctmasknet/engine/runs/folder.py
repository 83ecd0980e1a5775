"""``OUTPUT_DIR`` is one training's: a new one takes no used folder, and none that is in use."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from ctmasknet.engine.checkpoint import BEST
from ctmasknet.engine.record import RUN_RECORD, read_record
from ctmasknet.engine.runs.identity import RUN
from ctmasknet.errors import CTMaskNetError, report_in
from ctmasknet.files import check_writable, folder_of_one, remove_unfinished

#: What a training and its evaluations leave, what makes it theirs first; their log is added to.
_MODELS, _TO_RESUME = "model_*.pth", "last_checkpoint"
_LEFT = (
    *(_TO_RESUME, RUN_RECORD, _MODELS, "inference", "metrics.json", "timings.json", "config.yaml"),
    *("learning_curves.png", "bad_slices.json", "events.out.tfevents*", "error.txt"),
)


@contextlib.contextmanager
def run_folder(cfg: CfgNode, args: argparse.Namespace) -> Iterator[None]:
    """Hold ``OUTPUT_DIR`` for a training or, together with others, for an evaluation.

    What killed runs left half-written there goes. Every process has to call this, before anything
    is written.

    Args:
        cfg: the run's configuration.
        args: ``eval_only``, ``resume`` (go on with the training of this folder, or begin one) and
            ``overwrite`` (remove what an earlier one left).

    Raises:
        CTMaskNetError: another training is at work there; a training would begin in a folder with
            models or results of another; the folder cannot be written.
    """
    resume, overwrite = bool(args.resume), bool(getattr(args, "overwrite", False))
    if overwrite and (resume or args.eval_only):
        raise CTMaskNetError(
            f"`overwrite` begins a training anew; leave it or "
            f"`{'resume' if resume else 'eval_only'}` out"
        )
    folder = Path(cfg.OUTPUT_DIR)
    with contextlib.ExitStack() as held:
        if comm.is_main_process():
            work = "evaluation" if args.eval_only else "training"
            if not args.eval_only and cfg.MODEL.RANKED_BOXES.CACHE_DIR:
                key = "MODEL.RANKED_BOXES.CACHE_DIR"
                check_writable(cfg.MODEL.RANKED_BOXES.CACHE_DIR, folder=True, argument=key)
            held.enter_context(folder_of_one(folder, work, shared=args.eval_only))
            if not args.eval_only:
                _claim(folder, cfg.MODEL.WEIGHTS, resume, overwrite)
            (folder / "error.txt").unlink(missing_ok=True)
            remove_unfinished(folder)
            for name in ("inference", "ranked_boxes"):
                remove_unfinished(folder / name, below=True)
        comm.synchronize()
        report_in(folder)
        yield


def _claim(folder: Path, weights: str, resume: bool, overwrite: bool) -> None:
    """Make sure that no file of another run is there when a training begins."""
    if resume and (folder / _TO_RESUME).is_file():
        return
    used = [path for pattern in (_TO_RESUME, _MODELS) for path in sorted(folder.glob(pattern))]
    used += sorted(path for path in folder.glob("inference/*/*") if not path.name.startswith("."))
    if not used:
        return
    if not overwrite:
        if not resume:
            raise CTMaskNetError(
                f"{used[0]}: {folder} holds another training; `resume` goes on with that, "
                "`overwrite` removes it and begins anew, or set OUTPUT_DIR to another folder"
            )
        trainings = [entry for entry in read_record(folder) if entry["kind"] == "training"]
        others = [p for p in folder.glob(_MODELS) if p.stem != BEST and not _numbered(p)]
        if others or not trainings or trainings[-1]["status"] == "finished":
            raise CTMaskNetError(
                f"{folder}: has {used[0].name} but no {_TO_RESUME}, so it is unknown what to go on "
                "from; `overwrite` removes what is there and begins anew, or set OUTPUT_DIR to "
                "another folder"
            )
        logging.getLogger(__name__).warning(
            "%s: the training was ended before its first checkpoint, so it begins anew", folder
        )
    start = Path(weights).resolve()
    if weights and any(start == path.resolve() for path in used):
        raise CTMaskNetError(
            f"{weights}: MODEL.WEIGHTS lies in OUTPUT_DIR, where a new training removes it; set "
            "OUTPUT_DIR to another folder"
        )
    for pattern in _LEFT:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _numbered(path: Path) -> bool:
    return path.stem.removeprefix("model_").isdigit()


def check_weights_of_run(cfg: CfgNode, run: str | None) -> None:
    """Refuse weights in ``OUTPUT_DIR`` that are not of the training recorded there.

    Args:
        cfg: of an evaluation.
        run: the training that ``MODEL.WEIGHTS`` states to be of, None where it does not.

    Raises:
        CTMaskNetError: they are another run's.
    """
    path, folder = Path(cfg.MODEL.WEIGHTS), Path(cfg.OUTPUT_DIR)
    recorded = recorded_run(folder)
    if path.parent.resolve() == folder.resolve() and recorded is not None and run != recorded:
        raise CTMaskNetError(
            f"{path}: of another training ({run or 'not stated'}) than {folder / RUN_RECORD} "
            f"records ({recorded}); evaluate it with OUTPUT_DIR set to another folder"
        )


def recorded_run(folder: str | os.PathLike) -> str | None:
    """The id of the training in ``run.json``; None where none is stated."""
    trainings = [entry for entry in read_record(folder) if entry["kind"] == "training"]
    return trainings[-1].get(RUN) if trainings else None
