"""What ``tools/predict.py`` does with its arguments."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ctmasknet.config import is_classifier
from ctmasknet.data.bad_slices import REPORT, BadSlices
from ctmasknet.draw.lesions import check_score_threshold
from ctmasknet.engine.checkpoint import CALIBRATION
from ctmasknet.engine.record import environment, now, write_record
from ctmasknet.engine.setup import inference_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.inputs import list_units
from ctmasknet.predict.manifest import (
    begin,
    check_output,
    check_output_apart,
    finish,
    is_finished,
    read_manifest,
    remove_parts,
    settings_of,
    writing,
)
from ctmasknet.predict.masks import mask_values, require_highdicom
from ctmasknet.predict.outputs import Outputs, Summary
from ctmasknet.predict.predictor import CTPredictor
from ctmasknet.predict.run import Drawing, Worker, refuse_masks_without_head
from ctmasknet.predict.shards import Parts


def predict_from_command_line(args: argparse.Namespace) -> Summary | None:
    """Predict every scan of the inputs into a folder; called in every process of the run.

    Inputs are listed at once and read a folder at a time (see :mod:`ctmasknet.predict.inputs`), so
    that memory does not grow with their number but by their names and, for the patients, by the
    logits.

    Args:
        args: ``config_file``, ``opts`` (see :func:`ctmasknet.engine.setup.inference_cfg`),
            ``input`` (files and folders), ``output`` (folder), ``lesions``, ``masks`` (kinds of
            :data:`ctmasknet.predict.run.MASKS`), ``overlays``, ``score_threshold`` (0..1),
            ``pooling``, ``top_k``, ``batch_size`` (None for the usual), ``bad`` (``error`` or
            ``skip``), ``max_bad_share`` (0..1), ``resume``, ``overwrite``, ``num_gpus``, ``words``
            (the command line, for the record).

    Returns:
        counts, in the main process; None in others.

    Raises:
        CTMaskNetError: bad arguments, weights or inputs; a folder that cannot be written or is
            another run's; more bad slices than allowed, once everything is written.
    """
    setup_logger(distributed_rank=comm.get_rank(), name="ctmasknet")
    cfg, spec = inference_cfg(args.config_file, args.opts)
    bad = BadSlices(
        {}, mode=args.bad, max_share=args.max_bad_share, keys=("--bad", "--max-bad-share")
    )
    check_score_threshold(args.score_threshold)
    masks = tuple(sorted(set(args.masks)))
    lesions = bool(args.lesions or masks or args.overlays or not is_classifier(cfg))
    if "dicom-seg" in masks:
        require_highdicom()
    check_output_apart(args.output, args.input)
    units, inputs_sha256 = list_units(args.input, skip_bad=bad.skip)
    if not units:
        raise CTMaskNetError(f"{args.input[0]}: no file in it; give a folder of CT slices")
    options = {
        "lesions": lesions,
        "masks": list(masks),
        "overlays": args.overlays,
        "score_threshold": args.score_threshold,
        "pooling": args.pooling,
        "top_k": args.top_k,
        "batch_size": args.batch_size or cfg.TEST.IMS_PER_BATCH,
    }
    settings = settings_of(cfg, inputs_sha256, options)
    output, main = Path(args.output), comm.is_main_process()
    found = None
    if main:
        found = check_output(output, settings, resume=args.resume, overwrite=args.overwrite)
    done = comm.all_gather(found is not None and is_finished(found))[0]
    if done:
        return _finished(output, found, bad.max_share) if main else None
    predictor = CTPredictor(
        cfg,
        calibration=spec.get(CALIBRATION),
        pooling=args.pooling,
        top_k=args.top_k,
        batch_size=args.batch_size,
        lesions=lesions,
    )
    refuse_masks_without_head(predictor, masks)
    if main:
        begin(output, settings, found)
    comm.synchronize()
    parts = Parts(output)
    start = time.monotonic()
    try:
        manifest = read_manifest(output)
        if manifest["settings"] != settings:
            raise CTMaskNetError(
                f"{output}: this process sees other inputs, weights or options than the main one; "
                "every machine needs the same files under the same paths"
            )
        worker = Worker(
            predictor,
            parts,
            output,
            Drawing(
                masks=masks,
                overlays=args.overlays,
                score_threshold=args.score_threshold,
                identity=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
                created=datetime.datetime.fromisoformat(manifest["started"]),
            ),
            skip_bad=bad.skip,
            rank=comm.get_rank(),
            world=comm.get_world_size(),
        )
        rate = worker.run(units)
        if not main:
            return None
        outputs = Outputs(
            parts,
            len(units),
            output,
            image_classes=predictor.image_classes,
            lesion_classes=predictor.lesion_classes,
            pooler=predictor.pooler,
            lesions=lesions,
            score_threshold=args.score_threshold,
        )
        summary = outputs.write(bad)
    except BaseException:
        parts.mark_failed(comm.get_rank())
        raise
    with writing(output):
        entry = {
            "kind": "prediction",
            "status": "finished",
            "start": manifest["started"],
            "end": now(),
            "seconds": round(time.monotonic() - start, 1),
            "slices_per_second": round(rate, 2),
            "config_file": str(args.config_file),
            "overrides": [str(word) for word in args.opts],
            "command": shlex.join(["python", "tools/predict.py", *args.words]),
            "inputs": [str(path) for path in args.input],
            "weights": cfg.MODEL.WEIGHTS,
            "settings": settings,
            "pooling": summary.pooling,
            "mask_values": mask_values(predictor.lesion_classes) if masks else {},
            "results": asdict(summary),
            **environment(cfg, getattr(args, "num_gpus", 1)),
        }
        write_record(output, [entry])
        if bad.skip:
            bad.finish(output / REPORT, check=False)
    finish(output, manifest, asdict(summary))
    print(summary_text(summary, output, rate))
    _check_share(summary, bad.max_share, output)
    return summary


def summary_text(summary: Summary, output: Path, rate: float | None = None) -> str:
    """The counts in a few lines."""
    others = " in the main process" if comm.get_world_size() > 1 else ""
    pace = f", {rate:.1f} slices/s{others}" if rate else ""
    lines = [
        f"{summary.slices} slices of {summary.scans} scans, {summary.patients} known patients{pace}"
    ]
    for level, counts in summary.classes.items():
        pooled = f" (pooling: {summary.pooling})" if level != "slices" else ""
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(f"{level}{pooled}: {found}")
    if summary.slices_with:
        found = ", ".join(f"{name} {count}" for name, count in summary.slices_with.items())
        lines.append(f"slices with: {found}; {summary.lesions} lesions of any score")
    if summary.skipped:
        share = f"{100 * summary.bad_share:.2f} %"
        lines.append(f"{summary.skipped} slices or files ({share}) could not be read, see {REPORT}")
    if summary.left_out:
        lines.append(f"{summary.left_out} files are no axial CT and were left out, see the log")
    if summary.problems:
        lines.append(f"{summary.problems} problems of scans, see predictions.jsonl")
    return "\n".join([*lines, f"in {output}"])


def _finished(output: Path, manifest: dict[str, Any], max_bad_share: float) -> Summary:
    remove_parts(output)
    summary = Summary(**manifest["summary"])
    print("finished already:", summary_text(summary, output))
    _check_share(summary, max_bad_share, output)
    return summary


def _check_share(summary: Summary, max_bad_share: float, output: Path) -> None:
    if summary.bad_share > max_bad_share:
        raise CTMaskNetError(
            f"{output / REPORT}: {summary.skipped} of {summary.skipped + summary.slices} slices "
            f"and files could not be read ({100 * summary.bad_share:.2f} %), more than "
            f"--max-bad-share {max_bad_share:g} allows; the others are predicted"
        )
